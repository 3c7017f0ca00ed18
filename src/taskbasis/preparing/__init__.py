"""Recipes resolved against headers: which tensors of which models, all of what is wrong at once."""

from taskbasis.preparing.making import prepare
from taskbasis.preparing.prepared import Made, Prepared, donor_of

__all__ = ["Made", "Prepared", "donor_of", "prepare"]
