"""Merges of models of different vocabularies: tensors, config and tokenizer, file by file."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from taskbasis.chains import follow_all, look_ahead
from taskbasis.cli import run
from taskbasis.engine import Engine
from taskbasis.errors import MismatchError, TaskbasisError, UsageError
from taskbasis.following import _look_ups
from taskbasis.io.folder import open_tensors
from taskbasis.preparing import prepare
from taskbasis.recipes import parse_recipe

Arrays = dict[str, NDArray[Any]]
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
WORDS = {
    "base": ["<unk>", "</s>", "red", "green", "old"],
    "a": ["<unk>", "green", "red", "</s>", "new"],
    "b": ["<unk>", "</s>", "red", "<b>"],
}
WEIGHTS = {"a": 0.6, "b": 0.3}
ARITHMETIC = """
merge_method: task_arithmetic
base_model: base
models:
  - {model: a, parameters: {weight: 0.6}}
  - {model: b, parameters: {weight: 0.3}}
"""


def tokenizer(words: list[str], added: tuple[str, ...] = ()) -> str:
    """As the real library writes it."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    vocab = {word: number for number, word in enumerate(words)}
    return json.dumps({
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": vocab[t], "content": t, **plain, "special": True} for t in added],
        "normalizer": None, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "unk_token": "<unk>", "vocab": vocab},
    })  # fmt: skip


def tensors(name: str, more: int = 0) -> Arrays:
    """Rows by token, alike in all models but for a little of each model's own."""
    random, own = np.random.default_rng(0), np.random.default_rng(ord(name[0]))
    known = {
        word: random.standard_normal(4)
        for word in sorted({w for own in WORDS.values() for w in own})
    }
    shared = random.standard_normal((4, 4))

    def rows(sign: float) -> NDArray[Any]:
        found = [sign * known[word] for word in WORDS[name]] + [np.full(4, 7.0)] * more
        return (np.array(found) + 0.1 * own.standard_normal((len(found), 4))).astype(np.float32)

    layer = (shared + 0.1 * own.standard_normal((4, 4))).astype(np.float32)
    return {EMBED: rows(1), HEAD: rows(-1), "model.layers.0.up.weight": layer}


@pytest.fixture
def models(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, write_folder: Callable[..., Path]
) -> dict[str, Arrays]:
    monkeypatch.chdir(tmp_path)
    found = {name: tensors(name) for name in WORDS}
    for name, held in found.items():
        config = {"model_type": "llama", "vocab_size": len(WORDS[name]), "num_hidden_layers": 1}
        config["eos_token_id"] = WORDS[name].index("</s>")
        added = tuple(word for word in WORDS[name] if word in ("</s>", "<b>"))
        side = {
            "config.json": json.dumps(config),
            "generation_config.json": json.dumps({"eos_token_id": [config["eos_token_id"]]}),
            "tokenizer.json": tokenizer(WORDS[name], added),
            "tokenizer_config.json": json.dumps({"of": name}),
        }
        write_folder(name, held, **side)
    return found


Make = Callable[..., Arrays]


@pytest.fixture
def made(models: Any, tmp_path: Path) -> Make:
    def run(text: str, out: str = "out", workers: int = 2, **how: Any) -> Arrays:
        with tempfile.TemporaryDirectory(dir=tmp_path) as scratch:
            follow_all(
                parse_recipe(text), tmp_path / out, Path(scratch), engine=Engine(workers), **how
            )
        return {name: info.load() for name, info in open_tensors(tmp_path / out).items()}

    return run


def side(name: str, folder: str = "out") -> Any:
    return json.loads((Path(folder) / name).read_text(encoding="utf-8"))


def numbers(folder: str = "out") -> dict[str, int]:
    content = side("tokenizer.json", folder)
    return {**content["model"]["vocab"], **{t["content"]: t["id"] for t in content["added_tokens"]}}


