"""Which tensors are compared with which: every rule, and every refusal by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from taskbasis.difference import changed_only, difference_leaf, same_bytes
from taskbasis.digest import store_digests
from taskbasis.engine import Engine
from taskbasis.errors import MismatchError, TaskbasisError, UsageError
from taskbasis.io.folder import open_tensors
from taskbasis.io.tensors import TensorStore
from taskbasis.recipe import Leaf

Open = Callable[..., TensorStore]


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def deltas(base: TensorStore, leaf: Leaf) -> dict[str, list[float]]:
    """What the leaf describes, by plain subtraction."""
    return {
        name: (np.float64(info.load()) - np.float64(base[name].load())).tolist()
        for name, info in leaf.infos.items()
    }


def refused(error: type[TaskbasisError], *parts: object, **sides: Any) -> str:
    with pytest.raises(error) as caught:
        difference_leaf(sides["base"], sides["tuned"], sides.get("exclude", ()))
    for part in parts:
        assert str(part) in str(caught.value)
    return str(caught.value)


@pytest.fixture(params=["safetensors", "bin"])
def pair(request: pytest.FixtureRequest, tmp_path: Path, open_folder: Open) -> Any:
    """``pair(base, tuned)``: both opened, in each format."""

    def write(name: str, tensors: dict[str, np.ndarray]) -> TensorStore:
        if request.param == "safetensors":
            return open_folder(name, tensors)
        path = tmp_path / f"{name}.bin"
        memory: dict[int, torch.Tensor] = {}
        tied = {
            key: memory.setdefault(id(array), torch.from_numpy(array.copy()))
            for key, array in tensors.items()
        }
        torch.save(tied, path)
        return open_tensors(path)

    return lambda base, tuned: (write("base", base), write("tuned", tuned))


def test_compared(pair: Any) -> None:
    base, tuned = pair({"a": f32(1, 2), "b": f32(3)}, {"a": f32(2, 4), "b": f32(3)})
    leaf = difference_leaf(base, tuned)
    assert leaf.difference
    assert leaf.rules == {}
    assert deltas(base, leaf) == {"a": [1, 2], "b": [0]}
    assert leaf.base.store is base
    assert {*base.files, *tuned.files} <= set(leaf.files)
    assert str(tuned.path) == leaf.label


def test_other_float_types_are_compared(open_folder: Open) -> None:
    base = open_folder("base", {"a": f32(1, 2)})
    tuned = open_folder("tuned", {"a": np.array([2, 4], np.float16)})
    assert deltas(base, difference_leaf(base, tuned)) == {"a": [1, 2]}


# Tied weights


def test_the_tuned_side_dropped_a_tied_name(pair: Any) -> None:
    """Saved with tied weights: the head is the embedding, and is stored once."""
    embed = f32(1, 2)
    base, tuned = pair({"embed": embed, "head": embed}, {"embed": f32(2, 4)})
    leaf = difference_leaf(base, tuned)
    assert leaf.rules == {"tied": ("head",)}
    assert deltas(base, leaf) == {"embed": [1, 2], "head": [1, 2]}


def test_the_base_dropped_a_tied_name(pair: Any) -> None:
    embed = f32(2, 4)
    base, tuned = pair({"embed": f32(1, 2)}, {"embed": embed, "head": embed})
    leaf = difference_leaf(base, tuned)
    assert leaf.rules == {"tied": ("head",)}
    assert deltas(base, leaf) == {"embed": [1, 2]}


def test_each_side_dropped_another(pair: Any) -> None:
    old, new, more = f32(1, 2), f32(2, 4), f32(9, 9)
    base, tuned = pair(
        {"embed": old, "head": old, "x": f32(9, 8)}, {"embed": new, "x": more, "y": more}
    )
    leaf = difference_leaf(base, tuned)
    assert leaf.rules == {"tied": ("head", "y")}
    assert deltas(base, leaf) == {"embed": [1, 2], "head": [1, 2], "x": [0, 1]}


@pytest.mark.parametrize(
    "head", [f32(1, 3), np.array([1, 2], np.float64), np.array([[1, 2]], np.float32)]
)
def test_what_is_not_equal_is_not_tied(pair: Any, head: np.ndarray) -> None:
    """Untied by training, of another type, or of another shape: the missing head is an error."""
    base, tuned = pair({"embed": f32(1, 2), "head": head}, {"embed": f32(2, 4)})
    refused(MismatchError, "lacks 1 tensor (head)", base.path, tuned.path, base=base, tuned=tuned)


def test_equal_bytes(open_folder: Open) -> None:
    big = np.zeros(600_000, np.float32)
    late = big.copy()
    late[-1] = 1
    store = open_folder("m", {"a": big, "b": big.copy(), "c": late, "d": big[:-1].copy()})
    assert same_bytes(store["a"], store["b"])
    assert not same_bytes(store["a"], store["c"])
    assert not same_bytes(store["a"], store["d"])


# Integers and buffers


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_, np.complex64])
@pytest.mark.parametrize("case", ["equal", "different", "missing", "extra"])
def test_integers_stay_the_bases(pair: Any, dtype: Any, case: str) -> None:
    base = {"a": f32(1), "ids": np.array([0, 1], dtype)}
    tuned = {"a": f32(2), "ids": np.array([0, 1], dtype)}
    if case == "different":
        tuned["ids"] = np.array([1, 1], dtype)
    elif case == "missing":
        del tuned["ids"]
    elif case == "extra":
        del base["ids"]
    base, tuned = pair(base, tuned)
    leaf = difference_leaf(base, tuned)
    assert leaf.rules == {"integer": ("ids",)}
    assert deltas(base, leaf) == {"a": [1]}


@pytest.mark.promise("Quantised weights that differ are refused, not replaced by the base's.")
@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.bool_, ml_dtypes.float8_e4m3fn])
def test_quantised_weights_are_not_the_bases_in_silence(open_folder: Open, dtype: Any) -> None:
    """The base's weights with scales that were merged are nobody's model."""
    weights = np.ones((2, 3), dtype)
    moved = weights.copy()
    moved[1, 2] = 0
    base = open_folder("base", {"a": f32(1), "q": weights, "scale": f32(1)})
    tuned = open_folder("tuned", {"a": f32(2), "q": moved, "scale": f32(1)})
    refused(
        MismatchError,
        f"tensor 'q' of {tuned.files[0]} holds {np.dtype(dtype)} that differ from those of",
        f"the base {base.files[0]}",
        "convert quantised models to floats first",
        "--exclude 'q'",
        base=base,
        tuned=tuned,
    )
    kept = difference_leaf(base, tuned, ["q"])
    assert kept.rules == {"excluded": ("q",)}
    same = open_folder("same", {"a": f32(2), "q": weights, "scale": f32(1)})
    assert difference_leaf(base, same).rules == {"integer": ("q",)}


def test_matrices_of_two_kinds_of_integers(open_folder: Open) -> None:
    base = open_folder("base", {"a": f32(1), "q": np.ones((2, 2), np.int8)})
    tuned = open_folder("tuned", {"a": f32(1), "q": np.ones((2, 2), np.uint8)})
    refused(MismatchError, "holds uint8 that differ", base=base, tuned=tuned)


@pytest.mark.parametrize("floats_in", ["base", "tuned"])
def test_a_float_against_an_integer(pair: Any, floats_in: str) -> None:
    kinds = [np.float32, np.int64] if floats_in == "base" else [np.int64, np.float32]
    base, tuned = pair(
        {"a": f32(1), "b": np.ones(1, kinds[0])}, {"a": f32(2), "b": np.ones(1, kinds[1])}
    )
    files = [store.files[0] for store in (tuned, base)]
    refused(
        MismatchError,
        f"tensor 'b' of {files[0]} holds {np.dtype(kinds[1])}",
        f"the base {files[1]} holds {np.dtype(kinds[0])}",
        "--exclude 'b'",
        base=base,
        tuned=tuned,
    )
    assert deltas(base, difference_leaf(base, tuned, ["b"])) == {"a": [1]}


# Exclusion


def test_excluded(pair: Any) -> None:
    base, tuned = pair(
        {"a.w": f32(1), "a.b": f32(1), "c": f32(1), "head": f32(1, 2)},
        {"a.w": f32(2), "a.b": f32(2), "c": f32(2), "classifier": f32(1)},
    )
    leaf = difference_leaf(base, tuned, ["a.*", "h?ad", "classifier"])
    assert leaf.rules == {"excluded": ("a.b", "a.w", "classifier", "head")}
    assert deltas(base, leaf) == {"c": [1]}


def test_a_text_alone_is_one_pattern(pair: Any) -> None:
    """Not a pattern for each of its letters."""
    base, tuned = pair({"a": f32(1), "head": f32(1)}, {"a": f32(2), "head": f32(2)})
    assert deltas(base, difference_leaf(base, tuned, "head*")) == {"a": [1]}


def test_everything_excluded(pair: Any) -> None:
    base, tuned = pair({"a": f32(1)}, {"a": f32(2)})
    assert difference_leaf(base, tuned, ["*"]).infos == {}


def test_an_excluded_tensor_ties_nothing(pair: Any) -> None:
    embed = f32(1, 2)
    base, tuned = pair({"embed": embed, "head": embed}, {"embed": f32(2, 4)})
    refused(MismatchError, "head", base=base, tuned=tuned, exclude=["embed"])


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [("encoder.wieght", "did you mean 'encoder.weight'?"), ("zzz*", "known: "), ("Encoder*", "'")],
)
def test_a_misspelt_pattern(pair: Any, pattern: str, hint: str) -> None:
    base, tuned = pair({"encoder.weight": f32(1)}, {"encoder.weight": f32(2)})
    text = refused(
        UsageError,
        f"{pattern!r} matches no tensor",
        hint,
        base=base,
        tuned=tuned,
        exclude=["encoder.weight", pattern],
    )
    assert "encoder.weight" in text


# Refusals


def test_missing_and_extra(pair: Any) -> None:
    base, tuned = pair(
        {"a": f32(1), **{f"old{n}": f32(n + 5) for n in range(5)}}, {"a": f32(1), "new": f32(3)}
    )
    text = refused(
        MismatchError,
        f"{tuned.path} lacks 5 tensors (old0, old1, old2, ...) of the base {base.path}",
        f"{tuned.path} has 1 tensor (new) that the base {base.path} lacks",
        "leave them out with --exclude (e.g. 'old0')",
        base=base,
        tuned=tuned,
    )
    assert text.count(";") == 2


@pytest.mark.parametrize(
    ("one", "other"), [((3,), (1, 3)), ((1,), (3,)), ((), (1,)), ((2, 3), (3, 2)), ((0,), (1,))]
)
@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_shapes_that_would_broadcast(
    pair: Any, one: tuple[int, ...], other: tuple[int, ...], dtype: Any
) -> None:
    base, tuned = pair({"a": np.ones(one, dtype)}, {"a": np.ones(other, dtype)})
    refused(
        MismatchError,
        f"tensor 'a' of {tuned.files[0]} has shape {list(other)}",
        f"{base.files[0]} has {list(one)} there",
        base=base,
        tuned=tuned,
    )


def test_a_fine_tune_with_a_head_of_its_own(open_folder: Open) -> None:
    """104 tensors against 101: integer positions and a pooler are gone, and nothing else."""
    layers = {f"encoder.layer.{n:03d}.weight": f32(n, n) for n in range(101)}
    pooler = {"pooler.dense.weight": f32(1, 2), "pooler.dense.bias": f32(3)}
    ids = {"embeddings.position_ids": np.arange(4)[None]}
    base = open_folder("base", {**layers, **pooler, **ids}, 3)
    tuned = open_folder("tuned", {name: array + 1 for name, array in layers.items()})
    assert (len(base), len(tuned)) == (104, 101)
    text = refused(
        MismatchError,
        "lacks 2 tensors (pooler.dense.bias, pooler.dense.weight)",
        "--exclude",
        base=base,
        tuned=tuned,
    )
    assert "position_ids" not in text
    leaf = difference_leaf(base, tuned, ["pooler.*"])
    assert len(leaf.infos) == 101
    assert leaf.rules == {"integer": tuple(ids), "excluded": tuple(sorted(pooler))}
    assert all(delta == [1, 1] for delta in deltas(base, leaf).values())


# Unchanged


def test_unchanged(pair: Any) -> None:
    embed = f32(5, 6)
    base, tuned = pair(
        {
            "a": f32(1, 2),
            "b": f32(3),
            "embed": embed,
            "head": embed,
            "none": f32(),
            "i": np.ones(2),
        },
        {"a": f32(1, 2), "b": f32(4), "embed": embed, "none": f32(), "i": np.ones(2)},
    )
    leaf = difference_leaf(base, tuned)
    kept, digests = changed_only(leaf, Engine(1))
    assert list(kept.infos) == ["b"]
    assert kept.rules == {"tied": ("head",), "unchanged": ("a", "embed", "head", "i", "none")}
    assert digests == store_digests(base, Engine(1))
    assert (kept.label, kept.base, kept.files) == (leaf.label, leaf.base, leaf.files)


def test_unchanged_means_bytes_and_type(open_folder: Open) -> None:
    base = open_folder("base", {"a": f32(0), "b": f32(1), "c": f32(np.nan)})
    tuned = open_folder("tuned", {"a": f32(-0.0), "b": np.ones(1, np.float16), "c": f32(np.nan)})
    kept, _ = changed_only(difference_leaf(base, tuned), Engine(1))
    assert set(kept.infos) == {"a", "b"}


def test_what_is_stored_already_stays(open_folder: Open) -> None:
    store = open_folder("base", {"a": f32(1)})
    leaf = difference_leaf(store, store)
    vector = Leaf("v", leaf.infos, False, leaf.base)
    assert changed_only(vector, Engine(1)) == (vector, {})
