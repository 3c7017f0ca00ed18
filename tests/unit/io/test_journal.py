"""The journal: what is noted comes back, and what was cut short does not."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskbasis.errors import UsageError
from taskbasis.io.journal import Entry, Journal, run_key

ENTRIES = [
    ("w", 0, Entry("00" * 16, np.array([[1e-300, 0.1], [np.pi, -0.0]]))),
    ("w", 262144, Entry("11" * 16, np.array([[np.inf, np.nan]]), [3, [[1, 2], [3, 4]], [0.1]])),
    ("a name\nwith ü", 5, Entry("", np.zeros(0))),
]


def filled(path: Path) -> Journal:
    journal = Journal(path)
    for name, start, entry in ENTRIES:
        journal.add(name, start, entry)
    journal.close()
    return Journal(path)


def same(found: Entry | None, entry: Entry) -> None:
    assert found is not None
    assert (found.seal, found.note) == (entry.seal, entry.note)
    np.testing.assert_array_equal(found.stats, entry.stats)
    assert np.array_equal(np.signbit(found.stats), np.signbit(entry.stats))


def test_every_number_comes_back(tmp_path: Path) -> None:
    journal = filled(tmp_path / "journal")
    assert journal.count == 3
    for name, start, entry in ENTRIES:
        same(journal.get(name, start), entry)
    assert journal.get("w", 1) is None


def test_arrays_in_notes_are_lists(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.add("w", 0, Entry("", np.zeros(1), (2, np.array([[1, 2]]), np.array([0.1]))))
    journal.close()
    found = Journal(tmp_path / "journal").get("w", 0)
    assert found is not None
    assert found.note == [2, [[1, 2]], [0.1]]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(cut=st.integers(0, 400), flip=st.none() | st.integers(0, 400))
def test_whatever_is_left_of_it_is_true(tmp_path: Path, cut: int, flip: int | None) -> None:
    """Cut anywhere, a bit turned anywhere: entries are right or missing, and more can be added."""
    path = tmp_path / "journal"
    path.unlink(missing_ok=True)
    filled(path).close()
    raw = bytearray(path.read_bytes())[:cut]
    if flip is not None and flip < len(raw):
        raw[flip] ^= 4
    path.write_bytes(raw)
    journal = Journal(path)
    for name, start, entry in ENTRIES:
        found = journal.get(name, start)
        if found is not None:
            same(found, entry)
    journal.add("more", 0, ENTRIES[0][2])
    journal.close()
    same(Journal(path).get("more", 0), ENTRIES[0][2])
    assert Journal(path).count == journal.count


def test_of_another_run_it_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    filled(path).close()
    assert Journal(path, going_on=False).count == 0
    assert path.read_bytes() == b""


def test_a_full_disk_costs_notes_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    journal = Journal(tmp_path / "journal")
    monkeypatch.setattr(os, "write", full)
    journal.add(*ENTRIES[0])
    journal.add(*ENTRIES[0])
    assert journal.count == 0
    journal.close()


def test_what_decides_the_bytes(tmp_path: Path) -> None:
    folder, file = tmp_path / "model", tmp_path / "model" / "x"
    folder.mkdir()
    file.write_text("x")

    def key(recipe: object = "r", layout: object = "l") -> dict[str, str]:
        found = run_key(recipe, [folder, file], layout, resume=True)
        assert found is not None
        return found

    first = key()
    assert key() == first
    assert {n for n in first if key("other")[n] != first[n]} == {"options"}
    assert {n for n in first if key(layout=[1])[n] != first[n]} == {"tensors"}
    os.utime(file, (1, 1))
    assert {n for n in first if key()[n] != first[n]} == {"inputs"}
    second = key()
    (folder / "config.json").write_text("{}")
    assert key()["inputs"] != second["inputs"]
    assert run_key(None, [], None, resume=True) is None


def test_inputs_that_are_no_files(tmp_path: Path) -> None:
    gone = tmp_path / "s3:" / "model"
    assert run_key("r", [gone], None, resume=False) is None
    with pytest.raises(UsageError, match="is not a local file, so it may have changed unseen"):
        run_key("r", [gone], None, resume=True)
