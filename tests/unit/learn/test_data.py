"""Reading labelled data: every kind of file as people write it, and every way it can be wrong."""

import gzip
import json
import sys
from importlib.util import find_spec

import numpy as np
import pytest

from taskbasis.errors import FileError, MissingExtraError, UsageError
from taskbasis.learn.data import WHOLE, Rows, as_rows, column, pick_split, read_data

ROWS = [{"label": "0", "text": "bad film"}, {"label": "1", "text": 'a "good" film'}]


def rows_of(path, *columns):
    found = read_data(path, columns)
    assert list(found) == [WHOLE]
    return [dict(row) for row in found[WHOLE]]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.tsv", '0\tbad film\n1\ta "good" film\n'),
        ("b.tsv", 'label\ttext\n0\tbad film\n1\ta "good" film\n'),
        ("c.tsv", 'text\tlabel\nbad film\t0\na "good" film\t1\n'),
        ("d.csv", '0,bad film\n1,"a ""good"" film"\n'),
        ("e.csv", '\ufefflabel,text\r\n0,bad film\r\n\r\n1,"a ""good"" film"\r\n'),
        ("f.jsonl", json.dumps(ROWS[0]) + "\n\n" + json.dumps(ROWS[1]) + "\n"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_tables_and_lines_say_the_same(tmp_path, name, text, zipped):
    path = tmp_path / (name + ".gz" if zipped else name)
    raw = text.encode()
    path.write_bytes(gzip.compress(raw) if zipped else raw)
    assert rows_of(path) == ROWS


def test_plain_text_is_a_text_per_line(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("good film\n\nbad film\n", encoding="utf-8")
    assert rows_of(path) == [{"text": "good film"}, {"text": "bad film"}]


def test_a_table_of_one_column_without_a_header_is_text(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("good film\nbad film\n")
    assert rows_of(path) == [{"text": "good film"}, {"text": "bad film"}]


def test_named_columns_tell_a_header(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("question,intent\nhow much,price\n")
    assert rows_of(path, "question") == [{"question": "how much", "intent": "price"}]


def test_rows_are_counted_as_in_the_file(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("0\tbad\n1\tgood\n2\tworse\n")
    rows = read_data(path)[WHOLE]
    assert rows.where(1).endswith("a.tsv, row 2")
    assert rows.only([2, 0]).where(0).endswith("row 3")
    assert rows.only([2, 0])[1]["text"] == "bad"
    assert rows.only([2, 1]).only([1])[0]["text"] == "good"
    path.write_text("label\ttext\n0\tbad\n1\tgood\n")
    assert read_data(path)[WHOLE].where(1).endswith("a.tsv, row 3")


def test_rows_are_a_sequence():
    rows = Rows([{"n": number} for number in range(5)], "memory").only([1, 3, 4])
    assert [row["n"] for row in rows] == [1, 3, 4]
    assert [row["n"] for row in rows[1:]] == [3, 4]
    assert rows[-1]["n"] == 4
    with pytest.raises(IndexError, match="no row 3 among 3"):
        rows[3]


@pytest.mark.parametrize(
    ("name", "raw", "text"),
    [
        ("a.tsv", b"", "holds no rows"),
        ("a.tsv", b"label\ttext\n", "holds no rows"),
        ("a.tsv", b"0\tgood\n1\n", r"row 2: has 1 fields, not 2 \(label, text\)"),
        ("a.csv", b"0,good,film\n", r"row 1: has 3 fields.*without a header a table is"),
        ("a.csv", b"text,label\ngood,1\ngood,film,1\n", "row 3: has 3 fields"),
        ("a.jsonl", b'{"text": "good"\n', "row 1: is not valid JSON"),
        ("a.jsonl", b'{"label": 0, "label": 1}\n', "row 1: names 'label' twice"),
        ("a.jsonl", b'["good"]\n', "row 1: is not an object"),
        ("a.txt", b"\xff\xfe\x00", "cannot be read as UTF-8"),
        ("a.tsv.gz", b"not zipped", "cannot be read"),
        ("a.tsv.gz", gzip.compress(b"0\tgood")[:-6], "cannot be read"),
        ("a.parquet", b"PAR1", "data is read from .csv, .tsv, .jsonl, .txt, .npz"),
        ("a.npz.gz", b"x", "data is read from"),
        ("a.npz", b"not an archive", "cannot be read as an .npz"),
        ("a.csv", b"0," + b"x" * 200_000, "row 1: is not a table: field larger"),
    ],
)
def test_damaged_files_are_one_sentence(tmp_path, name, raw, text):
    path = tmp_path / name
    path.write_bytes(raw)
    with pytest.raises(FileError, match=text):
        read_data(path)


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(FileError, match="no such file"):
        read_data(tmp_path / "none.tsv")
    with pytest.raises(FileError, match="not a folder that datasets saved"):
        read_data(tmp_path)


# -- arrays --------------------------------------------------------------------------------------


def test_arrays_with_and_without_splits(tmp_path):
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    np.savez(tmp_path / "a.npz", x=images, y=[1, 0])
    rows = read_data(tmp_path / "a.npz")[WHOLE]
    assert [row["label"] for row in rows] == [1, 0]
    assert np.array_equal(rows[1]["image"], images[1])
    np.savez(tmp_path / "b.npz", x_train=images, y_train=[1, 0], x_val=images[:1], y_val=[1],
             x_test=images[1:], y_test=[0], classes=["a", "b"])  # fmt: skip
    found = read_data(tmp_path / "b.npz")
    assert {name: len(rows) for name, rows in found.items()} == {
        "train": 2, "validation": 1, "test": 1,
    }  # fmt: skip


def test_arrays_that_run_code_are_refused(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (open, (str(tmp_path / "proof"), "w"))

    np.savez(tmp_path / "a.npz", x=np.array([Hostile()], dtype=object), y=[0], allow_pickle=True)
    with pytest.raises(FileError, match="cannot be read as an"):
        read_data(tmp_path / "a.npz")
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"x": np.zeros((2, 4, 4))}, "x needs as many labels in y"),
        ({"x_train": np.zeros((2, 4, 4)), "y_train": [1]}, "x_train needs as many labels"),
        ({"images": np.zeros(2)}, "holds images; expected x and y"),
        ({"x": np.zeros((0, 4, 4)), "y": []}, "holds no rows"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, arrays, text):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(FileError, match=text):
        read_data(tmp_path / "a.npz")


# -- sequences and datasets ----------------------------------------------------------------------


def test_sequences_of_dicts_are_data():
    assert [dict(row) for row in as_rows(ROWS)[WHOLE]] == ROWS
    found = as_rows({"train": ROWS, "dev": ROWS[:1]})
    assert {name: len(rows) for name, rows in found.items()} == {"train": 2, "validation": 1}
    rows = as_rows(ROWS)[WHOLE]
    assert as_rows(rows)[WHOLE] is rows


@pytest.mark.parametrize(
    ("data", "text"), [(7, "int is not data"), (["text"], "the rows of data are dicts, not str")]
)
def test_other_things_are_not_data(data, text):
    with pytest.raises(UsageError, match=text):
        as_rows(data)


@pytest.mark.filterwarnings("ignore:Cannot (locate|pickle)")  # dill, of classes of pyarrow
def test_saved_datasets_are_read_or_the_package_is_asked_for(tmp_path):
    """Runs the real package where it is installed; where it is not, what is missing is said."""
    if find_spec("datasets") is None:
        (tmp_path / "saved").mkdir()
        (tmp_path / "saved" / "dataset_info.json").write_text("{}")
        with pytest.raises(MissingExtraError, match=r"taskbasis\[learn\]"):
            read_data(tmp_path / "saved")
        return
    import datasets

    datasets.disable_progress_bars()
    table = datasets.Dataset.from_list(ROWS)
    assert [dict(row) for row in as_rows(table)[WHOLE]] == ROWS
    table.save_to_disk(tmp_path / "one")
    assert rows_of(tmp_path / "one") == ROWS
    both = datasets.DatasetDict({"train": table, "validation": table.select([1])})
    both.save_to_disk(tmp_path / "two")
    found = read_data(tmp_path / "two")
    assert {name: len(rows) for name, rows in found.items()} == {"train": 2, "validation": 1}
    assert found["validation"][0] == ROWS[1]
    (tmp_path / "one" / "state.json").write_text("{")
    with pytest.raises(FileError, match="datasets cannot read it"):
        read_data(tmp_path / "one")


def test_a_saved_dataset_without_the_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "dataset_dict.json").write_text("{}")
    with pytest.raises(MissingExtraError, match=r"pip install 'taskbasis\[learn\]'"):
        read_data(tmp_path)


# -- choosing ------------------------------------------------------------------------------------


def test_the_split_is_train_unless_said():
    found = as_rows({"train": ROWS, "test": ROWS[:1]})
    assert len(pick_split(found, None)) == 2
    assert len(pick_split(found, "test")) == 1
    with pytest.raises(UsageError, match=r"train has no split 'tset'; did you mean 'test'"):
        pick_split(found, "tset")
    with pytest.raises(UsageError, match="no split 'train'; known: all"):
        pick_split(as_rows(ROWS), "train")
    assert len(pick_split(as_rows({"train": ROWS, "dev": ROWS}), "dev")) == 2


def test_columns_are_found_or_listed():
    rows = as_rows([{"sentence": "good", "stars": 5}])[WHOLE]
    assert column(rows, None, ("text", "sentence"), "text") == "sentence"
    assert column(rows, "stars", ("label",), "label") == "stars"
    with pytest.raises(
        UsageError, match=r"no column 'label or labels'.*'sentence', 'stars'.*--lab"
    ):
        column(rows, None, ("label", "labels"), "label")
    with pytest.raises(UsageError, match="no column 'text' with the text"):
        column(rows, "text", ("sentence",), "text")
