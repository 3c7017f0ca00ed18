"""Broken and hostile checkpoints through the command line: a table of attacks, every verb alike."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from taskbasis.cli import run

Refuse = Callable[..., Any]
Attack = Callable[[Path], object]
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def forged(header: object, data: bytes = b"", length: int | None = None) -> Attack:
    """The weights of ``a`` replaced by a file of this header."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()

    def make(model: Path) -> None:
        size = len(raw) if length is None else length
        (model / WEIGHTS).write_bytes(struct.pack("<Q", size) + raw + data)

    return make


def entry(
    dtype: Any = "F32", shape: Any = (2,), begin: int = 0, end: int = 8, **more: Any
) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end], **more}


def bytes_as(change: Callable[[bytes], bytes]) -> Attack:
    """The file's bytes changed."""

    def make(model: Path) -> None:
        path = model / WEIGHTS
        path.write_bytes(change(path.read_bytes()))

    return make


def instead(make: Callable[[Path], object], name: str = WEIGHTS) -> Attack:
    """Something else in the place of a file."""

    def replace(model: Path) -> None:
        (model / name).unlink(missing_ok=True)
        make(model / name)

    return replace


def sharded(change: Callable[[Path, dict[str, Any]], object], text: str = "") -> Attack:
    """``a`` in two shards, of which ``change`` spoils the folder or the index."""

    def make(model: Path) -> None:
        tensors = load_file(model / WEIGHTS)
        (model / WEIGHTS).unlink()
        names = sorted(tensors)
        files = {"one.safetensors": names[:1], "two.safetensors": names[1:]}
        for file, part in files.items():
            save_file({n: tensors[n] for n in part}, model / file)
        index = {"weight_map": {n: f for f, part in files.items() for n in part}}
        change(model, index)
        (model / INDEX).write_text(text or json.dumps(index))

    return make


def placed(name: str) -> Attack:
    """An index that places a tensor in the file ``name``."""
    return sharded(lambda model, index: index["weight_map"].update({"model.norm.weight": name}))


def linked(target: str, name: str = WEIGHTS) -> Attack:
    return instead(lambda path: path.symlink_to(target), name)


def waiting(path: Path) -> None:
    """A socket: it can be listed, and never read."""
    with socket.socket(socket.AF_UNIX) as found:
        before = Path.cwd()
        os.chdir(path.parent)  # the names of sockets are short
        try:
            found.bind(path.name)
        finally:
            os.chdir(before)


def vast(path: Path) -> None:
    """A file of a terabyte of nothing."""
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 99_000_000))
        file.truncate(2**40)


def twice(model: Path, index: dict[str, Any]) -> None:
    (model / "one.safetensors").write_bytes((model / "two.safetensors").read_bytes())


