"""Labelled data from what people have: tables, JSON lines, arrays, saved ``datasets`` folders.

    .csv .tsv (.gz)   a header naming text (or sentence), image, label; or, without one, label
                      then text
    .jsonl (.gz)      an object per line, with the same names
    .txt (.gz)        a text per line, for language models
    .npz              x and y, or x_train, y_train, x_test, y_test (and validation)
    a folder          what ``datasets`` wrote with save_to_disk; splits by their names

Everything is read as data: pickles inside ``.npz`` files are refused.
"""

from __future__ import annotations

import csv
import gzip
import io
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

import numpy as np

from taskbasis.errors import FileError, UsageError, nearest, require
from taskbasis.io.regular import parse_json

TEXT = ("text", "sentence")
IMAGE = ("image", "img", "pixel_values", "x")
LABEL = ("label", "labels", "y")
KINDS = (".csv", ".tsv", ".jsonl", ".txt", ".npz")
WHOLE = "all"
"""The split of data that has no splits."""

_ALIASES = {"valid": "validation", "val": "validation", "dev": "validation"}


@dataclass(frozen=True)
class Rows(Sequence[Mapping[str, Any]]):
    """Rows of one table, and where they stand, for messages.

    Attributes:
        rows: a list of dicts, or anything with ``len`` and numbered dicts, such as a Dataset.
        source: what the data is called.
        first: the number of the first row in the file.
        folder: what paths of images are relative to.
        numbers: which of the rows are meant; all when None.
    """

    rows: Any = field(repr=False)
    source: str
    first: int = 1
    folder: Path = Path()
    numbers: Sequence[int] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.rows if self.numbers is None else self.numbers)

    @overload
    def __getitem__(self, number: int) -> Mapping[str, Any]: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[Mapping[str, Any]]: ...

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[at] for at in range(*number.indices(len(self)))]
        return self.rows[self._place(number)]

    def _place(self, number: int) -> int:
        if not -len(self) <= number < len(self):  # what ends a loop over the rows
            raise IndexError(f"there is no row {number} among {len(self)}")
        return number % len(self) if self.numbers is None else self.numbers[number]

    def where(self, number: int) -> str:
        """The source and the row, counted as in the file."""
        return f"{self.source}, row {self._place(number) + self.first}"

    @property
    def columns(self) -> list[str]:
        """The names in the first row."""
        return list(self.rows[0])

    def only(self, numbers: Sequence[int]) -> Rows:
        """Some of the rows, which keep the numbers that they have in the file."""
        return replace(self, numbers=[self._place(number) for number in numbers])


def read_data(path: str | Path, columns: Sequence[str] = ()) -> dict[str, Rows]:
    """The splits of a data file or folder; one called ``all`` where it has none.

    Args:
        path: what is read.
        columns: names that tell a table's header, beside the usual ones.

    Raises:
        FileError: nothing is there, it is damaged, or of no known kind.
        MissingExtraError: a folder of ``datasets`` needs that package.
    """
    path = Path(path)
    if path.is_dir():
        return _saved(path)
    if not path.exists():
        raise FileError(f"{path}: no such file or folder")
    kind = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if kind == ".npz" and path.suffix != ".gz":
        return _arrays(path)
    if kind not in KINDS[:-1]:
        raise FileError(
            f"{path}: data is read from {', '.join(KINDS)} files (the text ones also as .gz), and "
            "from folders saved by datasets"
        )
    try:
        text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        lines = text.decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise FileError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    if kind == ".jsonl":
        rows = Rows(list(_objects(path, lines)), str(path), 1, path.parent)
    elif kind == ".txt":
        texts = [{"text": t.rstrip("\r\n")} for t in io.StringIO(lines) if t.strip()]
        rows = Rows(texts, str(path), 1, path.parent)
    else:
        rows = _table(path, lines, "\t" if kind == ".tsv" else ",", columns)
    return {WHOLE: _some(rows)}


def as_rows(data: Any, columns: Sequence[str] = ()) -> dict[str, Rows]:
    """The splits of a path, of a sequence of dicts, of a Dataset or of a dict of those.

    Raises:
        UsageError: it is none of these.
    """
    if isinstance(data, (str, Path)):
        return read_data(data, columns)
    if isinstance(data, Rows):
        return {WHOLE: data}
    if isinstance(data, Mapping):
        return {
            _ALIASES.get(str(name), str(name)): _some(Rows(r, str(name)))
            for name, r in data.items()
        }
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise UsageError(f"{type(data).__name__} is not data: give a path or a sequence of dicts")
    rows = _some(Rows(data, type(data).__name__))
    if not isinstance(rows[0], Mapping):
        raise UsageError(f"the rows of data are dicts, not {type(rows[0]).__name__}")
    return {WHOLE: rows}


