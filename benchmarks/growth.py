#!/usr/bin/env python3
"""How time and memory grow: with the number of vectors, with the model, with the atoms of a basis.

    python benchmarks/growth.py                                      see README.md for time and disk
    python benchmarks/growth.py --vectors 2,4 --sizes tiny --family tiny     a trial

Each point is one command of ours in process (its second call), its peak memory, and the floor of
its bytes. ``growth.json`` and a picture are stored after every line, beside the other results.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from checkpoints import SIZES
from jobs import Command, discard, nbytes, ready, say, timed_inside, weights
from measure import floor
from picture import draw_growth
from speed_page import RESULTS
from work import Work

SHARP = 0.35  # change of the exponent between two steps that is called a bend
Point = dict[str, float]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, with what they default to."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    work = Path(tempfile.gettempdir()) / "taskbasis-bench"
    parser.add_argument("--vectors", type=_numbers, default="2,4,8,16,32,64", help="how many")
    parser.add_argument("--sizes", default="tiny,30m,125m,1b", help="of the model")
    parser.add_argument("--family", default="125m", help="the size whose vectors are counted")
    parser.add_argument("--work", type=Path, default=work, help="where the checkpoints go")
    parser.add_argument("--keep", action="store_true", help="keep the vectors")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    options.sizes = options.sizes.split(",")
    options.work = options.work.resolve()
    return options


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def point(x: float, command: Command, inputs: Sequence[Path], passes: int = 1) -> Point:
    """Seconds of the second call in process, peak bytes, and the floor."""
    say(f"{x:g}: {' '.join(Path(word).name for word in command.words[1:4])} ...")
    ready(command.output, inputs)
    done, calls = timed_inside(command, 2)
    if done.code:
        raise SystemExit(f"a point could not be measured: {done.printed.strip()}")
    ground = floor(inputs, nbytes(command.output), command.output.parent, tries=2)
    return {
        "x": x,
        "seconds": calls[-1],
        "peak": done.peak,
        "floor": ground.seconds(passes),
        "read_rate": ground.read_rate,
        "write_rate": ground.write_rate,
    }


def parameters(size: str) -> int:
    """How many numbers a model has."""
    return sum(math.prod(shape) for _, shape in SIZES[size].tensors())


class Growth:
    """The panels, each with a line per command.

    Args:
        options: what :func:`parse` returns.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.program = Path(sys.executable).parent / "taskbasis"
        self.work = Work(options.work, options.family, self.program, None)
        self.panels: list[dict[str, Any]] = []

    def measure(self) -> None:
        """All panels, each line stored when it is done."""
        counts = self.options.vectors
        try:
            self._panel(
                "parameters",
                self.options.sizes,
                {
                    "task_arithmetic of 2": self._merge("task_arithmetic"),
                    "ties of 2": self._merge("ties"),
                },
            )
            self._panel(
                "vectors",
                counts,
                {"task_arithmetic": self._add, "basis fit, k = T/2": self._fit_half},
            )
            atoms = [count for count in counts if count < max(counts)]
            self._panel("atoms", atoms, {f"basis fit of {max(counts)}": self._fit_all})
        finally:
            if not self.options.keep:
                discard(self.work.out)

    def _panel(
        self, by: str, xs: Sequence[Any], lines: Mapping[str, Callable[[Any], Point]]
    ) -> None:
        panel: dict[str, Any] = {"by": by, "lines": {}}
        self.panels.append(panel)
        for name, measure in lines.items():
            panel["lines"][name] = [measure(x) for x in xs]
            store(self.options.results, self.panels)

    def _merge(self, method: str) -> Callable[[str], Point]:
        def measure(size: str) -> Point:
            work = Work(self.options.work, size, self.program, None)
            base, tuned = work.large.base(), [work.large.tuned(number) for number in (1, 2)]
            output = work.out / "merged"
            words = ["merge", str(base), *map(str, tuned), "-o", str(output), "--method", method]
            command = work.command([*words, "--scale", "0.5"], output)
            found = point(
                parameters(size), command, weights(base, *tuned), 3 if method == "ties" else 1
            )
            discard(output)
            return found

        return measure

    def _add(self, count: int) -> Point:
        vectors, output = self.work.members(count), self.work.out / "merged"
        base = self.work.family.base()
        words = ["add", str(base), *map(str, vectors), "-o", str(output), "--scale", str(1 / count)]
        found = point(count, self.work.command(words, output), [*weights(base), *vectors])
        discard(output)
        return found

    def _fit_half(self, count: int) -> Point:
        return self._fit(count, count, max(1, count // 2))

    def _fit_all(self, atoms: int) -> Point:
        return self._fit(atoms, max(self.options.vectors), atoms)

    def _fit(self, x: int, count: int, atoms: int) -> Point:
        vectors, output = self.work.members(count), self.work.library(count)
        found = point(x, self.work.fitting(vectors, output, atoms), vectors, 2)
        discard(output)
        return found


def bends(panels: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where a line's exponent changes, and what of the same run says why."""
    return [
        sentence
        for panel in panels
        for name, points in panel["lines"].items()
        for sentence in line_bends(f"{name}, against {panel['by']}", points)
    ]


def line_bends(name: str, points: Sequence[Point]) -> list[str]:
    """The bends of one line; a sentence of its exponent when there is none.

    >>> pairs = (1, 1.0), (2, 1.1), (8, 8.0)
    >>> points = [{"x": x, "seconds": s, "floor": x, "read_rate": 1.0} for x, s in pairs]
    >>> for sentence in line_bends("add", points):  # doctest: +NORMALIZE_WHITESPACE
    ...     print(sentence)
    add: bends at 2, from exponent 0.14 to 1.43: up to there it is mostly a fixed cost of about
    1.00 s.
    """
    if len(points) < 2:
        return []
    found = []
    for before, here, after in zip(points, points[1:], points[2:], strict=False):
        first, second = exponent(before, here), exponent(here, after)
        if abs(second - first) >= SHARP:
            why = _reason(points[0], before, here, after, second > first)
            place = f"{here['x']:,.0f}"
            found.append(
                f"{name}: bends at {place}, from exponent {first:.2f} to {second:.2f}: {why}."
            )
    if not found:
        whole = exponent(points[0], points[-1])
        found.append(f"{name}: no bend; the exponent is {whole:.2f} from end to end.")
    return found


def exponent(left: Point, right: Point) -> float:
    """The slope between two points on logarithmic axes."""
    return math.log(right["seconds"] / left["seconds"]) / math.log(right["x"] / left["x"])


def _reason(first: Point, before: Point, here: Point, after: Point, up: bool) -> str:
    if after["read_rate"] < 0.7 * here["read_rate"]:
        rates = f"{here['read_rate'] / 1e9:.1f} to {after['read_rate'] / 1e9:.1f} GB/s"
        return f"beyond it the inputs are read at the speed of the disk, not of memory ({rates})"
    if up and before["seconds"] < 3 * first["seconds"]:
        return f"up to there it is mostly a fixed cost of about {first['seconds']:.2f} s"
    ratios = [one["seconds"] / one["floor"] for one in (before, here, after)]
    text = ", ".join(f"{one:.2f}" for one in ratios)
    return f"over the floor it is {text} around it, so what is computed per byte changes"


def store(folder: Path, panels: Sequence[Mapping[str, Any]]) -> None:
    """Writes what is known, and its picture."""
    data = {"panels": panels, "bends": bends(panels)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "growth.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    draw_growth(data, folder / "growth.png")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, store, say where it bends."""
    growth = Growth(parse(arguments))
    growth.measure()
    print("\n".join(bends(growth.panels)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
