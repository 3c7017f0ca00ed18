"""Work that is written stretch by stretch, but for what a run that was killed has finished."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from taskbasis.engine import Engine, Scratch
from taskbasis.io.digests import digest
from taskbasis.io.journal import Entry
from taskbasis.io.writer import Sink, Staged
from taskbasis.plan import Plan

Item = TypeVar("Item")
Place = tuple[Sequence[str], int, int]
"""The outputs that a stretch is written to, its first element and the one after its last."""


def entry(sink: Sink, words: NDArray[Any], stats: NDArray[np.float64], note: Any = None) -> Entry:
    """What is to be known of a stretch that was just written."""
    return Entry(sink.seal(words) if isinstance(sink, Staged) else "", stats, note)


def each(
    sink: Sink,
    work: Callable[[Item, Scratch], Entry],
    items: Sequence[Item],
    place: Callable[[Item], Place],
    size: Callable[[Item], int],
    title: str,
    engine: Engine,
) -> Generator[tuple[Item, Entry], None, None]:
    """Every item with what is known of it, in order: noted by a run before, or from the work."""
    staged = sink if isinstance(sink, Staged) and sink.notes else None
    known: dict[int, Entry] = {}
    for at, item in enumerate(items if staged else ()):
        found = staged.finished(*place(item)) if staged else None
        if found is not None:
            known[at] = found
    todo = [item for at, item in enumerate(items) if at not in known]
    # Closed at once on an error, so that no worker writes to a sink that is gone.
    with closing(engine.map(work, todo, size, title)) as results:
        for at, item in enumerate(items):
            if at in known:
                yield item, known[at]
                continue
            made = next(results)
            if staged is not None:
                names, start, _ = place(item)
                staged.note(names, start, made)
            yield item, made
        next(results, None)  # so that the last piece is shown as done


def numbers(plan: Plan) -> str:
    """A digest of what a plan says of every tensor: dtypes, shapes, coefficients, masks."""
    parts = [repr(merge).encode() + merge.mixing.tobytes() for merge in plan.merges]
    return digest(b"".join(parts) + repr((plan.copies, plan.weights, plan.names)).encode())
