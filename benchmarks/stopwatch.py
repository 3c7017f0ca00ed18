"""Runs one command and writes its cost as JSON to a file descriptor: ``stopwatch.py FD COMMAND...``

It stands between the benchmark and what it measures because the kernel carries the largest
resident size of whoever starts a program over into that program's own record. This process is a
bare interpreter of a few MiB, so what it reports is the program's.
"""

import json
import os
import sys
import time


def main(report: int, command: list[str]) -> None:
    """Starts the command, waits for it, writes the report."""
    start = time.perf_counter()
    try:
        child = os.posix_spawnp(command[0], command, os.environ)
    except OSError as error:
        sys.exit(f"cannot start {command[0]}: {error.strerror}")
    _, status, used = os.wait4(child, 0)
    wall = time.perf_counter() - start
    cost = {
        "wall": wall,
        "user": used.ru_utime,
        "system": used.ru_stime,
        "peak": used.ru_maxrss * 1024,
        "code": os.waitstatus_to_exitcode(status),
    }
    os.write(report, json.dumps(cost).encode())


if __name__ == "__main__":
    fd = int(sys.argv[1])
    os.set_inheritable(fd, False)
    main(fd, sys.argv[2:])
