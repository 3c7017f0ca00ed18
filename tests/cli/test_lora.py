"""taskbasis lora extract | add, as people type them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from taskbasis import cli

Call = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("verb")


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verb, whether or not the list of verbs has it."""
    monkeypatch.setitem(cli.VERBS, "lora", "Make LoRA adapters.")


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``base`` and ``tuned`` in the current folder: two layers, embeddings, a norm."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    random = np.random.default_rng(0)
    shapes = {"embed.weight": (8, 5), "h.0.q.weight": (5, 5), "h.1.q.weight": (5, 5)}
    base = {name: random.standard_normal(shape) for name, shape in {**shapes, "norm": (5,)}.items()}
    for name in ("base", "tuned", "other"):
        (tmp_path / name).mkdir()
        kept = {key: value.astype(np.float32) for key, value in base.items()}
        save_file(kept, tmp_path / name / "model.safetensors")
        base = {k: v + 0.1 * random.standard_normal(v.shape) for k, v in base.items()}
    return tmp_path


def listing(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_extract_says_what_it_kept_and_what_not(models: Path, call: Call) -> None:
    answer = call("lora extract base tuned -o out --rank 2 -j 1")
    assert answer.code == 0, answer.err
    assert answer.err == ""
    assert "wrote out: 160 B; 2 modules, rank 2, scaling 1" in answer.out
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in answer.out.splitlines()
        if line.startswith("│")
    ]
    assert [row[:3] for row in rows[:2]] == [["q", "2", "2"], ["all", "2", "2"]]
    assert 0 < float(rows[1][4]) < 1
    assert rows[2][:2] == ["embedding", "1"]
    assert rows[2][3] == "--embeddings adapts them"
    assert rows[3][:2] == ["one axis", "1"]
    assert "of the whole delta 0." in answer.out
    assert listing(models / "out") == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "taskbasis_digests.json",
    }


def test_verbose_names_every_module_and_tensor(models: Path, call: Call) -> None:
    answer = call("lora extract base tuned -o out --energy 0.9 -v")
    assert "│ h.0.q " in answer.out
    assert "│ h.1.q " in answer.out
    assert "  one axis     norm\n" in answer.out
    assert "  embedding    embed.weight\n" in answer.out


def test_quiet_says_nothing_but_warnings(models: Path, call: Call) -> None:
    answer = call("lora extract base tuned -o out --rank 4 -q")
    assert (answer.code, answer.out, answer.err) == (0, "", "")
    answer = call("lora extract base tuned -o out --rank 4 -q --replace --max-rank 2")
    assert answer.err == ("warning: out: its rank 4 is above 2; serve it with --max-lora-rank 8\n")


def test_what_it_writes_can_be_added(models: Path, call: Call) -> None:
    assert call("lora extract base tuned -o out --rank 5 --embeddings -q").code == 0
    assert call("add base out -o merged -q").code == 0
    merged = load_file(models / "merged" / "model.safetensors")
    tuned = load_file(models / "tuned" / "model.safetensors")
    for name in ("embed.weight", "h.0.q.weight", "h.1.q.weight"):
        np.testing.assert_allclose(merged[name], tuned[name], atol=1e-6)


