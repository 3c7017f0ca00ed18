"""What came out: rows of numbers that say how they were got, and tables made of them.

A :class:`Row` is one number with its method, storage, n, seed and split. A :class:`Report` holds
rows; :meth:`Report.aggregate` turns rows of several seeds into means with 95 % t-intervals.
Everything written is deterministic: equal rows give equal text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from taskbasis import notebook
from taskbasis.errors import UsageError, ValueProblem, nearest, require
from taskbasis.units import bytes_text

Extra = float | int | str

_FORMAT = "taskbasis.report"
_VERSION = 1

BASE = "base"
"""The method name of the untouched base."""

INDIVIDUAL = "individual models"
"""The method name of every task's own fine-tuned model."""

FULL = "full task arithmetic"
"""The method name of keeping every task vector."""


@dataclass(frozen=True)
class Row:
    """One number, and all that is needed to judge it.

    Attributes:
        method: what made the model, such as ``"autoencoder k=4"``.
        storage_bytes: what the method has to keep on the disk, in bytes.
        metric: what was measured, such as ``"addition accuracy"``.
        value: the number.
        n: how many numbers ``value`` is the mean of: tasks or subsets, or seeds once aggregated.
        seed: the seed of everything that was drawn; None once aggregated.
        split: where it was measured, ``"validation"`` or ``"test"``.
        low, high: ends of the 95 % interval; None when there is none.
        extras: further facts, such as the scale that was chosen.

    Raises:
        ValueProblem: a number is NaN or infinite, or the interval leaves the value out.
        UsageError: the storage is negative or n is less than 1.

    >>> Row("pca k=2", 1200, "addition accuracy", 0.75, n=8, seed=0, split="test").value
    0.75
    """

    method: str
    storage_bytes: int
    metric: str
    value: float
    n: int
    seed: int | None
    split: str
    low: float | None = None
    high: float | None = None
    extras: Mapping[str, Extra] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"{self.metric!r} of {self.method!r}"
        numbers = (self.value, self.low, self.high, *self.extras.values())
        if any(isinstance(x, float) and not math.isfinite(x) for x in numbers):
            raise ValueProblem(f"a number of {where} is NaN or infinite: {numbers}")
        if self.storage_bytes < 0 or self.n < 1:
            raise UsageError(f"{where} has storage {self.storage_bytes} and n {self.n}")
        if (self.low is None) != (self.high is None):
            raise ValueProblem(f"{where} has only one end of its interval; give both or none")
        if self.low is not None and self.high is not None:
            slack = 1e-9 * max(1.0, abs(self.value))
            if not self.low - slack <= self.value <= self.high + slack:
                raise ValueProblem(f"{where} is {self.value}, outside [{self.low}, {self.high}]")


