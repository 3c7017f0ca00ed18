"""How importance is measured: the choices, their checks, and the formula that they come to.

Per parameter i, with g_ij the gradient of sample j's loss and f_i a factor:

    mean_abs      mean_j |f_i g_ij|        the default
    abs_mean      |f_i mean_j g_ij|        what the mean loss would change by
    mean_square   mean_j (f_i g_ij)^2

The factor does not depend on the sample, so only one sum over samples is kept per parameter
(of |g|, g or g^2), and the factor is multiplied in at the end.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from taskbasis.errors import UsageError, nearest

FACTORS = {
    "weight": "the tuned weight times the gradient: what zeroing it would cost",
    "delta": "the change since the base times the gradient: what undoing it would cost",
    "grad": "the gradient alone",
    "fisher": "the mean squared gradient: the diagonal of the empirical Fisher information",
    "fisher_delta": "half of fisher times the change squared: a second-order cost of undoing it",
    "magnitude": "the size of the change since the base (or of the weight): needs no data",
}
"""What is multiplied with the gradient, by name."""

AGGREGATIONS = ("mean_abs", "abs_mean", "mean_square")
PLACES = ("tuned", "base", "path")
GRADIENTS = ("auto", "per_sample", "single", "batch")
SQUARED = ("fisher", "fisher_delta")
"""Factors that say themselves how samples are aggregated: by mean squares."""
NEED_BASE = ("delta", "fisher_delta")


@dataclass(frozen=True)
class How:
    """How importance is measured.

    Attributes:
        factor: one of :data:`FACTORS`.
        aggregation: over samples; the fisher factors fix it to ``mean_square``.
        at: where gradients are taken: at the ``tuned`` weights, at those of the ``base``, or at
            ``points`` evenly spaced on the ``path`` from base to tuned, both ends included; the
            points count like so many samples. With ``delta`` and ``abs_mean`` that is integrated
            gradients (Sundararajan et al., ICML 2017). The factor is the tuned model's always.
        points: on the path.
        samples: how many are looked at, drawn by ``seed``; all when there are fewer.
        seed: of the draw.
        gradients: ``per_sample`` (vectorised by torch.func), ``single`` (one backward pass per
            sample), ``batch`` (one per ``batch`` samples: an approximation but for ``abs_mean``),
            or ``auto``: the quickest of the exact ones.
        batch: samples per backward pass with ``batch``.

    Raises:
        UsageError: a choice that is not there, or two that exclude each other.

    >>> How(factor="wieght")
    Traceback (most recent call last):
        ...
    taskbasis.errors.UsageError: there is no factor 'wieght'; did you mean 'weight'?
    """

    factor: str = "weight"
    aggregation: str = "mean_abs"
    at: str = "tuned"
    points: int = 5
    samples: int = 256
    seed: int = 0
    gradients: str = "auto"
    batch: int = 8

    def __post_init__(self) -> None:
        for what, known in (
            ("factor", tuple(FACTORS)),
            ("aggregation", AGGREGATIONS),
            ("at", PLACES),
            ("gradients", GRADIENTS),
        ):
            value = getattr(self, what)
            if value not in known:
                raise UsageError(f"there is no {what} {value!r}; {nearest(str(value), known)}")
        for what, least in (("points", 2), ("samples", 1), ("seed", 0), ("batch", 1)):
            if getattr(self, what) < least:
                raise UsageError(f"{what} is {getattr(self, what)}; give {least} or more")
        if self.factor in SQUARED and self.aggregation == "abs_mean":
            raise UsageError(
                f"the factor {self.factor} is a mean of squares; leave out the aggregation abs_mean"
            )

    @property
    def needs_base(self) -> bool:
        """Whether it cannot be measured without the base."""
        return self.factor in NEED_BASE or self.at != "tuned"

    @property
    def summed(self) -> str:
        """What is summed over samples: ``abs``, ``signed`` or ``square``."""
        if self.factor in SQUARED or self.aggregation == "mean_square":
            return "square"
        return "signed" if self.aggregation == "abs_mean" else "abs"

    @property
    def shares(self) -> tuple[float, ...]:
        """Where gradients are taken, as shares of the way from base to tuned."""
        if self.at == "path":
            return tuple(number / (self.points - 1) for number in range(self.points))
        return (1.0,) if self.at == "tuned" else (0.0,)

    def finish(self, mean: Any, weight: Any, delta: Any) -> Any:
        """The scores from the mean of what was summed; everything is changed in place.

        Args:
            mean: float32, the mean over samples (and points) of |g|, g or g^2.
            weight: gives the tuned weight in float32.
            delta: gives tuned - base in float32.
        """
        if self.factor in ("weight", "delta", "fisher_delta"):
            factor = weight() if self.factor == "weight" else delta()
            mean.mul_(factor.square_() if self.summed == "square" else factor)
        return mean.mul_(0.5 if self.factor == "fisher_delta" else 1).abs_()

    def record(self, samples: int, gradients: str) -> dict[str, Any]:
        """What is written beside the scores: these choices, with what came of them."""
        kept = asdict(self) | {"samples": samples, "gradients": gradients}
        if self.factor in SQUARED:
            kept["aggregation"] = "mean_square"  # what it is, whatever stood there
        if self.at != "path":
            del kept["points"]
        if gradients != "batch":
            del kept["batch"]
        elif self.summed != "signed":
            kept["approximation"] = f"{self.batch} samples are treated as one"
        return kept
