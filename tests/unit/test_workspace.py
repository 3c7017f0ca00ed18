"""What methods that factorise take on the way stays under the memory cap."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SIDE = 1200
PROGRAM = """
import sys
from taskbasis import Engine, TaskVector, TaskbasisError, merge
from taskbasis.methods import parse_method
base, text, cap, *tuned = sys.argv[1:]
try:
    model = merge(base, [TaskVector(base, path) for path in tuned], parse_method(text))
    model.save(base + "-out", replace=True, engine=Engine(1, int(cap)))
except TaskbasisError as error:
    print(error)
# Not ru_maxrss, in which the kernel counts the program that started this one.
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(int(status["VmHWM"].split()[0]) * 1024)
"""


@pytest.fixture(scope="module")
def matrices(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    from safetensors.numpy import save_file

    random, found = np.random.default_rng(0), []
    for name in ("base", "a", "b"):
        folder = tmp_path_factory.mktemp(name) / name
        folder.mkdir()
        tensor = random.standard_normal((SIDE, SIDE), np.float32)
        save_file({"w": tensor}, folder / "model.safetensors", {"format": "pt"})
        found.append(folder)
    return found


def run(models: list[Path], text: str, cap: int) -> tuple[str, int]:
    """What is said, and the peak of resident memory."""
    base, *tuned = map(str, models)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, base, text, str(cap), *tuned],
        capture_output=True,
        text=True,
        check=True,
    )
    *said, peak = done.stdout.splitlines()
    return " ".join(said), int(peak)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("text", ["iso_cts", "knots:exact=true", "wudi", "svc:inner=tsv_merge"])
def test_the_peak_stays_under_the_cap(text: str, count: int, matrices: list[Path]) -> None:
    models = matrices[: 1 + count]
    refused, idle = run(models, text, 1 << 20)
    found = re.search(r"needs ([\d.]+) MB", refused)
    assert found is not None, refused
    cap = int(float(found.group(1)) * 1e6) + (16 << 20)  # the program itself grows a little
    said, peak = run(models, text, cap)
    assert said == ""
    assert idle < peak < cap + (24 << 20), (peak - cap) >> 20  # libraries, loaded when first used
