"""Vocabularies: read from whatever tokenizers keep, and refused where they differ unsaid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from taskbasis.errors import FileError, MismatchError
from taskbasis.io.folder import open_tensors
from taskbasis.recipes import parse_recipe
from taskbasis.recipes.schema import Location, ModelRef
from taskbasis.vocabulary import check_tokens, read_vocabulary, tokens_beside
from taskbasis.vocabulary.pieces import pieces


def fast(model: object, added: object = None) -> str:
    return json.dumps({"model": model, "added_tokens": added})


def read(name: str, text: str | bytes, **more: str) -> Any:
    files = {name: text if isinstance(text, bytes) else text.encode()}
    return read_vocabulary(
        files | {f"{key}.json": value.encode() for key, value in more.items()}, Path("model")
    )


def piece(text: str) -> bytes:
    """One piece of a SentencePiece model: its text and its score."""
    raw = text.encode()
    inner = bytes([10, len(raw)]) + raw + bytes([0x15]) + np.float32(-1.5).tobytes()
    return bytes([10, len(inner)]) + inner


@pytest.mark.parametrize(("name", "text", "wanted"), [
    ("tokenizer.json", fast({"vocab": {"a": 0, "b": 1}}), {"a": 0, "b": 1}),
    ("tokenizer.json", fast({"vocab": {"a": 0}}, [{"id": 7, "content": "b"}]), {"a": 0, "b": 7}),
    ("tokenizer.json", fast({"vocab": {"a": 0}}, ["<s>", {"id": 1}]), {"a": 0}),
    ("tokenizer.json", fast({"vocab": [["<unk>", 0.0], ["a", -1.5]]}), {"<unk>": 0, "a": 1}),
    ("vocab.json", '{"a": 0, "b": 1}', {"a": 0, "b": 1}),
    ("vocab.txt", "[PAD]\n[UNK]\nä\n", {"[PAD]": 0, "[UNK]": 1, "ä": 2}),
    ("tokenizer.model", piece("<unk>") + piece("▁a"), {"<unk>": 0, "▁a": 1}),
    ("spiece.model", piece("a") + bytes([0x12, 2, 8, 1]), {"a": 0}),
])  # fmt: skip
def test_what_tokenizers_keep(name: str, text: Any, wanted: Any) -> None:
    found = read(name, text)
    assert found.numbers == wanted
    assert found.raw is None
    assert found.file == Path("model") / name


@pytest.mark.parametrize(("name", "text"), [
    ("tokenizer.json", "[]"),
    ("tokenizer.json", "{}"),
    ("tokenizer.json", fast({"vocab": 3})),
    ("tokenizer.json", fast("bpe")),
    ("tokenizer.json", fast({"vocab": {"a": "0"}})),
    ("tokenizer.json", fast({"vocab": {"a": -1}})),
    ("vocab.json", "[]"),
    ("vocab.json", '{"eng": {"a": 0}}'),
    ("tokenizer.model", b"IQ== 0\nIg== 1\n"),
    ("tokenizer.model", b""),
    ("sentencepiece.bpe.model", piece("a")),
    ("tekken.json", '{"vocab": []}'),
])  # fmt: skip
def test_what_is_known_by_its_bytes_alone(name: str, text: Any) -> None:
    found = read(name, text)
    assert not found.numbers
    assert found.raw == (text if isinstance(text, bytes) else text.encode())


def test_no_tokenizer_at_all() -> None:
    assert read("other.json", "{}") is None
    assert read("added_tokens.json", '{"a": 0}') is None


@pytest.mark.parametrize(("name", "text", "said"), [
    ("tokenizer.json", "no JSON", "model/tokenizer.json:? is not valid JSON"),
    ("tokenizer.json", "[" * 100_000, "model/tokenizer.json:? is not valid JSON"),
    ("vocab.json", '{"a": 0, "a": 1}', "model/vocab.json:? names 'a' twice"),
    ("vocab.txt", b"a\n\xff\xfe", r"model/vocab.txt: no text in UTF-8 \(byte 2\)"),
])  # fmt: skip
def test_damaged_files(name: str, text: Any, said: str) -> None:
    with pytest.raises(FileError, match=said):
        read(name, text)


def test_tokens_added_in_a_file_of_their_own() -> None:
    found = read("vocab.json", '{"a": 0}', added_tokens='{"<x>": 1}')
    assert found.numbers == {"a": 0, "<x>": 1}
    assert found.added["<x>"]["content"] == "<x>"
    assert read("tokenizer.json", fast({"vocab": {"a": 0}}), added_tokens='{"b": 1}').added == {}
    assert read("vocab.json", '{"a": 0}', added_tokens="[1]").raw == b'{"a": 0}[1]'


def test_the_fast_tokenizer_goes_first() -> None:
    files = {"vocab.txt": b"x\n", "tokenizer.json": fast({"vocab": {"a": 0}}).encode()}
    found = read_vocabulary(files, Path("m"))
    assert found is not None
    assert found.numbers == {"a": 0}


def test_a_token_may_hold_a_strange_line_break() -> None:
    """U+2028 and U+0085 are tokens of real vocabularies; only a newline ends a line."""
    found = read("vocab.txt", "a\n\u2028\n\u0085\nb\n")
    assert found.numbers == {"a": 0, "\u2028": 1, "\u0085": 2, "b": 3}


@pytest.mark.parametrize("raw", [
    b"", b"\x0a", b"\x0a\x05ab", b"\x0a\x02\x0a\x00" + b"\xff" * 12, b"\x0b\x00", b"\x02\x01a",
    b"\x0a\x03\x0a\x01\xff",
])  # fmt: skip
def test_bytes_that_are_no_sentencepiece_model(raw: bytes) -> None:
    assert pieces(raw) is None


def test_a_long_piece_and_fields_of_every_kind() -> None:
    text = "x" * 300
    raw = bytes([0x0A, 0xAF, 0x02, 0x0A, 0xAC, 0x02]) + text.encode()
    raw += bytes([0x18, 0x01]) + bytes([0x29]) + b"8" * 8 + bytes([0x35]) + b"4444"
    assert pieces(raw) == [text]


def test_tokenizers_that_the_real_library_writes(tmp_path: Path) -> None:
    """BPE, Unigram and WordPiece, each as the library numbers it; one of them in another order."""
    tokenizers = pytest.importorskip("tokenizers", reason="takes the extra 'learn'")
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
        found = read_vocabulary(tokens_beside(tmp_path / name), tmp_path / name)
        assert found is not None
        assert found.numbers == tokenizer.get_vocab(with_added_tokens=True)
        assert list(found.added) == ["<s>", "</s>", "a new one"]
        assert found.added["<s>"]["special"]


LINEAR = """
merge_method: linear
models:
  - {model: a, parameters: {weight: 1}}
  - {model: b, parameters: {weight: 1}}
  - {model: c, parameters: {weight: 1}}
