"""Times a command-line program from within its process: what is left when Python has started.

    inside.py REPORT CALLS DISCARD MODULE:FUNCTION WORDS...

The module is imported, then its function is called ``CALLS`` times with ``WORDS`` as the command
line; before every call but the first what stands at ``DISCARD`` is removed and the disk is left in
peace. ``CALLS`` may be ``profile``: a first call that is not looked at, then one under cProfile.
The report is JSON: seconds of the import and of every call, the exit code, and the profile.

Uses the standard library alone, so that it runs in anybody's environment.
"""

from __future__ import annotations

import cProfile
import gc
import importlib
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

KEPT = 400  # functions kept of a profile, those with most time of their own first


def call(function: Callable[[], Any]) -> tuple[float, int]:
    """Seconds of one call, and its exit code."""
    start = time.perf_counter()
    try:
        code = function()
    except SystemExit as stop:
        code = stop.code
    seconds = time.perf_counter() - start
    if isinstance(code, str):
        return seconds, 1
    return seconds, code if type(code) is int else 0


def profiled(function: Callable[[], Any]) -> tuple[float, int, list[dict[str, Any]]]:
    """The same under cProfile, in every thread that it starts: time of each function's own."""
    found: list[tuple[str, cProfile.Profile]] = [("main", cProfile.Profile())]

    def begin(*event: object) -> None:
        one = cProfile.Profile()
        found.append((threading.current_thread().name, one))
        one.enable()

    threading.setprofile(begin)
    found[0][1].enable()
    try:
        seconds, code = call(function)
    finally:
        found[0][1].disable()
        threading.setprofile(None)
    lines = [line for thread, one in found for line in _lines(thread, one)]
    lines.sort(key=lambda line: -float(line["seconds"]))
    return seconds, code, lines[:KEPT]


def _lines(thread: str, one: cProfile.Profile) -> list[dict[str, Any]]:
    return [
        {
            "thread": "main" if thread == "main" else "other",
            "where": entry.code if isinstance(entry.code, str) else _where(entry.code),
            "calls": entry.callcount,
            "seconds": entry.inlinetime,
        }
        for entry in one.getstats()
    ]


def _where(code: Any) -> str:
    parts = Path(code.co_filename).parts
    return f"{'/'.join(parts[-3:])}:{code.co_name}"


def discard(path: str) -> None:
    """Removes a file or folder, and waits until nothing is left to write back."""
    if os.path.isdir(path):
        shutil.rmtree(path)
    elif os.path.exists(path):
        os.unlink(path)
    os.sync()


def main(words: Sequence[str]) -> int:
    """Import, call, report."""
    report, calls, output, target, *rest = words
    module, _, name = target.partition(":")
    start = time.perf_counter()
    function = getattr(importlib.import_module(module), name)
    content: dict[str, Any] = {"import": time.perf_counter() - start, "calls": []}
    sys.argv = [module, *rest]
    for number in range(2 if calls == "profile" else int(calls)):
        if number:
            discard(output)
            gc.collect()
        if calls == "profile" and number:
            seconds, code, content["profile"] = profiled(function)
        else:
            seconds, code = call(function)
        content["calls"].append(seconds)
        content["code"] = code
    Path(report).write_text(json.dumps(content))
    return int(content["code"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
