"""From measurements to rows of a report, and paired differences between methods."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from taskbasis.bench.contenders import TUNED, Contender
from taskbasis.bench.measuring import Record, Yard
from taskbasis.evaluate.search import normalised
from taskbasis.evaluate.yardstick import mean
from taskbasis.report import BASE, INDIVIDUAL, Extra, Report, Row, t_interval

ADDED, RATIO, WORST = "addition accuracy", "addition normalised", "worst task normalised"
TARGET, KEPT = "forgetting target", "forgetting control"
LEFT, STAYED = "target left", "control kept"
"""The same as shares of the base's own accuracies, so that seeds compare."""
COLUMNS = (ADDED, RATIO, WORST, TARGET, KEPT)
"""What the table shows; lower is better for the forgetting target alone."""

ADDING, FORGETTING = "adding: ", "forgetting: "
"""Metrics of single tasks begin so; paired differences are taken of them."""


@dataclass(frozen=True)
class Context:
    """What all rows of one seed share."""

    yard: Yard
    seed: int
    checkpoints: str

    def row(
        self, method: str, size: int, metric: str, value: float, n: int, extras: Mapping[str, Extra]
    ) -> Row:
        """One number on test."""
        told = {**extras, "checkpoints": self.checkpoints}
        return Row(method, size, metric, value, n, self.seed, "test", extras=told)


def reference_rows(context: Context, storage_bytes: int) -> list[Row]:
    """The untouched base and every task's own fine-tune."""
    yard = context.yard
    found = {"test": dict(yard.base["test"])}
    rows = _added(context, BASE, 0, found, {"family": BASE, "tuned": "no"})
    untouched = {
        name: {"target": yard.base["test"][name], "control": kept}
        for name, kept in yard.control["test"].items()
    }
    rows += _forgotten(context, BASE, 0, untouched, {"family": BASE, "tuned": "no"})
    own = {"test": dict(yard.individual["test"])}
    extras: dict[str, Extra] = {"family": INDIVIDUAL, "tuned": "no"}
    return rows + _added(context, INDIVIDUAL, storage_bytes, own, extras)


def contender_rows(context: Context, contender: Contender, measured: Record) -> list[Row]:
    """Rows of what was measured of one contender: ``adding``, and ``forgetting`` where asked."""
    size = int(measured["storage"])
    told: dict[str, Extra] = {
        "family": contender.family,
        "tuned": "yes" if contender.tuned else "no",
    }
    rows = _added(context, contender.label, size, measured["adding"], told)
    if "forgetting" in measured:
        rows += _forgotten(context, contender.label, size, measured["forgetting"], told)
    return rows


def _added(
    context: Context, method: str, size: int, found: Mapping[str, Any], told: Mapping[str, Extra]
) -> list[Row]:
    scores, own = found["test"], context.yard.individual["test"]
    extras = {**told, **{k: found[k] for k in ("scale", "density") if k in found}}
    ratio = normalised(scores, own)  # refuses a fine-tune that scores nothing
    worst = min(scores[name] / own[name] for name in scores)
    numbers = {ADDED: mean(list(scores.values())), RATIO: ratio, WORST: worst}
    rows = [context.row(method, size, k, v, len(scores), extras) for k, v in numbers.items()]
    single = {f"{ADDING}{name}": value for name, value in scores.items()}
    return rows + [context.row(method, size, k, v, 1, extras) for k, v in single.items()]


def _forgotten(
    context: Context, method: str, size: int, found: Mapping[str, Any], told: Mapping[str, Extra]
) -> list[Row]:
    extras = dict(told)
    for what in ("scale", "density"):
        chosen = [one[what] for one in found.values() if what in one]
        if chosen:
            extras[what] = mean(chosen)
    count = len(found)
    targets = {name: float(one["target"]) for name, one in found.items()}
    controls = {name: float(one["control"]) for name, one in found.items()}
    yard = context.yard
    numbers = {TARGET: mean(list(targets.values())), KEPT: mean(list(controls.values()))}
    untouched = yard.base["test"], yard.control["test"]
    if all(value > 0 for scores in untouched for value in scores.values()):
        numbers[LEFT] = normalised(targets, untouched[0])
        numbers[STAYED] = normalised(controls, untouched[1])
    rows = [context.row(method, size, k, v, count, extras) for k, v in numbers.items()]
    return rows + [
        context.row(method, size, f"{FORGETTING}{name}", value, 1, extras)
        for name, value in targets.items()
    ]


@dataclass(frozen=True)
class Difference:
    """The mean over seeds and tasks of ``method - other``, with its 95 % t-interval.

    Attributes:
        method: whose.
        mean: over the pairs.
        half: half of the interval; None for a single pair.
        pairs: how many.
    """

    method: str
    mean: float
    half: float | None
    pairs: int


def differences(report: Report, kind: str, other: str = TUNED) -> list[Difference]:
    """Every method against one other, pair by pair: same seed and task.

    Args:
        report: rows of single seeds.
        kind: :data:`ADDING` or :data:`FORGETTING`.
        other: the method that is compared with; no differences when it was not measured.
    """
    values: dict[str, dict[tuple[int | None, str], float]] = {}
    for row in report.rows:
        if row.metric.startswith(kind):
            values.setdefault(row.method, {})[row.seed, row.metric] = row.value
    reference = values.pop(other, {})
    found = []
    for method, mine in values.items():
        pairs = [mine[key] - reference[key] for key in mine if key in reference]
        if len(pairs) > 1:
            middle, low, _ = t_interval(pairs)
            found.append(Difference(method, middle, middle - low, len(pairs)))
        elif pairs:
            found.append(Difference(method, pairs[0], None, 1))
    return found


def page(title: str, about: Sequence[str], report: Report) -> str:
    """The whole result as Markdown: the table, and the differences."""
    columns = [name for name in COLUMNS if name in report.metrics]
    parts = [f"# {title}", "\n".join(about), report.aggregate().to_markdown(columns)]
    added, forgotten = differences(report, ADDING), differences(report, FORGETTING)
    if added:
        parts += [f"## Differences to {TUNED}", _DIFFERENCES, _table(added, forgotten)]
    return "\n\n".join(parts) + "\n"


_DIFFERENCES = (
    "Of test accuracy, paired by seed and task: mean ± half of the 95 % t-interval over all pairs "
    "(tasks of one seed are not independent, so intervals are a little narrow). Added: higher is "
    "better. Forgotten: the target's accuracy, lower is better."
)


def _table(added: Iterable[Difference], forgotten: Iterable[Difference]) -> str:
    other = {found.method: _cell(found) for found in forgotten}
    lines = ["| method | added | pairs | forgotten |", "|---|--:|--:|--:|"]
    lines += [
        f"| {found.method} | {_cell(found)} | {found.pairs} | {other.get(found.method, '–')} |"
        for found in added
    ]
    return "\n".join(lines)


def _cell(found: Difference) -> str:
    interval = "" if found.half is None else f" ± {found.half:.4f}"
    return f"{found.mean:+.4f}{interval}"
