"""The memory benchmark runs, compares its files, and says what the peaks are held against."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest


def test_a_tiny_model(
    scripts: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = scripts["importance"].main(
        ["--work", str(tmp_path), "--size", "tiny", "--samples", "1", "--results", str(tmp_path)]
    )
    said = capsys.readouterr()
    assert code == 0, said.err
    text = (tmp_path / "importance-tiny.md").read_text()
    assert said.out.strip() == text.strip()
    assert "Score files equal byte for byte: yes." in text
    assert [line[:5] for line in text.splitlines() if line.startswith(("| no", "| --m"))] == [
        "| no ",
        "| --m",
    ]
    assert not list(tmp_path.glob("scores-*"))


def test_a_digest_is_that_of_the_bytes(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    import hashlib

    (tmp_path / "x").write_bytes(b"abc" * 1000)
    assert scripts["importance"].digest(tmp_path / "x") == hashlib.sha256(b"abc" * 1000).hexdigest()
