"""Real models in, real models out: what is written loads, and holds what torch computes."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from taskbasis.cli import run

torch = pytest.importorskip("torch")
load_file = pytest.importorskip("safetensors.torch").load_file


def expected(
    family: Any, terms: Sequence[tuple[float, str]], dtype: str | None = None
) -> dict[str, Any]:
    """``base + ((0 + c_1 (tuned_1 - base)) + c_2 (tuned_2 - base)) ...``, by torch in float32.

    What is not float32 is rounded once, at the end, by ml_dtypes.
    """
    base = family.state(family.base)
    tuned = [(coefficient, family.state(family.folder / task)) for coefficient, task in terms]
    found = {}
    for name, value in base.items():
        total = torch.zeros(value.shape, dtype=torch.float32)
        origin = value.to(torch.float32)
        for coefficient, state in tuned:
            total = total + torch.tensor(coefficient, dtype=torch.float32) * (
                state[name].to(torch.float32) - origin
            )
        stored = dtype or str(value.dtype).removeprefix("torch.")
        found[name] = rounded(origin + total, stored)
    return found


def rounded(values: Any, dtype: str) -> Any:
    """Float32 values rounded to ``dtype`` by NumPy or ml_dtypes, as a torch tensor of it."""
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    words = np.asarray(values.numpy(), kind).view(np.uint8)
    flat = torch.from_numpy(np.ascontiguousarray(words).reshape(-1).copy())
    return flat.view(getattr(torch, dtype)).reshape(values.shape)


def assert_same(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Every parameter equal, bit for bit but for the sign of zero."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name


def command(*words: object) -> None:
    assert run([*map(str, words), "-q"]) == 0


def test_add_of_checkpoints_equals_torch(family: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command(
        "add",
        family.base,
        family.folder / "math",
        family.folder / "code",
        "-o",
        out,
        "--scale",
        0.3,
    )
    assert_same(family.state(out), expected(family, [(0.3, "math"), (0.3, "code")]))


def test_add_of_stored_vectors_gives_the_bytes_of_add_of_checkpoints(
    family: Any, tmp_path: Path
) -> None:
    for task in ("math", "code"):
        vector = tmp_path / f"{task}.safetensors"
        command("extract", family.base, family.folder / task, "-o", vector)
    specs = (tmp_path / "math.safetensors", tmp_path / "code.safetensors")
    command("add", family.base, *specs, "-o", tmp_path / "stored", "--scale", 0.7)
    trained = (family.folder / "math", family.folder / "code")
    command("add", family.base, *trained, "-o", tmp_path / "direct", "--scale", 0.7)
    wanted = expected(family, [(0.7, "math"), (0.7, "code")])
    assert_same(family.state(tmp_path / "stored"), wanted)
    assert_same(family.state(tmp_path / "direct"), wanted)


def test_a_stored_vector_is_the_difference_in_float32(family: Any, tmp_path: Path) -> None:
    command("extract", family.base, family.folder / "law", "-o", tmp_path / "law.safetensors")
    base, tuned = _on_disk(family.base), _on_disk(family.folder / "law")
    stored = load_file(tmp_path / "law.safetensors")
    for name, delta in stored.items():
        wanted = tuned[name].to(torch.float32) - base[name].to(torch.float32)
        assert torch.equal(delta, wanted), name
    changed = {name for name in base if not torch.equal(base[name], tuned[name])}
    assert stored.keys() == changed
    assert changed < base.keys(), "something was left as it was, and is not stored"


def _on_disk(folder: Path) -> dict[str, Any]:
    """The tensors of a folder under the names that the files use."""
    if (folder / "pytorch_model.bin").exists():
        return dict(torch.load(folder / "pytorch_model.bin", weights_only=True))
    found: dict[str, Any] = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


def test_negate_equals_torch(family: Any, tmp_path: Path) -> None:
    command("negate", family.base, family.folder / "math", "-o", tmp_path / "out", "--scale", 0.9)
    assert_same(family.state(tmp_path / "out"), expected(family, [(-0.9, "math")]))


def test_analogy_equals_torch(family: Any, tmp_path: Path) -> None:
    plus = ["--plus", family.folder / "law", "--plus", family.folder / "code"]
    minus = ["--minus", family.folder / "math"]
    command("analogy", family.base, *plus, *minus, "-o", tmp_path / "out", "--scale", 0.5)
    wanted = expected(family, [(0.5, "law"), (0.5, "code"), (-0.5, "math")])
    assert_same(family.state(tmp_path / "out"), wanted)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_another_dtype_rounds_once_and_is_told_to_the_loader(
    family: Any, tmp_path: Path, dtype: str
) -> None:
    out = tmp_path / "out"
    command("add", family.base, family.folder / "code", "-o", out, "--dtype", dtype)
    before = json.loads((family.base / "config.json").read_text())
    after = json.loads((out / "config.json").read_text())
    if "dtype" in before:
        assert after.pop("dtype") == dtype
        before.pop("dtype")
    assert after == before
    assert_same(family.state(out), expected(family, [(1.0, "code")], dtype))


def test_the_weights_that_are_written_compute_what_the_reference_computes(
    families: dict[str, Any], tmp_path: Path
) -> None:
    family = families["gpt2"]
    command("add", family.base, family.folder / "math", "-o", tmp_path / "out", "--scale", 0.5)
    model, reference = family.load(tmp_path / "out").eval(), family.load(family.base).eval()
    reference.load_state_dict(expected(family, [(0.5, "math")]))
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, reference(tokens).logits)


def test_shards_and_index_are_read_back(family: Any, tmp_path: Path) -> None:
    one, many = tmp_path / "one", tmp_path / "many"
    for out, size in ((one, "5GB"), (many, "5kB")):
        command("add", family.base, family.folder / "law", "-o", out, "--out-shard-size", size)
    assert [path.name for path in one.glob("*.safetensors")] == ["model.safetensors"]
    index = json.loads((many / "model.safetensors.index.json").read_text())
    shards = sorted(path.name for path in many.glob("*.safetensors"))
    assert len(shards) > 1
    assert sorted(set(index["weight_map"].values())) == shards
    assert_same(family.state(many), family.state(one))


def test_integer_buffers_and_both_names_of_a_tied_tensor_survive(
    families: dict[str, Any], tmp_path: Path
) -> None:
    family = families["bert"]
    command("add", family.base, family.folder / "math", "-o", tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == _on_disk(family.base).keys()
    positions = found["bert.embeddings.position_ids"]
    tied = ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight")
    assert positions.dtype == torch.int64
    assert torch.equal(positions, torch.arange(12)[None])
    assert torch.equal(*(found[name] for name in tied))


def test_a_tied_name_that_only_one_side_stores(families: dict[str, Any], tmp_path: Path) -> None:
    """save_pretrained drops the second name of a tied tensor, torch.save keeps it."""
    family = families["llama-tied"]
    both = tmp_path / "both"
    both.mkdir()
    shutil.copy(family.base / "config.json", both)
    torch.save(family.state(family.base), both / "pytorch_model.bin")
    assert _on_disk(both).keys() - _on_disk(family.base).keys() == {"lm_head.weight"}
    command("add", both, family.folder / "math", "-o", tmp_path / "a", "--scale", 0.4)
    assert_same(family.state(tmp_path / "a"), expected(family, [(0.4, "math")]))
    tuned = tmp_path / "tuned"
    tuned.mkdir()
    torch.save(family.state(family.folder / "math"), tuned / "pytorch_model.bin")
    command("add", family.base, tuned, "-o", tmp_path / "b", "--scale", 0.4)
    assert_same(family.state(tmp_path / "b"), expected(family, [(0.4, "math")]))


@pytest.fixture
def dressed(families: dict[str, Any], tmp_path: Path) -> Path:
    """A base with the files that people keep beside their weights."""
    base = tmp_path / "dressed"
    shutil.copytree(families["llama-tied"].base, base)
    for name in (
        "tokenizer.json",
        "vocab.txt",
        "1_Pooling/config.json",
        "1_Pooling/README.md",
        "README.md",
        ".gitattributes",
        ".cache/state.json",
        "onnx/model.onnx",
        "training_args.bin",
    ):
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text(f"this is {name} \u00e9\n", encoding="utf-8")
        (base / name).chmod(0o600)
    return base


def test_side_files_go_along_and_the_card_is_our_own(
    dressed: Path, families: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command("add", dressed, families["llama-tied"].folder / "math", "-o", out)
    there = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    copied = {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "vocab.txt",
        "1_Pooling/config.json",
        "1_Pooling/README.md",
    }
    assert there == copied | {
        "model.safetensors", "taskbasis_digests.json", "taskbasis_recipe.json", "README.md"
    }  # fmt: skip
    assert (out / "README.md").read_bytes() != (dressed / "README.md").read_bytes()
    for name in copied:
        assert (out / name).read_bytes() == (dressed / name).read_bytes(), name
    for name in there:
        assert stat.S_IMODE((out / name).stat().st_mode) == 0o644, name


def test_the_recipe_says_what_was_done(
    dressed: Path, families: dict[str, Any], tmp_path: Path
) -> None:
    tuned = families["llama-tied"].folder / "math"
    command("add", dressed, tuned, "-o", tmp_path / "out", "--scale", 0.25)
    recipe = json.loads((tmp_path / "out" / "taskbasis_recipe.json").read_text())
    assert recipe == {
        "base": str(dressed),
        "method": "task_arithmetic",
        "options": {"normalize": False},
        "scale": 0.25,
        "vectors": [[{"vector": str(tuned), "coefficient": 1.0}]],
    }


def test_another_model_is_refused(
    families: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    llama, gpt2 = families["llama-untied"], families["gpt2"]
    assert run(["add", str(llama.base), str(gpt2.folder / "math"), "-o", str(tmp_path / "x")]) == 1
    message = capsys.readouterr().err
    assert "lacks" in message
    assert "transformer.h.0" in message
    assert not list(tmp_path.iterdir())


def test_tensors_kept_in_float32_load_so_in_a_model_of_float32(
    families: dict[str, Any], tmp_path: Path
) -> None:
    """The file holds float32 for them; what is loaded in one dtype is rounded by the loader."""
    family, out = families["llama-tied"], tmp_path / "out"
    keep = ("--keep-float32", "*norm*", "--rounding", "stochastic")
    command("add", family.base, family.folder / "code", "-o", out, "--dtype", "bfloat16", *keep)
    wanted = expected(family, [(1.0, "code")], "float32")
    stored = _on_disk(out)
    norms = {name for name, value in stored.items() if value.dtype == torch.float32}
    assert norms == {name for name in stored if "norm" in name}
    assert {stored[name].dtype for name in stored.keys() - norms} == {torch.bfloat16}
    transformers = pytest.importorskip("transformers")
    for dtype in (torch.float32, torch.bfloat16):
        model, told = transformers.AutoModelForCausalLM.from_pretrained(
            out, dtype=dtype, output_loading_info=True
        )
        assert not any(told.values()), told
        state = model.state_dict()
        assert {value.dtype for value in state.values()} == {dtype}
        for name in norms:
            assert torch.equal(state[name], wanted[name].to(dtype)), name
        for name in stored.keys() - norms:
            assert torch.equal(state[name], stored[name].to(dtype)), name
