"""--device: the same weights, errors of one sentence, and no word that means nothing unsaid."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

RECIPE = """
merge_method: task_arithmetic
base_model: base
models: [{model: a, parameters: {weight: 0.5}}, {model: b, parameters: {weight: 1}}]
"""


def weights(path: str) -> bytes:
    found = Path(path)
    return (found / "model.safetensors" if found.is_dir() else found).read_bytes()


@pytest.mark.parametrize("words", [
    "extract base a -o OUT.safetensors",
    "add base a b --scale 0.3 -o OUT",
    "negate base a -o OUT --dtype bfloat16",
    "analogy base --plus a --plus b --minus c -o OUT",
    "merge base a b --method task_arithmetic -o OUT -j 2",
    "basis recover lib.safetensors a --base base -o OUT",
])  # fmt: skip
def test_the_weights_are_the_same(words: str, call: Any, desk: Path) -> None:
    if "basis" in words:
        assert call("basis fit a b --base base -k 2 -o lib.safetensors -q").code == 0
    plain, torch = (words.replace("OUT", out) for out in ("plain", "torch"))
    assert call(plain).code == 0, call(plain).err
    answer = call(f"{torch} --device cpu")
    assert (answer.code, answer.err) == (0, "")
    suffix = ".safetensors" if "OUT.safetensors" in words else ""
    assert weights("plain" + suffix) == weights("torch" + suffix)


@pytest.mark.parametrize("words", [
    "basis fit a b --base base -k 1 -o OUT.safetensors",
    "disentangle base a b c -o OUT",
])  # fmt: skip
def test_what_is_made_of_inner_products(words: str, call: Any, desk: Path) -> None:
    answer = call(f"{words.replace('OUT', 'out')} --device cpu")
    assert answer.code == 0, answer.err


@pytest.mark.parametrize("words", ["add base a -o out", "merge r.yml out", "extract base a -o out"])
def test_a_device_that_is_not_there(words: str, call: Any, desk: Path, leftovers: Any) -> None:
    (desk / "r.yml").write_text(RECIPE)
    answer = call(f"{words} --device quantum")
    assert answer.code == 2
    assert answer.sentence.startswith("the device quantum cannot be used: Expected one of cpu")
    assert not (desk / "out").exists()
    assert leftovers(desk) == []


def test_without_torch(call: Any, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    sentence = call("add base a -o out --device cuda").sentence
    assert sentence == (
        "the device cuda needs the package 'torch'; install it with: pip install 'taskbasis[torch]'"
    )


def test_a_method_that_is_no_sum_says_so(call: Any, desk: Path) -> None:
    answer = call("merge base a b --method ties -o out --device cpu")
    assert answer.code == 0
    assert answer.err == (
        "warning: --device cpu changes nothing for ties, which is more than a weighted sum\n"
    )
    assert call("merge base a b --method ties -o plain").code == 0
    assert weights("plain") == weights("out")


def test_recipes(call: Any, desk: Path) -> None:
    """cpu is mergekit's word for no device."""
    (desk / "r.yml").write_text(RECIPE)
    for out, flag in (("plain", ""), ("out", "--device cpu"), ("torch", "--device cpu:0")):
        answer = call(f"merge r.yml {out} {flag}")
        assert (answer.code, answer.err) == (0, "")
    assert weights("plain") == weights("out") == weights("torch")
    (desk / "ties.yml").write_text(RECIPE.replace("task_arithmetic", "ties"))
    answer = call("merge ties.yml other --device cpu:0")
    assert "--device cpu:0 changes nothing for ties, which is" in answer.err
    assert answer.code == 0


def test_verbs_without_sums_have_no_such_option(call: Any, desk: Path) -> None:
    for words in ("select base a -o masks", "verify base", "diagnose base a"):
        assert "No such option" in call(f"{words} --device cpu").err
