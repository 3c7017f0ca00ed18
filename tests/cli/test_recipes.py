"""merge RECIPE OUT, check and plan, as people who know mergekit-yaml type them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from taskbasis.cli.recipes import IDLE
from taskbasis.units import bytes_text

DARE = """
merge_method: dare_linear
base_model: base
models:
  - {model: a, parameters: {weight: 0.5, density: 0.5}}
  - {model: b, parameters: {weight: 1, density: 0.3}}
"""
TIES = DARE.replace("dare_linear", "ties")
CHAIN = """
name: first
merge_method: linear
models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 1}}]
---
merge_method: task_arithmetic
base_model: base
models: [{model: first, parameters: {weight: 0.7}}]
"""
WRONG = """merge_method: ties
base_model: base
models:
  - model: a
    parameters: {densty: 0.5, weight: 1}
dtpye: float32
"""


@pytest.fixture
def recipe(desk: Path) -> Any:
    """``recipe(text, name="r.yml")``: the file's name."""

    def write(text: str, name: str = "r.yml") -> str:
        (desk / name).write_text(text)
        return name

    return write


def weights(folder: str) -> dict[str, Any]:
    return load_file(Path(folder) / "model.safetensors")


# merge


@pytest.mark.parametrize("name", ["r.yml", "r.yaml"])
def test_a_recipe_is_followed(name: str, recipe: Any, call: Any, desk: Path) -> None:
    answer = call(f"merge {recipe(TIES, name)} out")
    assert answer.code == 0
    assert answer.out.startswith("wrote out: ")
    assert "tensors: 4 merged" in answer.out
    assert "norm of the delta" in answer.out
    assert weights("out").keys() == weights("base").keys()
    assert {"config.json", "README.md", "mergekit_config.yml"} <= {
        path.name for path in (desk / "out").iterdir()
    }


def test_the_arithmetic(recipe: Any, call: Any) -> None:
    text = DARE.replace("dare_linear", "task_arithmetic").replace(", density: 0.5", "")
    assert call(f"merge {recipe(text.replace(', density: 0.3', ''))} out -q").code == 0
    base, a, b, out = (weights(name) for name in ("base", "a", "b", "out"))
    for key, values in out.items():
        wanted = base[key] + 0.5 * (a[key] - base[key]) + (b[key] - base[key])
        np.testing.assert_allclose(values, wanted, rtol=0, atol=1e-6)


def test_quiet_says_nothing(recipe: Any, call: Any) -> None:
    answer = call(f"merge {recipe(TIES)} out --quiet")
    assert (answer.code, answer.out, answer.err) == (0, "", "")


def test_verbose_names_every_tensor(recipe: Any, call: Any) -> None:
    answer = call(f"merge {recipe(TIES)} out -v")
    assert all(f"merged     {name}" in answer.out for name in weights("base"))


@pytest.mark.parametrize("flags", [
    "--num-threads 1", "--num-threads 3", "-j 2", "--workers 5", "-j 2 --num-threads 4"
])  # fmt: skip
def test_threads_change_no_byte(flags: str, recipe: Any, call: Any, desk: Path) -> None:
    name = recipe(DARE)
    assert call(f"merge {name} one -q").code == 0
    assert call(f"merge {name} out -q {flags}").code == 0
    one, out = (desk / folder / "model.safetensors" for folder in ("one", "out"))
    assert one.read_bytes() == out.read_bytes()


def test_the_seed(recipe: Any, call: Any) -> None:
    name = recipe(DARE)
    for out, flag in [("one", ""), ("two", "--random-seed 0"), ("three", "--random-seed 1")]:
        assert call(f"merge {name} {out} -q {flag}").code == 0
    first, second, third = (weights(out) for out in ("one", "two", "three"))
    assert all(np.array_equal(first[key], second[key]) for key in first)
    assert any(not np.array_equal(first[key], third[key]) for key in first)


@pytest.mark.parametrize(("flag", "there"), [
    ("", True), ("--write-model-card", True), ("--no-write-model-card", False)
])  # fmt: skip
def test_the_card(flag: str, there: bool, recipe: Any, call: Any, desk: Path) -> None:
    assert call(f"merge {recipe(TIES)} out -q {flag}").code == 0
    assert (desk / "out" / "README.md").exists() == there


IDLE_FLAGS = [flag for flags in IDLE for flag in flags.split("/")]


