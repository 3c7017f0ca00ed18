"""Selective task arithmetic against loops and sorts, and as files."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from safetensors.numpy import load_file

from taskbasis.engine import Engine
from taskbasis.errors import MismatchError, UsageError
from taskbasis.kernels import BLOCK
from taskbasis.merging import merge
from taskbasis.methods import Chunk, method
from taskbasis.methods.averaging.average import Average
from taskbasis.methods.elementwise.task_arithmetic import TaskArithmetic
from taskbasis.methods.learnt.sta import Sta
from taskbasis.plan import cutting as plan_module
from taskbasis.scores import Importance
from taskbasis.testing import merged
from taskbasis.vectors import Checkpoint, TaskVector

Matrix = NDArray[Any]


# A dense reference of one tensor: sorts for counting, loops over entries


def rounded(values: Matrix) -> Matrix:
    """To 8 significant bits, halves away from zero."""
    mantissas, exponents = np.frexp(values.astype(np.float64))
    return np.ldexp(np.floor(mantissas * 256 + 0.5), exponents - 8)


def comparable(row: Matrix, kind: str) -> Matrix:
    """The scores of a tensor, made comparable with another's."""
    coarse = rounded(row)
    if kind == "rank":
        return np.array([rank(score, row) for score in row], np.float32)
    size = coarse.mean() if kind == "mean" else coarse.max()
    return row * np.float32(1 / size if size else 1)


def rank(score: Any, row: Matrix) -> float:
    """The share of scores that round to less, and of those that round alike as many as the score's
    place among all floats that do."""
    if score == 0:
        return 0.0
    coarse, own = rounded(row), rounded(score)
    place = (int(np.float32(score).view(np.uint32)) + 0x8000) % 0x10000 / 0x10000
    return float(np.mean(coarse < own) + np.mean(coarse == own) * place)


def powers(scores: Matrix) -> Matrix:
    """Vectors that are 2^t everywhere, so that a sum says which of them are in it."""
    T, d = scores.shape
    return np.repeat(2.0 ** np.arange(T, dtype=np.float32)[:, None], d, axis=1)


def dense_masks(scores: Matrix, of: Sta, deltas: Matrix | None = None) -> Matrix:
    """[T, d], each mask by the rules of the docstring."""
    compare = of.exclusive or of.threshold > 0 or (of.density < 1 and of.scope != "tensor")
    values = np.stack([comparable(row, of.normalize) if compare else row for row in scores])
    plain = values
    if of.effect:
        values = values * np.abs(powers(scores) if deltas is None else deltas)
    masks = np.ones(scores.shape, bool)
    for mask, row, score in zip(masks, values, plain, strict=True):
        k = max(1, int(of.density * len(row)))
        if of.density < 1:
            mask &= (row >= sorted(row)[-k]) & (row > 0)
        if of.threshold:
            mask &= score >= np.float32(of.threshold)
    if of.exclusive:
        for j in range(scores.shape[1]):
            keepers = [t for t in range(len(scores)) if masks[t, j]]
            best = max(keepers, key=lambda t: (values[t, j], -t), default=None)
            masks[:, j] = [t == best for t in range(len(scores))]
    return masks


def masks_of(of: Sta, scores: Matrix, borders: list[int] | None = None) -> Matrix:
    """Which entries are kept, as the sum of powers of two tells."""
    total = merged(of, powers(scores), borders, scores=scores).astype(int)
    return np.array([total >> t & 1 for t in range(len(scores))], bool)


EVERY = [
    Sta(density, scope, normalize, threshold, effect=effect, exclusive=exclusive)  # type: ignore[arg-type]
    for density, scope, normalize, threshold, exclusive, effect in itertools.product(
        (0.1, 0.5, 1.0),
        ("tensor", "model"),
        ("mean", "rank", "max"),
        (0.0, 0.6),
        (False, True),
        (False, True),
    )
]
VALUES = st.sampled_from([0.0, 0.0, 0.25, 0.5, 0.5, 1.0, 1.001, 1.0078125, 3.0, 1e-30, 2e4])
score_rows = arrays.arrays(
    np.float32, st.tuples(st.integers(1, 3), st.integers(1, 25)), elements=VALUES
)


