"""The checkpoints that everything is measured on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import ModuleType

import ml_dtypes  # noqa: F401  (lets NumPy read bf16)
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file


def load(folder: Path) -> dict[str, NDArray[np.float32]]:
    return {
        name: tensor.astype(np.float32)
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="session")
def made(scripts: dict[str, ModuleType], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base and two fine-tunes."""
    work = tmp_path_factory.mktemp("made")
    scripts["checkpoints"].main(["tiny", str(work), "--tuned", "2"])
    return work / "tiny"


def test_the_folders(made: Path) -> None:
    assert sorted(path.name for path in made.iterdir()) == ["base", "tuned-1", "tuned-2"]


def test_the_index_names_every_tensor_where_it_is(made: Path) -> None:
    index = json.loads((made / "base" / "model.safetensors.index.json").read_text())
    stored = {
        name: path.name
        for path in (made / "base").glob("*.safetensors")
        for name in load_file(path)
    }
    assert len(set(stored.values())) > 1
    assert index["weight_map"] == stored
    assert index["metadata"]["total_size"] == sum(2 * t.size for t in load(made / "base").values())


def test_the_config_describes_the_tensors(made: Path) -> None:
    config = json.loads((made / "base" / "config.json").read_text())
    tensors = load(made / "base")
    vocabulary, hidden = tensors["model.embed_tokens.weight"].shape
    assert (config["vocab_size"], config["hidden_size"]) == (vocabulary, hidden)
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    assert tensors["model.layers.0.self_attn.k_proj.weight"].shape == (kv, hidden)
    assert f"model.layers.{config['num_hidden_layers'] - 1}.input_layernorm.weight" in tensors


def test_the_numbers_are_those_of_a_model_and_its_fine_tunes(made: Path) -> None:
    base, one, two = (load(made / name) for name in ("base", "tuned-1", "tuned-2"))
    assert base.keys() == one.keys() == two.keys()
    head = base["lm_head.weight"]
    assert head.std() == pytest.approx(0.02, rel=0.05)
    assert base["model.norm.weight"].mean() == pytest.approx(0.4, abs=0.05)
    first, second = one["lm_head.weight"] - head, two["lm_head.weight"] - head
    assert first.std() == pytest.approx(1e-3, rel=0.05)
    cosine = (first * second).sum() / np.linalg.norm(first) / np.linalg.norm(second)
    assert abs(cosine) < 0.02
    assert all((one[name] != base[name]).any() for name in base)


def test_the_number_of_threads_does_not_change_a_byte(
    checkpoints: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "BLOCK", 5000)
    results = []
    for cores in (1, 3):
        monkeypatch.setattr(checkpoints, "_cores", lambda cores=cores: cores)
        maker = checkpoints.Maker(tmp_path / str(cores), "tiny")
        results.append(contents(maker.base()) | contents(maker.tuned(2)))
    assert results[0] == results[1]


def test_the_seed_changes_the_numbers(checkpoints: ModuleType, made: Path, tmp_path: Path) -> None:
    other = load(checkpoints.Maker(tmp_path, "tiny", seed=1).base())
    assert (other["lm_head.weight"] != load(made / "base")["lm_head.weight"]).mean() > 0.9


def test_what_stands_is_kept_and_what_is_damaged_is_made_again(
    checkpoints: ModuleType, tmp_path: Path
) -> None:
    maker = checkpoints.Maker(tmp_path, "tiny")
    folder = maker.base()
    whole = contents(folder)
    (folder / "mark").touch()
    maker.base()
    assert (folder / "mark").exists()
    shard = next(folder.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-2])
    maker.base()
    assert contents(folder) == whole


def test_the_large_size_has_a_billion_parameters_in_shards_below_800_mb(
    checkpoints: ModuleType,
) -> None:
    size = checkpoints.SIZES["1b"]
    parts = checkpoints.shards(size, "")
    numbers = [[math.prod(shape) for _, shape in part.tensors] for part in parts]
    assert sum(map(sum, numbers)) == 1_100_048_384
    assert max(map(sum, numbers)) * 2 <= 800_000_000
    assert [part.name for part in parts] == [
        f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)
    ]


def test_one_shard_has_the_plain_name(checkpoints: ModuleType) -> None:
    size = checkpoints.Size(8, 1, 16, 2, 1, 10, shard_bytes=1 << 20)
    assert [part.name for part in checkpoints.shards(size, "")] == ["model.safetensors"]
