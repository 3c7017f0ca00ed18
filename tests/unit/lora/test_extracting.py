"""Adapters out of full models: near, measured, and with every tensor accounted for."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from taskbasis.engine import Engine
from taskbasis.errors import (
    BaseError,
    FileError,
    MemoryCapError,
    MismatchError,
    TaskbasisError,
    UsageError,
    ValueProblem,
)
from taskbasis.lora import Made, extract_lora
from taskbasis.vectors import TaskVector

Array = NDArray[Any]
Write = Callable[..., Path]
Products = Callable[[Path], dict[str, NDArray[np.float64]]]
ONE = Engine(workers=1)

SHAPES: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (12, 6),
    "model.h.0.q.weight": (6, 6),
    "model.h.0.up.weight": (9, 6),
    "model.h.0.up.bias": (9,),
    "model.h.1.q.weight": (6, 6),
    "model.h.1.up.weight": (9, 6),
    "model.h.1.up.bias": (9,),
    "model.h.1.conv.weight": (4, 3, 2),
    "model.norm.weight": (6,),
    "model.scales": (3, 4),
    "lm_head.weight": (12, 6),
}
LINEAR = ["model.h.0.q", "model.h.0.up", "model.h.1.q", "model.h.1.up"]


def normal(seed: int, shape: tuple[int, ...]) -> Array:
    return np.asarray(np.random.default_rng(seed).standard_normal(shape), np.float32)


def weights(shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> dict[str, Array]:
    return {name: normal(n, shape) for n, (name, shape) in enumerate(shapes.items())}


@pytest.fixture
def models(write_folder: Write) -> tuple[Path, Path, dict[str, Array]]:
    """A base, a model tuned from it, and the float32 delta between them."""
    base = weights()
    tuned = {
        name: value + 0.1 * normal(50 + n, value.shape)
        for n, (name, value) in enumerate(base.items())
    }
    base["steps"] = tuned["steps"] = np.array([3], np.int64)
    delta = {name: tuned[name] - base[name] for name in SHAPES}
    config = {"architectures": ["LlamaForCausalLM"]}
    sides = {"config.json": json.dumps(config)}
    return write_folder("base", base, **sides), write_folder("tuned", tuned, **sides), delta


def extract(base: Path, tuned: Path, out: Path, *args: Any, **options: Any) -> Made:
    return extract_lora(base, TaskVector(base, tuned), out, *args, engine=ONE, **options)


def norm(*values: Array) -> float:
    return math.sqrt(sum(float(np.sum(value.astype(np.float64) ** 2)) for value in values))


@pytest.mark.parametrize("rank", [1, 3, 6, 50])
def test_every_layer_is_truncated_as_well_as_can_be(
    models: Any, products: Products, tmp_path: Path, rank: int
) -> None:
    base, tuned, delta = models
    made = extract(base, tuned, tmp_path / "out", rank)
    found = products(tmp_path / "out")
    assert sorted(found) == [f"{name}.weight" for name in LINEAR]
    for row in made.rows:
        wanted = delta[f"{row.module}.weight"].astype(np.float64)
        values = np.linalg.svd(wanted, compute_uv=False)
        error = norm(found[f"{row.module}.weight"] - wanted)
        assert row.rank == min(rank, 6)
        assert row.norm == pytest.approx(norm(wanted), rel=1e-9)
        assert error == pytest.approx(norm(values[rank:]), rel=1e-4, abs=1e-6)
        assert row.error == pytest.approx(error, rel=1e-6)  # rounding of the factors included


def test_every_other_tensor_is_listed_with_what_it_holds(models: Any, tmp_path: Path) -> None:
    base, tuned, delta = models
    made = extract(base, tuned, tmp_path / "out", 2)
    assert made.rules == {
        "convolution": ("model.h.1.conv.weight",),
        "embedding": ("model.embed_tokens.weight",),
        "head": ("lm_head.weight",),
        "integer": ("steps",),
        "one axis": ("model.h.0.up.bias", "model.h.1.up.bias", "model.norm.weight"),
        "parameter": ("model.scales",),
    }
    for rule, names in made.rules.items():
        if rule != "integer":
            assert made.norms[rule] == pytest.approx(norm(*(delta[name] for name in names)))
    assert made.norm == pytest.approx(norm(*delta.values()))
    listed = {*(f"{row.module}.weight" for row in made.rows)}.union(*made.rules.values())
    assert listed == {*SHAPES, "steps"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"Relative error (Frobenius): {made.error:.3g} of the adapted" in card
    assert f"{made.missing:.3g} of the whole delta" in card


def test_what_is_missing_of_the_whole(models: Any, products: Products, tmp_path: Path) -> None:
    base, tuned, delta = models
    made = extract(base, tuned, tmp_path / "out", 2)
    found = products(tmp_path / "out")
    left = [value - found.get(name, 0) for name, value in delta.items()]
    assert made.missing == pytest.approx(norm(*left) / norm(*delta.values()), rel=1e-6)


@pytest.mark.parametrize("energy", [0.3, 0.8, 1.0])
def test_by_energy_each_layer_has_a_rank_of_its_own(
    models: Any, products: Products, config: Any, tmp_path: Path, energy: float
) -> None:
    base, tuned, delta = models
    made = extract(base, tuned, tmp_path / "out", energy=energy)
    found = products(tmp_path / "out")  # read by the patterns of the config
    for row in made.rows:
        squares = np.linalg.svd(delta[f"{row.module}.weight"], compute_uv=False) ** 2
        kept = 1 - (row.error / row.norm) ** 2
        assert kept >= energy - 1e-9
        assert row.rank == 1 or sum(squares[: row.rank - 1]) < energy * sum(squares)
        assert found[f"{row.module}.weight"].shape == delta[f"{row.module}.weight"].shape
    said = config(tmp_path / "out")
    assert said["r"] == said["lora_alpha"] == made.rank
    others = {f"^{row.module}".replace(".", r"\."): row.rank for row in made.rows}
    others = {key: rank for key, rank in others.items() if rank != made.rank}
    assert said["rank_pattern"] == said["alpha_pattern"] == others


def test_the_config_is_what_peft_reads(models: Any, config: Any, tmp_path: Path) -> None:
    base, tuned, _ = models
    extract(base, tuned, tmp_path / "out", 3)
    assert config(tmp_path / "out") == {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": 3,
        "lora_alpha": 3,
        "rank_pattern": {},
        "alpha_pattern": {},
        "target_modules": ["q", "up"],
        "fan_in_fan_out": False,
        "bias": "none",
        "lora_dropout": 0.0,
        "use_rslora": False,
        "inference_mode": True,
    }
    extract(base, tuned, tmp_path / "named", 3, base_name="org/model")
    assert config(tmp_path / "named")["base_model_name_or_path"] == "org/model"


@pytest.mark.parametrize(
    ("architecture", "more", "task"),
    [
        ("GPT2LMHeadModel", {}, "CAUSAL_LM"),
        ("T5ForConditionalGeneration", {"is_encoder_decoder": True}, "SEQ_2_SEQ_LM"),
        ("LlavaForConditionalGeneration", {}, None),
        ("BertForSequenceClassification", {}, None),
        ("BertModel", {}, None),
    ],
)
def test_the_kind_of_task_is_that_of_the_tuned_model(
    models: Any,
    config: Any,
    tmp_path: Path,
    architecture: str,
    more: dict[str, Any],
    task: str | None,
) -> None:
    base, tuned, _ = models
    (tuned / "config.json").write_text(json.dumps({"architectures": [architecture], **more}))
    extract(base, tuned, tmp_path / "out", 1)
    assert config(tmp_path / "out")["task_type"] == task


@pytest.mark.parametrize("text", ["", "[", "[]", "{}", '{"architectures": null}', "\ud800"])
def test_a_config_that_says_nothing_is_passed_over(
    models: Any, config: Any, tmp_path: Path, text: str
) -> None:
    base, tuned, _ = models
    for folder in (base, tuned):
        (folder / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    extract(base, tuned, tmp_path / "out", 1)
    assert config(tmp_path / "out")["task_type"] is None


def test_embeddings_and_head_on_request(
    models: Any, products: Products, config: Any, tmp_path: Path
) -> None:
    base, tuned, delta = models
    made = extract(base, tuned, tmp_path / "out", 6, embeddings=True, head=True)
    assert {"embedding", "head"} & made.rules.keys() == set()
    found = products(tmp_path / "out")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        np.testing.assert_allclose(found[name], delta[name], atol=1e-6)
    assert config(tmp_path / "out")["target_modules"] == ["embed_tokens", "lm_head", "q", "up"]
    assert config(tmp_path / "out")["fan_in_fan_out"] is False


def test_patterns_choose(models: Any, config: Any, tmp_path: Path) -> None:
    base, tuned, delta = models
    made = extract(base, tuned, tmp_path / "in", 2, include=["*.q.*"])
    assert [row.module for row in made.rows] == ["model.h.0.q", "model.h.1.q"]
    assert made.rules["left out"] == ("model.h.0.up.weight", "model.h.1.up.weight")
    names = made.rules["left out"]
    assert made.norms["left out"] == pytest.approx(norm(*(delta[name] for name in names)))
    made = extract(base, tuned, tmp_path / "ex", 2, exclude=["*.h.1.q.*"])
    assert made.rules["left out"] == ("model.h.1.q.weight",)
    # A bare "q" would have PEFT adapt the layer that has no factors.
    assert config(tmp_path / "ex")["target_modules"] == ["model.h.0.q", "up"]


def test_layers_that_did_not_change_are_told(
    models: Any, write_folder: Write, config: Any, tmp_path: Path
) -> None:
    base, _, delta = models
    same = weights()
    same["steps"] = np.array([3], np.int64)
    same["model.h.0.q.weight"] = same["model.h.0.q.weight"] + delta["model.h.0.q.weight"]
    made = extract(base, write_folder("partly", same), tmp_path / "out", 2)
    assert [row.module for row in made.rows] == ["model.h.0.q"]
    assert set(made.rules["zero"]) == SHAPES.keys() - {"model.h.0.q.weight"}
    assert made.norms == {}
    assert config(tmp_path / "out")["target_modules"] == ["model.h.0.q"]


def test_modules_are_called_as_the_tuned_model_calls_them(
    write_folder: Write, config: Any, tmp_path: Path
) -> None:
    """An encoder, and what was tuned with a classifier on top of it."""
    shapes = {"layer.0.q.weight": (4, 4), "layer.1.q.weight": (4, 4), "layer.1.k.weight": (4, 4)}
    base = weights(shapes)
    moved = {f"bert.{name}": value + 1 for name, value in base.items()}
    moved["bert.layer.1.k.weight"] = moved["bert.layer.1.k.weight"] + normal(9, (4, 4))
    old, new = write_folder("base", base), write_folder("tuned", moved)
    made = extract(old, new, tmp_path / "out", 1, exclude=["layer.0.*"])
    assert [row.module for row in made.rows] == ["bert.layer.1.k", "bert.layer.1.q"]
    assert config(tmp_path / "out")["target_modules"] == ["bert.layer.1.q", "k"]


def test_conv1d_is_known_by_its_biases(
    write_folder: Write, products: Products, config: Any, tmp_path: Path
) -> None:
    shapes = {
        "h.0.c_attn.weight": (4, 12),
        "h.0.c_attn.bias": (12,),
        "h.0.c_proj.weight": (4, 4),
        "h.0.c_proj.bias": (4,),
    }
    base = weights(shapes)
    tuned = {name: value + normal(7, value.shape) for name, value in base.items()}
    made = extract(write_folder("b", base), write_folder("t", tuned), tmp_path / "out", 4)
    assert config(tmp_path / "out")["fan_in_fan_out"] is True
    found = products(tmp_path / "out")
    for name in ("h.0.c_attn.weight", "h.0.c_proj.weight"):
        np.testing.assert_allclose(found[name], tuned[name] - base[name], atol=1e-5)
    assert made.error < 1e-6
    told = extract(tmp_path / "b", tmp_path / "t", tmp_path / "no", 4, fan_in_fan_out=False)
    assert told.error == pytest.approx(made.error, rel=0.5)
    assert config(tmp_path / "no")["fan_in_fan_out"] is False


def test_an_adapter_that_is_extracted_from_its_own_model_comes_back(
    models: Any, products: Products, tmp_path: Path
) -> None:
    """Extract, add to the base, extract again: what has the rank is found again."""
    base, tuned, _ = models
    extract(base, tuned, tmp_path / "one", 2)
    (TaskVector(base, tmp_path / "one").apply_to(base)).save(tmp_path / "merged")
    made = extract(base, tmp_path / "merged", tmp_path / "two", energy=0.999999)
    assert [row.rank for row in made.rows] == [2] * 4
    one, two = products(tmp_path / "one"), products(tmp_path / "two")
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, atol=1e-6)
    third = extract(base, tmp_path / "one", tmp_path / "three", 2)  # straight from the adapter
    assert third.error < 1e-6


def test_sums_of_vectors_and_stored_vectors(
    models: Any, products: Products, tmp_path: Path
) -> None:
    base, tuned, delta = models
    vector = TaskVector(base, tuned)
    vector.save(tmp_path / "v.safetensors", engine=ONE)
    stored = TaskVector.open(tmp_path / "v.safetensors")
    made = extract_lora(base, -0.5 * stored, tmp_path / "out", 6, engine=ONE)
    for name, value in products(tmp_path / "out").items():
        np.testing.assert_allclose(value, -0.5 * delta[name], atol=1e-6)
    both = extract_lora(base, vector + stored, tmp_path / "both", 6, engine=ONE)
    assert both.adapted == pytest.approx(4 * made.adapted, rel=1e-6)


@pytest.mark.parametrize(("dtype", "share"), [("float16", 2e-3), ("bfloat16", 2e-2)])
def test_rounding_is_part_of_the_stated_error(
    models: Any, products: Products, tmp_path: Path, dtype: str, share: float
) -> None:
    base, tuned, delta = models
    made = extract(base, tuned, tmp_path / "out", 6, dtype=dtype)
    found = products(tmp_path / "out")
    error = norm(*(found[f"{name}.weight"] - delta[f"{name}.weight"] for name in LINEAR))
    assert 1e-5 < made.error < share
    assert made.error == pytest.approx(
        error / norm(*(delta[f"{name}.weight"] for name in LINEAR)), rel=1e-4
    )
    assert made.nbytes == 2 * 6 * sum(sum(SHAPES[f"{name}.weight"]) for name in LINEAR)


def test_the_same_bytes_for_any_number_of_workers(models: Any, tmp_path: Path) -> None:
    base, tuned, _ = models
    for cut in ({"rank": 2}, {"energy": 0.7}):
        written = []
        for workers in (1, 2, 5):
            out = tmp_path / f"o{workers}{next(iter(cut))}"
            extract_lora(base, TaskVector(base, tuned), out, engine=Engine(workers=workers), **cut)
            written.append({path.name: path.read_bytes() for path in out.iterdir()})
        assert written[0] == written[1] == written[2]


def test_large_matrices_are_projected(
    write_folder: Write, products: Products, tmp_path: Path
) -> None:
    left, right = normal(1, (600, 3)), normal(2, (3, 700))
    base = {"q.weight": normal(3, (600, 700))}
    tuned = {"q.weight": base["q.weight"] + left @ right}
    made = extract(write_folder("b", base), write_folder("t", tuned), tmp_path / "out", 3)
    wanted = tuned["q.weight"] - base["q.weight"]
    error = norm(products(tmp_path / "out")["q.weight"] - wanted)
    assert made.rows[0].error == pytest.approx(error, rel=1e-4)
    assert made.error < 1e-6
    assert made.rank == 3


# What is refused.


def test_conv1d_and_linear_layers_do_not_share_a_config(
    write_folder: Write, config: Any, tmp_path: Path
) -> None:
    shapes = {"h.0.c_fc.weight": (4, 12), "h.0.c_fc.bias": (12,), "score.weight": (4, 4)}
    base = weights(shapes)
    tuned = {name: value + normal(7, value.shape) for name, value in base.items()}
    folders = write_folder("base", base), write_folder("tuned", tuned)
    assert refused(UsageError, *folders, 2) == (
        "'h.0.c_fc.weight' is [in, out] (Conv1D) and 'score.weight' is [out, in], but an "
        "adapter's config says one of all; leave one kind out with --exclude"
    )
    made = extract(*folders, tmp_path / "out", 2, exclude=["score.*"])
    assert made.rules["left out"] == ("score.weight",)
    assert config(tmp_path / "out")["fan_in_fan_out"] is True


def refused(kind: type[TaskbasisError], base: Path, tuned: Path, *args: Any, **more: Any) -> str:
    out = base.parent / "out"
    with pytest.raises(kind) as caught:
        extract(base, tuned, out, *args, **more)
    assert not out.exists()
    assert [path for path in out.parent.iterdir() if path.name.startswith(".")] == []
    return str(caught.value)


def test_what_means_nothing(models: Any) -> None:
    base, tuned, _ = models
    assert refused(UsageError, base, tuned).startswith("say how much is kept: a rank such as 16")
    assert "a rank of -1 keeps nothing" in refused(UsageError, base, tuned, -1)
    assert "'float8' is not a float type" in refused(UsageError, base, tuned, 1, dtype="float8")
    assert refused(UsageError, base, tuned, 1, include=["*.qq.*"]).startswith(
        "--include '*.qq.*' matches no tensor of the delta; "
    )
    assert refused(UsageError, base, tuned, 1, exclude=["model.scale"]) == (
        "--exclude 'model.scale' matches no tensor of the delta; did you mean 'model.scales'?"
    )


def test_nothing_to_adapt(models: Any, write_folder: Write) -> None:
    base, tuned, _ = models
    message = refused(ValueProblem, base, tuned, 1, include=["*norm*"])
    assert message == (
        f"{tuned}: nothing can be adapted (1 convolution, 1 embedding, 1 head, 4 left out, 3 one "
        "axis, 1 parameter); embeddings and head are adapted when that is asked"
    )
    assert refused(ValueProblem, base, base, 1) == (
        f"{base.parent / 'out'}: no module is left to adapt, so there is nothing to write"
    )


def test_a_vector_of_another_base(models: Any, write_folder: Write, tmp_path: Path) -> None:
    base, tuned, _ = models
    other = write_folder("other", {**weights(), "steps": np.array([4], np.int64)})
    with pytest.raises(BaseError, match="Apply it to its own base"):
        extract_lora(other, TaskVector(base, tuned), tmp_path / "out", 1, engine=ONE)


def test_values_that_are_not_finite(models: Any, write_folder: Write) -> None:
    base, _, _ = models
    for number, name in enumerate(("model.h.0.q.weight", "model.norm.weight")):
        broken = {**weights(), "steps": np.array([3], np.int64)}
        broken[name] = broken[name] * np.float32("inf")
        tuned = write_folder(f"broken{number}", broken)
        message = refused(ValueProblem, base, tuned, 1)
        assert message.startswith(f"tensor {name!r}: a value is NaN or infinite")


def test_a_value_too_large_for_the_dtype(models: Any, write_folder: Write) -> None:
    base, _, _ = models
    huge = {**weights(), "steps": np.array([3], np.int64)}
    huge["model.h.0.q.weight"] = huge["model.h.0.q.weight"] * np.float32(1e12)
    message = refused(ValueProblem, base, write_folder("huge", huge), 1, dtype="float16")
    assert message == (
        "tensor 'model.h.0.q.weight': a value of its factors is too large for float16; store the "
        "adapter in float32 or bfloat16"
    )


def test_where_it_may_not_be_written(models: Any, tmp_path: Path) -> None:
    base, tuned, _ = models
    with pytest.raises(FileError, match="would touch the input"):
        extract(base, tuned, tuned, 1, replace_used=True)
    with pytest.raises(FileError, match="would touch the input"):
        extract(base, tuned, base / "adapter", 1)
    with pytest.raises(UsageError, match="an adapter is a folder"):
        extract(base, tuned, tmp_path / "a.safetensors", 1)
    with pytest.raises(FileError, match="does not exist; create it first"):
        extract(base, tuned, tmp_path / "no" / "a", 1)


def test_a_memory_cap_is_kept_or_refused(models: Any, tmp_path: Path) -> None:
    base, tuned, _ = models
    with pytest.raises(MemoryCapError, match="is too small"):
        extract_lora(
            base, TaskVector(base, tuned), tmp_path / "out", 1, engine=Engine(1, memory=1000)
        )
    assert not (tmp_path / "out").exists()


def test_shapes_that_do_not_fit(models: Any, write_folder: Write) -> None:
    base, _, _ = models
    wider = {**weights(), "steps": np.array([3], np.int64)}
    wider["lm_head.weight"] = normal(0, (13, 6))
    assert "[13, 6]" in refused(MismatchError, base, write_folder("wider", wider), 1)
