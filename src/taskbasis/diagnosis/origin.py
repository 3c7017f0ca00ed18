"""Whether a vector was taken from the base that it is shown with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from taskbasis.diagnosis.sums import Sums

Verdict = Literal["own", "other", "scaled", "unknown"]

TAKEN, RESEMBLANCE = 0.5, 0.5
"""Another base: at least so much of the base is taken away, and the rest resembles it less."""

SCALED, PARALLEL = 0.1, 0.9
"""A scaled base: it changes at least by so much, and the rest still points where it pointed."""

CHANCE = 3.0
"""Standard deviations of what unrelated numbers give by chance, which no verdict rests on."""


@dataclass(frozen=True)
class Likeness:
    """How a vector stands to its base, in some tensors.

    A model fine-tuned from the base has a vector that is short beside it and nearly at right
    angles to it, so nothing of the base is taken away. From an unrelated base theta_w the
    difference ``theta_t - theta_w`` takes away all of it: ``taken`` is 1, and for models of equal
    norm ``ratio`` is sqrt(2) and ``cosine`` -1/sqrt(2).

    Tried on eight fine-tunes of a small vision transformer on digits. Beside their own base:
    ratio 0.10 to 0.14, cosine up to 0.07, ``taken`` within 0.01 of 0, ``resemblance`` at least
    0.99. Beside a base trained from another initialisation: ratio 1.44 to 1.45, cosine -0.69,
    ``taken`` 1.00, ``resemblance`` 0.00; with the weights of norms, near 1 in every model, the
    last two would be 0.10 and 0.90, so only matrices are looked at. Beside their own base times
    c: ``taken`` 1 - 1/c, ``resemblance`` 0.99. Beside another fine-tune of it: ratio 0.15,
    ``taken`` 0.01, which is not told apart.

    Attributes:
        name: of the model or the layer.
        ratio: ``||tau|| / ||base||``.
        cosine: of tau and the base.
        taken: ``-<tau, base> / ||base||^2``, the share of the base that tau takes away.
        resemblance: the cosine of ``base + tau`` and the base.
        verdict: ``other`` where ``taken`` is above 0.5 and ``resemblance`` below 0.5; ``scaled``
            where ``|taken|`` is above 0.1 and ``resemblance`` at least 0.9: by ``1 - taken``;
            ``unknown`` where either is zero; otherwise ``own``. ``taken`` must also pass
            three times what chance gives in so few entries, ``ratio / sqrt(entries)``.
    """

    name: str
    ratio: float
    cosine: float
    taken: float
    resemblance: float
    verdict: Verdict


@dataclass(frozen=True)
class Origin:
    """Whether a vector comes from the base that it is shown with.

    Attributes:
        vector: its name.
        whole: in all matrices together; in all tensors where there is no matrix.
        layers: in the matrices of every layer.
    """

    vector: str
    whole: Likeness
    layers: tuple[Likeness, ...]

    @property
    def suspicious(self) -> bool:
        """Whether it looks as if it was taken from another or a scaled base: the whole does, and
        at least half of the layers do; otherwise they are what stands out."""
        alike = sum(layer.verdict == self.whole.verdict for layer in self.layers)
        return self.whole.verdict in ("other", "scaled") and 2 * alike >= len(self.layers)

    @property
    def strangers(self) -> tuple[str, ...]:
        """The layers that look as if they were made anew, resized, or taken from elsewhere."""
        return tuple(layer.name for layer in self.layers if layer.verdict == "other")


def origins(names: tuple[str, ...], layers: Mapping[str, Mapping[str, Sums]]) -> tuple[Origin, ...]:
    """What is found of every vector.

    A vector counts where it is not zero, so that an adapter is judged by what it changes.

    Args:
        layers: per layer the sums of the tensors to judge by, by name.
    """
    return tuple(_origin(t, name, layers) for t, name in enumerate(names))


def _origin(t: int, name: str, layers: Mapping[str, Mapping[str, Sums]]) -> Origin:
    changed = {
        layer: [sums for sums in tensors.values() if sums.gram[t, t] > 0]
        for layer, tensors in layers.items()
    }
    every = [sums for group in changed.values() for sums in group]
    return Origin(
        name,
        _likeness("model", t, every),
        tuple(_likeness(layer, t, group) for layer, group in changed.items() if group),
    )


def _likeness(name: str, t: int, parts: list[Sums]) -> Likeness:
    entries = sum(sums.entries for sums in parts)
    own = float(sum(sums.gram[t, t] for sums in parts))
    base = float(sum(sums.gram[-1, -1] for sums in parts))
    both = float(sum(sums.gram[t, -1] for sums in parts))
    return likeness(name, entries, own, base, both)


def likeness(name: str, entries: int, own: float, base: float, both: float) -> Likeness:
    """The verdict from ``||tau||^2``, ``||base||^2`` and their inner product.

    >>> likeness("model", 10**6, 2.0, 1.0, -1.0).verdict, likeness("w", 99, 0.01, 1.0, 0.0).verdict
    ('other', 'own')
    """
    if not (own > 0 and base > 0):
        return Likeness(name, 0.0, 0.0, 0.0, 0.0, "unknown")
    ratio, taken = float(np.sqrt(own / base)), -both / base
    tuned = max(own + 2 * both + base, 0.0)
    resemblance = (base + both) / float(np.sqrt(base * tuned)) if tuned > 0 else 0.0
    chance = CHANCE * ratio / float(np.sqrt(entries))
    verdict: Verdict = "own"
    if taken > max(TAKEN, chance) and resemblance < RESEMBLANCE:
        verdict = "other"
    elif abs(taken) > max(SCALED, chance) and resemblance >= PARALLEL:
        verdict = "scaled"
    cosine = both / float(np.sqrt(own * base))
    return Likeness(name, ratio, cosine, taken, min(resemblance, 1.0), verdict)
