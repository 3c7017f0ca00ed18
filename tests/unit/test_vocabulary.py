"""Vocabularies: read from whatever tokenizers keep, and refused where they differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from taskbasis.errors import FileError, MismatchError, UsageError
from taskbasis.io.folder import open_tensors
from taskbasis.io.tensors import TensorStore
from taskbasis.recipes.schema import Location, ModelRef, Tokenizer, TokenRule
from taskbasis.vocabulary import check_vocabularies, vocabulary


def fast(model: object, added: object = None) -> str:
    return json.dumps({"model": model, "added_tokens": added})


@pytest.mark.parametrize(("name", "text", "wanted"), [
    ("tokenizer.json", fast({"vocab": {"a": 0, "b": 1}}), {"a": 0, "b": 1}),
    ("tokenizer.json", fast({"vocab": {"a": 0}}, [{"id": 7, "content": "b"}]), {"a": 0, "b": 7}),
    ("tokenizer.json", fast({"vocab": {"a": 0}}, ["<s>", {"id": 1}]), {"a": 0}),
    ("tokenizer.json", fast({"vocab": [["<unk>", 0.0], ["a", -1.5]]}), {"<unk>": 0, "a": 1}),
    ("vocab.json", '{"a": 0, "b": 1}', {"a": 0, "b": 1}),
    ("vocab.txt", "[PAD]\n[UNK]\nä\n", {"[PAD]": 0, "[UNK]": 1, "ä": 2}),
])  # fmt: skip
def test_what_tokenizers_keep(name: str, text: str, wanted: Any, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert vocabulary(tmp_path) == wanted


@pytest.mark.parametrize(("name", "text"), [
    ("tokenizer.json", "no JSON"),
    ("tokenizer.json", "[" * 100_000),
    ("tokenizer.json", "[]"),
    ("tokenizer.json", "{}"),
    ("tokenizer.json", fast({"vocab": 3})),
    ("tokenizer.json", fast("bpe")),
    ("vocab.json", "[]"),
    ("other.json", "{}"),
])  # fmt: skip
def test_what_says_nothing_of_a_vocabulary(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert vocabulary(tmp_path) is None


def test_the_fast_tokenizer_goes_first(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("x\n")
    (tmp_path / "tokenizer.json").write_text(fast({"vocab": {"a": 0}}))
    assert vocabulary(tmp_path) == {"a": 0}


def test_a_token_may_hold_a_strange_line_break(tmp_path: Path) -> None:
    """U+2028 and U+0085 are tokens of real vocabularies; only a newline ends a line."""
    (tmp_path / "vocab.txt").write_text("a\n\u2028\n\u0085\nb\n", encoding="utf-8")
    assert vocabulary(tmp_path) == {"a": 0, "\u2028": 1, "\u0085": 2, "b": 3}


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe\x00")
    try:
        assert vocabulary(tmp_path) is None
    except FileError as error:
        assert "vocab.txt" in str(error)  # noqa: PT017


@pytest.fixture
def stores(tmp_path: Path) -> dict[str, TensorStore]:
    found = {}
    for name in "abc":
        (tmp_path / name).mkdir()
        save_file({"w": np.zeros(2, np.float32)}, tmp_path / name / "model.safetensors")
        found[name] = open_tensors(tmp_path / name)
    return found


def words(store: TensorStore, *tokens: str) -> None:
    content = fast({"vocab": {token: number for number, token in enumerate(tokens)}})
    (store.path / "tokenizer.json").write_text(content)


def test_nothing_known_is_nothing_wrong(stores: Any) -> None:
    check_vocabularies(None, stores)
    words(stores["b"], "x")
    check_vocabularies(None, stores)


def test_the_same_words_in_other_files(stores: Any) -> None:
    words(stores["a"], "x", "y")
    (stores["b"].path / "vocab.txt").write_text("x\ny\n")
    (stores["c"].path / "vocab.json").write_text('{"y": 1, "x": 0}')
    check_vocabularies(Tokenizer("union"), stores)
    check_vocabularies(Tokenizer("base"), stores)


@pytest.mark.parametrize(("tokens", "said"), [
    (("x", "y", "z"), "1 tokens of b and c differ, e.g. 'z' is missing and 2"),
    (("x",), "1 tokens of b and c differ, e.g. 'y' is 1 and missing"),
    (("y", "x"), "2 tokens of b and c differ, e.g. 'x' is 0 and 1"),
])  # fmt: skip
def test_words_that_differ(tokens: Any, said: str, stores: Any) -> None:
    words(stores["b"], "x", "y")
    words(stores["c"], *tokens)
    with pytest.raises(MismatchError) as caught:
        check_vocabularies(None, stores)
    assert str(caught.value) == (
        f"{said}; models of different vocabularies cannot be merged yet, bring them to one first"
    )


@pytest.mark.parametrize(("source", "said"), [
    ("union", " (tokenizer source union)"),
    ("base", " (tokenizer source base)"),
    (ModelRef(Location("a")), " (tokenizer source a)"),
])  # fmt: skip
def test_the_message_repeats_what_was_asked(source: Any, said: str, stores: Any) -> None:
    words(stores["a"], "x")
    words(stores["b"], "y")
    with pytest.raises(MismatchError) as caught:
        check_vocabularies(Tokenizer(source), stores)
    assert f"{said}; models of different" in str(caught.value)


@pytest.mark.parametrize("tokenizer", [
    Tokenizer("union", {"x": TokenRule()}),
    Tokenizer("base", {}, 64),
])  # fmt: skip
def test_what_is_not_known_yet(tokenizer: Tokenizer, stores: Any) -> None:
    with pytest.raises(UsageError, match="tokens and pad_to_multiple_of are not known yet"):
        check_vocabularies(tokenizer, stores)


def test_tokenizers_that_the_real_library_writes(tmp_path: Path, stores: Any) -> None:
    """BPE, Unigram and WordPiece, each as the library numbers it; one of them in another order."""
    tokenizers = pytest.importorskip("tokenizers")
    kinds = tokenizers.models
    vocabulary_of = {"<unk>": 0, "a": 1, "b": 2, "ab": 3}
    made = {
        "bpe": kinds.BPE(vocab=vocabulary_of, merges=[("a", "b")], unk_token="<unk>"),
        "unigram": kinds.Unigram([("<unk>", 0.0), ("a", -1.0), ("b", -2.0)], unk_id=0),
        "pieces": kinds.WordPiece(vocab=vocabulary_of, unk_token="<unk>"),
    }
    for name, model in made.items():
        tokenizer = tokenizers.Tokenizer(model)
        tokenizer.add_special_tokens(["<s>", "</s>"])
        tokenizer.add_tokens(["a new one"])
        (tmp_path / name).mkdir()
        tokenizer.save(str(tmp_path / name / "tokenizer.json"))
        assert vocabulary(tmp_path / name) == tokenizer.get_vocab(with_added_tokens=True)


def test_vocabularies_behind_a_url_are_compared(tmp_path: Path) -> None:
    pytest.importorskip("fsspec", reason="reading URLs needs the extra 'remote'")

    from taskbasis.io.remote import open_remote

    stores = {}
    for name, words in (("a", "xyz"), ("b", "yxz")):
        folder = tmp_path / name
        folder.mkdir()
        save_file({"w": np.zeros(2, np.float32)}, folder / "model.safetensors")
        vocab = {word: number for number, word in enumerate(words)}
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}}))
        stores[name] = open_remote(folder.as_uri())
    with pytest.raises(MismatchError, match="2 tokens of a and b differ"):
        check_vocabularies(None, stores)