def test_the_familiar_flags_are_there() -> None:
    assert set(IDLE_FLAGS) >= {
        *("--cuda", "--no-cuda", "--low-cpu-memory", "--read-to-gpu", "--multi-gpu", "--gpu-rich"),
        *("--lazy-unpickle", "--async-write", "--clone-tensors", "--safe-serialization"),
        *("--no-safe-serialization", "--trust-remote-code", "--no-trust-remote-code"),
        *("--unsafe-truncate-embeddings", "--no-unsafe-truncate-embeddings"),
        *("--allow-crimes", "--no-allow-crimes", "--copy-tokenizer", "--no-copy-tokenizer"),
    }


@pytest.mark.parametrize("flag", IDLE_FLAGS)
def test_idle_flags_warn(flag: str, recipe: Any, call: Any) -> None:
    answer = call(f"merge {recipe(TIES)} out {flag}")
    assert answer.code == 0
    why = next(
        why for flags, why in IDLE.items() if flag in flags.split("/") or f"/{flag}" in flags
    )
    shown = flag.replace("--no-", "--")
    assert answer.err.count("\n") == 1
    assert f"{shown} changes nothing: {why}" in answer.err


@pytest.mark.parametrize("flag", ["--cuda", "--device cpu", "--unsafe-truncate-embeddings"])
def test_quiet_silences_idle_flags(flag: str, recipe: Any, call: Any) -> None:
    text = TIES + "parameters: {int8_mask: true}\n"
    assert call(f"merge {recipe(text)} out -q {flag}").err == ""


def test_no_flag_no_warning(recipe: Any, call: Any) -> None:
    assert "changes nothing" not in call(f"merge {recipe(TIES)} out").err


@pytest.mark.parametrize("flag", [
    "--no-low-cpu-memory", "--no-lazy-unpickle", "--no-read-to-gpu", "--no-multi-gpu",
    "--no-async-write", "--no-clone-tensors", "--no-quiet", "--device cpu", "--write-threads 2",
    "--transformers-cache x", "--lora-merge-cache x",
])  # fmt: skip
def test_all_flags_of_mergekit_are_known(flag: str, recipe: Any, call: Any) -> None:
    assert call(f"merge {recipe(TIES)} out {flag}").code == 0


@pytest.mark.parametrize("flags", ["--num-threads 2", "-j 2", "--random-seed 1"])
def test_flags_may_come_first(flags: str, recipe: Any, call: Any) -> None:
    answer = call(f"merge {flags} {recipe(TIES)} out")
    assert answer.code == 0


def test_flags_without_a_value_may_come_first(recipe: Any, call: Any) -> None:
    assert call(f"merge --cuda -q {recipe(TIES)} out").code == 0


def test_shards(recipe: Any, call: Any, desk: Path) -> None:
    assert call(f"merge {recipe(TIES)} out -q --out-shard-size 200").code == 0
    assert len(list((desk / "out").glob("*.safetensors"))) > 1


def test_plain_merges_stay_what_they_were(call: Any, desk: Path) -> None:
    assert call("merge base a b --method ties -o out").code == 0
    assert call("merge").code == 2


@pytest.mark.parametrize(("words", "said"), [
    ("merge r.yml", "Missing argument 'OUT'"),
    ("merge r.yml out more", "unexpected extra argument"),
    ("merge r.yml out --num-threads 0", "num-threads"),
    ("merge r.yml out --cudda", "No such option"),
    ("merge r.yml out --method ties", "No such option"),
])  # fmt: skip
def test_what_is_typed_wrong(words: str, said: str, recipe: Any, call: Any, desk: Path) -> None:
    recipe(TIES)
    answer = call(words)
    assert answer.code == 2
    assert said in answer.err
    assert not (desk / "out").exists()


def test_help_is_that_of_recipes(recipe: Any, call: Any) -> None:
    answer = call(f"merge {recipe(TIES)} --help")
    assert answer.code == 0
    assert "Follow RECIPE" in answer.out
    assert "--cuda" not in answer.out


def test_notes_are_said_once(recipe: Any, call: Any) -> None:
    text = TIES.replace("weight: 1", "weight: -1") + "parameters: {int8_mask: true}\n"
    answer = call(f"merge {recipe(text)} out")
    assert answer.code == 0
    assert answer.err.count("weights of both signs") == 1


