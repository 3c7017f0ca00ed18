"""How a basis is to be made, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from taskbasis.basis import Cluster, Construction, construction
from taskbasis.basis.cluster import INNER
from taskbasis.errors import UsageError
from taskbasis.granularity import Granularity
from taskbasis.methods import Method, parse_method

_OF_CLUSTER = {known.name for known in fields(Cluster)}

STARTS_PER_GROUP = 1
"""Drawn starting points of the autoencoder where there is a problem per group, not one in all."""

Budget = Literal["even", "spectrum"]
Size = int | float | str | None


@dataclass(frozen=True)
class Design:
    """How a basis is to be made.

    Attributes:
        k: the number of atoms: a count, a fraction of T, ``"error=0.1"`` for the smallest that
            meets a worst relative error, or None for the construction's own choice.
        method: autoencoder, pca, svd, cluster, select or random.
        normalize: mean, cosine or none; see :mod:`taskbasis.basis.scaling`.
        granularity: whether codes are shared by the model, a layer, or are each tensor's own.
        budget: even gives every group k atoms; spectrum spreads k times the model's parameters
            over the groups by what their spectra gain.
        seed: of everything random.
        options: of the construction. For ``cluster``, ``inner`` may be any method that needs
            vectors alone.

    >>> Design(k=0.5, method="pca").construction()
    PCA()
    >>> Design(method="autoencodr").construction()
    Traceback (most recent call last):
        ...
    taskbasis.errors.UsageError: there is no construction 'autoencodr'; did you mean 'autoencoder'?
    """

    k: Size = None
    method: str = "autoencoder"
    normalize: str = "mean"
    granularity: Granularity = "model"
    budget: Budget = "even"
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    def construction(self) -> Construction:
        """The construction, with its options and the seed where it takes one.

        Raises:
            UsageError: the method or an option is unknown.
        """
        if "seed" in self.options:
            raise UsageError("the seed is a field of the design (--random-seed), not an option")
        options = dict(self.options)
        if self.inner is not None:
            options = {name: value for name, value in options.items() if name in _OF_CLUSTER}
            options.pop("inner")
        if "seed" in getattr(construction(self.method), "__dataclass_fields__", {}):
            options["seed"] = self.seed
        if self.method == "autoencoder" and self.granularity != "model":
            options.setdefault("starts", STARTS_PER_GROUP)
        return construction(self.method, **options)

    @property
    def inner(self) -> Method | None:
        """The method that merges each cluster; None when the merge is linear."""
        name = self.options.get("inner")
        if self.method != "cluster" or name is None or name in INNER:
            return None
        more = {k: v for k, v in self.options.items() if k not in _OF_CLUSTER}
        return parse_method(str(name), **more)

    def described(self) -> dict[str, Any]:
        """As plain data, for the record in the file."""
        return {
            "method": self.method,
            "k": self.k,
            "normalize": self.normalize,
            "granularity": self.granularity,
            "budget": self.budget,
            "seed": self.seed,
            **{f"option_{name}": value for name, value in sorted(self.options.items())},
        }

    @classmethod
    def recorded(cls, options: Mapping[str, Any], k: Size) -> Design:
        """The design that a stored basis records, with another size.

        Raises:
            UsageError: its atoms are not linear in the tasks, so it cannot be solved again.
        """
        own = {
            name.removeprefix("option_"): value
            for name, value in options.items()
            if name.startswith("option_")
        }
        if own.get("inner", "mean") not in INNER:
            raise UsageError(
                f"atoms merged by {own['inner']} cannot be recompressed; fit a basis anew"
            )
        named = {name: options[name] for name in ("method", "normalize", "granularity", "seed")}
        return cls(k, **named, options=own)
