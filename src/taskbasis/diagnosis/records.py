"""All that was found, as plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from taskbasis import notebook
from taskbasis.diagnosis.origin import Origin
from taskbasis.diagnosis.parts import Part
from taskbasis.diagnosis.ranks import Rank
from taskbasis.diagnosis.rounding import Rounding

FORMAT, VERSION = "taskbasis.diagnosis", 1


@dataclass(frozen=True)
class Pairs:
    """What any two vectors are to each other, in all tensors together.

    Attributes:
        cosines: [T, T].
        conflicts: [T, T] the share of entries whose signs differ, as :class:`Part` has it.
        weighted: [T, T] the same, every entry counted by ``|a b|``.
    """

    cosines: tuple[tuple[float, ...], ...]
    conflicts: tuple[tuple[float, ...], ...]
    weighted: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Shared:
    """What the vectors have in common.

    Attributes:
        mean: ``T ||mean||^2 / mean ||tau||^2``: 1 for vectors at right angles, T for equal ones.
        share: the mean inner product of two vectors over the mean squared norm,
            ``(mean - 1) / (T - 1)``: 0 at right angles, 1 for equal ones, negative for opposed.
        before, after: the mean over pairs of ``|cos|``, as they are and without the one vector
            that adaptive weight disentanglement finds (see
            :func:`taskbasis.basis.disentangling.disentangle`).
        taken: the norm of that vector over the mean norm.
    """

    mean: float
    share: float
    before: float
    after: float
    taken: float


@dataclass(frozen=True)
class Diagnosis:
    """What T task vectors look like, alone, together, beside their base, and after rounding.

    Attributes:
        names: of the vectors.
        base: what the base is called; None without one.
        whole, layers, tensors: norms, angles and conflicts, together and apart.
        pairs: of any two vectors.
        shared: what all have in common; None of a single vector.
        ranks: effective ranks in the largest matrices.
        origins: per vector, whether it was taken from this base; none without a base.
        rounding: what rounding leaves of the update; None without a base.
        sentences: what is wrong or worth knowing, in words, the worst first.
    """

    names: tuple[str, ...]
    base: str | None
    whole: Part
    layers: tuple[Part, ...]
    tensors: tuple[Part, ...]
    pairs: Pairs
    shared: Shared | None
    ranks: tuple[Rank, ...]
    origins: tuple[Origin, ...]
    rounding: Rounding | None
    sentences: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Everything as plain data that JSON can hold: no NaN, no infinity."""
        content: dict[str, Any] = {"format": FORMAT, "version": VERSION, **asdict(self)}
        for found, origin in zip(content["origins"], self.origins, strict=True):
            found["suspicious"] = origin.suspicious
            found["strangers"] = origin.strangers
        for found, rank in zip(content["ranks"], self.ranks, strict=True):
            found["full"] = rank.full
        if self.rounding is not None:
            content["rounding"]["advice"] = self.rounding.advice
        plain = _lists(content)
        assert isinstance(plain, dict)
        return plain

    def _repr_html_(self) -> str:
        columns = [("norm", self.whole.norms), ("relative to the base", self.whole.relative)]
        known = [(name, values) for name, values in columns if values is not None]
        rows = zip(self.names, *(values for _, values in known), strict=True)
        vectors = notebook.table("vectors", ["vector", *(name for name, _ in known)], rows)
        pairs = zip(self.names, self.pairs.cosines, strict=True)
        cosines = notebook.table("cosines", ["", *self.names], [[n, *row] for n, row in pairs])
        found = self.sentences or ("nothing looks wrong",)
        return notebook.together(notebook.listed("diagnosis", found), vectors, cosines)


def _lists(value: Any) -> Any:
    """Tuples as lists, so that what is written reads back equal."""
    if isinstance(value, dict):
        return {key: _lists(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_lists(inner) for inner in value]
    return value