# What goes wrong leaves nothing.


def nothing_left(desk: Path, leftovers: Any) -> None:
    assert not (desk / "out").exists()
    assert leftovers(desk) == []


@pytest.mark.parametrize(("text", "code", "said"), [
    (TIES.replace("model: a,", "model: none,"), 1, "none: no such file or folder"),
    (TIES.replace("model: a,", "model: stranger/x,"), 1, "stranger/x"),
    (TIES + "tokenizer: {source: base, pad_to_multiple_of: 8}\n", 2, "base has no tokenizer"),
    (TIES.replace("ties", "teis"), 2, "did you mean 'ties'?"),
    (TIES + "dtpye: float32\n", 2, "did you mean 'dtype'?"),
    (CHAIN.replace("base_model: base", "base_model: none"), 1, "none: no such file or folder"),
])  # fmt: skip
def test_one_sentence_and_nothing_written(
    text: str, code: int, said: str, recipe: Any, call: Any, desk: Path, leftovers: Any
) -> None:
    answer = call(f"merge {recipe(text)} out")
    assert answer.code == code
    assert said in answer.sentence
    nothing_left(desk, leftovers)


def test_a_value_that_is_not_finite(recipe: Any, call: Any, desk: Path, leftovers: Any) -> None:
    from safetensors.numpy import save_file

    broken = weights("b")
    broken["norm"][2] = np.inf
    save_file(broken, desk / "b" / "model.safetensors", {"format": "pt"})
    for text in (TIES, CHAIN):
        answer = call(f"merge {recipe(text)} out")
        assert answer.code == 1
        assert "norm" in answer.sentence
        nothing_left(desk, leftovers)


def test_intermediate_merges_are_gone(recipe: Any, call: Any, desk: Path, leftovers: Any) -> None:
    before = {path.name for path in desk.iterdir()} | {"r.yml", "out"}
    assert call(f"merge {recipe(CHAIN)} out -q").code == 0
    assert {path.name for path in desk.iterdir()} == before
    assert leftovers(desk) == []


def test_a_used_folder(recipe: Any, call: Any, desk: Path) -> None:
    name = recipe(TIES)
    assert call(f"merge {name} out -q").code == 0
    (desk / "out" / "mine.txt").write_text("keep me")
    answer = call(f"merge {name} out")
    assert answer.code == 1
    assert "out" in answer.sentence
    assert "--replace" in answer.sentence
    assert (desk / "out" / "mine.txt").exists()
    assert call(f"merge {name} out -q --replace").code == 0
    assert not (desk / "out" / "mine.txt").exists()


@pytest.mark.parametrize("out", ["base", "a", "r.yml", "."])
def test_what_is_read_is_never_replaced(out: str, recipe: Any, call: Any, desk: Path) -> None:
    name = recipe(TIES)
    before = {key: value.tobytes() for key, value in weights("a").items()}
    assert call(f"merge {name} {out} --replace").code in (1, 2)
    assert (desk / "r.yml").read_text() == TIES
    assert {key: value.tobytes() for key, value in weights("a").items()} == before


def test_a_folder_that_is_not_there(recipe: Any, call: Any, desk: Path) -> None:
    answer = call(f"merge {recipe(TIES)} no/where/out")
    assert answer.code == 1
    assert "no/where" in answer.sentence
    assert not (desk / "no").exists()


def test_no_recipe(call: Any, desk: Path) -> None:
    answer = call("merge none.yml out")
    assert answer.code == 1
    assert answer.sentence == "none.yml: no such file or folder"


# check


def test_check_finds_nothing_wrong(recipe: Any, call: Any, desk: Path) -> None:
    answer = call(f"check {recipe(TIES)}")
    assert answer.code == 0
    assert answer.out == "r.yml: 4 tensors in 1 group of like settings; nothing is wrong\n"
    assert answer.err == ""
    assert sorted(path.name for path in desk.iterdir()) == [
        "a", "b", "base", "c", "d", "r.yml", "stranger"
    ]  # fmt: skip


def test_check_counts_groups(recipe: Any, call: Any) -> None:
    text = TIES.replace("weight: 0.5", "weight: [{filter: norm, value: 0.1}, {value: 0.5}]")
    assert "in 2 groups of like settings" in call(f"check {recipe(text)}").out