def row(models: Any, name: str, tensor: str, word: str) -> NDArray[Any] | None:
    known = WORDS[name]
    return models[name][tensor][known.index(word)].astype(float) if word in known else None


def expected(models: Any, tensor: str, words: list[str]) -> NDArray[Any]:
    """Task arithmetic row by row: who lacks a word takes the base's, or the only one there is."""
    found = []
    for word in words:
        held = {name: row(models, name, tensor, word) for name in models}
        owners = [value for value in held.values() if value is not None]
        stand_in = held["base"] if held["base"] is not None else np.mean(owners, axis=0)
        full = {name: stand_in if value is None else value for name, value in held.items()}
        base = full["base"]
        found.append(base + sum(w * (full[name] - base) for name, w in WEIGHTS.items()))
    return np.array(found)


@pytest.mark.parametrize(("source", "words"), [
    ("union", [*WORDS["base"], "new", "<b>"]),
    ("base", WORDS["base"]),
    ("a", WORDS["a"]),
])  # fmt: skip
def test_every_kind_of_vocabulary(source: str, words: Any, made: Make, models: Any) -> None:
    found = made(f"{ARITHMETIC}tokenizer_source: {source}\n")
    assert numbers() == {word: number for number, word in enumerate(words)}
    for name in (EMBED, HEAD):
        np.testing.assert_allclose(found[name], expected(models, name, words), atol=2e-6)
    layer = "model.layers.0.up.weight"
    plain = sum(w * (models[n][layer] - models["base"][layer]) for n, w in WEIGHTS.items())
    np.testing.assert_allclose(found[layer], models["base"][layer] + plain, atol=2e-6)
    config = side("config.json")
    assert config["vocab_size"] == len(words)
    assert words[config["eos_token_id"]] == "</s>"
    assert side("generation_config.json")["eos_token_id"] == [words.index("</s>")]
    assert side("tokenizer_config.json") == {"of": "a" if source == "a" else "base"}


def test_the_same_bytes_for_any_number_of_workers(made: Make) -> None:
    text = f"{ARITHMETIC}tokenizer: {{source: union, pad_to_multiple_of: 16}}\n"
    one, two = made(text, "one", 1), made(text, "two", 4)
    assert {n: v.tobytes() for n, v in one.items()} == {n: v.tobytes() for n, v in two.items()}


def test_padding(made: Make, models: Any) -> None:
    found = made(f"{ARITHMETIC}tokenizer: {{source: base, pad_to_multiple_of: 8}}\n")
    rows = expected(models, EMBED, WORDS["base"])
    np.testing.assert_allclose(found[EMBED][:5], rows, atol=2e-6)
    np.testing.assert_allclose(found[EMBED][5:], np.tile(rows.mean(axis=0), (3, 1)), atol=2e-6)
    assert side("config.json")["vocab_size"] == 8


def test_forced_tokens(made: Make, models: Any) -> None:
    found = made(f"""{ARITHMETIC}
tokenizer:
  source: base
  tokens:
    red: {{source: b, force: true}}
    green: {{source: {{kind: model_token, model: a, token: new}}, force: true}}
    old: {{source: {{kind: zero}}, force: true}}
    <mine>: {{source: {{kind: model_token, model: a, token_id: 4}}}}
""")
    assert numbers()["<mine>"] == 5
    wanted = {"red": row(models, "b", EMBED, "red"), "old": np.zeros(4)}
    wanted |= dict.fromkeys(("green", "<mine>"), row(models, "a", EMBED, "new"))
    for word, values in wanted.items():
        np.testing.assert_allclose(found[EMBED][numbers()[word]], values, atol=2e-6)


def test_bytes_that_nothing_changes(made: Make, models: Any) -> None:
    """A model in another order of tokens: rows are moved, not computed."""
    text = "merge_method: passthrough\nmodels: [{model: a}]\ntokenizer_source: ./base\n"
    found = made(text)
    order = [WORDS["a"].index(word) if word in WORDS["a"] else None for word in WORDS["base"]]
    for number, since in enumerate(order):
        wanted = np.zeros(4, np.float32) if since is None else models["a"][EMBED][since]
        assert found[EMBED][number].tobytes() == wanted.tobytes()