def test_options_reach_the_work(models: Path, call: Call) -> None:
    words = "--rank 1 --include *.0.* --base-name org/x --dtype bfloat16 --exclude norm"
    answer = call(*["lora", "extract", "base", "tuned", "-o", "out"], *words.split(), "-v")
    assert answer.code == 0, answer.err
    assert "  left out     h.1.q.weight\n" in answer.out
    assert "  excluded     norm\n" in answer.out
    config = json.loads((models / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/x"
    assert config["target_modules"] == ["h.0.q"]
    found = load_file(models / "out" / "adapter_model.safetensors")
    assert {value.dtype.name for value in found.values()} == {"bfloat16"}


def test_stored_vectors_are_taken_too(models: Path, call: Call) -> None:
    assert call("extract base tuned -o v.safetensors -q").code == 0
    assert call("lora extract base v.safetensors -o one --rank 2 -q").code == 0
    assert call("lora extract base tuned -o two --rank 2 -q").code == 0
    one, two = (models / name / "adapter_model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_add_is_exact_or_cut(models: Path, call: Call) -> None:
    for name in ("tuned", "other"):
        assert call(f"lora extract base {name} -o l-{name} --rank 2 -q").code == 0
    answer = call("lora add l-tuned l-other --weights 1,-0.5 -o sum")
    assert answer.code == 0, answer.err
    assert "2 modules, rank 4, scaling 1" in answer.out
    answer = call("lora add a=l-tuned b=l-other --weights b=-0.5 -o cut --rank 1 --base base")
    assert answer.code == 0, answer.err
    assert "2 modules, rank 1, scaling 1" in answer.out
    config = json.loads((models / "cut" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["q"]
    card = (models / "cut" / "README.md").read_text()
    assert "Sum of LoRA adapters, truncated (rank 1): 1 * a + -0.5 * b." in card
    call("add base sum -o m1 -q")
    call("add base l-tuned -o m2 -q")
    call("negate m2 l-other -o m3 -q --scale 0.5")
    one, three = (load_file(models / name / "model.safetensors") for name in ("m1", "m3"))
    for name, value in one.items():
        np.testing.assert_allclose(three[name], value, atol=1e-6)


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (
            "extract base tuned -o out",
            2,
            "say how much is kept: a rank such as 16, or an energy such as 0.9",
        ),
        ("extract base tuned -o out --rank 0", 2, "a rank of 0 keeps nothing; use at least 1"),
        (
            "extract base tuned -o out --energy 2",
            2,
            "an energy of 2 is no share of the squared norm; use (0, 1]",
        ),
        (
            "extract base tuned -o out.safetensors --rank 1",
            2,
            "out.safetensors: an adapter is a folder of a config and its factors; name one",
        ),
        (
            "extract base tuned -o out --rank 1 --include h.2.*",
            2,
            "--include 'h.2.*' matches no tensor of the delta; "
            "known: embed.weight, h.0.q.weight, h.1.q.weight, norm",
        ),
        (
            "extract base tuned -o out --rank 1 --exclude nrm",
            2,
            "--exclude 'nrm' matches no tensor; did you mean 'norm'?",
        ),
        (
            "extract base tuned -o base --rank 1",
            1,
            "base: writing there would touch the input base; name another",
        ),
        ("extract base none -o out --rank 1", 1, "none: no such file or folder"),
        ("add base -o out", 1, "base: holds no adapter_config.json"),
        (
            "add lora --weights 1,2 -o out",
            2,
            "--weights: 1 vectors (lora) need a number each; or give some as NAME=NUMBER",
        ),
        (
            "add lora --weights lra=2 -o out",
            2,
            "--weights: there is no vector 'lra'; did you mean ",
        ),
        ("add lora --weights 0 -o out", 2, "the weight of 'lora' is 0; leave the adapter out"),
        ("add lora lora -o out", 2, "two adapters are called 'lora'; name them as NAME=PATH"),
        ("add a=lora b=lora --weights 1,-1 --rank 2 -o out", 1, "out: the sum is zero in every "),
    ],
)
def test_errors_are_one_sentence(
    models: Path, call: Call, words: str, code: int, sentence: str
) -> None:
    assert call("lora extract base tuned -o lora --rank 2 -q").code == 0
    before = listing(models)
    answer = call(f"lora {words}")
    assert answer.code == code
    assert answer.sentence.startswith(sentence)
    assert listing(models) == before


def test_both_verbs_explain_themselves(call: Call) -> None:
    for words, part in (
        ("lora -h", "out of full models, and out of each other"),
        ("lora extract -h", "--fan-in-fan-out / --no-fan-in-fan-out"),
        ("lora add -h", "Their ranks add up unless --rank"),
    ):
        answer = call(words)
        assert answer.code == 0
        assert part in " ".join(answer.out.split())