def test_check_says_all_that_is_wrong_with_lines(recipe: Any, call: Any) -> None:
    answer = call(f"check {recipe(WRONG)}")
    assert answer.code == 2
    assert answer.out == ""
    lines = answer.err.splitlines()
    assert lines[0] == "Error: r.yml: 2 things are wrong"
    assert lines[1].startswith("  line 5, column 18: ties has no parameter 'densty'; did you mean")
    assert lines[2].startswith("  line 6, column 1: a recipe has no key 'dtpye'; did you mean")
    assert len(lines) == 3


def test_merge_says_the_same(recipe: Any, call: Any, desk: Path) -> None:
    name = recipe(WRONG)
    first, second = call(f"check {name}"), call(f"merge {name} out")
    assert (first.code, first.err) == (second.code, second.err)
    assert not (desk / "out").exists()


def test_check_looks_at_headers(recipe: Any, call: Any, desk: Path) -> None:
    from safetensors.numpy import save_file

    save_file(weights("a") | {"norm": np.zeros(7, np.float32)}, desk / "a" / "model.safetensors")
    answer = call(f"check {recipe(TIES)}")
    assert answer.code == 1
    assert "has shape [7] in a" in answer.sentence


def test_check_tells_of_tensors_that_are_left_out(recipe: Any, call: Any, desk: Path) -> None:
    from safetensors.numpy import save_file

    more = {f"extra.{n}": np.zeros(1, np.float32) for n in range(4)}
    save_file(weights("a") | more, desk / "a" / "model.safetensors")
    answer = call(f"check {recipe(TIES)}")
    assert answer.code == 0
    assert "4 tensors of a are not part of the merge: extra.0, extra.1, extra.2, ..." in answer.err


def test_check_of_several_documents(recipe: Any, call: Any) -> None:
    answer = call(f"check {recipe(CHAIN)}")
    assert answer.code == 0
    assert answer.out.splitlines() == [
        "first: 4 tensors in 1 group of like settings; nothing is wrong",
        "r.yml: 4 tensors in 1 group of like settings; nothing is wrong",
    ]
    assert answer.err == ""


MANY = """
name: first
merge_method: linear
models: [{model: nowhere, parameters: {weight: 1}}, {model: b, parameters: {weight: 1}}]
---
name: second
merge_method: ties
base_model: base
models:
  - {model: a, parameters: {weight: [{filter: norm, value: 1}]}}
  - {model: narrow, parameters: {weight: 1}}
---
merge_method: task_arithmetic
base_model: base
models: [{model: first, parameters: {weight: 0.7}}, {model: second, parameters: {weight: 1}}]
"""


def test_check_says_all_that_is_wrong_with_models(recipe: Any, call: Any, desk: Path) -> None:
    """A model that is missing, a weight that no rule gives, and shapes, in one list."""
    from safetensors.numpy import save_file

    (desk / "narrow").mkdir()
    save_file(
        {name: values[:-1] for name, values in weights("a").items()},
        desk / "narrow" / "model.safetensors",
    )
    text = MANY.replace("[{filter: norm, value: 1}]", "1")
    for words in (f"check {recipe(text)}", "plan r.yml", "merge r.yml out"):
        answer = call(words)
        lines = answer.err.splitlines()
        assert answer.code == 1
        assert lines[0] == "Error: 2 things are wrong"
        assert lines[1].startswith("  nowhere: no such file or folder")
        assert "has shape" in lines[2]
        assert "3 more tensors of narrow do not fit" in lines[2]
        assert len(lines) == 3
    answer = call(f"check {recipe(MANY)}")
    assert "no rule gives the weight of a for tensor" in answer.err
    assert "nowhere: no such file" in answer.err
    assert not (desk / "out").exists()


def test_check_of_a_chain_sees_what_is_made(recipe: Any, call: Any, desk: Path) -> None:
    """The tensors of a merge are known before it is made: here it has fewer layers."""
    from safetensors.numpy import save_file

    layers = {f"h.{n}.w.weight": np.ones((2, 2), np.float32) for n in range(3)}
    for name in ("deep", "other"):
        (desk / name).mkdir()
        save_file(layers, desk / name / "model.safetensors")
    text = """
name: short
slices: [{sources: [{model: deep, layer_range: [0, 2]}]}]
merge_method: passthrough
---
merge_method: linear
models: [{model: other, parameters: {weight: 1}}, {model: short, parameters: {weight: 1}}]
"""
    answer = call(f"check {recipe(text)}")
    assert answer.code == 1
    assert "other has 3 layers h*, but short has 2" in answer.sentence
    assert call(f"merge {recipe(text)} out").err == answer.err
    good = text.replace("model: other,", "model: deep,").replace("[0, 2]", "[0, 3]")
    assert call(f"check {recipe(good)}").code == 0
    assert call(f"merge {recipe(good)} out -q").code == 0


