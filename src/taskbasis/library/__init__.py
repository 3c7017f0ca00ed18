"""Many task vectors in one compressed file or folder: the basis that stands in for them."""

from taskbasis.library.basis import Basis
from taskbasis.library.design import Design
from taskbasis.library.fit import fit
from taskbasis.library.update import update

__all__ = ["Basis", "Design", "fit", "update"]
