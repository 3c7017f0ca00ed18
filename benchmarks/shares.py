"""A profile in a few lines: which part of a run reads, computes, writes, waits for the disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# Files of loops that numba compiles.
JITTED = (
    *("kernels.py:", "counting.py:", "norms.py:", "philox.py:", "lowrank.py:", "loops.py:"),
    *("electing.py:", "stochastic.py:", "compiling.py:"),
)

# What a function of a profile is counted as: the first line with a word that its place contains.
KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("fsync", ("posix.fsync", "posix.fdatasync", "posix.sync")),
    ("reading", ("posix.pread", "posix.preadv", "readinto", "'read' of", "posix.posix_fadvise")),
    ("writing", ("posix.pwrite", "posix.pwritev", "posix.write", "'write' of", "copy_file_range")),
    ("waiting for threads", ("'acquire' of", "_thread.lock", "select.", "SimpleQueue")),
    ("digests", ("xxhash",)),
    ("kernels", JITTED),
    ("linear algebra", ("linalg", "matmul", "numpy.dot", "_multiarray_umath.dot")),
    ("NumPy", ("numpy", "ufunc", "ndarray")),
    ("imports", ("importlib", "marshal", "_imp.")),
)
OTHER = "Python"
"""With NumPy's operators: cProfile counts those as part of the function that they stand in."""
TOP = 8


def kind(where: str) -> str:
    """What a function is counted as.

    >>> kind("<built-in method posix.fsync>"), kind("taskbasis/kernels.py:_form"), kind("x.py:y")
    ('fsync', 'kernels', 'Python')
    """
    return next((name for name, words in KINDS if any(word in where for word in words)), OTHER)


def shares(lines: Sequence[Mapping[str, Any]], wall: float, start: float) -> dict[str, Any]:
    """A profile summed by kind.

    Args:
        lines: ``where``, ``thread`` and own ``seconds`` of every function.
        wall: seconds of the run that was profiled, in process.
        start: seconds by which the whole command takes longer than the work in process.

    Returns:
        Plain data: ``wall`` and ``start`` as given, ``seconds`` by kind, largest first (threads
        beside the main one as ``NAME, in threads``), and the ``top`` functions.

    >>> line = {"where": "<built-in method posix.preadv>", "thread": "main", "seconds": 0.5}
    >>> shares([line, line], 2.0, 0.1)["seconds"]
    {'reading': 1.0}
    """
    found: dict[str, float] = {}
    for line in lines:
        name = kind(line["where"]) + ("" if line["thread"] == "main" else ", in threads")
        found[name] = found.get(name, 0.0) + line["seconds"]
    ordered = sorted(found.items(), key=lambda item: -item[1])
    return {
        "wall": wall,
        "start": start,
        "seconds": {name: round(seconds, 4) for name, seconds in ordered if seconds > 0.0005},
        "top": [
            {"where": line["where"], "calls": line["calls"], "seconds": round(line["seconds"], 4)}
            for line in list(lines)[:TOP]
            if "calls" in line
        ],
    }


def explanation(profile: Mapping[str, Any]) -> str:
    """One sentence: where the time of the profiled run went.

    >>> explanation({"wall": 2.0, "start": 0.5, "seconds": {"reading": 1.5, "fsync": 0.5}})
    'one worker, 2.00 s in process: reading 75 %, fsync 25 %; starting adds 0.50 s'
    """
    total = sum(s for name, s in profile["seconds"].items() if "waiting" not in name) or 1.0
    first = next(
        (line["where"] for line in profile.get("top", ()) if kind(line["where"]) == OTHER), ""
    )
    notes = {OTHER: f" (most in {first})"} if first else {}
    parts = [
        f"{name} {100 * seconds / total:.0f} %{notes.get(name, '')}"
        for name, seconds in profile["seconds"].items()
        if seconds >= 0.02 * total and "waiting" not in name
    ]
    return (
        f"one worker, {profile['wall']:.2f} s in process: {', '.join(parts)}; "
        f"starting adds {profile['start']:.2f} s"
    )