"""


@pytest.fixture
def check(tmp_path: Path) -> Any:
    """``check(a=..., b=..., c=...)``: whether three models with these files may be merged."""

    def run(said: str = "", **files: tuple[str, str | bytes]) -> Any:
        (document,) = parse_recipe(LINEAR + said).documents
        stores = {}
        for name in "abc":
            folder = tmp_path / name
            folder.mkdir(exist_ok=True)
            save_file({"w": np.zeros(2, np.float32)}, folder / "model.safetensors")
            if name in files:
                file, text = files[name]
                (folder / file).write_bytes(text if isinstance(text, bytes) else text.encode())
            stores[ModelRef(Location(name))] = open_tensors(folder)
        beside = {ref: tokens_beside(store.path) for ref, store in stores.items()}
        return check_tokens(document, stores, beside)

    return run


def words(*tokens: str) -> tuple[str, str]:
    return "tokenizer.json", fast({"vocab": {token: n for n, token in enumerate(tokens)}})


def test_nothing_known_is_nothing_wrong(check: Any) -> None:
    check()
    check(b=words("x"))


def test_the_same_words_in_other_files(check: Any) -> None:
    found, template, note = check(
        a=words("x", "y"), b=("vocab.txt", "x\ny\n"), c=("vocab.json", '{"y": 1, "x": 0}')
    )
    assert [one.numbers for one in found.values()] == [{"x": 0, "y": 1}] * 3
    assert (template, note) == (None, None)


@pytest.mark.parametrize(("tokens", "said"), [
    (("x", "y", "z"), "1 tokens of b and c differ, e.g. 'z' is missing and 2"),
    (("x",), "1 tokens of b and c differ, e.g. 'y' is 1 and missing"),
    (("y", "x"), "2 tokens of b and c differ, e.g. 'x' is 0 and 1"),
])  # fmt: skip
def test_words_that_differ(tokens: Any, said: str, check: Any) -> None:
    with pytest.raises(MismatchError) as caught:
        check(b=words("x", "y"), c=words(*tokens))
    assert str(caught.value) == (
        f"{said}; say which vocabulary the output has, and rows are aligned by token: "
        "tokenizer_source: union, base or a model"
    )
    check("tokenizer_source: union", b=words("x", "y"), c=words(*tokens))


def test_sentencepiece_models_that_differ(check: Any) -> None:
    """They used to switch the check off."""
    one, two = piece("<unk>") + piece("a"), piece("<unk>") + piece("b")
    check(a=("tokenizer.model", one), b=words("<unk>", "a"))
    with pytest.raises(MismatchError, match="2 tokens of a and c differ"):
        check(a=("tokenizer.model", one), c=("tokenizer.model", two))


def test_tokenizers_that_cannot_be_read(check: Any) -> None:
    one, two = ("tokenizer.model", b"IQ== 0\n"), ("tokenizer.model", b"IQ== 1\n")
    check(a=one, b=one)
    with pytest.raises(MismatchError) as caught:
        check(a=one, b=two)
    said = str(caught.value)
    assert said.startswith("the tokenizers of a and b differ, and which tokens they have cannot be")
    assert said.endswith("a/tokenizer.model; give both a tokenizer.json")


def test_vocabularies_behind_a_url(tmp_path: Path) -> None:
    pytest.importorskip("fsspec", reason="reading URLs needs the extra 'remote'")

    from taskbasis.io.remote import open_remote

    folder = tmp_path / "a"
    folder.mkdir()
    save_file({"w": np.zeros(2, np.float32)}, folder / "model.safetensors")
    (folder / "tokenizer.json").write_text(words("x", "y")[1])
    (folder / "other.json").write_text("{}")
    for url, names in (
        (folder.as_uri(), ["tokenizer.json"]),
        ((folder / "model.safetensors").as_uri(), []),
    ):
        assert sorted(tokens_beside(open_remote(url).path)) == names
