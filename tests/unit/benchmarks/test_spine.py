"""The whole benchmark at the tiny size, on a stand-in for the command it measures."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

# Dense and in memory, but with the same words and the same result.
STAND_IN = """\
#!{python}
import pathlib, shutil, sys
import ml_dtypes, numpy as np
from safetensors.numpy import load_file, save_file

FAULT = {fault!r}
words = [word for word in sys.argv[1:] if word != "--quiet"]
at = words.index("-o")
out, wide = pathlib.Path(words[at + 1]), np.float32
if FAULT in words:
    sys.exit("gave up on " + str(out))

def load(path):
    path = pathlib.Path(path)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    return {{n: t.astype(wide) for file in files for n, t in load_file(file).items()}}

def delta(path, base):
    other = load(path)
    return {{n: other[n] - base[n] for n in base}} if pathlib.Path(path).is_dir() else other

if words[0] == "basis":
    out.mkdir()
    save_file({{"atom": np.zeros(3, wide)}}, out / "atoms.safetensors")
else:
    base = load(words[1])
    deltas = [delta(path, base) for path in words[2:at]]
if words[0] == "extract":
    kind = ml_dtypes.bfloat16 if "bfloat16" in words else wide
    save_file({{n: t.astype(kind) for n, t in deltas[0].items()}}, out)
if words[0] == "add":
    scale = float(words[words.index("--scale") + 1]) * (2 if FAULT == "wrong" else 1)
    out.mkdir()
    merged = {{n: base[n] + wide(scale) * sum(d[n] for d in deltas) for n in base}}
    save_file({{n: t.astype(ml_dtypes.bfloat16) for n, t in merged.items()}}, out / "m.safetensors")
"""


def stand_in(folder: Path, fault: str = "") -> Path:
    """Writes the command: ``wrong`` doubles the scale, a verb makes that verb fail."""
    command = folder / "taskbasis"
    command.write_text(STAND_IN.format(python=sys.executable, fault=fault or "none"))
    command.chmod(0o755)
    return command


def words(folder: Path, *more: str) -> list[str]:
    given = {"--size": "tiny", "--runs": "1", "--tuned": "2", "-k": "1"}
    given |= {"--work": str(folder / "work"), "--results": str(folder / "results")}
    given |= {"--taskbasis": str(folder / "taskbasis")}
    return [word for pair in given.items() for word in pair] + ["--skip-mergekit", *more]


def results(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "results" / "spine-tiny.json").read_text())
    return found


def test_all_jobs_are_measured_and_stored(
    spine: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(tmp_path)
    assert spine.main(words(tmp_path)) == 0
    data = results(tmp_path)
    assert [row["job"] for row in data["rows"]] == [  # type: ignore[attr-defined]
        "add, two fine-tunes",
        "extract, float32",
        "extract, bfloat16, 2 fine-tunes",
        "add, two stored vectors",
        "basis fit, 1 atoms of 2 vectors",
    ]
    targets = [target["verdict"] for target in data["targets"]]  # type: ignore[attr-defined]
    assert targets == ["not judged", "not judged", *["met"] * 5]
    text = (tmp_path / "results" / "spine-tiny.md").read_text()
    assert text.strip() == capsys.readouterr().out.strip()
    assert "mergekit was not run" in text


def test_the_results_name_no_path_and_no_host_and_the_disk_is_left_clean(
    spine: ModuleType, tmp_path: Path
) -> None:
    stand_in(tmp_path, fault="fit")
    spine.main(words(tmp_path, "--tuned", "3"))
    for path in (tmp_path / "results").iterdir():
        assert str(tmp_path) not in path.read_text()
        assert os.uname().nodename not in path.read_text()
    left = sorted(path.name for path in (tmp_path / "work" / "tiny").iterdir())
    assert left == ["base", "tuned-1", "tuned-2"]


def test_a_wrong_result_is_an_error(spine: ModuleType, tmp_path: Path) -> None:
    stand_in(tmp_path, fault="wrong")
    assert spine.main(words(tmp_path)) == 1
    found = results(tmp_path)["agreement"]["taskbasis against the exact sum"]  # type: ignore[index]
    assert found["worst_units"] > 1


def test_a_command_that_fails_is_an_error_and_the_rest_goes_on(
    spine: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(tmp_path, fault="extract")
    assert spine.main(words(tmp_path)) == 1
    rows = {row["job"]: row for row in results(tmp_path)["rows"]}  # type: ignore[attr-defined]
    assert not rows["add, two fine-tunes"]["failed"]
    assert rows["extract, float32"]["failed"]
    assert rows["basis fit, 1 atoms of 2 vectors"]["failed"]
    told = capsys.readouterr().err
    assert "gave up on" in told
    assert "no input vector-1.safetensors, vector-2.safetensors" in told


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--tuned", "1"], "--tuned must be at least 2"),
        (["--runs", "0"], "--runs at least 1"),
        (["--taskbasis", "nowhere"], "say where with --taskbasis"),
    ],
)
def test_what_cannot_start_says_why(
    spine: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    reason: str,
) -> None:
    stand_in(tmp_path)
    assert spine.main(words(tmp_path, *more)) == 2
    assert reason in capsys.readouterr().err


def test_without_mergekit_it_says_how_to_get_it(
    spine: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(tmp_path)
    with_mergekit = [word for word in words(tmp_path) if word != "--skip-mergekit"]
    assert spine.main([*with_mergekit, "--mergekit", str(tmp_path)]) == 2
    assert "benchmarks/setup_mergekit" in capsys.readouterr().err


def test_too_little_disk_is_known_beforehand(
    spine: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path)
    options = spine.parse(words(tmp_path))
    assert spine.refusal(options) is None
    monkeypatch.setattr(spine, "disk_needed", lambda options: 10**18)
    assert "GB of disk" in spine.refusal(options)


def test_the_disk_needed_by_the_full_size(spine: ModuleType) -> None:
    frugal, keeping = (spine.disk_needed(spine.parse(more)) for more in ([], ["--keep"]))
    assert 30e9 < frugal < 40e9 < keeping < 50e9