EIGHT = bytes(8)
BIG = b"[" * 1_000_000
CASES: dict[str, tuple[Attack, str]] = {
    # The bytes of a file
    "empty": (bytes_as(lambda raw: b""), "too few"),
    "seven bytes": (bytes_as(lambda raw: raw[:7]), "too few"),
    "only the length": (bytes_as(lambda raw: raw[:8]), "truncated"),
    "header cut": (bytes_as(lambda raw: raw[:40]), "truncated"),
    "data cut": (bytes_as(lambda raw: raw[:-1]), "truncated"),
    "data too long": (bytes_as(lambda raw: raw + b"x"), "longer"),
    "twice the file": (bytes_as(lambda raw: raw * 2), "longer"),
    "text": (bytes_as(lambda raw: b"version https://git-lfs.github.com/spec/v1\n"), "limit"),
    "zeros": (bytes_as(lambda raw: bytes(len(raw))), "not valid JSON"),
    "a pickle": (bytes_as(lambda raw: b"\x80\x04cos\nsystem\n(S'touch ran'\ntR."), "limit"),
    "a terabyte": (instead(vast), "not valid JSON"),
    # The header
    "over 100 MB": (forged(b"", length=100_000_001), "100000001 bytes, more than"),
    "length 2^63": (forged(b"", length=2**63), "more than the format's limit"),
    "length -1": (forged(b"", length=2**64 - 1), "more than the format's limit"),
    "no tensors, no data": (forged({}), "holds no tensors"),
    "metadata alone": (forged({"__metadata__": {"format": "pt"}}), "holds no tensors"),
    "no tensors, data": (forged({}, EIGHT), "longer"),
    "a name twice": (forged(b'{"a":{},"a":{}}'), "'a' twice"),
    "a long name twice": (forged(b'{"%b":{},"%b":{}}' % (BIG, BIG)), "twice"),
    "overlap": (forged({"a": entry(), "b": entry(begin=4, end=12)}, bytes(12)), "overlaps"),
    "the same bytes twice": (forged({"a": entry(), "b": entry()}, EIGHT), "overlaps"),
    "hole": (forged({"a": entry(), "b": entry(begin=12, end=20)}, bytes(20)), "hole"),
    "out of range": (forged({"a": entry(begin=8, end=16)}, EIGHT), "hole"),
    "end before begin": (forged({"a": entry(begin=8, end=0)}, EIGHT), "before it begins"),
    "dtype against shape": (forged({"a": entry("F64")}, EIGHT), "needs 16 bytes"),
    "unknown dtype": (forged({"a": entry("F32\x1b[2J")}, EIGHT), "unknown dtype"),
    "negative shape": (forged({"a": entry(shape=[-2])}, EIGHT), "impossible shape"),
    "shape overflows to 0": (forged({"a": entry(shape=[2**62, 4], end=0)}), "impossible shape"),
    "a shape of 2^63": (forged({"a": entry(shape=[2**63])}, EIGHT), "impossible shape"),
    "an exabyte": (forged({"a": entry("U8", [2**60], 0, 2**60)}, EIGHT), "truncated"),
    "65 dimensions": (forged({"a": entry(shape=[1] * 64 + [2])}, EIGHT), "impossible shape"),
    "deep JSON": (forged(b'{"a":' + BIG), "must have exactly"),
    "a number of a million digits": (
        forged(b'{"a":' + b"9" * 1_000_000 + b"}"),
        "must have exactly",
    ),
    "metadata of lists": (
        forged({"__metadata__": {str(n): [] for n in range(10_000)}}),
        "__metadata__",
    ),
    # Names
    "control characters": (forged({"a\x07": entry()}, EIGHT), "control characters"),
    "an escape sequence": (forged({"\x1b]0;owned\x07": entry()}, EIGHT), "control characters"),
    "a line of its own": (forged({"a\nError: none": entry()}, EIGHT), "control characters"),
    "text turned round": (forged({"a\u202eb": entry()}, EIGHT), "control characters"),
    "half a character": (forged(b'{"\\ud800":{}}'), "control characters"),
    "a name of a megabyte": (forged({"n" * 1_000_000: entry("F64")}, EIGHT), "1000000 characters"),
    # The folder
    "no weights": (instead(lambda path: None), "holds no weights"),
    "a folder for a file": (instead(Path.mkdir), "is not a file"),
    "a pipe": (instead(os.mkfifo), "is not a file"),
    "a socket": (instead(waiting), "is not a file"),
    "a device": (linked("/dev/zero"), "is not a file"),
    "the terminal": (linked("/dev/tty"), "is not a file|cannot be opened"),
    "a link to itself": (linked(WEIGHTS), "cannot be opened"),
    "a link to nothing": (linked("nothing"), "cannot be opened"),
    "a link to what is no model": (linked("/etc/passwd"), "limit"),
    "a link to its folder": (linked("."), "is not a file"),
    "a file that may be two": (
        lambda m: (
            (m / "other.safetensors").write_bytes((m / WEIGHTS).read_bytes())
            and (m / WEIGHTS).rename(m / "MODEL.safetensors")
        ),
        "holds 2 weight files",
    ),
    "names with escapes beside it": (
        lambda m: (m / WEIGHTS).unlink() or (m / "x\x1b[2J\ny").write_text(""),
        "holds no weights",
    ),
    "a name that is no UTF-8 beside it": (
        lambda m: (m / WEIGHTS).unlink() or (m / os.fsdecode(b"\xff")).write_text(""),
        "holds no weights",
    ),
    # The index
    "absolute path": (placed("/etc/passwd"), "outside its folder"),
    "path upwards": (placed("../b/model.safetensors"), "outside its folder"),
    "path around": (placed("x/../../b/model.safetensors"), "outside its folder"),
    "Windows path": (placed("..\\b\\model.safetensors"), "outside its folder"),
    "no path": (placed(""), "outside its folder"),
    "a path with an escape": (placed("\x1b[2J.safetensors"), "outside its folder"),
    "a path with NUL": (placed("a\0b.safetensors"), "outside its folder"),
    "a path of a megabyte": (placed("x" * 1_000_000), "missing|outside|too long"),
    "a missing shard": (placed("three.safetensors"), "three.safetensors is missing"),
    "a shard that is the folder": (placed("."), "missing|outside"),
    "a shard of another kind": (placed("config.json"), "is neither"),
    "a tensor in the wrong shard": (placed("one.safetensors"), "lacks it|does not place"),
    "a shard twice": (sharded(twice), "does not place|lacks it"),
    "no tensors": (sharded(lambda m, i: i.update(weight_map={})), "no weight_map"),
    "a list": (sharded(lambda m, i: i.update(weight_map=["a"])), "no weight_map"),
    "numbers for files": (sharded(lambda m, i: i["weight_map"].update(x=1)), "file names"),
    "no JSON": (sharded(lambda m, i: None, "{"), "not valid JSON"),
    "deep lists": (sharded(lambda m, i: None, "[" * 200_000), "not valid JSON"),
    "a tensor twice": (
        sharded(lambda m, i: None, '{"weight_map":{"a":"one.safetensors","a":"two.safetensors"}}'),
        "'a' twice",
    ),
    "two indexes": (
        sharded(lambda m, i: (m / "x.safetensors.index.json").write_text("{}")),
        "holds 2 indexes",
    ),
    "an index beside the whole": (
        sharded(lambda m, i: (m / WEIGHTS).write_bytes((m / "one.safetensors").read_bytes())),
        "one of them is stale",
    ),
    "a pipe for a shard": (
        sharded(lambda m, i: instead(os.mkfifo, "one.safetensors")(m)),
        "missing|is not a file",
    ),
    "a link out of the folder for a shard": (
        sharded(lambda m, i: linked("/etc/passwd", "one.safetensors")(m)),
        "limit",
    ),
}
PIPES: dict[str, tuple[Attack, str]] = {
    "a pipe for the index": (
        lambda m: sharded(lambda *_: None)(m) or instead(os.mkfifo, INDEX)(m),
        "is not a file",
    ),
    "a folder for the index": (
        lambda m: sharded(lambda *_: None)(m) or instead(Path.mkdir, INDEX)(m),
        "is not a file",
    ),
    "endless zeros for the index": (
        lambda m: sharded(lambda *_: None)(m) or linked("/dev/zero", INDEX)(m),
        "is not a file",
    ),
    "a gigabyte of index": (
        lambda m: sharded(lambda *_: None)(m) or os.truncate(m / INDEX, 10**9),
        "larger than",
    ),
}
CASES |= PIPES
VERBS = (
    "show a",
    "extract base a -o out",
    "merge base a b --method ties -o out.safetensors",
    "check recipe.yml",
)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.promise(
    "A broken or hostile checkpoint is refused by every verb, in one sentence, without output."
)
def test_a_broken_checkpoint_is_refused_by_every_verb(
    desk: Path, refuse: Refuse, case: str
) -> None:
    attack, match = CASES[case]
    attack(desk / "a")
    for words in VERBS:
        refuse(words, match)


