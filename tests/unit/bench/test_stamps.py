"""What results depend on beside the models: heads by their bytes, data by size and time."""

from __future__ import annotations

import os
from pathlib import Path

from taskbasis.bench.store import contents, stamps


def test_contents_follow_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "heads").mkdir()
    (tmp_path / "heads" / "a").write_bytes(b"1")
    (tmp_path / "heads.safetensors").write_bytes(b"2")
    before = contents(tmp_path.glob("heads*"))
    assert before.keys() == {"a", "heads.safetensors"}
    os.utime(tmp_path / "heads" / "a", (1, 1))
    assert contents(tmp_path.glob("heads*")) == before
    (tmp_path / "heads" / "a").write_bytes(b"3")
    after = contents(tmp_path.glob("heads*"))
    assert after["a"] != before["a"]
    assert after["heads.safetensors"] == before["heads.safetensors"]


def test_stamps_follow_size_and_time(tmp_path: Path) -> None:
    assert stamps(None) == []
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "x.tsv").write_text("0\ta\n")
    os.utime(tmp_path / "deep" / "x.tsv", ns=(5, 5))
    assert stamps(tmp_path) == [["deep/x.tsv", 4, 5]]
    os.utime(tmp_path / "deep" / "x.tsv", ns=(5, 6))
    assert stamps(tmp_path) == [["deep/x.tsv", 4, 6]]
