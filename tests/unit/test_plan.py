"""Plans: what is merged, copied or converted, in which cuts, in how much memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from taskbasis.difference import difference_leaf
from taskbasis.errors import BaseError, MismatchError, ValueProblem
from taskbasis.io.dtypes import BF16, F32
from taskbasis.io.storing import Storing
from taskbasis.io.tensors import TensorInfo, TensorStore
from taskbasis.kernels import BLOCK
from taskbasis.plan import cutting as plan_module
from taskbasis.plan import make_plan
from taskbasis.recipe import Binding, Combination, Leaf, Term, shape_check

Open = Callable[..., TensorStore]


def f32(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


@pytest.fixture
def base(open_folder: Open) -> TensorStore:
    return open_folder(
        "base",
        {
            "a": f32(2, 3),
            "b": f32(5).astype(np.float16),
            "c": f32(4).astype(np.float64),
            "i": np.arange(3),
            "z": f32(0),
        },
    )


@pytest.fixture
def vector(open_folder: Open, base: TensorStore) -> Callable[..., Combination]:
    """``vector(name, tensors)``: a stored delta of some tensors."""

    def make(name: str, tensors: Mapping[str, Any], factor: float = 1.0) -> Combination:
        store = open_folder(name, tensors)
        leaf = Leaf(name, dict(store.infos), False, Binding("base", base), store.files)
        return Combination((Term(leaf, factor),))

    return make


def test_every_tensor_is_accounted_for(base: TensorStore, vector: Any) -> None:
    plan = make_plan([vector("v", {"a": f32(2, 3)}), vector("w", {"c": f32(4)})], base, base)
    assert [merge.name for merge in plan.merges] == ["a", "c"]
    assert [info.name for info in plan.copies] == ["b", "i", "z"]
    assert (plan.vectors, plan.rows) == (2, 1)
    assert plan.merges[0].mixing.tolist() == [[1.0], [0.0]]
    assert plan.merges[1].mixing.tolist() == [[0.0], [1.0]]
    assert [merge.double for merge in plan.merges] == [False, True]
    assert [merge.bytes_per_element for merge in plan.merges] == [8, 12]


def test_a_delta_needs_no_base(base: TensorStore, vector: Any) -> None:
    plan = make_plan([vector("v", {"a": f32(2, 3)})], None, base)
    assert plan.copies == ()
    assert plan.merges[0].base is None
    assert plan.merges[0].bytes_per_element == 4


def test_another_dtype_converts_what_is_not_merged(base: TensorStore, vector: Any) -> None:
    plan = make_plan([vector("v", {"a": f32(2, 3)})], base, base, Storing(F32))
    assert [merge.name for merge in plan.merges] == ["a", "b", "c"]
    assert [len(merge.rows) for merge in plan.merges] == [1, 0, 0]
    assert [info.name for info in plan.copies] == ["i", "z"]
    plan = make_plan([vector("w", {"a": f32(2, 3)})], base, base, Storing(BF16))
    assert [merge.name for merge in plan.merges] == ["a", "b", "c", "z"]


def test_a_vector_that_cancels_is_not_read(base: TensorStore, vector: Any) -> None:
    v = vector("v", {"a": f32(2, 3), "b": f32(5)})
    plan = make_plan([v + v.scaled(-1.0)], base, base)
    assert plan.merges == ()
    assert [info.name for info in plan.copies] == ["a", "b", "c", "i", "z"]


def test_coefficients_of_one_leaf_add_up(base: TensorStore, vector: Any) -> None:
    v, w = vector("v", {"a": f32(2, 3)}, 2.0), vector("w", {"a": f32(2, 3)})
    plan = make_plan([v.scaled(3.0) + w + v, w.scaled(0.5)], None, base)
    assert plan.merges[0].mixing.tolist() == [[8.0, 1.0], [0.0, 0.5]]
    assert [info.blob.label for info in plan.merges[0].rows] == [
        str(leaf.files[0]) for leaf in (v.leaves[0], w.leaves[0])
    ]


def test_coefficients_per_tensor(base: TensorStore, vector: Any) -> None:
    leaf = vector("v", {"a": f32(2, 3), "b": f32(5), "c": f32(4)}).leaves[0]
    per_tensor = Combination((Term(leaf, 2.0, {"a": 3.0, "b": 0.0}),))
    plan = make_plan([per_tensor], base, base)
    assert [(merge.name, merge.mixing.tolist()) for merge in plan.merges] == [("a", [[6.0]])]
    both = make_plan([per_tensor + Combination((Term(leaf),))], None, base)
    assert [merge.mixing.tolist() for merge in both.merges] == [[[7.0]], [[1.0]], [[1.0]]]


def test_nothing_to_combine(base: TensorStore) -> None:
    with pytest.raises(ValueProblem, match="there is no task vector"):
        make_plan([], None, base)


def test_a_vector_of_another_architecture(base: TensorStore, vector: Any) -> None:
    v = vector("v", {"unknown": f32(2)})
    with pytest.raises(MismatchError, match="another architecture") as caught:
        make_plan([v], base, base)
    assert "tensor 'unknown' of " in str(caught.value)
    assert str(base.path) in str(caught.value)


@pytest.mark.parametrize("shape", [(3, 2), (6,), (1, 2, 3), (), (1, 3)])
def test_a_vector_of_another_shape(base: TensorStore, vector: Any, shape: Any) -> None:
    with pytest.raises(MismatchError) as caught:
        make_plan([vector("v", {"a": f32(*shape)})], base, base)
    for part in (f"shape {list(shape)}", str(base.files[0]), "[2, 3]", "tensor 'a'"):
        assert part in str(caught.value)


def test_two_vectors_of_unlike_shapes(base: TensorStore, vector: Any) -> None:
    v, w = vector("v", {"a": f32(3)}), vector("w", {"a": f32(1, 3)})
    with pytest.raises(MismatchError, match=r"\[1, 3\].*\[3\]"):
        make_plan([v + w], None, base)
    with pytest.raises(MismatchError, match=r"\[1, 3\].*\[3\]"):
        make_plan([v, w], None, base)


def test_a_delta_for_integers(base: TensorStore, vector: Any) -> None:
    with pytest.raises(MismatchError, match="holds int64, which nothing is added to"):
        make_plan([vector("v", {"i": f32(3)})], base, base)


def test_deltas_of_two_bases_do_not_mix(open_folder: Open) -> None:
    store = open_folder("m", {"a": f32(1)})
    sides = [
        Combination((Term(Leaf(name, store.infos, False, Binding(f"base of {name}", None, name))),))
        for name in ("v", "w")
    ]
    with pytest.raises(BaseError) as caught:
        sides[0] + sides[1]
    for part in ("v was taken from the base base of v", "w from base of w"):
        assert part in str(caught.value)


def test_bindings() -> None:
    by_mark, same, other = (Binding("x", None, mark) for mark in ("1", "1", "2"))
    assert by_mark.same_as(same) is True
    assert by_mark.same_as(other) is False
    assert by_mark.same_as(Binding("y")) is None


def test_a_scalar_is_no_vector() -> None:
    one, other = (TensorInfo("a", F32, shape, None) for shape in ((), (1,)))  # type: ignore[arg-type]
    shape_check(one, one)
    other_blob = type("B", (), {"label": "file"})()
    with pytest.raises(MismatchError, match=r"\[1\]"):
        shape_check(
            TensorInfo("a", F32, other.shape, other_blob), TensorInfo("a", F32, (), other_blob)
        )


# Cuts


def test_cuts_cover_everything_once(
    base: TensorStore, vector: Any, open_folder: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = open_folder("big", {"a": f32(3 * BLOCK + 1), "b": f32(0), "c": f32(), "d": f32(BLOCK)})
    leaf = Leaf("v", dict(big.infos), False, Binding("x"))
    plan = make_plan([Combination((Term(leaf),))], None, None)
    monkeypatch.setattr(plan_module, "_CUT", BLOCK)
    assert [(cut.index, cut.start, cut.stop) for cut in plan.cuts()] == [
        (0, 0, BLOCK),
        (0, BLOCK, 2 * BLOCK),
        (0, 2 * BLOCK, 3 * BLOCK),
        (0, 3 * BLOCK, 3 * BLOCK + 1),
        (1, 0, 0),
        (2, 0, 1),
        (3, 0, BLOCK),
    ]
    assert sum(map(plan.cut_bytes, plan.cuts())) == big.nbytes


@pytest.mark.parametrize("rows", [1, 2, 14, 15, 30, 100, 1000, 2500])
def test_cuts_shrink_with_the_number_of_rows(open_folder: Open, rows: int) -> None:
    store = open_folder("m", {"a": f32(1)})
    leaves = [Leaf(str(n), dict(store.infos), False, Binding("x")) for n in range(rows)]
    plan = make_plan([Combination((Term(leaf),)) for leaf in leaves], None, None)
    assert plan.rows == rows
    assert plan.cut_size % BLOCK == 0
    assert plan.cut_size >= BLOCK
    assert plan.cut_size <= 1 << 19
    assert plan.cut_size * rows <= max(1 << 23, BLOCK * rows)
    assert f"{plan.cut_size:b}".count("1") == 1


def test_memory_does_not_grow_with_the_model(open_folder: Open) -> None:
    sizes = []
    for size in (1, 300_000, 900_000):
        store = open_folder(f"m{size}", {"a": f32(size)})
        leaf = difference_leaf(store, store)
        plan = make_plan([Combination((Term(leaf),))], store, store)
        sizes.append(plan.memory(1))
    assert len(set(sizes)) == 1
    assert sizes[0] < 24 << 20