RECORDS: dict[str, tuple[str, str]] = {
    "nothing": ("", "record is damaged"),
    "deep lists": ("[" * 1_000_000, "record is damaged"),
    "a number of 10,000 digits": ("9" * 10_000, "record is damaged"),
    "no kind": ("{}", "does not say what the file is"),
    "a kind with an escape": ('{"kind":"\\u001b[2J"}', "does not say what the file is"),
    "a version with an escape": ('{"kind":"task_vector","version":"\\u001b[2J"}', "version"),
    "a version of megabytes": ('{"kind":"basis","version":"%s"}' % ("9" * 1_000_000), "version"),
    "no base": ('{"kind":"task_vector","version":1}', "does not name the base"),
    "a base that is a list": ('{"kind":"task_vector","version":1,"base":[]}', "does not name the"),
    "another kind": ('{"kind":"moments","version":1}', "does not|is activation moments|damaged"),
}


@pytest.mark.parametrize("case", RECORDS)
def test_a_broken_record_is_refused(desk: Path, refuse: Refuse, case: str) -> None:
    record, match = RECORDS[case]
    path = desk / "a" / WEIGHTS
    save_file(load_file(path), path, {"taskbasis": record})
    for words in ("show a", "add base a -o out", "basis fit a b --base base -k 1 -o out"):
        refuse(words, match)