def test_sixteen_bits_stay_sixteen_bits(
    made: Make, models: Any, write_folder: Callable[..., Path]
) -> None:
    for name in WORDS:
        half = {key: value.astype(ml_dtypes.bfloat16) for key, value in models[name].items()}
        files = {
            path.name: path.read_text() for path in Path(name).iterdir() if path.suffix == ".json"
        }
        write_folder(f"half-{name}", half, **files)
    text = ARITHMETIC.replace(": base", ": half-base").replace("model: ", "model: half-")
    text = text.replace("half-half-", "half-")
    found = made(f"{text}tokenizer: {{source: union, pad_to_multiple_of: 8}}\n")
    assert {value.dtype.name for value in found.values()} == {"bfloat16"}
    passed = "merge_method: passthrough\nmodels: [{model: half-a}]\n"
    found = made(passed + "tokenizer: {source: ./base, pad_to_multiple_of: 8}\n", "passed")
    assert {value.dtype.name for value in found.values()} == {"bfloat16"}
    rows = [WORDS["a"].index(word) for word in WORDS["base"][:4]]
    expected = models["a"][EMBED].astype(ml_dtypes.bfloat16)[rows]
    assert found[EMBED][:4].tobytes() == expected.tobytes()


def test_slices_of_models_that_differ(made: Make, models: Any) -> None:
    found = made("""
merge_method: passthrough
slices:
  - sources: [{model: base, layer_range: [0, 1]}]
  - sources: [{model: a, layer_range: [0, 1]}]
tokenizer_source: union
""")
    words = [*WORDS["base"], "new"]
    assert numbers() == {word: number for number, word in enumerate(words)}
    np.testing.assert_array_equal(found[EMBED][:5], models["base"][EMBED])
    np.testing.assert_array_equal(found[EMBED][5], np.zeros(4))
    order = [WORDS["a"].index(word) for word in ("<unk>", "</s>", "red", "green")]
    np.testing.assert_array_equal(found[HEAD][:4], models["a"][HEAD][order])
    assert "model.layers.1.up.weight" in found


def test_tied_models(made: Make, models: Any, write_folder: Callable[..., Path]) -> None:
    for name in WORDS:
        held = {key: value for key, value in models[name].items() if key != HEAD}
        files = {
            path.name: path.read_text() for path in Path(name).iterdir() if path.suffix == ".json"
        }
        write_folder(f"tied-{name}", held, **files)
    text = ARITHMETIC.replace("model: ", "model: tied-")
    found = made(f"{text}tokenizer_source: union\n")
    assert HEAD not in found
    words = [*WORDS["base"], "new", "<b>"]
    np.testing.assert_allclose(found[EMBED], expected(models, EMBED, words), atol=2e-6)


def test_a_merge_that_starts_from_another(made: Make, models: Any) -> None:
    """Its vocabulary is known before it is made."""
    text = f"""name: first
{ARITHMETIC}tokenizer_source: union
---
merge_method: passthrough
models: [{{model: first}}]
tokenizer_source: b
"""
    ahead = look_ahead(parse_recipe(text))
    (out,) = (t for t in ahead[None].outputs if t.name == EMBED)
    assert out.shape == (4, 4)
    found = made(text)
    np.testing.assert_allclose(found[EMBED], expected(models, EMBED, WORDS["b"]), atol=2e-6)


