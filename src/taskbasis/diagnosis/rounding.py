"""What rounding leaves of an update, and which tensors are worth keeping in float32."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from taskbasis.diagnosis.sums import Matrix, Sums
from taskbasis.io.dtypes import F32, DType, floating
from taskbasis.io.storing import Storing

AS_IN_THE_BASE = "as in the base"

EVERY = ("*",)
"""The patterns that match whatever there is."""

TARGET = 0.05
"""The share of the update's norm that may be lost before float32 is advised."""


@dataclass(frozen=True)
class Survival:
    """What becomes of an update d when ``base + d`` is stored. With ``e = stored - (base + d)``:

    Attributes:
        name: of the model, the layer or the tensor.
        dtype: what is stored; of several tensors, what most entries are stored in.
        changed: how many entries d changes.
        norm: ``||d||``.
        lost: ``||e|| / ||d||``. It includes what rounding takes of a base that was stored finer,
            so it may pass 1; the report of a saved model counts that of other tensors, too.
        base: what rounding takes of the base alone, over ``||d||``: 0 where it is stored as it
            was.
        kept: ``1 + <e, d> / ||d||^2``, how much of the step along d is made; 1 is all of it.
        unchanged: the share of changed entries that are stored as if there were no update.
        stochastic: ``lost`` with stochastic rounding: the root of its mean square over all draws.
        drawn: the same, measured with one draw per entry.
        drawn_kept: ``kept`` of that draw; the mean over all draws is 1.
        float32: ``lost`` if it is stored in float32.
        overflow: entries that are too large for the dtype; they are left out of the above.
    """

    name: str
    dtype: str
    changed: int
    norm: float
    lost: float
    base: float
    kept: float
    unchanged: float
    stochastic: float
    drawn: float
    drawn_kept: float
    float32: float
    overflow: int


@dataclass(frozen=True)
class Rounding:
    """What rounding leaves of ``base + scale * sum of the vectors``.

    Attributes:
        dtype: what is stored; "as in the base" where every tensor keeps its own.
        scale: lambda.
        whole, layers, tensors: what is left, together and apart.
        target: the share of the norm that may be lost.
        in_float32: the fewest tensors that must be stored in float32 for less to be lost, by
            what that saves; all that help where even they do not reach the target.
        keep: patterns that match those tensors and no other of the base, for ``--keep-float32``.
        then: the share that is lost then.
        more_bytes: how much larger the model is then.
    """

    dtype: str
    scale: float
    whole: Survival
    layers: tuple[Survival, ...]
    tensors: tuple[Survival, ...]
    target: float
    in_float32: tuple[str, ...]
    keep: tuple[str, ...]
    then: float
    more_bytes: int

    @property
    def advice(self) -> dict[str, list[str]]:
        """The options to write the merged model with: some tensors in float32, or stochastic."""
        if self.safe:
            return {}
        dtype = floating(self.dtype) if self.dtype != AS_IN_THE_BASE else None
        found = {"stochastic": Storing(dtype, seed=0).options}
        if self.in_float32:
            found["float32"] = (Storing(F32) if self.all else Storing(dtype, self.keep)).options
        return found

    @property
    def all(self) -> bool:
        """Whether every tensor of the base, changed or not, must be stored in float32."""
        return self.keep == EVERY

    @property
    def safe(self) -> bool:
        """Whether no more than the target is lost as it is."""
        return self.whole.lost <= self.target

    @property
    def enough(self) -> bool:
        """Whether the target is met once the named tensors are stored in float32."""
        return self.then <= self.target


def rounding(
    sums: Mapping[str, Sums],
    dtypes: Mapping[str, DType],
    layers: Mapping[str, Sequence[str]],
    others: Sequence[str],
    asked: DType | None,
    scale: float,
    target: float,
) -> Rounding:
    """What rounding leaves, from the sums of every tensor.

    Args:
        dtypes: what every tensor is stored in.
        layers: their tensors.
        others: the base's other tensors of floats, which stay as they are.
        asked: the dtype of all, if one was asked for.
    """

    def survival(name: str, tensors: Sequence[str]) -> Survival:
        total = np.sum([sums[t].rounding for t in tensors], axis=0)
        kinds: dict[str, int] = {}
        for tensor in tensors:
            dtype = dtypes[tensor].name
            kinds[dtype] = kinds.get(dtype, 0) + sums[tensor].entries
        return _survival(name, max(kinds, key=lambda kind: kinds[kind]), total)

    chosen, then = fewest({t: s.rounding for t, s in sums.items()}, target)
    return Rounding(
        asked.name if asked is not None else AS_IN_THE_BASE,
        scale,
        survival("model", list(sums)),
        tuple(survival(layer, tensors) for layer, tensors in layers.items()),
        tuple(survival(tensor, [tensor]) for tensor in sums),
        target,
        chosen,
        patterns(chosen, [*sums, *others]),
        then,
        sum((F32.itemsize - dtypes[t].itemsize) * sums[t].entries for t in chosen),
    )


def _survival(name: str, dtype: str, total: Matrix) -> Survival:
    square, changed = float(total[0]), float(total[7])

    def share(error: float) -> float:
        return float(np.sqrt(error / square)) if square > 0 else 0.0

    def along(product: float) -> float:
        return 1.0 + float(product) / square if square > 0 else 1.0

    return Survival(
        name,
        dtype,
        int(changed),
        float(np.sqrt(square)),
        share(total[1]),
        share(total[10]),
        along(total[2]),
        float(total[8]) / changed if changed else 0.0,
        share(total[3]),
        share(total[4]),
        along(total[5]),
        share(total[6]),
        int(total[9]),
    )


def fewest(sums: Mapping[str, Matrix], target: float) -> tuple[tuple[str, ...], float]:
    """The fewest tensors to store in float32 so that at most ``target`` of the norm is lost.

    Those that save most come first, so no smaller set reaches it. Where all of them do not reach
    it, they are all named.

    Args:
        sums: per tensor what :func:`taskbasis.diagnosis.loops.follow` added up.

    Returns:
        The tensors, and what share of the norm is lost then.
    """
    square = float(sum(total[0] for total in sums.values()))
    if not square > 0:
        return (), 0.0
    saved = {name: float(total[1] - total[6]) for name, total in sums.items()}
    helpful = sorted((n for n in sums if saved[n] > 0), key=lambda n: (-saved[n], n))
    errors = {name: float(total[1]) for name, total in sums.items()}
    chosen: list[str] = []
    allowed = target**2 * square
    for name in helpful:
        if sum(errors.values()) <= allowed:
            break
        errors[name] = float(sums[name][6])
        chosen.append(name)
    return tuple(chosen), float(np.sqrt(sum(errors.values()) / square))


def patterns(chosen: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Few patterns that match the chosen names and no other: numbers become ``*`` where they can.

    All of the names are one pattern, :data:`EVERY`.

    >>> patterns(["layers.0.w", "layers.1.w", "norm"], ["layers.0.w", "layers.1.w", "norm", "b"])
    ('layers.*.w', 'norm')
    """
    wanted, found = set(chosen), list[str]()
    if wanted and wanted.issuperset(known):
        return EVERY
    for name in chosen:
        if any(fnmatchcase(name, pattern) for pattern in found):
            continue
        exact = re.sub(r"([*?\[])", r"[\1]", name)
        wide = re.sub(r"\d+", "*", exact)
        alike = {other for other in known if fnmatchcase(other, wide)}
        found.append(wide if len(alike) > 1 and alike <= wanted else exact)
    return tuple(found)