def test_what_a_record_names_cannot_steer_the_terminal(
    desk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with safe_open(desk / "v.safetensors", "np") as file:
        record = json.loads(file.metadata()["taskbasis"])
    record["base"]["name"] = "x\x1b[2J\r\n\u202ewrote out"
    save_file(
        load_file(desk / "v.safetensors"),
        desk / "v.safetensors",
        {"taskbasis": json.dumps(record)},
    )
    assert run(["show", "v.safetensors"]) == 0
    said = capfd.readouterr().out
    assert r"\r\n\u202ewrote out (" in said
    assert not any(c in said for c in "\x1b\r\u202e")


@pytest.mark.parametrize(
    "verb",
    [
        "show base",
        "extract base a -o out",
        "add base v.safetensors -o out",
        "add base adapter -o out",
        "negate base v.safetensors -o out",
        "analogy base --plus a --plus b --minus v.safetensors -o out",
        "merge base a b -o out",
        "basis recover lib.safetensors a --base base -o out",
        "diagnose a b --base base",
        "lora extract base a -o out --rank 1",
    ],
)
@pytest.mark.parametrize(
    "case", ["data cut", "a pipe", "hole", "control characters", "path upwards"]
)
def test_a_broken_base_is_refused_by_every_verb(
    desk: Path, refuse: Refuse, verb: str, case: str
) -> None:
    attack, match = CASES[case]
    attack(desk / "base")
    refuse(verb, match)


def test_the_honest_files_are_not_refused(desk: Path) -> None:
    for words in (
        "extract base a -o out1",
        "merge base a b --method ties -o out2",
        "merge recipe.yml out3",
        "check recipe.yml",
        "add base adapter lib.safetensors:b -o out4",
        "show lib.safetensors",
    ):
        assert run(words.split()) == 0
    sharded(lambda model, index: None)(desk / "a")
    assert run(["extract", "base", "a", "-o", "out5"]) == 0


def test_nan_is_carried_only_where_its_tensor_is_left_out(
    desk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tensors = load_file(desk / "base" / WEIGHTS)
    tensors["model.norm.weight"][3] = np.nan
    save_file(tensors, desk / "base" / WEIGHTS)
    for number, verb in enumerate(("add base a", "merge base a b --method ties")):
        words = f"{verb} --exclude model.norm.weight -o out{number} -v".split()
        assert run(words) == 0
        assert "copied     model.norm.weight" in capfd.readouterr().out
        made = load_file(desk / f"out{number}" / WEIGHTS)
        assert made["model.norm.weight"].tobytes() == tensors["model.norm.weight"].tobytes()
        assert np.isfinite(made["model.embed.weight"]).all()


def test_nan_of_a_base_is_laid_to_the_base(desk: Path, refuse: Refuse) -> None:
    tensors = load_file(desk / "base" / WEIGHTS)
    tensors["model.norm.weight"][3] = np.nan
    save_file(tensors, desk / "base" / WEIGHTS)
    refuse("add base a -o out", "inputs: .*base/model.safetensors")


def test_nan_is_named_wherever_it_is(desk: Path, refuse: Refuse) -> None:
    for value in (np.nan, np.inf, -np.inf):
        tensors = load_file(desk / "b" / WEIGHTS)
        tensors["model.norm.weight"][3] = value
        save_file(tensors, desk / "a" / WEIGHTS)
        for words in (
            "extract base a -o out",
            "add base a -o out",
            "negate base a -o out",
            "analogy base --plus a --plus b --minus base -o out",
            "merge base a b --method ties -o out",
            "merge base a b --method dare_ties -o out",
            "merge recipe.yml out",
            "basis fit a b --base base -k 1 -o out",
            "lora extract base a -o out --rank 1",
            "disentangle base a b -o out",
        ):
            refuse(words, r"norm\.weight")