def test_one_vocabulary_in_more_rows(
    made: Make, models: Any, write_folder: Callable[..., Path]
) -> None:
    """Equal rows stay as they are; rows of different numbers are cut to the tokens."""
    names = {"wide": 3, "wider": 3, "widest": 5}
    WORDS.update(dict.fromkeys(names, WORDS["base"]))
    try:
        for name, more in names.items():
            config = json.dumps({"vocab_size": 5 + more})
            files = {"config.json": config, "tokenizer.json": tokenizer(WORDS["base"])}
            write_folder(name, tensors(name, more), **files)
    finally:
        for name in names:
            del WORDS[name]
    text = "merge_method: linear\nmodels:\n  - {model: wide, parameters: {weight: 1}}\n"
    text += "  - {model: %s, parameters: {weight: 1}}\n"
    notes: list[str] = []
    found = made(text % "wider" + "tokenizer_source: union\n", tell=notes.append)
    assert found[EMBED].shape == (8, 4)
    assert side("config.json")["vocab_size"] == 8
    assert "3 rows beyond the 5 tokens are merged like the others; mergekit cuts them off" in notes
    with pytest.raises(TaskbasisError, match="are they of different vocabularies"):
        made(text % "widest", "refused")
    found = made(text % "widest" + "tokenizer_source: union\n", "cut")
    assert found[EMBED].shape == (5, 4)
    assert side("config.json", "cut")["vocab_size"] == 5


def notes_of(text: str) -> str:
    (document,) = parse_recipe(text).documents
    return "\n".join(prepare(document).notes)


def test_what_is_said_of_it(models: Any) -> None:
    text = f"{ARITHMETIC}tokenizer: {{source: union, pad_to_multiple_of: 8}}\n"
    said = notes_of(text)
    assert "tokenizer union: 5 tokens of base, 2 added, such as 'new', in 8 rows" in said
    assert "a differs in 4, b differs in 3" in said
    assert f"{HEAD}: of the output's tokens a lacks 2, b lacks 3, base lacks 2" in said
    assert "1 are padding: the mean of all others" in said
    assert said.count("lacks 2") == 2  # once for all tensors that go alike
    assert "vocab_size" not in said
    text = "merge_method: passthrough\nmodels: [{model: a}]\ntokenizer_source: ./base\n"
    said = notes_of(text)
    assert "1 are zeros, since none of its models has them" in said


def test_a_token_of_a_config_that_the_output_lacks(made: Make, models: Any) -> None:
    config = side("config.json", "base") | {"pad_token_id": 4}
    Path("base", "config.json").write_text(json.dumps(config))
    notes: list[str] = []
    made(f"{ARITHMETIC}tokenizer_source: b\n", tell=notes.append)
    assert side("config.json")["pad_token_id"] is None
    assert "pad_token_id in base/config.json: the output has no such token" in notes


def test_rows_beyond_the_tokens_are_named(made: Make, models: Any, write_folder: Any) -> None:
    files = {"tokenizer.json": tokenizer(WORDS["b"])}
    write_folder("long", tensors("b", 6), **files)
    text = ARITHMETIC.replace("model: b,", "model: long,")
    assert "6 rows of long have no token and are left out" in notes_of(
        text + "tokenizer_source: base\n"
    )


# What is refused.


def test_vocabularies_that_differ_unsaid(made: Make) -> None:
    with pytest.raises(TaskbasisError, match="say which vocabulary the output has, and rows are"):
        made(ARITHMETIC)
    assert not Path("out").exists()


def test_a_model_without_a_tokenizer(made: Make, models: Any, write_folder: Any) -> None:
    write_folder("bare", models["base"])
    text = ARITHMETIC.replace("model: b,", "model: bare,")
    made(text + "tokenizer_source: union\n")
    assert "bare has no tokenizer; it is taken to have base's tokens" in notes_of(
        text + "tokenizer_source: union\n"
    )
    write_folder("other", models["b"])
    text = ARITHMETIC.replace("model: b,", "model: other,")
    with pytest.raises(
        TaskbasisError, match="other has no tokenizer, and not as many rows as base"
    ):
        made(text + "tokenizer_source: union\n", "no")
    alone = (
        "merge_method: passthrough\nmodels: [{model: bare}]\ntokenizer: {pad_to_multiple_of: 8}\n"
    )
    with pytest.raises(UsageError, match="bare has no tokenizer, but the recipe says what becomes"):
        made(alone, "no")


