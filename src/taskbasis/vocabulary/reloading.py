"""Whether a tokenizer that was put together is what it should be, told by the library itself."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from taskbasis.errors import FileError, require
from taskbasis.vocabulary.joining import Joined

_TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "3 + 4 = 7, isn't it?",
    "def f(x):\n    return x * 2\n",
    "naïve café — 你好",
)
"""Texts that a tokenizer has to split as it did before, where none of the new tokens is in them."""


def reload(
    files: Mapping[str, bytes], donor: Mapping[str, bytes], joined: Joined, folder: Path
) -> str | None:
    """Open the tokenizer with the library, and compare; what to say where that is not possible.

    Every token has to have its number, special ones have to be found whole in a text, and texts
    without new tokens have to be split as the donor splits them.

    Args:
        files: of the output's tokenizer.
        donor: the same of the donor's.
        joined: the tokens and their numbers.
        folder: the donor's, for messages.

    Raises:
        FileError: it does not open, or does something else.
    """
    if "tokenizer.json" not in files:
        return "the tokenizer was not opened again: it has no tokenizer.json"
    if importlib.util.find_spec("tokenizers") is None:
        return "the tokenizer was not opened again: that takes pip install 'taskbasis[learn]'"
    library = require("tokenizers", "learn", "opening a tokenizer")
    before = _opened(library, donor["tokenizer.json"])
    if isinstance(before, str):
        if joined.new:
            raise FileError(f"{folder / 'tokenizer.json'}: tokenizers cannot open it: {before}")
        return f"the tokenizer of {folder} was copied, but tokenizers cannot open it: {before}"
    after = before if not joined.new else _opened(library, files["tokenizer.json"])
    if isinstance(after, str):
        raise FileError(f"{folder}: its tokenizer with new tokens does not open: {after}")
    found = after.get_vocab(with_added_tokens=True)
    wrong = sorted(token for token in joined.numbers if found.get(token) != joined.numbers[token])
    if wrong:
        one = wrong[0]
        raise FileError(
            f"{folder}: {len(wrong)} tokens have other numbers once its tokenizer is opened, e.g. "
            f"{one!r} {found.get(one, 'none')} instead of {joined.numbers[one]}; give it a "
            "tokenizer.json without gaps in its numbers"
        )
    for entry in joined.new:
        if entry.get("special") and _split(after, entry["content"]) != [entry["id"]]:
            raise FileError(
                f"{folder}: the new special token {entry['content']!r} is not found in a text by "
                "its tokenizer"
            )
    for text in _TEXTS:
        free = _free(text, joined.new, before.normalizer)
        if free and _split(before, text) != _split(after, text):
            raise FileError(f"{folder}: its tokenizer with new tokens splits {text!r} anew")
    return None


def _opened(library: Any, raw: bytes) -> Any:
    """The tokenizer, or what the library says against it."""
    try:
        return library.Tokenizer.from_str(raw.decode())
    except Exception as error:  # noqa: BLE001 - the library raises Exception itself
        return str(error).partition("\n")[0]


def _split(tokenizer: Any, text: str) -> list[int] | None:
    try:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)
    except Exception:  # noqa: BLE001 - a vocabulary without an unknown token
        return None


def _free(text: str, new: Sequence[Mapping[str, Any]], normalizer: Any) -> bool:
    """Whether none of the tokens is in a text, however it is normalised."""

    def forms(words: str) -> set[str]:
        both = (words, words if normalizer is None else normalizer.normalize_str(words))
        return {form.casefold().replace(" ", "▁") for form in both}

    plain, tokens = forms(text), {form for one in new for form in forms(one["content"])}
    return not any(token in f"▁{form}" for token in tokens for form in plain)
