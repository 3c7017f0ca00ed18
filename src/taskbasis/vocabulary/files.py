"""A tokenizer's files with tokens added to them, and numbers of tokens in configs."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from taskbasis.errors import FileError, UsageError
from taskbasis.io.regular import parse_json
from taskbasis.vocabulary.joining import Joined
from taskbasis.vocabulary.reading import Vocabulary

_DECODED = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
"""What ``tokenizer_config.json`` says of an added token."""

Files = dict[str, bytes]


def with_tokens(files: Mapping[str, bytes], folder: Path, joined: Joined) -> Files:
    """The files of a tokenizer that has new tokens besides; they are added as mergekit adds them.

    An added token is found in a text before that is split, so texts that hold one are split in
    another way than before, and all others as before.

    Args:
        files: of the donor's tokenizer.
        folder: where they stand, for messages.
        joined: its tokens and the new ones.

    Raises:
        UsageError: there is no tokenizer.json. FileError: one of the files is not what it should
            be.
    """
    if not joined.new:
        return dict(files)
    if "tokenizer.json" not in files:
        raise UsageError(
            f"{folder}: {len(joined.new)} tokens are to be added to its tokenizer, which takes a "
            "tokenizer.json; write one: "
            "transformers.AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    found = dict(files)
    content = _object(files, "tokenizer.json", folder)
    added = [*(content.get("added_tokens") or ()), *joined.new]
    content["added_tokens"] = sorted(added, key=lambda one: int(one["id"]))
    words = content["model"]["vocab"]
    if isinstance(words, dict) and joined.size > len(joined.numbers):
        # Numbers with gaps: the library numbers added tokens anew, but not those of the model.
        words |= {str(one["content"]): one["id"] for one in added}
    found["tokenizer.json"] = _encoded(content, folder / "tokenizer.json")
    if "tokenizer_config.json" in files:
        settings = _object(files, "tokenizer_config.json", folder)
        if isinstance(settings.get("added_tokens_decoder"), dict):
            for one in joined.new:
                told = {key: one[key] for key in _DECODED if key in one}
                settings["added_tokens_decoder"][str(one["id"])] = told
            found["tokenizer_config.json"] = _encoded(settings, folder / "tokenizer_config.json")
    if "added_tokens.json" in files:
        listed = _object(files, "added_tokens.json", folder)
        listed |= {one["content"]: one["id"] for one in joined.new}
        found["added_tokens.json"] = _encoded(listed, folder / "added_tokens.json")
    return found


def renumbered(config: Any, old: Vocabulary, joined: Joined) -> tuple[Any, list[str]]:
    """A config whose numbers of tokens (``eos_token_id`` and so on) mean the same tokens as before.

    Args:
        old: the tokens by which it was written.
        joined: those of the output.

    Returns:
        The config, and the keys whose token the output has not: they say nothing any more.

    >>> from pathlib import Path
    >>> old = Vocabulary({"<s>": 0, "</s>": 1}, {}, Path("old"))
    >>> renumbered({"eos_token_id": [1], "n": 1}, old, Joined({"</s>": 7}))
    ({'eos_token_id': [7], 'n': 1}, [])
    """
    tokens, lost = {number: token for token, number in old.numbers.items()}, list[str]()

    def change(key: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return walk(value)
        if not key.endswith(("_token_id", "_token_ids", "_token_index")):
            return value
        if isinstance(value, list):
            kept = [change(key, one) for one in value]
            return [one for one in kept if one is not None] or None
        if type(value) is not int or value < 0:
            return value
        found = joined.numbers.get(tokens.get(value, ""))
        if found is None:
            lost.append(key)
        return found

    def walk(section: Mapping[str, Any]) -> dict[str, Any]:
        return {key: change(key, value) for key, value in section.items()}

    return (walk(config) if isinstance(config, Mapping) else config), lost


def resized(config: Any, old: Collection[int], rows: int) -> Any:
    """A config that says how many rows the embeddings have, wherever it said so before.

    >>> resized({"vocab_size": 32, "text_config": {"vocab_size": 32}}, {32}, 40)
    {'vocab_size': 40, 'text_config': {'vocab_size': 40}}
    """
    if not isinstance(config, Mapping):
        return config
    found = {key: resized(value, old, rows) for key, value in config.items()}
    for key in ("vocab_size", "padded_vocab_size", "vocab_size_per_layer_input"):
        if found.get(key) in old and type(found[key]) is int:
            found[key] = rows
    return found


def _object(files: Mapping[str, bytes], name: str, folder: Path) -> dict[str, Any]:
    content = parse_json(files[name], str(folder / name))
    if not isinstance(content, dict):
        raise FileError(f"{folder / name}: is not a JSON object")
    return content


def _encoded(content: Any, where: Path) -> bytes:
    try:
        return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:
        raise FileError(f"{where}: holds half a character, which is no text") from None