def t_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % interval of Student's t: mean ± t(0.975, n - 1) * s / sqrt(n).

    s is the sample standard deviation (divisor n - 1).

    Raises:
        ValueProblem: fewer than two values.

    >>> [round(x, 3) for x in t_interval([0.8, 0.9, 1.0])]
    [0.9, 0.652, 1.148]
    """
    stdtrit = require("scipy.special", "demo", "an interval over seeds").stdtrit

    n = len(values)
    if n < 2:
        raise ValueProblem(f"an interval needs at least 2 values, not {n}")
    mean = math.fsum(values) / n
    spread = math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (n - 1))
    half = float(stdtrit(n - 1, 0.975)) * spread / math.sqrt(n)
    return mean, mean - half, mean + half


@dataclass(frozen=True)
class Report:
    """Rows of numbers, in the order in which they were measured.

    >>> rows = [Row("svd k=2", 800, "accuracy", v, 8, s, "test") for s, v in enumerate((0.8, 0.9))]
    >>> print(Report(rows).aggregate().to_markdown())
    | method | storage | n | accuracy |
    |---|--:|--:|--:|
    | svd k=2 | 800 B | 2 | 0.850 ± 0.635 |
    <BLANKLINE>
    Split: test. Means over seeds (n is how many) ± half of the 95 % t-interval.
    """

    rows: tuple[Row, ...]

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        object.__setattr__(self, "rows", tuple(rows))

    def __add__(self, other: Report) -> Report:
        """The rows of both, this report's first."""
        return Report((*self.rows, *other.rows))

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods, in order of first appearance."""
        return tuple(dict.fromkeys(row.method for row in self.rows))

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics, in order of first appearance."""
        return tuple(dict.fromkeys(row.metric for row in self.rows))

    def metric(self, name: str) -> Report:
        """The rows of one metric.

        Raises:
            UsageError: there is no such metric; the message names the nearest.
        """
        if name not in self.metrics:
            raise UsageError(f"the report has no metric {name!r}; {nearest(name, self.metrics)}")
        return Report(row for row in self.rows if row.metric == name)

    def aggregate(self) -> Report:
        """One row per method, metric and split: the mean over its seeds, n of them.

        With two seeds or more the row carries the 95 % t-interval (see :func:`t_interval`); with
        one seed it carries none. Storage is the mean, rounded to a byte. Numeric extras are
        averaged; other extras stay if all seeds agree on them.

        Raises:
            ValueProblem: a group has two rows of one seed, or a row that is aggregated already.
        """
        groups: dict[tuple[str, str, str], list[Row]] = {}
        for row in self.rows:
            groups.setdefault((row.method, row.metric, row.split), []).append(row)
        return Report(_mean_row(group) for group in groups.values())

    def table(self, metrics: Sequence[str] | None = None) -> tuple[list[str], list[list[str]]]:
        """Header and cells: one line per method (seed, split), one column per metric.

        Args:
            metrics: which columns, in which order; all of them by default.

        Raises:
            UsageError: a metric that no row has.
            ValueProblem: two rows want the same cell.
        """
        chosen = list(self.metrics if metrics is None else metrics)
        for name in chosen:
            self.metric(name)
        rows = [row for row in self.rows if row.metric in chosen]
        optional = [name for name in ("seed", "split") if len({getattr(r, name) for r in rows}) > 1]
        lines: dict[tuple[object, ...], dict[str, Row]] = {}
        for row in rows:
            line = lines.setdefault((row.method, row.seed, row.split), {})
            if row.metric in line:
                raise ValueProblem(f"two rows give {row.metric!r} of {row.method!r}; see aggregate")
            line[row.metric] = row
        cells = [_cells(line, optional, chosen) for line in lines.values()]
        return ["method", "storage", *optional, "n", *chosen], cells

    def to_markdown(self, metrics: Sequence[str] | None = None) -> str:
        """:meth:`table` as Markdown, with a line below saying what the numbers are."""
        header, cells = self.table(metrics)
        lines = [header, ["---", *["--:"] * (len(header) - 1)], *cells]
        text = ["| " + " | ".join(_escape(cell) for cell in line) + " |" for line in lines]
        text[1] = text[1].replace(" ", "")
        return "\n".join([*text, "", self.caption(metrics)])

    def caption(self, metrics: Sequence[str] | None = None) -> str:
        """One line on splits, seeds and intervals, for below a table."""
        rows = [row for row in self.rows if metrics is None or row.metric in metrics]
        splits = ", ".join(dict.fromkeys(row.split for row in rows)) or "none"
        means = any(row.seed is None for row in rows)
        interval = any(row.low is not None for row in rows)
        seeds = "Means over seeds (n is how many)" if means else "Single seeds; n numbers per mean"
        return f"Split: {splits}. {seeds}{' ± half of the 95 % t-interval' if interval else ''}."

    def _repr_html_(self) -> str:
        return notebook.table(self.caption(), *self.table())

    def to_json(self) -> str:
        """The report as JSON text, one row a line; :meth:`from_json` gives it back exactly."""
        rows = [
            json.dumps({**asdict(r), "extras": dict(r.extras)}, sort_keys=True, allow_nan=False)
            for r in self.rows
        ]
        head = f'{{"format": "{_FORMAT}", "version": {_VERSION}, "rows": ['
        return head + ("\n  " + ",\n  ".join(rows) + "\n" if rows else "") + "]}\n"

    @classmethod
    def from_json(cls, text: str) -> Report:
        """The report that :meth:`to_json` wrote.

        Raises:
            ValueProblem: the text is not such a report, or of a version that is not known.
        """
        try:
            document: Any = json.loads(text)
        except ValueError as error:
            raise ValueProblem(f"the report is not JSON: {error}") from None
        if not isinstance(document, dict) or document.get("format") != _FORMAT:
            raise ValueProblem(f"this JSON is not a report: its format is not {_FORMAT!r}")
        if document.get("version") != _VERSION or not isinstance(document.get("rows"), list):
            raise ValueProblem(f"the report is not of version {_VERSION}; write it again")
        return cls(_row(number, item) for number, item in enumerate(document["rows"]))


_TYPES: dict[str, tuple[type, ...]] = {
    "method": (str,), "storage_bytes": (int,), "metric": (str,), "value": (int, float),
    "n": (int,), "seed": (int, type(None)), "split": (str,), "low": (int, float, type(None)),
    "high": (int, float, type(None)), "extras": (dict,),
}  # fmt: skip


def _row(number: int, item: object) -> Row:
    names = {f.name for f in fields(Row)}
    if not isinstance(item, dict) or set(item) != names:
        raise ValueProblem(f"row {number} of the report needs exactly {sorted(names)}")
    for name, kinds in _TYPES.items():
        if not isinstance(item[name], kinds) or isinstance(item[name], bool):
            raise ValueProblem(f"row {number} of the report has {name} = {item[name]!r}")
    return Row(**item)


def _mean_row(rows: Sequence[Row]) -> Row:
    first = rows[0]
    seeds = [row.seed for row in rows]
    if None in seeds or len(set(seeds)) < len(seeds):
        raise ValueProblem(
            f"{first.metric!r} of {first.method!r} cannot be averaged over the seeds {seeds}; "
            "give one row per seed"
        )
    values = [row.value for row in rows]
    mean, low, high = t_interval(values) if len(rows) > 1 else (values[0], None, None)
    storage = round(math.fsum(row.storage_bytes for row in rows) / len(rows))
    return Row(
        first.method, storage, first.metric, mean, len(rows), None, first.split, low, high,
        _mean_extras([row.extras for row in rows]),
    )  # fmt: skip


def _mean_extras(extras: Sequence[Mapping[str, Extra]]) -> dict[str, Extra]:
    found: dict[str, Extra] = {}
    for name in extras[0]:
        values = [extra[name] for extra in extras if name in extra]
        if len(values) < len(extras):
            continue
        if all(value == values[0] for value in values):
            found[name] = values[0]
        elif not any(isinstance(value, str) for value in values):
            found[name] = math.fsum(float(value) for value in values) / len(values)
    return found


def _cells(line: Mapping[str, Row], optional: Sequence[str], metrics: Sequence[str]) -> list[str]:
    first = next(iter(line.values()))
    counts = sorted({row.n for row in line.values()})
    known = [str(getattr(first, name)) for name in optional]
    n = str(counts[0]) if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"
    values = [_cell(line[name]) if name in line else "–" for name in metrics]
    return [first.method, bytes_text(first.storage_bytes), *known, n, *values]


def _cell(row: Row) -> str:
    if row.low is None or row.high is None:
        return f"{row.value:.3f}"
    return f"{row.value:.3f} ± {(row.high - row.low) / 2:.3f}"


def _escape(cell: str) -> str:
    return cell.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
