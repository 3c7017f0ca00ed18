"""Which stretches of an output are finished: what a run that goes on need not do again.

One line is appended for every stretch once its bytes are written, with what the pass has to know
of them and a seal. It is not flushed: a process that is killed loses nothing that it wrote. Where
going on was asked for, the seal is the bytes' digest, which tells after the machine itself has died
what did not reach the disk. Else it is the machine's present run: that costs nothing, and in it
what was written is there. A line that was cut short ends the journal.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from taskbasis._version import __version__
from taskbasis.errors import UsageError
from taskbasis.io.digests import digest


@dataclass(frozen=True)
class Entry:
    """What is known of a finished stretch.

    Attributes:
        seal: tells whether its bytes are there: their digest, or the run of the machine.
        stats: what the pass sums over stretches, float64.
        note: what else it collects; arrays come back as lists.
    """

    seal: str
    stats: NDArray[np.float64]
    note: Any = None


class Journal:
    """A file of finished stretches, by the name of the first output and the first element.

    Args:
        path: where it stands.
        going_on: whether what it holds is of the same run.

    >>> path = getfixture("tmp_path") / "journal"
    >>> Journal(path).add("w", 0, Entry("00", np.zeros(2)))
    >>> Journal(path).get("w", 0).seal
    '00'
    """

    def __init__(self, path: Path, going_on: bool = True) -> None:
        self._known, whole = _read(path) if going_on else ({}, 0)
        self._descriptor: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        os.ftruncate(self._descriptor, whole)
        os.lseek(self._descriptor, 0, os.SEEK_END)
        self.count = len(self._known)

    def get(self, name: str, start: int) -> Entry | None:
        """What is known of a stretch; None where it is not finished."""
        return self._known.get((name, start))

    def add(self, name: str, start: int, entry: Entry) -> None:
        """Take note of a finished stretch."""
        if self._descriptor is None:
            return
        fields: Sequence[Any] = (name, start, entry.seal, entry.stats.tolist(), entry.note)
        text = json.dumps(fields, default=lambda array: array.tolist()).encode()
        try:
            os.write(self._descriptor, _line(text))
        except OSError:
            self.close()  # a disk too full for notes may still hold the output
        else:
            self.count += 1

    def close(self) -> None:
        """Let the file go."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _line(text: bytes) -> bytes:
    return b"%s %s\n" % (xxhash.xxh3_64_hexdigest(text).encode(), text)


def _read(path: Path) -> tuple[dict[tuple[str, int], Entry], int]:
    """The entries of all whole lines, and how many bytes those take."""
    found: dict[tuple[str, int], Entry] = {}
    whole = 0
    with suppress(FileNotFoundError), path.open("rb") as file:
        for line in file:
            text = line[17:-1]
            if line != _line(text):
                break
            name, start, seal, stats, note = json.loads(text)
            found[name, start] = Entry(seal, np.asarray(stats, np.float64), note)
            whole += len(line)
    return found, whole


@cache
def machine_run() -> str:
    """What is another after the machine was started again; empty where the system does not tell."""
    with suppress(OSError):
        return "run " + Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def run_key(
    recipe: object, inputs: Sequence[Path], layout: object, resume: bool
) -> dict[str, str] | None:
    """What decides every byte of an output, by what it is called in messages.

    Files count by their size, time of change and inode, folders by the files in them.

    Returns:
        None where nothing is to be noted: there is no recipe, or an input is not a local file.

    Raises:
        UsageError: an input is not a local file, and ``resume`` is asked for.
    """
    if recipe is None:
        return None
    try:
        states = [_state(path) for path in inputs]
    except OSError as error:
        if resume:
            raise UsageError(
                f"{error.filename}: is not a local file, so it may have changed unseen; leave "
                "--resume out"
            ) from None
        return None
    versions = [__version__, np.__version__]
    parts = {"options": recipe, "inputs": states, "tensors": layout, "versions": versions}
    return {
        name: digest(json.dumps(part, sort_keys=True, default=str).encode())
        for name, part in parts.items()
    }


def _state(path: Path) -> list[object]:
    """What would be another if a file were, or one of the files in a folder."""
    found = path.stat()
    if path.is_dir():
        return [str(path), [_state(file) for file in sorted(path.iterdir()) if file.is_file()]]
    return [str(path), found.st_ino, found.st_size, found.st_mtime_ns]
