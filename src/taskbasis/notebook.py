"""What notebooks show of a value: small plain tables in HTML, every name in them escaped."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from taskbasis.io.tensors import TensorStore
from taskbasis.recipe import Combination
from taskbasis.terminal import visible
from taskbasis.units import bytes_text

MOST = 50
"""Rows that are shown of a long table."""

_LONGEST = 300
"""Characters that are shown of a long cell."""


def table(title: str, header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A table with a caption, well-formed as XML; the rows after the first 50 are counted.

    >>> table("a < b", ["name", "norm"], [["x", 0.5]])
    '<table><caption>a &lt; b</caption><thead><tr><th>name</th><th>norm</th></tr></thead>\
<tbody><tr><td>x</td><td>0.5</td></tr></tbody></table>'
    """
    lines = list(rows)
    shown = [_row("td", line) for line in lines[:MOST]]
    if len(lines) > MOST:
        shown.append(_row("td", [f"... and {len(lines) - MOST} more"]))
    head = f"<thead>{_row('th', header)}</thead>" if header else ""
    return f"<table><caption>{_text(title)}</caption>{head}<tbody>{''.join(shown)}</tbody></table>"


def facts(title: str, found: Mapping[str, object]) -> str:
    """A table of names and values; those that are empty are left out.

    >>> "".join(facts("saved", {"size": "3 B", "left": ()}).partition("<tbody>")[2])
    '<tr><td>size</td><td>3 B</td></tr></tbody></table>'
    """
    return table(title, [], [[name, value] for name, value in found.items() if _told(value)])


def listed(title: str, sentences: Iterable[str]) -> str:
    """A list of sentences under a title.

    >>> listed("found", ["a & b"])
    '<div><p>found</p><ul><li>a &amp; b</li></ul></div>'
    """
    items = "".join(f"<li>{_text(sentence)}</li>" for sentence in sentences)
    return together(f"<p>{_text(title)}</p><ul>{items}</ul>")


def together(*parts: str) -> str:
    """Several of these, one below the other."""
    return f"<div>{''.join(parts)}</div>"


def of_store(title: str, store: TensorStore) -> str:
    """The tensors of a store: how many and how large, by type."""
    by_type: dict[str, list[int]] = {}
    for info in store.values():
        count = by_type.setdefault(info.dtype.name, [0, 0, 0])
        for at, more in enumerate((1, info.size, info.nbytes)):
            count[at] += more
    rows = [[n, c[0], f"{c[1]:,}", bytes_text(c[2])] for n, c in sorted(by_type.items())]
    return table(f"{title} {store.path}", ["dtype", "tensors", "numbers", "size"], rows)


def of_combination(title: str, combination: Combination) -> str:
    """The terms of a sum of task vectors, and their base."""
    bases = dict.fromkeys(leaf.base.name for leaf in combination.leaves)
    rows = [
        [
            term.leaf.label,
            "per tensor" if term.per_tensor is not None else term.coefficient,
            len(term.leaf.infos),
        ]
        for term in combination.terms
    ]
    return table(f"{title} of {', '.join(bases)}", ["vector", "coefficient", "tensors"], rows)


def of_output(
    path: Path, nbytes: int, rules: Mapping[str, Sequence[str]], numbers: Mapping[str, object]
) -> str:
    """What was written: how many tensors by each rule, and further numbers."""
    counts = {f"tensors {rule}": len(names) for rule, names in rules.items() if names}
    return facts(f"wrote {path}", {**counts, "size": bytes_text(nbytes), **numbers})


def _row(kind: str, cells: Sequence[object]) -> str:
    return f"<tr>{''.join(f'<{kind}>{_text(cell)}</{kind}>' for cell in cells)}</tr>"


def _told(value: object) -> bool:
    return value is not None and value != () and value != [] and value != {} and value != ""


def _text(value: object) -> str:
    if isinstance(value, float):
        text = f"{value:.6g}" if math.isfinite(value) else str(value)
    elif isinstance(value, Mapping):
        text = ", ".join(f"{name}: {inner}" for name, inner in value.items())
    elif isinstance(value, (list, tuple)):
        text = ", ".join(map(str, value))
    else:
        text = str(value)
    if len(text) > _LONGEST:
        text = text[:_LONGEST] + "..."
    return html.escape(visible(text)).encode("utf-8", "backslashreplace").decode()
