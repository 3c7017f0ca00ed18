#!/usr/bin/env python3
"""Writes docs/results.md from the stored tables of ``taskbasis bench``.

    python benchmarks/results_page.py      after bench-SUITE.json was copied to benchmarks/results

Every number of the page is computed from those tables; a test holds the page to them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from taskbasis.bench.rows import ADDING, FORGETTING, KEPT, TARGET, differences
from taskbasis.report import BASE, INDIVIDUAL, Report, t_interval

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent.parent / "docs" / "results.md"
SUITES = ("digits", "images", "text")

Key = tuple[int | None, str]


def load(folder: Path = RESULTS) -> dict[str, Report]:
    """The stored report of every suite that has one."""
    paths = {suite: folder / f"bench-{suite}.json" for suite in SUITES}
    return {
        suite: Report.from_json(path.read_text(encoding="utf-8"))
        for suite, path in paths.items()
        if path.exists()
    }


def cell(values: Sequence[float]) -> str:
    """Mean and half of the 95 % interval; a dash without values.

    >>> cell([0.01, 0.03]), cell([])
    ('+.020 ± .127', '–')
    """
    if not values:
        return "–"
    if len(values) == 1:
        return _signed(values[0])
    mean, low, _ = t_interval(values)
    return f"{_signed(mean)} ± {mean - low:.3f}".replace("± 0.", "± .")


def _signed(value: float) -> str:
    text = f"{value:+.3f}"
    return text[0] + text[1:].removeprefix("0")


def outcomes(report: Report, kind: str) -> dict[str, dict[Key, float]]:
    """Per method the test score of every (seed, task)."""
    found: dict[str, dict[Key, float]] = {}
    for row in report.rows:
        if row.metric.startswith(kind):
            found.setdefault(row.method, {})[row.seed, row.metric] = row.value
    return found


@dataclass(frozen=True)
class Contrast:
    """A choice: what changes when one thing of a method's name is another, all else equal.

    Attributes:
        label: how the table calls it.
        pairs: names of methods, the one with the choice and the one without.
    """

    label: str
    pairs: tuple[tuple[str, str], ...]

    def values(self, report: Report, kind: str = ADDING) -> list[float]:
        """Differences by seed and task, averaged over the pairs that were measured."""
        known = outcomes(report, kind)
        sums: dict[Key, list[float]] = {}
        for left, right in self.pairs:
            for key, value in known.get(left, {}).items():
                if key in known.get(right, {}):
                    sums.setdefault(key, []).append(value - known[right][key])
        return [sum(found) / len(found) for found in sums.values()]


FACTORS = ("weight", "delta", "grad", "fisher", "fisher_delta", "magnitude")


def _sta(factor: str, what: str) -> str:
    return f"STA {factor} {what}, λ 1"


def contrasts() -> list[Contrast]:
    """The contested choices."""

    def over(
        left: str, right: str, factors: Iterable[str] = FACTORS
    ) -> tuple[tuple[str, str], ...]:
        return tuple((_sta(f, left), _sta(f, right)) for f in factors)

    everything = "1.0 exclusive"
    learnt = FACTORS[:-1]
    return [
        Contrast("exclusive, density 0.1", over("0.1 exclusive", "0.1")),
        Contrast("exclusive, density 0.3", over("0.3 exclusive", "0.3")),
        Contrast("density 1.0 instead of 0.3, exclusive", over(everything, "0.3 exclusive")),
        *(
            Contrast(
                f"{factor} instead of magnitude, exclusive",
                ((_sta(factor, everything), _sta("magnitude", everything)),),
            )
            for factor in learnt
        ),
        *(
            Contrast(
                f"{factor} instead of weight, exclusive",
                ((_sta(factor, everything), _sta("weight", everything)),),
            )
            for factor in learnt[1:]
        ),
        *(
            Contrast(
                f"{factor} instead of weight, density 0.3 exclusive",
                ((_sta(factor, "0.3 exclusive"), _sta("weight", "0.3 exclusive")),),
            )
            for factor in FACTORS[1:]
        ),
        Contrast(
            "path instead of tuned (grad, fisher), exclusive",
            tuple(
                (_sta(f"{f}, path", everything), _sta(f, everything)) for f in ("grad", "fisher")
            ),
        ),
        Contrast(
            "effect (weight, grad, fisher), exclusive",
            tuple(
                (_sta(f"{f} effect", everything), _sta(f, everything))
                for f in ("weight", "grad", "fisher")
            ),
        ),
        Contrast(
            "abs_mean instead of mean_abs (weight)",
            tuple((_sta("weight, abs_mean", d), _sta("weight", d)) for d in ("0.1", "0.3")),
        ),
    ]


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table; numbers stand right."""
    rule = ["---", *["--:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *lines]).replace(
        "| --- |", "|---|"
    )


def standings(reports: Mapping[str, Report], kind: str) -> str:
    """All methods against tuned task arithmetic, best mean over the suites first."""
    found = {s: {d.method: d for d in differences(r, kind)} for s, r in reports.items()}
    methods = dict.fromkeys(name for suite in found.values() for name in suite)
    complete = [name for name in methods if all(name in suite for suite in found.values())]
    partial = [name for name in methods if name not in complete]

    def mean(name: str) -> float:
        own = [suite[name].mean for suite in found.values() if name in suite]
        return sum(own) / len(own)

    sign = 1 if kind == FORGETTING else -1
    lines = []
    for group in (complete, partial):
        for name in sorted(group, key=lambda method: sign * mean(method)):
            cells = []
            for suite in found.values():
                known = suite.get(name)
                half = "" if known is None or known.half is None else f" ± {known.half:.3f}"
                text = "–" if known is None else _signed(known.mean) + half.replace("0.", ".", 1)
                cells.append(text)
            average = _signed(mean(name)) if name in complete else "–"
            lines.append([name, average, *cells])
    return table(["method", "mean", *found], lines)


def choices(reports: Mapping[str, Report]) -> str:
    """What each contested choice changes, suite by suite."""
    lines = [
        [contrast.label, *(cell(contrast.values(report)) for report in reports.values())]
        for contrast in contrasts()
    ]
    return table(["choice", *reports], [line for line in lines if set(line[1:]) != {"–"}])


def about(reports: Mapping[str, Report]) -> str:
    """Per suite: checkpoints, tasks, seeds, and what base and individual models score."""
    lines = []
    for suite, report in reports.items():
        adding = outcomes(report, ADDING)
        seeds = len({seed for seed, _ in adding[BASE]})
        tasks = [metric.removeprefix(ADDING) for _, metric in adding[BASE]]
        scores = [
            f"{sum(adding[name].values()) / len(adding[name]):.3f}" for name in (BASE, INDIVIDUAL)
        ]
        made = str(report.rows[0].extras.get("checkpoints", ""))
        lines.append([suite, made, ", ".join(dict.fromkeys(tasks)), str(seeds), *scores])
    return table(["suite", "checkpoints", "tasks", "seeds", "base", "individual"], lines)


def forgetting(reports: Mapping[str, Report]) -> str:
    """Target and control of every method that was asked to forget, suite by suite."""
    names = dict.fromkeys(
        row.method for report in reports.values() for row in report.rows if row.metric == TARGET
    )
    lines = []
    for name in names:
        cells = []
        for report in reports.values():
            mean = report.aggregate()
            found = {r.metric: r.value for r in mean.rows if r.method == name}
            both = TARGET in found and KEPT in found
            cells.append(f"{found[TARGET]:.3f} / {found[KEPT]:.3f}" if both else "–")
        lines.append([name, *cells])
    return table(["method", *reports], lines)


def page(reports: Mapping[str, Report], words: str) -> str:
    """The page: words, then tables. ``{...}`` in the words name a table."""
    parts = {
        "about": about(reports),
        "standings": standings(reports, ADDING),
        "choices": choices(reports),
        "forgetting": forgetting(reports),
        "forgotten": standings(reports, FORGETTING),
    }
    for name, text in parts.items():
        words = words.replace("{" + name + "}", text)
    return words


def main() -> int:
    """Write the page."""
    words = (Path(__file__).parent / "results_page.md").read_text(encoding="utf-8")
    PAGE.write_text(page(load(), words), encoding="utf-8")
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