def test_no_model_has_a_tokenizer(made: Make, models: Any) -> None:
    """It used to write a model without a single tensor."""
    for name in WORDS:
        for file in ("tokenizer.json", "tokenizer_config.json"):
            Path(name, file).unlink()
    alone = "merge_method: linear\nbase_model: base\n"
    alone += "models: [{model: base, parameters: {weight: 2}}]\ntokenizer_source: base\n"
    found = made(alone)
    assert found.keys() == models["base"].keys()
    np.testing.assert_array_equal(found[EMBED], models["base"][EMBED])
    assert "base has no tokenizer, so the output has none, either" in notes_of(alone)
    assert not Path("out", "tokenizer.json").exists()


def test_tokens_without_a_row_are_not_compared(made: Make, models: Any, write_folder: Any) -> None:
    """A token of padding that a tokenizer was given, but not its model."""
    words, more = WORDS["base"], [*WORDS["base"], "[PAD]"]
    write_folder("padded", models["base"], **{"tokenizer.json": tokenizer(more, ("[PAD]",))})
    text = "merge_method: linear\nmodels:\n  - {model: base, parameters: {weight: 1}}\n"
    text += "  - {model: padded, parameters: {weight: 1}}\n"
    np.testing.assert_array_equal(made(text)[EMBED], models["base"][EMBED])
    said = "1 tokens of padded have no row in its embeddings, such as '[PAD]', and are not compared"
    assert said in notes_of(text)
    base = models["base"]
    held = {n: np.vstack([v, v[:1]]) if len(v) == len(words) else v for n, v in base.items()}
    for name, tokens in (("spare", words), ("rowed", more)):
        write_folder(name, held, **{"tokenizer.json": tokenizer(tokens)})
    text = text.replace("base", "spare").replace("padded", "rowed")
    with pytest.raises(MismatchError, match=r"1 tokens of spare and rowed differ, e.g. '\[PAD\]'"):
        made(text, "no")


def test_a_tokenizer_that_cannot_be_read(made: Make, models: Any, write_folder: Any) -> None:
    write_folder("odd", models["b"], **{"tokenizer.model": "IQ== 0\n"})
    text = ARITHMETIC.replace("model: b,", "model: odd,")
    with pytest.raises(TaskbasisError, match="which tokens odd has cannot be told from odd/token"):
        made(text + "tokenizer_source: union\n")


def test_a_number_far_beyond_the_others(made: Make, models: Any) -> None:
    path = Path("a", "tokenizer.json")
    path.write_text(path.read_text().replace('"new": 4', '"new": 2000000000'))
    with pytest.raises(TaskbasisError, match="gives 'new' the number 2000000000, but has only 5"):
        made(ARITHMETIC + "tokenizer_source: a\n")


def test_no_embeddings_by_name(made: Make, models: Any, write_folder: Any) -> None:
    for name in ("a", "base"):
        held = {"w": models[name][EMBED], "model.layers.0.x": np.ones(2, np.float32)}
        write_folder(f"odd-{name}", held, **{"tokenizer.json": tokenizer(WORDS[name])})
    text = "merge_method: linear\nmodels:\n  - {model: odd-a, parameters: {weight: 1}}\n"
    text += "  - {model: odd-base, parameters: {weight: 1}}\ntokenizer_source: union\n"
    with pytest.raises(UsageError, match="no tensor of the output is an embedding by its name"):
        made(text)


def test_a_token_that_is_nowhere(made: Make) -> None:
    rule = "tokenizer: {source: base, tokens: {<x>: {source: a}}}\n"
    with pytest.raises(
        TaskbasisError, match="token '<x>' is to be '<x>' of a, whose tokenizer has"
    ):
        made(ARITHMETIC + rule)
    assert not Path("out").exists()