def pick_split(splits: Mapping[str, Rows], wanted: str | None, default: str = "train") -> Rows:
    """One split by name; by default the one that data is learnt from.

    Raises:
        UsageError: there is no such split.

    >>> rows = as_rows([{"text": "good", "label": 1}])
    >>> len(pick_split(rows, None))
    1
    """
    name = wanted or (default if default in splits else WHOLE)
    name = _ALIASES.get(name, name)
    if name not in splits:
        source = next(iter(splits.values())).source
        raise UsageError(f"{source} has no split {name!r}; {nearest(name, splits)}")
    return splits[name]


def column(rows: Rows, asked: str | None, usual: Sequence[str], what: str) -> str:
    """The name of a column: the one that was asked for, or the first usual one that is there.

    Raises:
        UsageError: there is none; the message lists the columns.
    """
    found = [name for name in ((asked,) if asked else usual) if name in rows.columns]
    if not found:
        raise UsageError(
            f"{rows.source}: has no column {(asked or ' or '.join(usual))!r} with the {what}; it "
            f"has {', '.join(map(repr, rows.columns))}. Name it with --{what}-column"
        )
    return found[0]


def _some(rows: Rows) -> Rows:
    if not len(rows):
        raise FileError(f"{rows.source}: holds no rows")
    return rows


def _objects(path: Path, text: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(io.StringIO(text), start=1):
        if line.strip():
            found = parse_json(line.encode(), f"{path}, row {number}:")
            if not isinstance(found, dict):
                raise FileError(f"{path}, row {number}: is not an object with named fields")
            yield found


def _table(path: Path, text: str, separator: str, columns: Sequence[str]) -> Rows:
    """A table with a header that names what it should, or label and text in that order."""
    lines_of = io.StringIO(text, newline="")
    if separator == "\t":  # by custom nothing is quoted there, and quotes are part of the text
        reader = csv.reader(lines_of, delimiter=separator, quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(lines_of, delimiter=separator)
    try:
        lines = [line for line in reader if line]
    except csv.Error as error:
        raise FileError(f"{path}, row {reader.line_num}: is not a table: {error}") from None
    if not lines:
        raise FileError(f"{path}: holds no rows")
    header = [name.strip() for name in lines[0]]
    named = not {*TEXT, *IMAGE[:2], *columns}.isdisjoint(header)
    if not named:
        header = ["label", "text"] if len(header) > 1 else ["text"]
    first = 2 if named else 1
    for number, line in enumerate(lines[1:] if named else lines, start=first):
        if len(line) != len(header):
            raise FileError(
                f"{path}, row {number}: has {len(line)} fields, not {len(header)} "
                f"({', '.join(header)}); without a header a table is: label, text"
            )
    rows = [dict(zip(header, line, strict=True)) for line in lines[first - 1 :]]
    return Rows(rows, str(path), first, path.parent)


def _arrays(path: Path) -> dict[str, Rows]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise FileError(f"{path}: cannot be read as an .npz file of arrays: {error}") from None
    splits = {}
    for name, images in arrays.items():
        if name != "x" and not name.startswith("x_"):
            continue
        labels = arrays.get("y" + name[1:])
        shaped = labels is not None and labels.ndim == 1 and images.ndim > 0
        if labels is None or not shaped or len(labels) != len(images):
            raise FileError(f"{path}: {name} needs as many labels in {'y' + name[1:]}")
        if labels.size and labels.dtype.kind not in "iu":
            raise FileError(
                f"{path}: {'y' + name[1:]} holds {labels.dtype}; labels are whole numbers"
            )
        split = name[2:] or WHOLE
        rows = [
            {"image": image, "label": int(label)}
            for image, label in zip(images, labels, strict=True)
        ]
        splits[_ALIASES.get(split, split)] = _some(Rows(rows, str(path), 0, path.parent))
    if not splits:
        raise FileError(f"{path}: holds {', '.join(arrays) or 'nothing'}; expected x and y")
    return splits


def _saved(folder: Path) -> dict[str, Rows]:
    if not any((folder / name).exists() for name in ("dataset_info.json", "dataset_dict.json")):
        raise FileError(f"{folder}: is not a folder that datasets saved with save_to_disk")
    datasets = require("datasets", "learn", f"reading {folder}")
    try:
        found = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise FileError(f"{folder}: datasets cannot read it: {error}") from None
    if not isinstance(found, Mapping):
        return {WHOLE: _some(Rows(found, str(folder)))}
    return {
        _ALIASES.get(str(name), str(name)): _some(Rows(part, f"{folder} ({name})"))
        for name, part in found.items()
    }
