"""Text sets: found, read and split; what cannot be used is refused by its place."""

import gzip
from pathlib import Path

import pytest

from taskbasis.errors import FileError, UsageError, ValueProblem
from taskbasis.suites.text_data import find_sets, load_set, pick_sets, read_rows


def write(path: Path, rows: int, labels: str = "ab") -> Path:
    lines = "".join(f"{labels[n % len(labels)]}\tsentence {n}\n" for n in range(rows))
    if path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(lines, encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, ending in (("b", ".tsv"), ("a", ".tsv.gz")):
        write(tmp_path / f"{name}.train{ending}", 20)
        write(tmp_path / f"{name}.test{ending}", 8)
    return tmp_path


def test_sets_are_found_by_name(folder: Path) -> None:
    (folder / "notes.txt").write_text("x")
    assert list(find_sets(folder)) == ["a", "b"]
    assert list(pick_sets(folder, ["b", "a"])) == ["b", "a"]
    assert list(pick_sets(folder, None)) == ["a", "b"]
    with pytest.raises(UsageError, match="no set 'c'; known: a, b"):
        pick_sets(folder, ["c"])


def test_sets_may_lie_in_a_folder_text(folder: Path, tmp_path: Path) -> None:
    inner = tmp_path / "data" / "text"
    inner.parent.mkdir()
    inner.mkdir()
    for path in list(folder.glob("*.tsv*")):
        path.rename(inner / path.name)
    assert find_sets(inner.parent) == find_sets(inner)


def test_a_set_needs_both_files(folder: Path) -> None:
    (folder / "b.test.tsv").unlink()
    with pytest.raises(FileError, match=r"has no b\.test\.tsv"):
        find_sets(folder)
    with pytest.raises(FileError, match=r"holds no NAME\.train\.tsv"):
        find_sets(folder / "nowhere")


def test_splits_are_disjoint_and_drawn_by_seed(folder: Path) -> None:
    found = load_set(*find_sets(folder)["a"], 0, 5, 6)
    parts = {name: set(texts) for name, texts in found.texts.items()}
    assert {name: len(texts) for name, texts in found.texts.items()} == {
        "train": 15, "validation": 5, "test": 6,
    }  # fmt: skip
    assert not parts["train"] & parts["validation"]
    assert parts["train"] | parts["validation"] == {f"sentence {n}" for n in range(20)}
    for name, texts in found.texts.items():
        assert [int(text.split()[1]) % 2 for text in texts] == found.labels[name].tolist()
    again, other = (load_set(*find_sets(folder)["a"], seed, 5, 6) for seed in (0, 1))
    assert again.texts == found.texts
    assert other.texts["validation"] != found.texts["validation"]


def test_classes_are_sorted_and_the_test_file_knows_no_others(folder: Path) -> None:
    write(folder / "c.train.tsv", 20, "zyx")
    write(folder / "c.test.tsv", 6, "xyz")
    assert load_set(*find_sets(folder)["c"], 0, 5, 6).classes == ("x", "y", "z")
    write(folder / "c.test.tsv", 6, "xyq")
    with pytest.raises(ValueProblem, match=r"c\.test\.tsv, line 3: no training .* labelled 'q'"):
        load_set(*find_sets(folder)["c"], 0, 5, 6)


def test_a_set_too_small_to_split_is_refused(folder: Path) -> None:
    with pytest.raises(ValueProblem, match="has 20 sentences; 20 of them are wanted"):
        load_set(*find_sets(folder)["a"], 0, 20, 6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\tone\nno tab\n", "line 2: expected a label, a tab, a sentence"),
        (b"", "is empty"),
        (b"a\t\xff\n", "is no UTF-8 text"),
    ],
)
def test_lines_that_cannot_be_read_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.tsv").write_bytes(content)
    with pytest.raises(ValueProblem, match=message):
        read_rows(tmp_path / "x.tsv")


def test_what_is_not_compressed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.tsv.gz").write_bytes(b"a\tone\n")
    with pytest.raises(ValueProblem, match="is no UTF-8 text"):
        read_rows(tmp_path / "x.tsv.gz")
    (tmp_path / "y.tsv.gz").write_bytes(gzip.compress(b"a\tone\n" * 99)[:-9])
    with pytest.raises(ValueProblem, match="is no UTF-8 text"):
        read_rows(tmp_path / "y.tsv.gz")


def test_sentences_may_hold_tabs_and_odd_line_ends(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_bytes("a\tone\ttwo\r\nb\tü\u2028v\n".encode())
    assert read_rows(tmp_path / "x.tsv") == [("a", "one\ttwo"), ("b", "ü\u2028v")]