@pytest.mark.parametrize("of", EVERY, ids=lambda of: "-".join(map(str, vars(of).values())))
def test_masks_are_those_of_a_dense_selection(of: Sta) -> None:
    @settings(derandomize=True, deadline=None, max_examples=8)
    @given(score_rows, st.data())
    def check(scores: Matrix, data: st.DataObject) -> None:
        d = scores.shape[1]
        places = sorted(data.draw(st.lists(st.integers(0, d), max_size=2)))
        found = masks_of(of, scores, [0, *places, d])
        np.testing.assert_array_equal(found, dense_masks(scores, of))

    check()


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    arrays.arrays(np.uint32, st.integers(1, 50), elements=st.integers(0, 0x7F7FFFFF)),
    st.floats(0, 1, exclude_min=True, exclude_max=True),
)
def test_the_cutoff_is_exact_to_the_last_bit(bits: Matrix, density: float) -> None:
    scores = bits.view(np.float32)[None]
    k = max(1, int(density * scores.size))
    cutoff = np.sort(scores[0])[-k]
    # Exclusive masks compare normalised scores, among which the smallest may become equal.
    kept = masks_of(Sta(density, exclusive=False), scores)
    np.testing.assert_array_equal(kept, (scores >= cutoff) & (scores > 0))


def test_a_score_of_zero_is_kept_at_density_one_only() -> None:
    scores = np.array([[0, 0, 5, 0], [0, 0, 0, 0]], np.float32)
    assert masks_of(Sta(0.99), scores).astype(int).tolist() == [[0, 0, 1, 0], [0, 0, 0, 0]]
    assert masks_of(Sta(0.99, "model"), scores).sum() == 1
    assert masks_of(Sta(1.0), scores).all()


def test_equal_scores_at_the_cutoff_are_all_kept() -> None:
    scores = np.array([[1, 2, 2, 2, 3]], np.float32)
    assert masks_of(Sta(0.4), scores).astype(int).tolist() == [[0, 1, 1, 1, 1]]


def test_a_score_that_equals_the_threshold_is_kept() -> None:
    """Scores over their mean are 1/2 and 3/2, over the largest 1/4 and 1."""
    scores = np.array([[1, 3]], np.float32)
    assert masks_of(Sta(1.0, threshold=1.5), scores).tolist() == [[False, True]]
    assert masks_of(Sta(1.0, threshold=0.5), scores).tolist() == [[True, True]]
    scores = np.array([[1, 4]], np.float32)
    assert masks_of(Sta(1.0, normalize="max", threshold=0.25), scores).all()
    assert masks_of(Sta(1.0, normalize="max", threshold=1.0), scores).tolist() == [[False, True]]


def test_of_equal_exclusive_scores_the_first_vector_counts() -> None:
    scores = np.array([[1, 2, 0], [1, 0, 2]], np.float32)
    assert masks_of(Sta(1.0, exclusive=True), scores).astype(int).tolist() == [[1, 1, 0], [0, 0, 1]]


def test_who_does_not_keep_an_entry_does_not_keep_others_from_it() -> None:
    """The second vector scores entry 0 higher (7/8 > 3/4), but drops it by its own density."""
    scores = np.array([[3, 4, 1, 1], [7, 8, 8, 8]], np.float32)
    found = masks_of(Sta(0.75, normalize="max", exclusive=True), scores)
    assert found[:, 0].tolist() == [True, False]


@settings(derandomize=True, deadline=None, max_examples=40)
@given(score_rows, st.sampled_from([0.3, 1.0]), st.sampled_from(["mean", "rank", "max"]))
def test_exclusive_supports_are_disjoint(scores: Matrix, density: float, kind: Any) -> None:
    found = masks_of(Sta(density, normalize=kind, exclusive=True), scores)
    assert found.sum(axis=0).max() <= 1
    if density == 1:
        assert np.all(found.sum(axis=0) == 1), "every entry goes to exactly one vector"
    loose = masks_of(Sta(density, normalize=kind, exclusive=False), scores)
    assert not np.any(found & ~loose)
    np.testing.assert_array_equal(found.any(axis=0), loose.any(axis=0))


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.integers(1, 30)),
        elements=st.sampled_from([0.0, -0.5, 0.5, 1.0, -1.0, 2.25, -7.0]),
    ),
    st.sampled_from(EVERY),
)
def test_without_scores_magnitudes_are_the_scores(deltas: Matrix, of: Sta) -> None:
    found = merged(of, deltas)
    np.testing.assert_array_equal(found, merged(of, deltas, scores=np.abs(deltas)))
    wanted = np.where(dense_masks(np.abs(deltas), of, deltas), deltas, 0).sum(
        axis=0, dtype=np.float32
    )
    np.testing.assert_array_equal(found, wanted)


