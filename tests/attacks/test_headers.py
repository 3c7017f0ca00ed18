"""Headers that lie: refused at once, with the file's name, and without taking memory."""

from __future__ import annotations

import json
import struct
import tempfile
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from taskbasis.errors import FileError, HeaderError, TaskbasisError
from taskbasis.io import header as reading
from taskbasis.io.folder import open_tensors
from taskbasis.io.tensors import TensorInfo

Forge = Callable[..., Path]
EIGHT = bytes(8)


def entry(
    dtype: Any = "F32", shape: Any = (2,), begin: Any = 0, end: Any = 8, **more: Any
) -> dict[str, Any]:
    shape = list(shape) if isinstance(shape, tuple) else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end], **more}


def refused(path: Path, match: str, error: type[TaskbasisError] = HeaderError) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(error, match=match) as caught:
            open_tensors(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 1
    assert len(str(caught.value)) < 1000 + len(str(path))
    assert peak < 30 * path.stat().st_size + 1_000_000 if path.is_file() else peak < 1_000_000


def test_the_honest_file_that_the_others_are_made_from(forge: Forge) -> None:
    store = open_tensors(forge({"a": entry()}, EIGHT))
    assert store["a"].load().tolist() == [0, 0]


LIES: dict[str, tuple[Any, bytes, str]] = {
    "data cut short": ({"a": entry()}, EIGHT[:7], "truncated"),
    "no data": ({"a": entry()}, b"", "truncated"),
    "data too long": ({"a": entry()}, EIGHT + b"x", "longer than its header says"),
    "data without tensors": ({}, EIGHT, "longer than its header says"),
    "overlap": (
        {"a": entry(), "b": entry(begin=4, end=12)},
        bytes(12),
        "'b' begins at 4 and overlaps",
    ),
    "same place twice": ({"a": entry(), "b": entry()}, EIGHT, "overlaps"),
    "empty tensor inside another": (
        {"a": entry(), "b": entry(shape=(0,), begin=4, end=4)},
        EIGHT,
        "overlaps",
    ),
    "hole": ({"a": entry(), "b": entry(begin=12, end=20)}, bytes(20), "'b' begins at 12 .* hole"),
    "hole at the start": ({"a": entry(begin=8, end=16)}, bytes(16), "hole"),
    "out of range": ({"a": entry(begin=2**40, end=2**40 + 8)}, EIGHT, "hole"),
    "far end": ({"a": entry(shape=(2**40,), end=2**42)}, EIGHT, "truncated"),
    "begin after end": ({"a": entry(begin=8, end=0)}, EIGHT, "ends at 0, before it begins"),
    "negative begin": ({"a": entry(begin=-8, end=0)}, EIGHT, "impossible offsets"),
    "negative length": ({"a": entry(shape=(-2,))}, EIGHT, "impossible shape"),
    "two negative lengths": ({"a": entry(shape=(-2, -1))}, EIGHT, "impossible shape"),
    "boolean length": ({"a": entry(shape=(True, 2))}, EIGHT, "impossible shape"),
    "boolean offset": ({"a": entry(begin=False)}, EIGHT, "impossible offsets"),
    "float length": ({"a": entry(shape=(2.0,))}, EIGHT, "impossible shape"),
    "float offset": ({"a": entry(end=8.0)}, EIGHT, "impossible offsets"),
    "text length": ({"a": entry(shape=("2",))}, EIGHT, "impossible shape"),
    "shape is a number": ({"a": entry(shape=2)}, EIGHT, "impossible shape"),
    "shape is text": ({"a": entry(shape="2")}, EIGHT, "impossible shape"),
    "shape is nothing": ({"a": entry(shape=None)}, EIGHT, "impossible shape"),
    "NaN length": ('{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', EIGHT, "shape"),
    "infinite offset": (
        '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,Infinity]}}',
        EIGHT,
        "offsets",
    ),
    "three offsets": (
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4, 8]}},
        EIGHT,
        "impossible offsets",
    ),
    "unknown dtype": ({"a": entry(dtype="F128")}, EIGHT, "unknown dtype 'F128'"),
    "dtype in small letters": ({"a": entry(dtype="f32")}, EIGHT, "unknown dtype"),
    "dtype is a number": ({"a": entry(dtype=32)}, EIGHT, "unknown dtype"),
    "dtype is a list": ({"a": entry(dtype=["F32"])}, EIGHT, "unknown dtype"),
    "dtype is megabytes": ({"a": entry(dtype="F" * 3_000_000)}, EIGHT, "must have exactly"),
    "shape too small": ({"a": entry(shape=(1,))}, EIGHT, "needs 4 bytes, but its offsets span 8"),
    "shape too large": ({"a": entry(shape=(3,))}, EIGHT, "needs 12 bytes"),
    "another dtype": ({"a": entry(dtype="F64")}, EIGHT, "needs 16 bytes"),
    "product overflows to 0": ({"a": entry(shape=(2**62, 4), end=0)}, b"", "impossible shape"),
    "product overflows to 8": ({"a": entry(shape=(2**63 + 1, 2))}, EIGHT, "impossible shape"),
    "empty but vast": ({"a": entry(shape=(0, 2**62), end=0)}, b"", "impossible shape"),
    "empty and vaster": ({"a": entry(shape=(2**70, 0), end=0)}, b"", "impossible shape"),
    "65 dimensions": ({"a": entry(shape=(1,) * 64 + (2,))}, EIGHT, "impossible shape"),
    "many dimensions": ({"a": entry(shape=(2**60,) * 100_000)}, EIGHT, "must have exactly"),
    "integer of 5000 digits": (
        '{"a":{"dtype":"F32","shape":[%s],"data_offsets":[0,8]}}' % ("1" * 5000),
        EIGHT,
        "must have exactly",
    ),
    "nested shape": ({"a": entry(shape=((1,), 2))}, EIGHT, "impossible shape"),
    "missing shape": ({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, EIGHT, "must have exactly"),
    "one key too many": ({"a": entry(device="cuda")}, EIGHT, "must have exactly"),
    "entry is a list": ({"a": ["F32", [2], [0, 8]]}, EIGHT, "must have exactly"),
    "entry is nothing": ({"a": None}, EIGHT, "must have exactly"),
    "duplicate names": (
        '{"a":%s,"a":%s}' % ((json.dumps(entry()),) * 2),
        EIGHT,
        "names 'a' twice",
    ),
    "duplicate keys": (
        '{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        EIGHT,
        "names 'dtype' twice",
    ),
    "duplicate metadata": ('{"__metadata__":{},"__metadata__":{}}', b"", "twice"),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, b"", "strings to strings"),
    "metadata in metadata": ({"__metadata__": {"a": {}}}, b"", "strings to strings"),
    "metadata is a list": ({"__metadata__": ["a"]}, b"", "strings to strings"),
    "metadata is text": ({"__metadata__": "a"}, b"", "strings to strings"),
    "a list": ([], b"", "not a JSON object"),
    "a number": ("7", b"", "not a JSON object"),
    "nothing": ("null", b"", "not a JSON object"),
    "no JSON": ("hello", b"", "not valid JSON"),
    "half a JSON": ('{"a":', b"", "not valid JSON"),
    "empty header": ("", b"", "not valid JSON"),
    "JSON and more": ("{}{}", b"", "not valid JSON"),
    "padded with NUL": (b"{}\0\0", b"", "not valid JSON"),
    "byte order mark": (b"\xef\xbb\xbf{}", b"", "not valid JSON"),
    "not UTF-8": (b'{"\xff":1}', b"", "not valid JSON"),
    "UTF-16": ("{}".encode("utf-16"), b"", "not valid JSON"),
    "deep lists": ("[" * 200_000, b"", "not valid JSON"),
    "deep objects": ('{"a":' * 100_000, b"", "must have exactly"),
    "deep lists that end": (
        '{"a":' + "[" * 100_000 + "]" * 100_000 + "}",
        b"",
        "must have exactly",
    ),
    "deep metadata": (
        '{"__metadata__":' + '{"a":' * 900 + "1" + "}" * 901,
        b"",
        "__metadata__|JSON",
    ),
    "NUL in a name": ({"a\0b": entry()}, EIGHT, "control characters"),
    "newline in a name": ({"a\nb": entry()}, EIGHT, "control characters"),
    "escape in a name": ({"\x1b[2J": entry()}, EIGHT, "control characters"),
    "half a character in a name": (json.dumps({"\ud800": entry()}), EIGHT, "control"),
    "a name of 1001 characters": ({"n" * 1001: entry()}, EIGHT, "has 1001 characters"),
    "half a character in the metadata": (
        '{"__metadata__":{"a":"\\ud800"}}',
        b"",
        "__metadata__ holds half a character",
    ),
    "backwards text in a name": ({"a\u202eb": entry()}, EIGHT, "control characters"),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.promise(
    "A safetensors header that contradicts itself or its file is refused, naming the tensor."
)
def test_lie(forge: Forge, lie: str) -> None:
    header, data, match = LIES[lie]
    path = forge(header, data)
    refused(path, match)
    folder = path.parent / "folder"
    folder.mkdir()
    path.rename(folder / "model.safetensors")
    with pytest.raises(HeaderError) as caught:
        open_tensors(folder)
    assert str(folder / "model.safetensors") in str(caught.value)