def test_configs_that_differ_are_told(recipe: Any, call: Any, desk: Path) -> None:
    for name, theta in (("base", 1e4), ("a", 1e6)):
        (desk / name / "config.json").write_text(json.dumps({"rope_theta": theta}))
    said = "the configs differ in rope_theta: 10000.0 (base), 1000000.0 (a); the output has base's"
    for words in (f"check {recipe(TIES)}", "plan r.yml", "merge r.yml out"):
        assert call(words).err.count(said) == 1
    assert call("merge r.yml new -q").err == ""


@pytest.mark.parametrize("verb", ["check", "plan"])
def test_notes_of_what_differs(verb: str, recipe: Any, call: Any) -> None:
    text = TIES.replace("weight: 1", "weight: -1").replace("models:", "models:", 1)
    text += "parameters: {normalize: true, int8_mask: true}\n"
    answer = call(f"{verb} {recipe(text)}")
    assert answer.code == 0
    assert "weights of both signs" in answer.err


# plan


def test_plan_is_a_table_and_a_line(recipe: Any, call: Any) -> None:
    answer = call(f"plan {recipe(TIES)}")
    assert answer.code == 0
    for word in ("method", "tensors", "scale", "weights", "ties:", "0.5 a, 1 b"):
        assert word in answer.out
    size = sum(values.nbytes for values in weights("base").values())
    read, written = bytes_text(9 * size), bytes_text(size)
    assert f"reads {read} in up to 3 passes, writes {written}, holds " in answer.out
    assert f"per worker\ndisk: takes {written}, and here " in answer.out
    assert answer.out.rstrip().endswith(" are free")


def test_plan_warns_of_a_full_disk(recipe: Any, call: Any, monkeypatch: Any) -> None:
    """Of a chain all merges take room, as none is gone before the last is made."""
    size = sum(values.nbytes for values in weights("base").values())
    usage = type("Usage", (), {"free": 2 * size - 1})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    answer = call(f"plan {recipe(CHAIN)}")
    assert f"disk: takes {bytes_text(2 * size)}, and here {bytes_text(2 * size - 1)}" in answer.out
    assert answer.err == "warning: that does not fit here; write it to another disk\n"
    assert "does not fit" not in call(f"plan {recipe(TIES)}").err


def test_plan_of_one_pass(recipe: Any, call: Any) -> None:
    answer = call(f"plan {recipe(CHAIN)}")
    assert "in up to 1 pass, writes" in answer.out


def test_plan_does_what_merge_says(recipe: Any, call: Any) -> None:
    name = recipe(DARE)
    written = call(f"plan {name}").out.partition("writes ")[2].partition(",")[0]
    assert call(f"merge {name} out").out.startswith(f"wrote out: {written};")


@pytest.mark.parametrize("verb", ["check", "plan"])
def test_nothing_is_written(verb: str, recipe: Any, call: Any, desk: Path) -> None:
    recipe(DARE)
    before = sorted(path.name for path in desk.rglob("*"))
    assert call(f"{verb} r.yml").code == 0
    assert sorted(path.name for path in desk.rglob("*")) == before


@pytest.mark.parametrize("verb", ["check", "plan"])
def test_no_recipe_to_look_at(verb: str, call: Any, desk: Path) -> None:
    answer = call(f"{verb} none.yml")
    assert answer.code == 1
    assert answer.sentence == "none.yml: no such file or folder"


def test_the_record_is_a_recipe_for_every_verb(recipe: Any, call: Any, desk: Path) -> None:
    assert call(f"merge {recipe(DARE)} out -q").code == 0
    record = json.loads((desk / "out" / "taskbasis_recipe.json").read_text())
    assert record["base"] == "base"
    for words in ("check out/mergekit_config.yml", "merge out/mergekit_config.yml again -q"):
        assert call(words).code == 0
    assert all(np.array_equal(weights("out")[k], weights("again")[k]) for k in weights("out"))