def test_magnitudes_of_float64_are_compared_as_float32() -> None:
    deltas = np.array([[1.0, -1 - 1e-12, 3.0, 0.5]])
    assert merged(Sta(0.5), deltas).tolist() == [1.0, -1 - 1e-12, 3.0, 0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"density": 0.0}, "a density of 0.0"),
        ({"density": 1.01}, r"use (0, 1]"),
        ({"scope": "layers"}, "did you mean 'layer'?"),
        ({"normalize": "sum"}, "normalize 'sum' is unknown"),
        ({"threshold": -0.1}, "a threshold of -0.1 has no meaning"),
        ({"threshold": float("nan")}, "a threshold of nan"),
        ({"threshold": float("inf")}, "a threshold of inf"),
        ({"exclusive": 1}, "takes true or false"),
    ],
)
def test_options_that_mean_nothing(options: Any, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        method("sta", **options)
    assert said in str(caught.value)


def test_stages_are_asked_for_only_where_they_are_needed() -> None:
    assert Sta(1.0).stages() == ()
    assert Sta(0.5, exclusive=False).stages() == ("tensor", "tensor")
    assert Sta(0.5, "layer").stages() == ("tensor", "layer", "layer")
    assert Sta(1.0, exclusive=True).stages() == Sta(1.0, threshold=1.0).stages() == ("tensor",)
    assert Sta(1.0).coefficients(np.ones(3)) is not None
    for of in (Sta(0.5), Sta(1.0, exclusive=True), Sta(1.0, threshold=0.1)):
        assert of.coefficients(np.ones(3)) is None


# As files

SHAPES = {"h.0.w": (40, 60), "h.0.b": (7,), "h.1.w": (2049,), "scalar": (), "empty": (0, 4)}


class World:
    """A base of zeros, three models, and scores on a grid that float16 holds exactly."""

    def __init__(self, write_folder: Any, write_scores: Any, dtype: Any = np.float32) -> None:
        rng = np.random.default_rng(0)
        start = {n: rng.standard_normal(s) for n, s in SHAPES.items()}
        start = {n: np.asarray(a).astype(dtype) for n, a in start.items()}
        self.base = write_folder("base", start)
        self.folders, self.scores, self.dense = [], list[Importance](), []
        for t in range(3):
            moved = {
                n: np.asarray(a + rng.standard_normal(a.shape).astype(dtype))
                for n, a in start.items()
            }
            self.folders.append(write_folder(f"t{t}", moved, 1 + t % 2))
            scores = {n: rng.integers(0, 9, s) / np.float32(8) for n, s in SHAPES.items()}
            self.dense.append({n: np.asarray(a, np.float32) for n, a in scores.items()})
            self.scores.append(write_scores(f"s{t}", self.folders[-1], self.dense[-1]))
        self.vectors = [TaskVector(self.base, folder) for folder in self.folders]

    def merge(self, of: Any, scores: Any = None, scale: float = 1.0) -> Any:
        given = self.scores if scores is None else scores
        return merge(self.base, self.vectors, of, scale, scores=given)


@pytest.fixture
def world(write_folder: Any, write_scores: Any) -> World:
    return World(write_folder, write_scores)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_at_density_one_the_files_are_those_of_task_arithmetic(
    dtype: Any, scale: float, write_folder: Any, write_scores: Any, tmp_path: Path
) -> None:
    world = World(write_folder, write_scores, dtype)
    world.merge(Sta(1.0), scale=scale).save(tmp_path / "selected")
    world.merge(Sta(1.0), [], scale).save(tmp_path / "by_magnitude")
    world.merge(TaskArithmetic(), [], scale).save(tmp_path / "plain")
    plain = (tmp_path / "plain" / "model.safetensors").read_bytes()
    for name in ("selected", "by_magnitude"):
        assert (tmp_path / name / "model.safetensors").read_bytes() == plain
    assert load_file(tmp_path / "plain" / "model.safetensors")["h.0.w"].dtype == dtype


@pytest.mark.parametrize(
    "of",
    [
        Sta(0.3, exclusive=False),
        Sta(0.3, effect=True, exclusive=False),
        Sta(0.3, "tensor", "rank", 0.7, exclusive=True),
        Sta(1.0, effect=True, exclusive=True),
    ],
    ids=repr,
)
def test_files_hold_what_is_kept(of: Sta, world: World, tmp_path: Path) -> None:
    saved = world.merge(of).save(tmp_path / "out")
    found = Checkpoint(tmp_path / "out").store
    deltas = [vector.tensors() for vector in world.vectors]
    kept = np.zeros(3)
    for name in SHAPES:
        scores = np.stack([dense[name].ravel() for dense in world.dense])
        rows = np.stack([delta[name].ravel() for delta in deltas])
        masks = dense_masks(scores, of, rows) if scores.size else np.zeros(scores.shape, bool)
        wanted = Checkpoint(world.base).store[name].load().ravel()
        total = np.zeros_like(wanted)
        for row in np.where(masks, rows, np.float32(0)):
            total = total + row
        np.testing.assert_array_equal(found[name].load().ravel(), wanted + total)
        kept += masks.sum(axis=1)
    assert saved.kept is not None
    np.testing.assert_allclose(saved.kept.density, kept / 4457)
    together = saved.kept.overlap - np.diag(np.diag(saved.kept.overlap))
    assert (not np.any(together)) == of.exclusive
    assert np.all((saved.kept.norm > 0) & (saved.kept.norm < 1))


@pytest.mark.parametrize(
    "of", [Sta(0.3), Sta(0.3, "layer", "rank"), Sta(0.3, "model", "max", 0.2, True, True)], ids=repr
)
def test_bits_are_those_of_any_cut_and_any_workers(
    of: Sta, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(workers: int) -> bytes:
        found = world.merge(of).tensors(Engine(workers))
        return b"".join(found[name].tobytes() for name in SHAPES)

    whole = made(1)
    assert made(5) == whole
    monkeypatch.setattr(plan_module, "_CUT", BLOCK)
    for workers in (1, 2):
        assert made(workers) == whole


def test_an_exclusive_selection_is_undone_by_leaving_a_task_out(world: World) -> None:
    """What two tasks keep when three exclude each other is theirs alone."""
    of = Sta(1.0, exclusive=True)
    all_three = world.merge(of).tensors()
    for name in ("h.0.w", "h.1.w"):
        scores = np.stack([dense[name].ravel() for dense in world.dense])
        masks = dense_masks(scores, of)
        delta = world.vectors[2].tensors()[name].ravel()
        base = Checkpoint(world.base).store[name].load().ravel()
        ours = masks[2]
        np.testing.assert_array_equal(all_three[name].ravel()[ours], (base + delta)[ours])


# What is refused


def test_scores_of_another_model(world: World) -> None:
    with pytest.raises(
        MismatchError, match=r"s2.safetensors were learnt of the model .*t2 .*/t1 was taken"
    ) as caught:
        world.merge(Sta(), [world.scores[0], world.scores[2], world.scores[1]]).tensors()
    assert "give every vector the scores of its own model" in str(caught.value)


def test_a_stored_vector_knows_its_model_too(world: World, tmp_path: Path) -> None:
    stored = []
    for t, vector in enumerate(world.vectors):
        vector.save(tmp_path / f"v{t}.safetensors")
        stored.append(TaskVector.open(tmp_path / f"v{t}.safetensors"))
    found = merge(world.base, stored, Sta(), scores=world.scores).tensors()
    wanted = world.merge(Sta()).tensors()
    for name in SHAPES:
        assert found[name].tobytes() == wanted[name].tobytes()
    with pytest.raises(MismatchError, match="were learnt of the model"):
        merge(world.base, stored[::-1], Sta(), scores=world.scores).tensors()


def test_not_as_many_scores_as_vectors(world: World) -> None:
    with pytest.raises(UsageError, match="3 vectors need as many files of scores, not 2"):
        world.merge(Sta(), world.scores[:2]).tensors()


def test_scores_for_a_method_that_takes_none(world: World, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="method 'average' takes no scores; leave them out"):
        world.merge(Average()).save(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tensor_that_was_not_scored(
    world: World, write_scores: Callable[..., Importance], tmp_path: Path
) -> None:
    scores = dict(world.dense[0])
    del scores["h.1.w"]
    less = write_scores("less", world.folders[0], scores)
    with pytest.raises(MismatchError, match=r"holds no scores of tensor 'h.1.w'") as caught:
        world.merge(Sta(), [less, *world.scores[1:]]).save(tmp_path / "out")
    assert "leave it out of the vector with --exclude" in str(caught.value)
    assert not (tmp_path / "out").exists()
    vectors = [TaskVector(world.base, f, exclude=["h.1.w"]) for f in world.folders]
    found = merge(world.base, vectors, Sta(), scores=[less, *world.scores[1:]]).tensors()
    np.testing.assert_array_equal(found["h.1.w"], Checkpoint(world.base).store["h.1.w"].load())


def test_select_gives_masks_to_who_asks() -> None:
    chunk = Chunk(np.ones((1, 3), np.float32), np.array([[1, 5, 3]], np.float32))
    state = [None, np.array([3], np.float32)]
    assert Sta(0.5, exclusive=False).select(chunk, state).tolist() == [[False, True, True]]