@pytest.mark.parametrize("length", [101, 2**20, 99_999_999, 100_000_000])
def test_a_header_longer_than_the_file(forge: Forge, length: int) -> None:
    refused(forge({"a": entry()}, EIGHT, length), "it is truncated")


@pytest.mark.parametrize("length", [100_000_001, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1])
def test_a_header_beyond_the_limit(forge: Forge, length: int) -> None:
    refused(forge({"a": entry()}, EIGHT, length), f"claims {length} bytes, more than the format")


@pytest.mark.parametrize("length", range(1, 60, 7))
def test_a_header_longer_than_it_says(forge: Forge, length: int) -> None:
    refused(forge({"a": entry()}, EIGHT, length), "not valid JSON")


@pytest.mark.parametrize("size", range(8))
def test_files_too_short_for_anything(tmp_path: Path, size: int) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(bytes(size))
    refused(path, f"{size} bytes are too few")


def test_a_folder_with_the_name_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.mkdir()
    refused(path, "holds no weights", FileError)
    outer = tmp_path / "outer"
    outer.mkdir()
    path.rename(outer / "model.safetensors")
    refused(outer, "is not a file", FileError)


def test_a_lie_is_found_before_the_rest_is_read(forge: Forge, monkeypatch: Any) -> None:
    """Gigabytes of objects are never made of a hostile header."""
    lie = b'{"a":1,' + b",".join(b'"%d":[]' % n for n in range(100_000)) + b"}"
    path = forge(lie)
    tracemalloc.start()
    with pytest.raises(HeaderError, match="says of 'a'"):
        open_tensors(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * len(lie)
    monkeypatch.setattr(reading, "_MOST_ENTRIES", 2)
    with pytest.raises(HeaderError, match="has more than 2 entries"):
        open_tensors(forge({"__metadata__": {"a": "", "b": "", "c": ""}}))
    three = {name: entry(shape=(0,), end=0) for name in "abc"}
    with pytest.raises(HeaderError, match="has more than 2 entries"):
        open_tensors(forge(three))
    del three["a"]
    assert set(open_tensors(forge(three))) == {"b", "c"}


@pytest.mark.parametrize("blank", ["", " ", "\n\t\r "])
def test_headers_are_read_as_json_is(forge: Forge, blank: str) -> None:
    """Wherever blanks stand, however names are escaped."""
    parts = ["", "{", '"__metadata__"', ":", "{", '"k\\u00e9\\n"', ":", '"v\\"}"', "}", ","]
    parts += ['"a}\\u002e"', ":", '{"dtype" : "F32", "shape":[2 ], "data_offsets": [0,8]}', "}", ""]
    text = blank.join(parts)
    store = open_tensors(forge(text, EIGHT))
    whole = json.loads(text)
    assert dict(store.metadata) == whole.pop("__metadata__") == {"ké\n": 'v"}'}
    assert list(store) == list(whole) == ["a}."]
    for broken in (
        text.strip()[:-1],
        text.replace(":", ";", 1),
        text + "x",
        "x" + text,
        text.strip()[:-1] + ",}",
    ):
        with pytest.raises(HeaderError):
            open_tensors(forge(broken, EIGHT))


def test_names_with_separators_are_names_and_no_paths(forge: Forge, tmp_path: Path) -> None:
    """A tensor's name never becomes a path, so ``a/b`` (Flax, TensorFlow) is harmless."""
    names = ["../../etc/passwd", "/abs", "a/b", "a\\b", "."]
    header = {name: entry(begin=8 * at, end=8 * at + 8) for at, name in enumerate(names)}
    before = sorted(tmp_path.iterdir())
    path = forge(header, bytes(8 * len(names)))
    assert set(open_tensors(path)) == set(names)
    assert sorted(tmp_path.iterdir()) == sorted([*before, path])


@pytest.mark.parametrize("name", ["a.weight", "größe", "重み", "🙂", "", "__metadata", "a b"])
def test_ordinary_names_are_not_refused(forge: Forge, name: str) -> None:
    assert list(open_tensors(forge({name: entry()}, EIGHT))) == [name]


def test_64_dimensions_are_read(forge: Forge) -> None:
    store = open_tensors(forge({"a": entry(shape=(1,) * 63 + (2,))}, EIGHT))
    assert store["a"].load().shape == (1,) * 63 + (2,)


edits = st.lists(
    st.tuples(st.sampled_from(["flip", "insert", "delete", "cut"]), st.integers(0), st.binary()),
    min_size=1,
    max_size=5,
)
VALID = save(
    {
        "layer.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "steps": np.array(7),
        "none": np.empty((0, 2), np.float16),
        "flags": np.array([True, False, True]),
    },
    {"format": "pt"},
)


def opened(path: Path) -> Mapping[str, TensorInfo]:
    """The file's tensors; none where it is refused, which only our own errors may do."""
    try:
        return open_tensors(path)
    except FileError as error:
        message = str(error)
    assert str(path) in message
    return {}


def damaged(raw: bytes, steps: list[tuple[str, int, bytes]]) -> bytes:
    content = bytearray(raw)
    for kind, where, new in steps:
        at = where % (len(content) + 1)
        if kind == "flip" and at < len(content):
            content[at] ^= (new[0] if new else 1) or 0x80
        elif kind == "insert":
            content[at:at] = new[:4] or b"0"
        elif kind == "delete":
            del content[at : at + 1 + where % 5]
        elif kind == "cut" and where % 4 == 0:
            del content[at:]
    return bytes(content)


@settings(derandomize=True, deadline=None, max_examples=500)
@given(edits, st.booleans())
def test_damage_is_an_error_of_ours_or_harmless(
    steps: list[tuple[str, int, bytes]], header_only: bool
) -> None:
    length = 8 + struct.unpack("<Q", VALID[:8])[0]
    if header_only:
        header = damaged(VALID[8:length], steps)
        raw = struct.pack("<Q", len(header)) + header + VALID[length:]
    else:
        raw = damaged(VALID, steps)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        path.write_bytes(raw)
        for info in opened(path).values():
            assert info.load().shape == info.shape


words = '{ } [ ] : , " "a" "dtype" "shape" "data_offsets" "F32" "__metadata__" null true NaN'
tokens = st.sampled_from([*words.split(), "0", "8", "-1", "1e9", " ", "\\", "\x00", "é"])


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.lists(tokens, max_size=20).map("".join))
def test_headers_of_random_tokens(header: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        raw = header.encode()
        path.write_bytes(struct.pack("<Q", len(raw)) + raw + EIGHT)
        for info in opened(path).values():
            info.load()
