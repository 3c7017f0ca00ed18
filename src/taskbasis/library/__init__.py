"""Many task vectors in one compressed file or folder: the basis that stands in for them."""

from taskbasis.library.basis import Basis
from taskbasis.library.design import Design
from taskbasis.library.fitting import fit
from taskbasis.library.growing import update

__all__ = ["Basis", "Design", "fit", "update"]
