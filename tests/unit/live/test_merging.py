"""State dicts merged in memory: the bytes of files merged, ties, kinds, and every refusal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskbasis import Checkpoint, Engine, Importance, TaskVector, merge, merge_state_dicts, method
from taskbasis.errors import MismatchError, UsageError, ValueProblem
from taskbasis.live import checkpoint
from taskbasis.methods import registered

torch = pytest.importorskip("torch")
save_file = pytest.importorskip("safetensors.torch").save_file
load_file = pytest.importorskip("safetensors.torch").load_file

SHAPES: dict[str, tuple[int, ...]] = {
    "embed.weight": (9, 6),
    "layers.0.attn.weight": (6, 6),
    "layers.0.mlp.weight": (8, 6),
    "layers.0.norm": (6,),
    "scalar": (),
}
ENGINE = Engine(workers=1)


def state(seed: int, dtype: Any = torch.float32, move: float = 0.0) -> dict[str, Any]:
    """A base of random numbers, or a model moved away from it; with an integer tensor."""
    made = {}
    for number, (name, shape) in enumerate(SHAPES.items()):
        start = torch.Generator().manual_seed(number)
        noise = torch.Generator().manual_seed(100 * seed + number)
        value = torch.randn(shape, generator=start)
        made[name] = (value + move * torch.randn(shape, generator=noise)).to(dtype)
    made["steps"] = torch.tensor([seed, 7])
    return made


def written(folder: Path, states: Mapping[str, Mapping[str, Any]]) -> dict[str, Path]:
    paths = {name: folder / f"{name}.safetensors" for name in states}
    for name, path in paths.items():
        save_file({k: v.contiguous() for k, v in states[name].items()}, path)
    return paths


def same_bytes(found: Any, wanted: Any) -> bool:
    raw = [t.contiguous().reshape(-1).view(torch.uint8) for t in (found, wanted)]
    return found.shape == wanted.shape and found.dtype == wanted.dtype and torch.equal(*raw)


# Those that learn from data need scores or moments, those on spheres two models, and so on.
PLAIN = [name for name, kind in registered().items() if kind.moments != "required"]


@pytest.mark.parametrize("name", PLAIN)
def test_the_bytes_are_those_of_files_merged(name: str, tmp_path: Path) -> None:
    kind = registered()[name]
    least, most = kind.takes
    count = min(most or 3, max(least, 3))
    states = {f"model-{n}": state(n, torch.bfloat16, 0.1) for n in range(1, count + 1)}
    base = state(0, torch.bfloat16)
    paths = written(tmp_path, {"base": base, **states})
    scores: list[Any] = []
    if kind.scores == "required":
        scores = [
            {k: v.float().abs() for k, v in s.items() if k in SHAPES} for s in states.values()
        ]
    found = merge_state_dicts(base, states, name, 0.7, scores=scores, engine=ENGINE)
    assert list(found) == list(base)
    if scores:
        assert not torch.equal(found["embed.weight"], base["embed.weight"])
        return
    start = Checkpoint(paths["base"])
    vectors = {n: TaskVector(start, paths[n]) for n in states}
    merge(start, vectors, method(name), 0.7).save(tmp_path / "out.safetensors", engine=ENGINE)
    wanted = load_file(tmp_path / "out.safetensors")
    assert wanted.keys() == found.keys()
    for key, value in wanted.items():
        assert same_bytes(found[key], value), key


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_a_sum_is_dense_arithmetic_rounded_once(dtype: str) -> None:
    kind = getattr(torch, dtype)
    base, one, two = state(0, kind), state(1, kind, 0.1), state(2, kind, 0.1)
    found = merge_state_dicts(base, [one, two], scale=0.5, weights=[1, -2])
    wide = torch.float64 if dtype == "float64" else torch.float32
    for name in SHAPES:
        start = base[name].to(wide)
        half, minus = torch.tensor(0.5, dtype=wide), torch.tensor(-1.0, dtype=wide)
        delta = half * (one[name].to(wide) - start) + minus * (two[name].to(wide) - start)
        torch.testing.assert_close(found[name], (start + delta).to(kind), rtol=0, atol=0)
    assert torch.equal(found["steps"], base["steps"])
    assert found["steps"].data_ptr() != base["steps"].data_ptr()


def test_weights_go_by_name_too() -> None:
    base, one, two = state(0), state(1, move=0.1), state(2, move=0.1)
    named = {"one": one, "two": two}
    by_name = merge_state_dicts(base, named, weights={"two": -0.5})
    in_order = merge_state_dicts(base, named, weights=[1.0, -0.5])
    assert all(same_bytes(by_name[name], in_order[name]) for name in base)
    with pytest.raises(UsageError, match="no model 'tow' to weigh; did you mean 'two'"):
        merge_state_dicts(base, named, weights={"tow": 2.0})


def test_random_methods_draw_by_name_not_by_order() -> None:
    base, one, two = state(0), state(1, move=0.1), state(2, move=0.1)
    ways = [{"one": one, "two": two}, {"two": two, "one": one}]
    found = [merge_state_dicts(base, way, "dare_linear:density=0.5") for way in ways]
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)
    assert not torch.equal(found[0]["embed.weight"], base["embed.weight"])


@given(st.permutations(range(3)), st.booleans(), st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_layout_in_memory_does_not_matter(order: list[int], flip: bool, step: int) -> None:
    values = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    base, tuned = torch.tensor(values[0]), torch.tensor(values[1])
    wanted = merge_state_dicts({"w": base}, [{"w": tuned}], scale=0.3)["w"]

    def shuffled(tensor: Any) -> Any:
        back = np.argsort(order).tolist()
        turned = tensor.permute(*order).contiguous().permute(*back)
        wide = torch.zeros(3, 4, 5 * step)
        wide[..., ::step] = turned
        return wide[..., ::step] if flip else turned

    found = merge_state_dicts({"w": shuffled(base)}, [{"w": shuffled(tuned)}], scale=0.3)["w"]
    assert same_bytes(found, wanted)
    assert found.is_contiguous()


def test_numpy_in_numpy_out() -> None:
    base = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(3)}
    tuned = {"w": base["w"] + 1, "n": np.array(4)}
    half = {name: value.astype(ml_dtypes.bfloat16) for name, value in base.items() if name == "w"}
    found = merge_state_dicts(base, [tuned], scale=2.0)
    np.testing.assert_array_equal(found["w"], base["w"] + 2)
    assert (found["w"].dtype, found["n"].shape, int(found["n"])) == (np.float32, (), 3)
    narrow = merge_state_dicts(half, [{"w": tuned["w"]}])["w"]
    assert narrow.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(narrow.astype(np.float32), tuned["w"])
    big = {"w": base["w"].astype(">f4")[:, ::-1], "n": base["n"]}
    swapped = merge_state_dicts(big, [tuned])["w"]
    np.testing.assert_array_equal(swapped, tuned["w"])


def test_each_result_is_what_the_base_has_there() -> None:
    base = {"a": torch.zeros(2, dtype=torch.bfloat16), "b": np.zeros(2, np.float64)}
    found = merge_state_dicts(base, [{"a": np.ones(2, np.float32), "b": torch.ones(2)}])
    assert isinstance(found["a"], torch.Tensor)
    assert found["a"].dtype == torch.bfloat16
    assert isinstance(found["b"], np.ndarray)
    assert found["a"].tolist() == found["b"].tolist() == [1.0, 1.0]


def test_the_inputs_stay_as_they_are_and_share_nothing_with_the_result() -> None:
    base, tuned = state(0), state(1, move=0.1)
    tuned["embed.weight"].requires_grad_(True)
    before = [{k: v.clone() for k, v in s.items()} for s in (base, tuned)]
    found = merge_state_dicts(base, [tuned])
    for value in found.values():
        value.zero_()
        assert not value.requires_grad
    for kept, now in zip(before, (base, tuned), strict=True):
        assert all(torch.equal(kept[name], now[name]) for name in kept)


def test_bits_that_are_no_numbers_anybody_adds_to_are_carried() -> None:
    exotic = {
        "flags": torch.tensor([True, False]),
        "eight": torch.tensor([1.5, -2.0]).to(torch.float8_e4m3fn),
        "empty": torch.zeros(0, 4),
        "w": torch.zeros(2),
    }
    found = merge_state_dicts(exotic, [{**exotic, "w": torch.ones(2)}])
    assert all(same_bytes(found[name], exotic[name]) for name in ("flags", "eight", "empty"))
    assert found["w"].tolist() == [1.0, 1.0]


def tied(seed: int, move: float = 0.0) -> dict[str, Any]:
    made = state(seed, move=move)
    made["lm_head.weight"] = made["embed.weight"]
    return made


def test_tied_tensors_stay_one_tensor() -> None:
    base, tuned = tied(0), tied(1, 0.1)
    found = merge_state_dicts(base, [tuned])
    assert found["lm_head.weight"].data_ptr() == found["embed.weight"].data_ptr()
    alone = merge_state_dicts(state(0), [state(1, move=0.1)])
    assert torch.equal(found["embed.weight"], alone["embed.weight"])
    del tuned["lm_head.weight"]  # as its file would have it
    without = merge_state_dicts(base, [tuned])
    assert torch.equal(without["lm_head.weight"], found["embed.weight"])
    arrays = {name: value.numpy() for name, value in base.items()}
    arrays["lm_head.weight"] = arrays["embed.weight"]
    made = merge_state_dicts(arrays, [tuned])
    assert np.shares_memory(made["embed.weight"], made["lm_head.weight"])


def test_tied_tensors_that_come_out_different_are_refused() -> None:
    base, tuned = tied(0), tied(1, 0.1)
    tuned["lm_head.weight"] = tuned["embed.weight"] + 1
    sentence = "the base ties 'embed.weight' and 'lm_head.weight', but they come out different"
    with pytest.raises(MismatchError, match=f"{sentence}; clone one of them"):
        merge_state_dicts(base, [tuned])
    base["lm_head.weight"] = base["embed.weight"].clone()
    found = merge_state_dicts(base, [tuned])
    assert not torch.equal(found["lm_head.weight"], found["embed.weight"])


def test_views_of_parts_are_not_tied() -> None:
    whole = torch.arange(6.0)
    tuned = {"a": torch.ones(3), "b": torch.zeros(2)}
    found = merge_state_dicts({"a": whole[:3], "b": whole[:2]}, [tuned])
    assert (found["a"].tolist(), found["b"].tolist()) == ([1.0] * 3, [0.0] * 2)


def bad(value: Any) -> dict[str, Any]:
    return {**state(0), "scalar": value}


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (torch.zeros((), device="meta"), "is on the meta device.*load the weights first"),
        (torch.zeros(2, 2).to_sparse(), "is sparse, quantised or nested; give a dense tensor"),
        (torch.zeros((), dtype=torch.complex128), "holds complex128, which no tensor file does"),
        (np.array("text"), "holds str"),
        (np.ma.masked_array([1.0], [True]), "is a MaskedArray, not a torch tensor"),
        (1.5, "is a float, not a torch tensor or a NumPy array"),
        ({"extra": "state"}, "is a dict, not a torch tensor"),
    ],
)
def test_what_is_no_tensor_with_values_is_refused_by_name(value: Any, sentence: str) -> None:
    with pytest.raises(UsageError, match=f"tensor 'scalar' of the base {sentence}"):
        merge_state_dicts(bad(value), [state(1)])
    with pytest.raises(UsageError, match=f"'scalar' of the fine-tuned model 'math' {sentence}"):
        merge_state_dicts(state(0), {"math": bad(value)})


def test_misfits_are_sentences() -> None:
    base, tuned = state(0), state(1, move=0.1)
    with pytest.raises(UsageError, match="give a list of them, or a dict by name"):
        merge_state_dicts(base, tuned)
    with pytest.raises(UsageError, match=r"the base must be a state dict.*got a list"):
        merge_state_dicts([base], [tuned])  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"model '0' must be a state dict.*got a dict"):
        merge_state_dicts(base, [{1: torch.zeros(2)}])  # type: ignore[dict-item]
    with pytest.raises(UsageError, match="no method 'tise'; did you mean 'ties'"):
        merge_state_dicts(base, [tuned], "tise")
    with pytest.raises(UsageError, match="1 vectors need as many weights"):
        merge_state_dicts(base, [tuned], weights=[1, 2])
    with pytest.raises(UsageError, match="scale must be a finite number"):
        merge_state_dicts(base, [tuned], scale=float("nan"))
    with pytest.raises(UsageError, match="exclude 'nothing' matches no tensor"):
        merge_state_dicts(base, [tuned], exclude=["nothing"])


def test_names_and_shapes_that_differ_are_named() -> None:
    base, tuned = state(0), state(1, move=0.1)
    shorter = {name: value for name, value in tuned.items() if name != "scalar"}
    with pytest.raises(MismatchError, match=r"model '0' lacks 1 tensor \(scalar\) of the base"):
        merge_state_dicts(base, [shorter])
    with pytest.raises(MismatchError, match=r"model 'm' has 1 tensor \(head\) that the base"):
        merge_state_dicts(base, {"m": {**tuned, "head": torch.zeros(2)}})
    with pytest.raises(
        MismatchError, match=r"'scalar' of the fine-tuned model '0' has shape \[1\]"
    ):
        merge_state_dicts(base, [{**tuned, "scalar": torch.zeros(1)}])
    found = merge_state_dicts(base, [shorter], exclude=["scalar"])
    assert torch.equal(found["scalar"], base["scalar"])


def test_a_value_that_is_not_finite_is_refused() -> None:
    tuned = state(1, move=0.1)
    tuned["layers.0.norm"][2] = float("inf")
    with pytest.raises(ValueProblem, match=r"layers\.0\.norm.*not finite|NaN or infinite"):
        merge_state_dicts(state(0), [tuned])


def test_the_factors_of_an_adapter_are_not_weights() -> None:
    adapter = {"base_model.model.q.lora_A.weight": torch.zeros(2, 4)}
    with pytest.raises(UsageError, match="a factor of a LoRA adapter; save the adapter"):
        merge_state_dicts(state(0), [adapter])


def test_scores_are_arrays_or_files_and_checked() -> None:
    base, tuned = state(0), state(1, move=0.1)
    floats = {name: tuned[name].abs() for name in SHAPES}
    found = merge_state_dicts(base, [tuned], "sta", scores=[floats])
    assert any(not torch.equal(found[name], base[name]) for name in SHAPES)
    with pytest.raises(
        UsageError, match="'steps' of the scores holds int64, but scores are floats"
    ):
        merge_state_dicts(base, [tuned], "sta", scores=[tuned])
    with pytest.raises(ValueProblem, match="a score is negative"):
        merge_state_dicts(base, [tuned], "sta", scores=[{k: -v for k, v in floats.items()}])
    with pytest.raises(UsageError, match="takes no scores"):
        merge_state_dicts(base, [tuned], scores=[floats])
    assert Importance.space == "score"  # what a file of scores is opened as


def test_state_dicts_take_part_in_the_algebra() -> None:
    base, math, code = (checkpoint(state(n, move=0.1 * n), f"model {n}") for n in range(3))
    left = (base + 0.5 * ((math - base) + (code - base))).tensors(ENGINE)
    right = merge(base, [TaskVector(base, math), TaskVector(base, code)], scale=0.5).tensors(ENGINE)
    assert all(np.array_equal(left[name], right[name]) for name in SHAPES)
    assert str(base) == "model 0 (in memory)"


def test_two_bases_in_memory_are_not_one() -> None:
    """They have no files, and no files are not the same files."""
    one, two = checkpoint(state(0), "one"), checkpoint(state(0, move=0.5), "two")
    tuned = checkpoint(state(3, move=0.1), "tuned")
    with pytest.raises(
        MismatchError, match=r"tuned \(in memory\) was taken from the base one .*not from two"
    ):
        (two + (tuned - one)).tensors(ENGINE)
    again = checkpoint(state(0), "again")  # other tensors, the same values
    ways = [(base + (tuned - one)).tensors(ENGINE)["embed.weight"] for base in (one, again)]
    assert np.array_equal(*ways)


def test_a_model_in_memory_saves_without_the_files_of_its_namesake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    base, tuned = checkpoint(state(0), "base"), checkpoint(state(1, move=0.1), "tuned")
    (base + (tuned - base)).save("out", engine=ENGINE)
    assert not (tmp_path / "out" / "config.json").exists()
    found = load_file(tmp_path / "out" / "model.safetensors")
    torch.testing.assert_close(found["layers.0.norm"], state(1, move=0.1)["layers.0.norm"])
