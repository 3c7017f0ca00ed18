"""How a chat is written as a text: the templates of models, some by name, or one of one's own."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from taskbasis.errors import UsageError, nearest
from taskbasis.io.regular import parse_json, read_regular
from taskbasis.vocabulary.files import Files

_FILE, _OLD_FILE, _SETTINGS = "chat_template.jinja", "chat_template.json", "tokenizer_config.json"
_LIMIT = 1_000_000

NAMED: Mapping[str, str] = {
    # Taori and others, Stanford Alpaca, 2023: the prompts of its README.
    "alpaca": (
        "{% for m in messages %}{% if not loop.first %}{{ '\\n\\n' }}{% endif %}"
        "{% if m['role'] == 'user' %}{{ '### Instruction:\\n' }}"
        "{% elif m['role'] == 'assistant' %}{{ '### Response:\\n' }}{% endif %}"
        "{{ m['content'] | trim }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '\\n\\n### Response:\\n' }}{% endif %}"
    ),
    # OpenAI's ChatML.
    "chatml": (
        "{% for m in messages %}"
        "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    # LG AI Research, EXAONE 3.0, as its model card shows it.
    "exaone": (
        "{% if messages[0]['role'] != 'system' %}{{ '[|system|][|endofturn|]\\n' }}{% endif %}"
        "{% for m in messages %}{{ '[|' + m['role'] + '|]' + m['content'] }}"
        "{% if m['role'] != 'user' %}{{ '[|endofturn|]' }}{% endif %}{{ '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '[|assistant|]' }}{% endif %}"
    ),
    # Meta, Llama 3 prompt format.
    "llama3": (
        "{{ bos_token }}{% for m in messages %}"
        "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' }}"
        "{{ m['content'] | trim }}{{ '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
    ),
    # Mistral AI, Mistral 7B Instruct v0.1 to v0.3; words for the system go before the user's first.
    "mistral": (
        "{% set skip = 1 if messages[0]['role'] == 'system' else 0 %}"
        "{{ bos_token }}{% for m in messages[skip:] %}"
        "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('user and assistant take turns, and the user begins') }}{% endif %}"
        "{% if m['role'] == 'user' %}{{ ' [INST] ' }}"
        "{% if loop.first and skip %}{{ messages[0]['content'] + '\\n\\n' }}{% endif %}"
        "{{ m['content'] + ' [/INST]' }}"
        "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    ),
}
"""Templates by mergekit's names, written after the formats' own descriptions."""


def template_of(files: Mapping[str, bytes], folder: Path) -> str | None:
    """A tokenizer's chat template; of several with names the default one.

    Args:
        files: of the tokenizer.
        folder: where they stand, for messages.
    """
    if _FILE in files:
        return files[_FILE].decode("utf-8", "replace")
    for name in (_OLD_FILE, _SETTINGS):
        content = parse_json(files[name], str(folder / name)) if name in files else None
        found = content.get("chat_template") if isinstance(content, dict) else None
        if isinstance(found, list):  # several, each with a name
            named = [one for one in found if isinstance(one, dict)]
            found = {one.get("name"): one.get("template") for one in named}.get("default")
        if isinstance(found, str):
            return found
    return None


def choose_template(
    asked: str | None, tokenizers: Sequence[tuple[str, Mapping[str, bytes], Path]]
) -> tuple[str | None, str | None]:
    """The template that a recipe asks for, and what to say of the choice.

    Args:
        asked: ``auto`` (the one that most models have, the first of those that are as frequent),
            a name, a template or a file with one; None for what the donor has.
        tokenizers: of the models that are merged: name, files and folder.

    Returns:
        The template, None where the donor's stays; and a note, None where nothing is to be said.

    Raises:
        UsageError: it is nothing of these.

    >>> choose_template("chatml", [])[0] == NAMED["chatml"]
    True
    """
    if asked is None:
        return None, None
    if asked == "auto":
        held = [(name, template_of(files, folder)) for name, files, folder in tokenizers]
        counts = Counter(found.strip() for _, found in held if found and found.strip())
        if not counts:
            return None, "chat_template auto: no model has a template, so none is written"
        best, count = counts.most_common(1)[0]
        first = next(name for name, found in held if found and found.strip() == best)
        return best, (
            f"chat_template auto: that of {first}, which {count} of {len(held)} models have"
        )
    if asked in NAMED:
        return NAMED[asked], None
    if "{%" in asked or "{{" in asked:
        return asked, None
    path = Path(asked)
    if "\n" not in asked and len(asked) < 4096 and path.is_file():
        try:
            return read_regular(path, _LIMIT).decode(), None
        except UnicodeDecodeError:
            raise UsageError(f"chat_template: {path} is no text in UTF-8") from None
    raise UsageError(
        f"chat_template: {asked!r} is no template (Jinja with {{{{ or {{%), no file and none of "
        f"the names; {nearest(asked, ['auto', *NAMED])}"
    )


def with_template(files: Mapping[str, bytes], template: str | None, folder: Path) -> Files:
    """A tokenizer's files with another chat template, wherever one is kept.

    It is written to chat_template.jinja, which readers look at first, and put in the place of
    what other files have of it.
    """
    found = dict(files)
    if template is None or (template_of(files, folder) or "").strip() == template.strip():
        return found
    found[_FILE] = template.encode()
    for name in (_OLD_FILE, _SETTINGS):
        content: Any = parse_json(files[name], str(folder / name)) if name in files else None
        if isinstance(content, dict) and "chat_template" in content:
            content["chat_template"] = template
            found[name] = (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
    return found
