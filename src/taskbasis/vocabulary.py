"""Whether models speak of the same tokens by the same numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from taskbasis.errors import FileError, MismatchError, UsageError
from taskbasis.io.folder import SAFETENSORS
from taskbasis.io.remote import Url, side_files
from taskbasis.io.tensors import TensorStore
from taskbasis.recipes.schema import ModelRef, Tokenizer

_FILES = ("tokenizer.json", "vocab.json", "vocab.txt")


def vocabulary(folder: Path) -> Mapping[str, int] | None:
    """Tokens and their numbers, from the tokenizer's own files; None where there are none.

    Raises:
        FileError: a file is no text.

    >>> vocabulary(getfixture("tiny_checkpoints") / "base") is None
    True
    """
    remote = dict(side_files(folder)) if isinstance(folder, Url) else {}
    for name in _FILES:
        try:
            raw = remote.get(name) if remote else (folder / name).read_bytes()
        except OSError:
            continue
        if raw is None:
            continue
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            where = f"byte {error.start}"
            raise FileError(
                f"{folder / name}: no text in UTF-8 ({where}); a vocabulary is"
            ) from None
        if name == "vocab.txt":
            return {
                token: number for number, token in enumerate(text.removesuffix("\n").split("\n"))
            }
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if name == "vocab.json":
            return content if isinstance(content, dict) else None
        return _of_fast_tokenizer(content)
    return None


def _of_fast_tokenizer(content: object) -> Mapping[str, int] | None:
    """The vocabulary of a ``tokenizer.json``, with the tokens added to it."""
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        return None
    words = content["model"].get("vocab")
    if isinstance(words, list):  # Unigram: pairs of a piece and its score
        pieces = [piece[0] if isinstance(piece, list) and piece else None for piece in words]
        found = {piece: number for number, piece in enumerate(pieces) if isinstance(piece, str)}
    elif isinstance(words, dict):
        found = dict(words)
    else:
        return None
    for added in content.get("added_tokens") or ():
        if isinstance(added, dict) and isinstance(added.get("content"), str) and "id" in added:
            found[added["content"]] = added["id"]
    return found


def _has_files(path: Path) -> bool:
    """Whether a tokenizer may stand beside the weights: in a folder, here or behind a URL."""
    return path.suffix != SAFETENSORS if isinstance(path, Url) else path.is_dir()


def check_vocabularies(tokenizer: Tokenizer | None, stores: Mapping[str, TensorStore]) -> None:
    """Refuse models whose vocabularies differ: rows of their embeddings mean different tokens.

    Args:
        tokenizer: what the recipe says of it.
        stores: the models that are merged.

    Raises:
        MismatchError: two vocabularies differ; the message counts and names tokens.
        UsageError: the recipe asks for something that only different vocabularies need.
    """
    if tokenizer is not None and (tokenizer.tokens or tokenizer.pad_to_multiple_of):
        raise UsageError(
            "tokenizer: tokens and pad_to_multiple_of are not known yet; remove them, and change "
            "the embeddings before or after the merge"
        )
    known = {
        name: found
        for name, store in stores.items()
        if _has_files(store.path) and (found := vocabulary(store.path)) is not None
    }
    if not known:
        return
    first, ours = next(iter(known.items()))
    for name, theirs in known.items():
        unlike = sorted(t for t in {*ours, *theirs} if ours.get(t) != theirs.get(t))
        if not unlike:
            continue
        wanted = tokenizer.source if tokenizer is not None else None
        how = f" (tokenizer source {wanted})" if isinstance(wanted, (str, ModelRef)) else ""
        raise MismatchError(
            f"{len(unlike)} tokens of {first} and {name} differ, e.g. {unlike[0]!r} is "
            f"{ours.get(unlike[0], 'missing')} and {theirs.get(unlike[0], 'missing')}{how}; models "
            "of different vocabularies cannot be merged yet, bring them to one first"
        )
