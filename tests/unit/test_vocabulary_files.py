"""The output's tokenizer: its numbers, its files, its template; opened by the real library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from taskbasis.errors import FileError, UsageError
from taskbasis.vocabulary import Vocabulary, read_vocabulary
from taskbasis.vocabulary.files import renumbered, resized, with_tokens
from taskbasis.vocabulary.joining import Joined, join
from taskbasis.vocabulary.reading import plain_token
from taskbasis.vocabulary.reloading import reload
from taskbasis.vocabulary.templates import NAMED, choose_template, template_of, with_template

HERE = Path("model")


@pytest.fixture
def library() -> Any:
    return pytest.importorskip("tokenizers", reason="takes the extra 'learn'")


def words(*tokens: str, added: Any = ()) -> Vocabulary:
    return Vocabulary(
        {token: n for n, token in enumerate(tokens)}, {t: plain_token(t) for t in added}, HERE
    )


def spoken(library: Any, **more: Any) -> Any:
    """A byte-level tokenizer with merges, as language models have."""
    pieces = library.pre_tokenizers.ByteLevel.alphabet()
    vocab = {piece: n for n, piece in enumerate(["<unk>", *sorted(pieces), "he", "hel", "lo"])}
    merges = [("h", "e"), ("he", "l"), ("l", "o")]
    made = library.Tokenizer(library.models.BPE(vocab | more, merges, unk_token="<unk>"))
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = library.decoders.ByteLevel()
    made.add_special_tokens(["<s>"])
    return made


def files_of(made: Any, **more: Any) -> dict[str, bytes]:
    rest = {f"{name}.json": json.dumps(content).encode() for name, content in more.items()}
    return {"tokenizer.json": made.to_str().encode(), **rest}


def of(files: dict[str, bytes]) -> Vocabulary:
    found = read_vocabulary(files, HERE)
    assert found is not None
    return found


# Numbers.


def test_the_donors_numbers_then_the_others() -> None:
    one = words("a", "b")
    two, three = words("c", "a", "<x>", "d", added=["<x>"]), words("e", "<x>", "d")
    joined = join(one, [(one, 2), (two, 4), (three, 3)], ["a", "f", "e"])
    assert joined.numbers == {"a": 0, "b": 1, "c": 2, "d": 3, "e": 4, "<x>": 5, "f": 6}
    assert [entry["id"] for entry in joined.new] == [2, 3, 4, 5, 6]
    assert joined.size == 7
    assert joined.names(8) == ["a", "b", "c", "d", "e", "<x>", "f", None]


def test_tokens_without_a_row_are_left_out() -> None:
    assert join(words("a"), [(words("b", "c", "d"), 2)]).numbers == {"a": 0, "b": 1, "c": 2}


def test_one_models_tokens() -> None:
    joined = join(words("a", "b"), (), ["b"])
    assert joined.numbers == {"a": 0, "b": 1}
    assert joined.new == ()


def test_gaps_stay_gaps() -> None:
    donor = Vocabulary({"a": 0, "b": 5}, {}, HERE)
    joined = join(donor, [(words("c"), 1)])
    assert joined.numbers["c"] == 6
    assert joined.names(7) == ["a", None, None, None, None, "b", "c"]


def test_what_was_said_of_an_added_token_stays() -> None:
    special = {**plain_token("<x>"), "special": True, "lstrip": True, "id": 9}
    joined = join(words("a"), [(Vocabulary({"<x>": 0}, {"<x>": special}, HERE), 1)])
    assert joined.new == ({**special, "id": 1},)


# Files.


def test_a_tokenizer_with_tokens_of_others(library: Any) -> None:
    made, other = spoken(library), spoken(library)
    other.add_special_tokens(["<|im_end|>"])
    other.add_tokens(["hello"])
    decoder = {"added_tokens_decoder": {"0": {"content": "<unk>"}}, "bos_token": "<s>"}
    files = files_of(made, tokenizer_config=decoder, added_tokens={"<s>": 260})
    joined = join(of(files), [(of(files_of(other)), 999)], ["<new>"])
    found = with_tokens(files, HERE, joined)
    opened = library.Tokenizer.from_str(found["tokenizer.json"].decode())
    assert opened.get_vocab(with_added_tokens=True) == joined.numbers
    size = made.get_vocab_size()
    assert opened.encode("x<|im_end|>").ids[-1] == size
    assert opened.encode("hello", add_special_tokens=False).ids == [size + 1]
    assert opened.encode("help").ids == made.encode("help").ids
    settings = json.loads(found["tokenizer_config.json"])
    assert settings["bos_token"] == "<s>"
    assert settings["added_tokens_decoder"][str(size)] == {
        "content": "<|im_end|>", "lstrip": False, "normalized": False, "rstrip": False,
        "single_word": False, "special": True,
    }  # fmt: skip
    listed = json.loads(found["added_tokens.json"])
    assert listed == {"<s>": 260, "<|im_end|>": size, "hello": size + 1, "<new>": size + 2}
    assert reload(found, files, joined, HERE) is None


def test_nothing_new_leaves_every_byte(library: Any) -> None:
    files = files_of(spoken(library), tokenizer_config={"a": 1})
    joined = Joined(of(files).numbers)
    assert with_tokens(files, HERE, joined) == files
    assert reload(files, files, joined, HERE) is None


def test_numbers_with_gaps(library: Any) -> None:
    """The library numbers added tokens by itself, so they go into the vocabulary, too."""
    files = files_of(spoken(library, later=300))
    joined = join(of(files), (), ["<new>"])
    found = with_tokens(files, HERE, joined)
    assert joined.numbers["<new>"] == 301
    opened = library.Tokenizer.from_str(found["tokenizer.json"].decode())
    assert opened.token_to_id("<new>") == 301
    assert reload(found, files, joined, HERE) is None


def test_transformers_open_it(library: Any, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="takes the extra 'learn'")
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=spoken(library), bos_token="<s>", unk_token="<unk>"
    )
    made.save_pretrained(tmp_path / "donor")
    files = {path.name: path.read_bytes() for path in (tmp_path / "donor").iterdir()}
    joined = join(of(files), (), ["<new>"])
    (tmp_path / "out").mkdir()
    chosen = with_template(with_tokens(files, HERE, joined), NAMED["chatml"], HERE)
    for name, raw in chosen.items():
        (tmp_path / "out" / name).write_bytes(raw)
    opened = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert opened.get_vocab() == joined.numbers
    assert opened.bos_token_id == made.bos_token_id
    assert opened("hello<new>")["input_ids"][-1] == joined.numbers["<new>"]
    said = [{"role": "user", "content": "hi"}]
    assert opened.apply_chat_template(said, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_donor_without_a_fast_tokenizer() -> None:
    with pytest.raises(
        UsageError, match=r"model: 1 tokens are to be added to its tokenizer, .*Auto"
    ):
        with_tokens({"vocab.txt": b"a\n"}, HERE, join(words("a"), (), ["b"]))


@pytest.mark.parametrize(("name", "text", "said"), [
    ("tokenizer_config.json", "[]", "model/tokenizer_config.json: is not a JSON object"),
    ("added_tokens.json", "{", r"model/added_tokens.json:? is not valid JSON"),
])  # fmt: skip
def test_damaged_files(name: str, text: str, said: str, library: Any) -> None:
    files = files_of(spoken(library)) | {name: text.encode()}
    with pytest.raises(FileError, match=said):
        with_tokens(files, HERE, join(of(files), (), ["<new>"]))


def test_half_a_character() -> None:
    files = {"tokenizer.json": json.dumps({"model": {"vocab": {"\ud800": 0}}}).encode()}
    with pytest.raises(FileError, match="holds half a character"):
        with_tokens(files, HERE, join(of(files), (), ["<new>"]))


# Opening it again.


def test_numbers_that_come_out_wrong(library: Any) -> None:
    files = files_of(spoken(library))
    numbers = of(files).numbers
    with pytest.raises(FileError, match=r"2 tokens have other numbers once .*'he' 257 instead of"):
        reload(files, files, Joined(numbers | {"he": 7, "hel": 8}), HERE)


def test_another_way_to_split(library: Any) -> None:
    files = files_of(spoken(library))
    content = json.loads(files["tokenizer.json"])
    content["model"]["merges"] = []
    joined = join(of(files), (), ["<new>"])
    bent = {"tokenizer.json": json.dumps(content).encode()}
    changed = with_tokens(bent, HERE, joined)
    with pytest.raises(FileError, match="its tokenizer with new tokens splits 'The quick brown"):
        reload(changed, files, joined, HERE)


def test_tokens_that_are_in_a_text_once_it_is_normalised(library: Any) -> None:
    """As those of a BERT without capitals and accents are: ``cafe`` is in ``Café``."""
    kinds = {word: n for n, word in enumerate(["[UNK]", "na", "##ive", "caf", "##e"])}
    made = library.Tokenizer(library.models.WordPiece(kinds, unk_token="[UNK]"))
    made.normalizer = library.normalizers.BertNormalizer()
    made.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    files = files_of(made)
    joined = join(of(files), [(words("cafe", "naive"), 2)])
    assert reload(with_tokens(files, HERE, joined), files, joined, HERE) is None


def test_a_special_token_that_is_not_found(library: Any) -> None:
    files = files_of(spoken(library))
    content = json.loads(files["tokenizer.json"])
    content["added_tokens"] = []
    files = {"tokenizer.json": json.dumps(content).encode()}
    new = {**plain_token("<new>"), "special": True}
    joined = join(of(files), [(Vocabulary({"<new>": 0}, {"<new>": new}, HERE), 1)])
    content["model"]["vocab"]["<new>"] = joined.numbers["<new>"]
    with pytest.raises(FileError, match="the new special token '<new>' is not found in a text"):
        reload({"tokenizer.json": json.dumps(content).encode()}, files, joined, HERE)


def test_what_cannot_be_opened(library: Any) -> None:
    files = {"tokenizer.json": json.dumps({"model": {"vocab": {"a": 0}}}).encode()}
    said = reload(files, files, Joined({"a": 0}), HERE)
    assert said is not None
    assert said.startswith("the tokenizer of model was copied, but tokenizers cannot open it: ")
    with pytest.raises(FileError, match="tokenizers cannot open it"):
        reload(files, files, join(of(files), (), ["b"]), HERE)
    good = files_of(spoken(library))
    with pytest.raises(FileError, match="model: its tokenizer with new tokens does not open"):
        reload(files, good, join(of(good), (), ["<b>"]), HERE)
    other = {"vocab.txt": b"a"}
    assert reload(other, other, Joined({"a": 0}), HERE) == (
        "the tokenizer was not opened again: it has no tokenizer.json"
    )


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    files = {"tokenizer.json": b"{}"}
    said = reload(files, files, Joined({"a": 0}), HERE)
    assert said == ("the tokenizer was not opened again: that takes pip install 'taskbasis[learn]'")


# Configs.


def test_numbers_of_tokens_in_configs() -> None:
    old, joined = words("<s>", "</s>", "pic", "gone"), Joined({"</s>": 0, "<s>": 5, "pic": 9})
    config = {
        "bos_token_id": 0, "eos_token_id": [1, 3], "pad_token_id": None, "image_token_index": 2,
        "text_config": {"bos_token_id": 0, "layers": 3}, "decoder_start_token_id": 3,
        "odd_token_id": -1, "hidden_size": 1,
    }  # fmt: skip
    found, lost = renumbered(config, old, joined)
    assert found == {
        "bos_token_id": 5, "eos_token_id": [0], "pad_token_id": None, "image_token_index": 9,
        "text_config": {"bos_token_id": 5, "layers": 3}, "decoder_start_token_id": None,
        "odd_token_id": -1, "hidden_size": 1,
    }  # fmt: skip
    assert lost == ["eos_token_id", "decoder_start_token_id"]
    assert renumbered([1], old, joined) == ([1], [])


def test_numbers_of_rows_in_configs() -> None:
    config = {
        "vocab_size": 9,
        "text_config": {"vocab_size": 9, "n": 9},
        "vision": {"vocab_size": 4},
    }
    assert resized(config, {9}, 12) == {
        "vocab_size": 12, "text_config": {"vocab_size": 12, "n": 9}, "vision": {"vocab_size": 4}
    }  # fmt: skip


# Templates.

SAYING = "{{ messages }}"


def tokenizer(**files: str) -> dict[str, bytes]:
    names = {"jinja": "chat_template.jinja", "old": "chat_template.json"}
    return {names.get(n, f"{n}.json"): text.encode() for n, text in files.items()}


@pytest.mark.parametrize(("files", "wanted"), [
    (tokenizer(jinja="one", tokenizer_config='{"chat_template": "two"}'), "one"),
    (tokenizer(old='{"chat_template": "two"}'), "two"),
    (tokenizer(tokenizer_config='{"chat_template": "two"}'), "two"),
    (tokenizer(tokenizer_config=json.dumps({"chat_template": [
        {"name": "tool", "template": "x"}, {"name": "default", "template": "y"}, 3,
    ]})), "y"),
    (tokenizer(tokenizer_config='{"chat_template": [{"name": "tool"}]}'), None),
    (tokenizer(tokenizer_config="[]"), None),
    ({}, None),
])  # fmt: skip
def test_where_a_template_stands(files: Any, wanted: Any) -> None:
    assert template_of(files, HERE) == wanted


def test_the_one_that_most_have() -> None:
    models = [(name, tokenizer(jinja=text), HERE) for name, text in zip("abc", "xy ", strict=True)]
    models += [("d", tokenizer(jinja=" y\n"), HERE), ("e", {}, HERE)]
    assert choose_template("auto", models) == (
        "y", "chat_template auto: that of b, which 2 of 5 models have"
    )  # fmt: skip
    assert choose_template("auto", models[:2])[0] == "x"
    template, note = choose_template("auto", [("e", {}, HERE)])
    assert template is None
    assert note == "chat_template auto: no model has a template, so none is written"
    assert choose_template(None, models) == (None, None)


def test_a_template_of_ones_own(tmp_path: Path) -> None:
    assert choose_template(SAYING, []) == (SAYING, None)
    path = tmp_path / "mine.jinja"
    path.write_text("x {% raw %}")
    assert choose_template(str(path), []) == ("x {% raw %}", None)
    path.write_bytes(b"\xff")
    with pytest.raises(UsageError, match=r"mine\.jinja is no text in UTF-8"):
        choose_template(str(path), [])
    with pytest.raises(UsageError, match=r"'chatlm' is no template .*; did you mean 'chatml'\?"):
        choose_template("chatlm", [])


def test_where_a_template_is_written() -> None:
    files = tokenizer(
        old='{"chat_template": "a"}', tokenizer_config='{"chat_template": "a", "b": 1}'
    )
    found = with_template(files, SAYING, HERE)
    assert found["chat_template.jinja"] == SAYING.encode()
    assert json.loads(found["chat_template.json"]) == {"chat_template": SAYING}
    assert json.loads(found["tokenizer_config.json"]) == {"chat_template": SAYING, "b": 1}
    plain = with_template(tokenizer(tokenizer_config="{}"), SAYING, HERE)
    assert plain["tokenizer_config.json"] == b"{}"
    assert with_template(files, None, HERE) == files
    assert with_template(files, " a\n", HERE) == files


CHATS = [("user", "hi"), ("assistant", "yo"), ("user", "so?")]
SYSTEM = [("system", "Be nice."), *CHATS]


@pytest.mark.parametrize(("name", "chat", "wanted"), [
    ("chatml", CHATS, "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyo<|im_end|>\n"
     "<|im_start|>user\nso?<|im_end|>\n<|im_start|>assistant\n"),
    ("llama3", SYSTEM, "<s><|start_header_id|>system<|end_header_id|>\n\nBe nice.<|eot_id|>"
     "<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
     "<|start_header_id|>assistant<|end_header_id|>\n\nyo<|eot_id|>"
     "<|start_header_id|>user<|end_header_id|>\n\nso?<|eot_id|>"
     "<|start_header_id|>assistant<|end_header_id|>\n\n"),
    ("alpaca", SYSTEM, "Be nice.\n\n### Instruction:\nhi\n\n### Response:\nyo\n\n"
     "### Instruction:\nso?\n\n### Response:\n"),
    ("mistral", SYSTEM, "<s> [INST] Be nice.\n\nhi [/INST] yo</s> [INST] so? [/INST]"),
    ("mistral", CHATS, "<s> [INST] hi [/INST] yo</s> [INST] so? [/INST]"),
    ("exaone", CHATS, "[|system|][|endofturn|]\n[|user|]hi\n[|assistant|]yo[|endofturn|]\n"
     "[|user|]so?\n[|assistant|]"),
])  # fmt: skip
def test_what_the_named_templates_write(name: str, chat: Any, wanted: str) -> None:
    pytest.importorskip("jinja2", reason="comes with the extra 'learn'")
    from jinja2 import Environment

    told = [{"role": role, "content": text} for role, text in chat]
    made = Environment(trim_blocks=True, lstrip_blocks=True).from_string(NAMED[name])
    assert made.render(
        messages=told, bos_token="<s>", eos_token="</s>", add_generation_prompt=True
    ) == wanted  # fmt: skip


def test_turns_out_of_order() -> None:
    pytest.importorskip("jinja2", reason="comes with the extra 'learn'")
    from jinja2 import Environment

    def refuse(said: str) -> None:
        raise ValueError(said)

    made = Environment().from_string(NAMED["mistral"])
    with pytest.raises(ValueError, match="take turns"):
        made.render(messages=[{"role": "assistant", "content": "x"}], raise_exception=refuse)
