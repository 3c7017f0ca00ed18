"""Text classification sets: files of ``label<TAB>sentence``, one pair of them for every task.

    FOLDER/trec6.train.tsv      or FOLDER/text/...; .tsv or .tsv.gz
    FOLDER/trec6.test.tsv

Validation is drawn from the training part, so no test sentence is ever chosen on.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from taskbasis.errors import FileError, UsageError, ValueProblem, nearest

_ENDINGS = (".tsv", ".tsv.gz")


@dataclass(frozen=True)
class TextSet:
    """One task's sentences and classes by split: ``train``, ``validation``, ``test``."""

    texts: Mapping[str, tuple[str, ...]]
    labels: Mapping[str, NDArray[np.int64]]
    classes: tuple[str, ...]


def find_sets(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Training and test file of every set in ``folder`` or ``folder/text``, by sorted name.

    Raises:
        FileError: there is none, or a set has no test file.
    """
    for place in (folder, folder / "text"):
        names = sorted(
            path.name for path in (place.iterdir() if place.is_dir() else ())
            if path.name.endswith(tuple(f".train{ending}" for ending in _ENDINGS))
        )  # fmt: skip
        if names:
            return {
                name.split(".train.tsv")[0]: (place / name, _partner(place / name))
                for name in names
            }
    raise FileError(f"{folder} holds no NAME.train.tsv or NAME.train.tsv.gz, nor does its text/")


def _partner(train: Path) -> Path:
    stem = train.name.split(".train.tsv")[0]
    for ending in _ENDINGS:
        if (path := train.with_name(f"{stem}.test{ending}")).is_file():
            return path
    raise FileError(f"{train} has no {stem}.test.tsv or {stem}.test.tsv.gz beside it")


def pick_sets(folder: Path, names: Sequence[str] | None) -> dict[str, tuple[Path, Path]]:
    """The files of the named sets in the order of the names; of all, without names.

    Raises:
        UsageError: there is no such set; the message names the nearest.
    """
    found = find_sets(folder)
    for name in names or ():
        if name not in found:
            raise UsageError(f"{folder} holds no set {name!r}; {nearest(name, found)}")
    return {name: found[name] for name in names or found}


def read_rows(path: Path) -> list[tuple[str, str]]:
    """Label and sentence of every line.

    Raises:
        ValueProblem: a line has no tab, or the file has no line; the message says where.
    """
    opened = gzip.open if path.name.endswith(".gz") else open
    rows = []
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                label, tab, text = line.rstrip("\r\n").partition("\t")
                if not tab:
                    raise ValueProblem(
                        f"{path}, line {number}: expected a label, a tab, a sentence"
                    )
                rows.append((label, text))
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueProblem(f"{path} is no UTF-8 text: {error}") from None
    if not rows:
        raise ValueProblem(f"{path} is empty; a set needs labelled sentences")
    return rows


def load_set(train: Path, test: Path, seed: int, validation: int, tested: int) -> TextSet:
    """A set split by ``seed``: ``validation`` sentences of the training file, ``tested`` of the
    other, at most; the rest of the training file is for training. All in an order drawn by seed.

    Raises:
        ValueProblem: the training file is too small to split, or the test file knows another label.
    """
    rows, held = read_rows(train), read_rows(test)
    if len(rows) <= validation:
        raise ValueProblem(
            f"{train} has {len(rows)} sentences; {validation} of them are wanted for validation, "
            "so it needs more"
        )
    classes = tuple(sorted({label for label, _ in rows}))
    for number, (label, _) in enumerate(held, start=1):
        if label not in classes:
            raise ValueProblem(f"{test}, line {number}: no training sentence is labelled {label!r}")
    order = np.random.default_rng([seed, 1]).permutation(len(rows))
    asked = np.random.default_rng([seed, 2]).permutation(len(held))[:tested]
    parts = {
        "train": [rows[place] for place in order[validation:]],
        "validation": [rows[place] for place in order[:validation]],
        "test": [held[place] for place in asked],
    }
    places = {label: place for place, label in enumerate(classes)}
    return TextSet(
        {name: tuple(text for _, text in part) for name, part in parts.items()},
        {name: np.array([places[label] for label, _ in part]) for name, part in parts.items()},
        classes,
    )
