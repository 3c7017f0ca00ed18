"""What recipes write opens in transformers: no key missing, unexpected or of another shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from taskbasis.cli import run

torch = pytest.importorskip("torch")

MERGED = """
merge_method: ties
base_model: {base}
models:
  - {{model: {math}, parameters: {{weight: 0.5, density: 0.5}}}}
  - {{model: {code}, parameters: {{weight: [0.3, 0.8], density: 0.7}}}}
"""
STACKED = """
merge_method: passthrough
slices:
  - sources: [{{model: {math}, layer_range: [0, 2]}}]
  - sources: [{{model: {code}, layer_range: [0, 2]}}]
"""


def made(text: str, out: Path, **models: Path) -> Path:
    recipe = out.with_suffix(".yml")
    recipe.write_text(text.format(**models), encoding="utf-8")
    assert run(["merge", str(recipe), str(out), "-q"]) == 0
    return out


@pytest.mark.parametrize(("text", "layers"), [(MERGED, 2), (STACKED, 4)])
def test_recipes_open(family: Any, text: str, layers: int, tmp_path: Path) -> None:
    folders = {name: family.folder / name for name in ("base", "math", "code")}
    out = made(text, tmp_path / "out", **folders)
    model = family.load(out)  # fails where a key is missing, unexpected or of another shape
    config = model.config
    assert (config.n_layer if config.model_type == "gpt2" else config.num_hidden_layers) == layers
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


@pytest.fixture(scope="module")
def llamas(quiet_transformers: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two Llamas by name, one of which ties its head."""
    root, found = tmp_path_factory.mktemp("llamas"), {}
    sizes = {"vocab_size": 17, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2}
    for seed, (name, tied) in enumerate({"tied": True, "own": False}.items()):
        torch.manual_seed(seed)
        config = quiet_transformers.LlamaConfig(
            **sizes, num_attention_heads=2, tie_word_embeddings=tied
        )
        model = quiet_transformers.LlamaForCausalLM(config)
        model.save_pretrained(root / name)
        found[name] = (root / name, model.state_dict())
    return found


@pytest.mark.parametrize(("first", "second"), [("tied", "own"), ("own", "tied")])
def test_a_tied_head_beside_one_of_its_own(
    first: str, second: str, llamas: Any, quiet_transformers: Any, tmp_path: Path
) -> None:
    """Both kinds are merged by what they compute; the output has a head, and says so."""
    text = (
        "merge_method: linear\nmodels: [{{model: {a}, parameters: {{weight: 1}}}}, "
        "{{model: {b}, parameters: {{weight: 1}}}}]\n"
    )
    out = made(text, tmp_path / "out", a=llamas[first][0], b=llamas[second][0])
    model, info = quiet_transformers.LlamaForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info.values()), info
    assert model.config.tie_word_embeddings is False
    for name, value in model.state_dict().items():
        wanted = (llamas[first][1][name] + llamas[second][1][name]) / 2
        torch.testing.assert_close(value, wanted)


def test_kinds_of_layers_go_with_the_layers(quiet_transformers: Any, tmp_path: Path) -> None:
    """Qwen2 says of every layer whether its attention slides."""
    torch.manual_seed(0)
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    config = quiet_transformers.Qwen2Config(
        vocab_size=17,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        use_sliding_window=True,
        sliding_window=4,
        max_window_layers=1,
        layer_types=kinds,
    )
    source = quiet_transformers.Qwen2ForCausalLM(config)
    source.save_pretrained(tmp_path / "base")
    text = """
merge_method: passthrough
slices:
  - sources: [{{model: {base}, layer_range: [1, 3]}}]
  - sources: [{{model: {base}, layer_range: [1, 2]}}]
  - sources: [{{model: {base}, layer_range: [0, 2]}}]
"""
    out = made(text, tmp_path / "out", base=tmp_path / "base")
    loader = quiet_transformers.Qwen2ForCausalLM
    model, info = loader.from_pretrained(out, output_loading_info=True)
    assert not any(info.values()), info
    assert json.loads((tmp_path / "base" / "config.json").read_text())["layer_types"] == kinds
    order = [1, 2, 1, 0, 1]
    assert model.config.layer_types == [kinds[layer] for layer in order]
    for ours, layer in enumerate(order):
        theirs = source.model.layers[layer].state_dict()
        for name, value in model.model.layers[ours].state_dict().items():
            assert torch.equal(value, theirs[name])
