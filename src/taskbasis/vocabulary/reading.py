"""Which tokens a model has, by which numbers: read from its tokenizer's own files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taskbasis.errors import FileError
from taskbasis.io.regular import parse_json, read_regular
from taskbasis.io.remote import Url, side_files
from taskbasis.io.suffixes import SAFETENSORS
from taskbasis.vocabulary.pieces import pieces

TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model"),
    *("sentencepiece.bpe.model", "spm.model", "tekken.json", "chat_template.jinja"),
    "chat_template.json",
)
"""What a tokenizer is made of."""

_SPEAKING = (
    *("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model"),
    *("sentencepiece.bpe.model", "spm.model", "tekken.json"),
)
"""What says which tokens there are, the first that is there before others."""

_PLAIN = {
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": True,
    "special": False,
}
"""What ``tokenizer.json`` says of an added token that nothing special is known of."""


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a model.

    Attributes:
        numbers: of every token; none where the file says it in a way that is not known.
        added: what is said of tokens that were added to the tokenizer, by token.
        file: where it stands.
        raw: the file itself, where its tokens are not known.
    """

    numbers: Mapping[str, int] = field(repr=False)
    added: Mapping[str, Mapping[str, Any]] = field(repr=False)
    file: Path
    raw: bytes | None = field(default=None, repr=False)

    def same(self, other: Vocabulary) -> bool:
        """Whether both have the same tokens by the same numbers, as far as that can be told."""
        return self.numbers == other.numbers and self.raw == other.raw


def tokenizer_files(folder: Path, more: tuple[str, ...] = ()) -> dict[str, bytes]:
    """The files of the tokenizer that stands beside a model's weights, here or behind a URL.

    Args:
        more: other files that are wanted, too.

    Raises:
        FileError: one of them cannot be read.
    """
    names = (*TOKENIZER, *more)
    if isinstance(folder, Url):
        if folder.suffix == SAFETENSORS:
            return {}
        return {name: raw for name, raw in side_files(folder) if name in names}
    if not folder.is_dir():
        return {}
    return {name: read_regular(folder / name) for name in names if (folder / name).is_file()}


def read_vocabulary(files: Mapping[str, bytes], folder: Path) -> Vocabulary | None:
    """The tokens of a tokenizer; None where there is none.

    ``tokenizer.json``, ``vocab.json`` and ``vocab.txt`` are read, and SentencePiece models; tokens
    of ``added_tokens.json`` are among them. Of any other tokenizer only the bytes are known.

    Args:
        files: of the tokenizer, by name.
        folder: where they stand.

    Raises:
        FileError: a file is no JSON or text though its name says so.

    >>> read_vocabulary({"vocab.txt": b"a\\nb\\n"}, Path("model")).numbers
    {'a': 0, 'b': 1}
    """
    name = next((name for name in _SPEAKING if name in files), None)
    if name is None:
        return None
    more = b"" if name == "tokenizer.json" else files.get("added_tokens.json", b"")
    return _parsed(folder / name, files[name], more)


def _parsed(file: Path, raw: bytes, more: bytes) -> Vocabulary:
    added: dict[str, Mapping[str, Any]] = {}
    if file.suffix == ".txt":
        try:
            lines = raw.decode().removesuffix("\n").split("\n")
        except UnicodeDecodeError as error:
            where = f"byte {error.start}"
            raise FileError(f"{file}: no text in UTF-8 ({where}); a vocabulary is") from None
        found: Any = {token: number for number, token in enumerate(lines)}
    elif file.suffix == ".json":
        content = parse_json(raw, str(file))
        found = content
        if file.name == "tokenizer.json":
            found, added = _of_fast_tokenizer(content)
    else:
        # Numbers are places in the list for these two names; other tokenizers shift them.
        told = pieces(raw) if file.name in ("tokenizer.model", "spiece.model") else None
        found = told and {piece: number for number, piece in enumerate(told)}
    if not _is_numbered(found):
        return Vocabulary({}, {}, file, raw)
    found = dict(found)
    if more:
        late = parse_json(more, str(file.with_name("added_tokens.json")))
        if not _is_numbered(late):
            return Vocabulary({}, {}, file, raw + more)
        found |= late
        added = {token: {**_PLAIN, "content": token, "id": n} for token, n in late.items()}
    return Vocabulary(found, added, file)


def _is_numbered(found: object) -> bool:
    return (
        isinstance(found, dict)
        and bool(found)
        and all(type(number) is int and number >= 0 for number in found.values())
    )


def _of_fast_tokenizer(content: object) -> tuple[object, dict[str, Mapping[str, Any]]]:
    """The vocabulary of a ``tokenizer.json``, and the tokens added to it."""
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        return None, {}
    words = content["model"].get("vocab")
    if isinstance(words, list):  # Unigram: pairs of a piece and its score
        texts = [piece[0] if isinstance(piece, list) and piece else None for piece in words]
        found = {text: number for number, text in enumerate(texts) if isinstance(text, str)}
    elif isinstance(words, dict):
        found = dict(words)
    else:
        return None, {}
    added: dict[str, Mapping[str, Any]] = {}
    for one in content.get("added_tokens") or ():
        if isinstance(one, dict) and isinstance(one.get("content"), str) and "id" in one:
            found[one["content"]] = one["id"]
            added[one["content"]] = {**_PLAIN, **one}
    return found, added


def plain_token(token: str) -> dict[str, Any]:
    """What ``tokenizer.json`` says of a token that is added without anything special."""
    return {**_PLAIN, "content": token}
