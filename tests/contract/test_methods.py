"""Every registered method keeps the contract, and every clause catches who does not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from taskbasis import TaskVector, merge, stored, testing
from taskbasis.engine import Engine
from taskbasis.granularity import Granularity
from taskbasis.methods import Chunk, Method, Moment, method, registered
from taskbasis.methods.base import Need, Unit
from taskbasis.methods.learnt.sta import Sta
from taskbasis.recipe import Binding
from taskbasis.scores import Importance, ImportanceWriter, Moments, MomentsWriter, Origin
from taskbasis.testing import BrokenContract, Trial, check_method, trials
from taskbasis.vectors import Checkpoint

Array = NDArray[Any]


@pytest.mark.parametrize("name", registered())
@pytest.mark.promise(
    "Every method is pure, exact to stated rounding, and the same for any cuts and workers."
)
def test_every_method_keeps_the_contract(name: str) -> None:
    check_method(method(name))


@pytest.mark.parametrize("name", ["magmax", "sta"])
def test_an_order_that_matters_must_be_declared(name: str) -> None:
    with pytest.raises(BrokenContract, match=f"{name}: the order of the vectors"):
        check_method(method(name), ordered=False)


def test_an_exclusive_selection_is_ordered_only_where_scores_are_equal() -> None:
    """All trials but those of few distinct numbers, and of zeros."""
    of, tried = Sta(exclusive=True), 0
    for trial in trials(of, 5):
        scores = np.abs(trial.vectors) if trial.scores is None else trial.scores
        if any(len(set(row.tolist())) < trial.length - 1 for row in scores):
            continue
        tried += 1
        np.testing.assert_allclose(
            trial.turned([4, 2, 0, 1, 3]).merged(of), trial.merged(of), rtol=1e-6
        )
    assert tried == 5


@dataclass(frozen=True)
class Sum(Method):
    """Right in every way; what follows spoils one thing each."""

    name: ClassVar[str] = "sum"
    formula: ClassVar[str] = "sum_t tau_t"
    source: ClassVar[str] = "this file"
    when: ClassVar[str] = "never"

    def apply(self, chunk: Chunk, state: Any) -> Array:
        total = np.zeros(chunk.deltas.shape[1], chunk.deltas.dtype)
        for row in chunk.deltas:
            total += row
        return total


@dataclass(frozen=True)
class Overwriting(Sum):
    """Uses its input as scratch, which is allowed."""

    def apply(self, chunk: Chunk, state: Any) -> Array:
        deltas = chunk.deltas
        for row in deltas[1:]:
            deltas[0] += row
        deltas[1:] = np.nan
        return deltas[0]


@dataclass(frozen=True)
class Normed(Sum):
    """Divides by the norm of the longest vector, in a stage that sums floats."""

    def stages(self) -> tuple[Granularity, ...]:
        return ("model",)

    def observe(self, stage: int, chunk: Chunk, state: Any) -> Array:
        return np.asarray(np.sum(chunk.deltas.astype(np.float32) ** 2, axis=1))

    def finish(self, stage: int, total: Array, state: Any) -> float:
        return float(np.sqrt(np.max(total)))

    def apply(self, chunk: Chunk, state: Any) -> Array:
        (norm,) = state
        scale = np.asarray(1 / norm if norm else 0.0, chunk.deltas.dtype)
        return np.asarray(super().apply(chunk, ()) * scale)


def test_what_is_allowed() -> None:
    check_method(Sum())
    check_method(Overwriting())
    check_method(Normed(), tolerance=1e-5)
    with pytest.raises(BrokenContract, match="cut into"):
        check_method(Normed())


@dataclass(frozen=True)
class Nameless(Sum):
    name: ClassVar[str] = ""


class Undecorated(Sum):
    strength: float = 0.5


@dataclass(frozen=True)
class Holding(Sum):
    table: Any = field(default_factory=lambda: np.zeros(2).tobytes())


@dataclass(frozen=True)
class Tall(Sum):
    def apply(self, chunk: Chunk, state: Any) -> Array:
        return super().apply(chunk, state)[None]


@dataclass(frozen=True)
class Narrowing(Sum):
    def apply(self, chunk: Chunk, state: Any) -> Array:
        return super().apply(chunk, state).astype(np.float32)


@dataclass(frozen=True)
class Unbiased(Sum):
    """T - 1 below the line."""

    def apply(self, chunk: Chunk, state: Any) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(
                super().apply(chunk, state) / np.float32(len(chunk.deltas) - 1), chunk.deltas.dtype
            )


@dataclass(frozen=True)
class Shifting(Sum):
    def apply(self, chunk: Chunk, state: Any) -> Array:
        return super().apply(chunk, state) + chunk.deltas.dtype.type(1e-6)


@dataclass(frozen=True)
class Rolling(Sum):
    """Random numbers of a stream that goes on."""

    random: ClassVar[np.random.Generator] = np.random.default_rng(0)

    def apply(self, chunk: Chunk, state: Any) -> Array:
        kept = self.random.random(chunk.deltas.shape) < 0.5
        return super().apply(replace(chunk, deltas=chunk.deltas * kept), state)


@dataclass(frozen=True)
class Counting(Sum):
    """Remembers that it was called."""

    calls: int = 0

    def apply(self, chunk: Chunk, state: Any) -> Array:
        object.__setattr__(self, "calls", self.calls + 1)
        return super().apply(chunk, state)


@dataclass(frozen=True)
class Centring(Sum):
    """Takes the mean of a stretch for that of a vector."""

    def apply(self, chunk: Chunk, state: Any) -> Array:
        total = super().apply(chunk, state)
        return np.asarray(total - (total.mean() if total.size else 0), chunk.deltas.dtype)


@dataclass(frozen=True)
class Pairwise(Sum):
    """NumPy sums a single column in another order than many."""

    def apply(self, chunk: Chunk, state: Any) -> Array:
        return np.asarray(np.repeat(chunk.deltas, 50, axis=0).sum(axis=0))


@dataclass(frozen=True)
class Homebound(Sum):
    """Gives another result away from the main thread."""

    def apply(self, chunk: Chunk, state: Any) -> Array:
        away = threading.current_thread() is not threading.main_thread()
        return super().apply(replace(chunk, deltas=-chunk.deltas) if away else chunk, state)


@dataclass(frozen=True)
class Boasting(Sum):
    """Its coefficients are not what it does."""

    def coefficients(self, weights: Array) -> Array:
        return np.ones(len(weights))

    def apply(self, chunk: Chunk, state: Any) -> Array:
        return super().apply(chunk, state) / chunk.deltas.dtype.type(len(chunk.deltas))


@dataclass(frozen=True)
class Halving(Sum):
    """A weighted sum, but one vector counts half."""

    def coefficients(self, weights: Array) -> Array:
        return np.full(len(weights), 0.5)

    def apply(self, chunk: Chunk, state: Any) -> Array:
        return super().apply(chunk, state) * chunk.deltas.dtype.type(0.5)


@dataclass(frozen=True)
class Scanty(Sum):
    """One coefficient, however many vectors there are."""

    def coefficients(self, weights: Array) -> Array:
        return np.ones(1)


@dataclass(frozen=True)
class Favouring(Sum):
    def apply(self, chunk: Chunk, state: Any) -> Array:
        return super().apply(replace(chunk, deltas=chunk.deltas[:1]), state)


@dataclass(frozen=True)
class Mute(Sum):
    when: ClassVar[str] = ""


@dataclass(frozen=True)
class Absolute(Sum):
    """Adds what it is to subtract."""

    def apply(self, chunk: Chunk, state: Any) -> Array:
        return super().apply(replace(chunk, deltas=np.abs(chunk.deltas)), state)


@dataclass(frozen=True)
class Dividing(Sum):
    """Divides by a sum of weights that nearly cancel."""

    def apply(self, chunk: Chunk, state: Any) -> Array:
        total = chunk.vector_weights().sum()
        return np.asarray(super().apply(chunk, state) * abs(1 / total), chunk.deltas.dtype)


@dataclass(frozen=True)
class Unitless(Sum):
    unit: ClassVar[Unit] = "row"  # type: ignore[assignment]


@dataclass(frozen=True)
class Choosy(Sum):
    takes: ClassVar[tuple[int, int | None]] = (3, 2)


@dataclass(frozen=True)
class Grounded(Sum):
    """Scribbles on the base."""

    base: ClassVar[Need] = "required"

    def apply(self, chunk: Chunk, state: Any) -> Array:
        assert chunk.base is not None
        chunk.base[:] = 7
        return super().apply(chunk, state)


@dataclass(frozen=True)
class Factored(Sum):
    """Right, with factors as without."""

    unit: ClassVar[Unit] = "matrix"
    factors: ClassVar[Any] = "optional"

    def apply(self, chunk: Chunk, state: Any) -> Array:
        if not chunk.factors:
            return super().apply(chunk, state)
        total = sum(pair.up @ pair.down for pair in chunk.factors)
        return np.asarray(total, chunk.deltas.dtype).ravel()


@dataclass(frozen=True)
class Blotting(Factored):
    def apply(self, chunk: Chunk, state: Any) -> Array:
        found = super().apply(chunk, state)
        for pair in chunk.factors:
            pair.up[:] = 0
        return found


@dataclass(frozen=True)
class Halfhearted(Factored):
    """Forgets the signs of factors."""

    def apply(self, chunk: Chunk, state: Any) -> Array:
        found = super().apply(chunk, state)
        return np.abs(found) if chunk.factors else found


@dataclass(frozen=True)
class Demanding(Factored):
    factors: ClassVar[Any] = "required"


@dataclass(frozen=True)
class Vague(Sum):
    scores: ClassVar[Need] = "maybe"  # type: ignore[assignment]


@dataclass(frozen=True)
class Parted(Sum):
    """Moments belong to whole matrices, which it does not ask for."""

    moments: ClassVar[Need] = "optional"


@dataclass(frozen=True)
class Scored(Sum):
    """Right, and takes scores; what follows spoils how they are used."""

    scores: ClassVar[Need] = "required"

    def apply(self, chunk: Chunk, state: Any) -> Array:
        assert chunk.scores is not None
        return super().apply(replace(chunk, deltas=chunk.deltas * (chunk.scores > 0)), state)


@dataclass(frozen=True)
class Scribbling(Scored):
    def apply(self, chunk: Chunk, state: Any) -> Array:
        assert chunk.scores is not None
        merged = super().apply(chunk, state)
        chunk.scores[:] = 1
        return merged


@dataclass(frozen=True)
class Naive(Scored):
    """A weighted mean; 0 / 0 where all scores are 0."""

    def apply(self, chunk: Chunk, state: Any) -> Array:
        assert chunk.scores is not None
        total = Sum().apply(replace(chunk, deltas=chunk.deltas * chunk.scores), state)
        with np.errstate(all="ignore"):
            return np.asarray(total / chunk.scores.sum(axis=0), chunk.deltas.dtype)


@dataclass(frozen=True)
class Nearsighted(Scored):
    """Keeps what scores more than the mean, of the stretch instead of the tensor."""

    def apply(self, chunk: Chunk, state: Any) -> Array:
        assert chunk.scores is not None
        mean = chunk.scores.mean(axis=1, keepdims=True) if chunk.scores.size else 0
        return super().apply(replace(chunk, deltas=chunk.deltas * (chunk.scores > mean)), state)


@dataclass(frozen=True)
class Deaf(Scored):
    """Hears the scores of the first vector only."""

    def apply(self, chunk: Chunk, state: Any) -> Array:
        assert chunk.scores is not None
        return super().apply(replace(chunk, scores=chunk.scores[:1]), state)


@dataclass(frozen=True)
class Peeking(Scored):
    """Is zero where all deltas are small, which it says that it does not look at."""

    def stages(self) -> tuple[Granularity, ...]:
        return ("model",)

    def stages_see_deltas(self) -> bool:
        return False

    def observe(self, stage: int, chunk: Chunk, state: Any) -> Array:
        return np.array([np.abs(chunk.deltas).max(initial=0) > 1])

    def finish(self, stage: int, total: Array, state: Any) -> bool:
        return bool(np.any(total))

    def apply(self, chunk: Chunk, state: Any) -> Array:
        return super().apply(chunk, state) * chunk.deltas.dtype.type(state[0])


@dataclass(frozen=True)
class Promising(Scored):
    """A sum by its coefficients, but entries of score 0 are left out."""

    def coefficients(self, weights: Array) -> Array:
        return np.ones(len(weights))


@dataclass(frozen=True)
class Moved(Sum):
    """Right, and takes moments; what follows spoils how they are used."""

    unit: ClassVar[Unit] = "matrix"
    moments: ClassVar[Need] = "required"


@dataclass(frozen=True)
class Scrawling(Moved):
    def apply(self, chunk: Chunk, state: Any) -> Array:
        for moment in chunk.moments:
            if moment is not None:
                moment.values[:] = 1
        return super().apply(chunk, state)


@dataclass(frozen=True)
class Singular(Moved):
    """Divides by a moment that may be 0."""

    def apply(self, chunk: Chunk, state: Any) -> Array:
        known = [moment.values.sum() for moment in chunk.moments if moment is not None]
        with np.errstate(all="ignore"):
            return np.asarray(super().apply(chunk, state) / np.sum(known), chunk.deltas.dtype)


@dataclass(frozen=True)
class Biased(Moved):
    def apply(self, chunk: Chunk, state: Any) -> Array:
        seen = any(m is not None and np.any(m.values > 0) for m in chunk.moments)
        return super().apply(chunk, state) + chunk.deltas.dtype.type(seen)


@dataclass(frozen=True)
class Leading(Moved):
    """Takes the first task's moments for everybody's."""

    def apply(self, chunk: Chunk, state: Any) -> Array:
        first = chunk.moments[0]
        factor = 0 if first is None else np.sum(first.values)
        return np.asarray(super().apply(chunk, state) * factor, chunk.deltas.dtype)


def test_what_is_allowed_of_those_who_learn() -> None:
    check_method(Scored())
    check_method(Moved())
    check_method(Factored())


BREACHES = [
    (Vague, "check_needs", "its need of scores is 'maybe', none of ignored, optional, required"),
    (Unitless, "check_needs", "its unit is 'row', none of element, matrix, tensor"),
    (Choosy, "check_needs", "from 3 to 2 vectors"),
    (Mute, "check_record", "nothing of its 'when'"),
    (Absolute, "check_signs", "-1 times a vector does not subtract it"),
    (Dividing, "check_signs", "more than their sizes together"),
    (Demanding, "check_needs", "its need of factors is 'required', none of ignored, optional"),
    (Grounded, "check_learnt", "overwrites the base"),
    (Blotting, "check_learnt", "overwrites the factors"),
    (Halfhearted, "check_signs", "-1 times a vector does not subtract it"),
    (Parted, "check_needs", "matrices in parts; say unit"),
    (Scribbling, "check_learnt", "overwrites the scores"),
    (Scrawling, "check_learnt", "overwrites the moments"),
    (Peeking, "check_stages", "its stages depend on deltas after all"),
    (Naive, "check_finite", "not finite"),
    (Nearsighted, "check_cuts", "cut into"),
    (Deaf, "check_order", "the order of the vectors"),
    (Promising, "check_linear", "sum that its coefficients promise"),
    (Singular, "check_finite", "not finite"),
    (Biased, "check_zeros", "do not give zero"),
    (Leading, "check_order", "the order of the vectors"),
    (Nameless, "check_record", "no name"),
    (Undecorated, "check_record", "not decorated"),
    (Holding, "check_record", "not numbers, words"),
    (Tall, "check_shape", "becomes float32 of shape"),
    (Narrowing, "check_shape", "float64 of shape .* becomes float32"),
    (Unbiased, "check_finite", "1 finite vectors of 1 entries is not finite"),
    (Shifting, "check_zeros", "do not give zero"),
    (Rolling, "check_pure", "a second call"),
    (Counting, "check_pure", "a call changes the method"),
    (Centring, "check_cuts", "cut into"),
    (Pairwise, "check_cuts", "cut into"),
    (Homebound, "check_workers", "2 workers give another result than one"),
    (Boasting, "check_linear", "sum that its coefficients promise"),
    (Halving, "check_linear", "one vector counts other than 1"),
    (Scanty, "check_linear", "2 vectors need 2 coefficients"),
    (Favouring, "check_order", "the order of the vectors"),
]


@pytest.mark.parametrize(
    ("broken", "clause", "said"), BREACHES, ids=[kind.__name__ for kind, *_ in BREACHES]
)
def test_every_clause_catches_who_breaks_it(broken: type[Method], clause: str, said: str) -> None:
    with pytest.raises(BrokenContract, match=said):
        getattr(testing, clause)(broken())
    with pytest.raises(BrokenContract):
        check_method(broken())


def test_every_clause_is_tried() -> None:
    clauses = {name for name in vars(testing) if name.startswith("check_")} - {"check_method"}
    assert {clause for _, clause, _ in BREACHES} == clauses


@pytest.mark.parametrize("of", [method(name) for name in registered()], ids=repr)
def test_merged_is_what_the_engine_makes(
    of: Method, write_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """The arrays of the contract and the files of the engine go through the same method."""
    count = min(max(2, of.takes[0]), of.takes[1] or 2)
    tried = [trial for trial in trials(of, count, 30) if known_to_files(trial)]
    assert tried
    for at, trial in enumerate(tried):
        shape = trial.whole_shape
        start = np.zeros(trial.length, np.float32) if trial.base is None else trial.base
        base = write_folder(f"{at}/base", {"tensor": start.reshape(shape)})
        compute = np.float64 if of.double else np.float32
        weights = np.asarray(trial.weights or [1.0] * count, compute)[:, None]
        models = (start + trial.vectors / weights).astype(np.float32)
        tuned = [
            write_folder(f"{at}/{t}", {"tensor": model.reshape(shape)})
            for t, model in enumerate(models)
        ]
        found = merge(
            base,
            [TaskVector(base, folder) for folder in tuned],
            of,
            scores=write_scores(tmp_path / str(at), trial, tuned, shape),
            moments=write_moments(tmp_path / str(at), trial, tuned),
            weights=trial.weights,
        ).tensors()
        kept = replace(trial, vectors=weights * (models.astype(compute) - start.astype(compute)))
        wanted = (start + kept.merged(of)).astype(np.float32)
        if of.coefficients(np.ones(count)) is None:
            np.testing.assert_array_equal(found["tensor"].ravel(), wanted)
        else:  # the fused kernel multiplies coefficients and weights first
            np.testing.assert_allclose(found["tensor"].ravel(), wanted, rtol=1e-6, atol=1e-6)


def known_to_files(trial: Trial) -> bool:
    """Files hold scores as float16 times a power of two, and moments in one layout for all."""
    if trial.factors:
        return False  # adapters are tried in tests/reference/methods/test_sources.py
    return trial.scores is None or bool(np.all(trial.scores * 8 == np.round(trial.scores * 8)))


def origin_of(folder: Path, **options: Any) -> Origin:
    return Origin(stored.bind(Binding(str(folder), Checkpoint(folder).store), Engine(1)), **options)


def write_scores(
    at: Path, trial: Trial, tuned: list[Path], shape: tuple[int, ...]
) -> list[Importance]:
    found = []
    for t, scores in enumerate(() if trial.scores is None else trial.scores):
        out = at / f"scores{t}.safetensors"
        with ImportanceWriter(out, {"tensor": shape}, origin_of(tuned[t])) as writer:
            writer.write("tensor", scores.reshape(shape))
            writer.commit()
        found.append(Importance.open(out))
    return found


def write_moments(at: Path, trial: Trial, tuned: list[Path]) -> list[Moments]:
    """A file without the tensor holds another, since a file cannot be empty."""
    found = []
    for t, moment in enumerate(trial.moments):
        out, known = at / f"moments{t}.safetensors", moment or Moment(np.ones(1, np.float32))
        name = "tensor" if moment else "other"
        options = {"transposed": [name] if known.transposed else []}
        origin = origin_of(tuned[t], options=options)
        with MomentsWriter(out, {name: known.values.shape}, origin) as writer:
            writer.write(name, known.values, 3)
            writer.commit()
        found.append(Moments.open(out))
    return found