def test_force_needs_a_source() -> None:
    with pytest.raises(UsageError, match="force: true needs a source"):
        parse_recipe(ARITHMETIC + "tokenizer: {tokens: {<x>: {force: true}}}\n")


def test_a_tokenizer_that_nothing_can_be_added_to(made: Make, models: Any) -> None:
    Path("base", "tokenizer.json").unlink()
    Path("base", "vocab.txt").write_text("\n".join(WORDS["base"]) + "\n")
    made(ARITHMETIC + "tokenizer_source: base\n")
    with pytest.raises(UsageError, match="base: 2 tokens are to be added to its tokenizer, which"):
        made(ARITHMETIC + "tokenizer_source: union\n", "no")


def test_embeddings_of_another_width(made: Make, models: Any, write_folder: Any) -> None:
    held = {EMBED: np.ones((4, 6), np.float32), HEAD: np.ones((4, 6), np.float32)}
    held["model.layers.0.up.weight"] = models["b"]["model.layers.0.up.weight"]
    write_folder("wide", held, **{"tokenizer.json": tokenizer(WORDS["b"])})
    with pytest.raises((MismatchError, TaskbasisError), match="is it of another size"):
        made(ARITHMETIC.replace("model: b,", "model: wide,") + "tokenizer_source: union\n")


def test_another_tokenizer_is_another_output(models: Any) -> None:
    """A merge that was broken off is not taken up again with other rows."""
    text = f"{ARITHMETIC}tokenizer_source: union\n"

    def keys() -> list[str]:
        (document,) = parse_recipe(text).documents
        return _look_ups(prepare(document).plans)

    before = keys()
    assert before
    assert before == keys()
    swapped = [WORDS["b"][0], WORDS["b"][2], WORDS["b"][1], WORDS["b"][3]]
    Path("b", "tokenizer.json").write_text(tokenizer(swapped))
    assert before != keys()


def test_what_the_command_line_says(models: Any, capsys: pytest.CaptureFixture[str]) -> None:
    Path("r.yml").write_text(f"{ARITHMETIC}tokenizer_source: union\n")
    assert run(["check", "r.yml"]) == 0
    said = capsys.readouterr()
    assert "nothing is wrong" in said.out
    assert "tokenizer union: 5 tokens of base, 2 added, such as 'new', in 7 rows" in said.err
    assert run(["plan", "r.yml"]) == 0
    assert "a lacks 2, b lacks 3, base lacks 2" in capsys.readouterr().err
    assert run(["merge", "r.yml", "out"]) == 0
    assert side("config.json")["vocab_size"] == 7
    capsys.readouterr()
    Path("r.yml").write_text(ARITHMETIC)
    assert run(["check", "r.yml"]) == 1
    said = capsys.readouterr()
    assert "tokenizer_source: union, base or a model" in said.err
    assert "Traceback" not in said.err
    Path("r.yml").write_text(ARITHMETIC + "chat_template: chatlm\ntokenizer_source: union\n")
    assert run(["merge", "r.yml", "no"]) == 2
    assert "did you mean 'chatml'?" in capsys.readouterr().err
    assert not Path("no").exists()


def test_transformers_open_what_was_merged(made: Make, models: Any) -> None:
    transformers = pytest.importorskip("transformers", reason="takes the extra 'learn'")
    for name in WORDS:
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
        Path(name, "tokenizer_config.json").write_text(json.dumps(settings))
    made(f"{ARITHMETIC}tokenizer_source: union\nchat_template: chatml\n")
    opened = transformers.AutoTokenizer.from_pretrained("out")
    assert opened.get_vocab() == numbers()
    assert opened.eos_token_id == numbers()["</s>"]
    assert opened.convert_ids_to_tokens(opened("red new <b> green")["input_ids"]) == [
        "red", "new", "<b>", "green",
    ]  # fmt: skip
    assert "<|im_start|>" in opened.chat_template
