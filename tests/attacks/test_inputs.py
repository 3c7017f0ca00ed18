"""Hostile adapters, pickles, recipes, side files and names through the command line."""

from __future__ import annotations

import json
import os
import pickle
import signal
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from taskbasis.cli import run

Refuse = Callable[..., Any]
CONFIG = {"peft_type": "LORA", "r": 1, "lora_alpha": 1}
FACTOR = "base_model.model.model.layers.0.w.lora_{}.weight"


def config(**changes: Any) -> Callable[[Path], object]:
    """The adapter's config changed."""
    text = json.dumps({**CONFIG, **changes})
    return lambda folder: (folder / "adapter_config.json").write_text(text)


def said(text: str) -> Callable[[Path], object]:
    """Any text as the adapter's config."""
    return lambda folder: (folder / "adapter_config.json").write_text(text)


def factors(down: tuple[int, ...], up: tuple[int, ...]) -> Callable[[Path], object]:
    """The adapter's factors of these shapes."""
    tensors = {FACTOR.format("A"): np.ones(down, np.float32)}
    tensors[FACTOR.format("B")] = np.ones(up, np.float32)
    return lambda folder: save_file(tensors, folder / "adapter_model.safetensors")


def renamed(name: str) -> Callable[[Path], object]:
    """A factor under another name."""

    def make(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        tensors = load_file(path)
        tensors[name] = tensors.pop(FACTOR.format("B"))
        save_file(tensors, path)

    return make


def piped(name: str) -> Callable[[Path], object]:
    """A pipe in the place of a file."""

    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return make


ADAPTERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "rank against config": (factors((2, 6), (6, 2)), "rank 2, but .* says rank 1"),
    "ranks of the two factors": (factors((1, 6), (6, 2)), r"lora_"),
    "shape against the base": (factors((1, 7), (6, 1)), r"shape|\[6, 7\]"),
    "a vector for a matrix": (factors((6,), (6, 1)), "shape"),
    "rank 0": (factors((0, 6), (6, 0)), "rank|shape|empty|0"),
    "only one factor": (renamed("base_model.model.other.lora_B.weight"), "has no lora_"),
    "no module of the base": (renamed("base_model.model.x"), "lora_|has no"),
    "an escape in a name": (renamed("base_model.model.\x1b[2J.lora_B.weight"), "control"),
    "a rank of 0 in the config": (config(r=0), "rank 'r' is 0"),
    "a rank of 10^400": (said('{"peft_type":"LORA","lora_alpha":1,"r":1%s}' % ("0" * 400)), "rank"),
    "an alpha that is no number": (said('{"peft_type":"LORA","r":1,"lora_alpha":NaN}'), "alpha"),
    "an infinite alpha": (said('{"peft_type":"LORA","r":1,"lora_alpha":1e999}'), "alpha"),
    "an escape in the config": (config(**{"\x1b[2J": 1}), "not known here"),
    "another kind": (config(peft_type="\x1b]0;x\x07"), "only LORA"),
    "a pattern that explodes": (config(alpha_pattern={"(a+)+$": 1}), "too intricate"),
    "deep lists": (said("[" * 100_000), "not valid JSON"),
    "a key twice": (said('{"r":1,"r":2}'), "'r' twice"),
    "a pipe for the factors": (piped("adapter_model.safetensors"), "none of|is not a file"),
}


@pytest.mark.parametrize("case", ADAPTERS)
@pytest.mark.promise("A broken or hostile adapter is refused.")
def test_a_broken_adapter_is_refused(desk: Path, refuse: Refuse, case: str) -> None:
    attack, match = ADAPTERS[case]
    attack(desk / "adapter")
    for words in (
        "add base adapter -o out",
        "lora add adapter fine -o out --base base",
        "merge base adapter b --method ties -o out",
    ):
        refuse(words, match)


def test_a_pipe_for_the_config_of_an_adapter(desk: Path, refuse: Refuse) -> None:
    piped("adapter_config.json")(desk / "adapter")
    refuse("show adapter")
    refuse("add base adapter -o out")


class Runs:
    """A pickle that touches a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def zipped(path: Path, content: bytes) -> None:
    """A file as torch writes it, with this pickle inside."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")


def bomb(path: Path) -> None:
    """A zip whose pickle is a gigabyte of nothing."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("archive/data.pkl", "w", force_zip64=True) as file:
            for _ in range(1000):
                file.write(bytes(1_000_000))
        archive.writestr("archive/version", "3\n")


PICKLES: dict[str, Callable[[Path, Path], object]] = {
    "plain": lambda path, ran: path.write_bytes(pickle.dumps({"w": Runs(ran)})),
    "zipped": lambda path, ran: zipped(path, pickle.dumps({"w": Runs(ran)}, 2)),
    "os.system": lambda path, ran: path.write_bytes(
        b"cos\nsystem\n(S'mkdir %s'\ntR." % os.fsencode(ran)
    ),
    "builtins": lambda path, ran: zipped(
        path, b"c__builtin__\neval\n(S'__import__(\"os\").mkdir(%r)'\ntR." % str(ran).encode()
    ),
    "cut": lambda path, ran: path.write_bytes(pickle.dumps({"w": 1})[:-2]),
    "empty": lambda path, ran: path.write_bytes(b""),
    "no tensors": lambda path, ran: zipped(path, pickle.dumps({"w": 1}, 2)),
    "a list": lambda path, ran: zipped(path, pickle.dumps([1], 2)),
    "a zip of nothing": lambda path, ran: zipped(path, b""),
    "a zip without a pickle": lambda path, ran: zipfile.ZipFile(path, "w").close(),
    "a list that holds itself": lambda path, ran: zipped(path, b"\x80\x02]q\x00h\x00a."),
    "a pipe": lambda path, ran: os.mkfifo(path),
    "text": lambda path, ran: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
}


@pytest.mark.parametrize("case", PICKLES)
@pytest.mark.promise("Code in a pickle is never run.")
def test_pickles_are_refused_and_not_run(desk: Path, refuse: Refuse, case: str) -> None:
    pytest.importorskip("torch", reason="torch reads these files")
    ran = desk.parent / "ran"
    (desk / "a" / "model.safetensors").unlink()
    PICKLES[case](desk / "a" / "pytorch_model.bin", ran)
    for words in ("show a", "extract base a -o out", "check recipe.yml"):
        refuse(words)
    assert not ran.exists()
    (desk / "adapter" / "adapter_model.safetensors").unlink()
    PICKLES[case](desk / "adapter" / "adapter_model.bin", ran)
    refuse("add base adapter -o out")
    assert not ran.exists()


LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}]\n"
    for a, b in pairwise("abcdefghijkl")
)
GOOD = "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}]\n"
YAML: dict[str, tuple[str | bytes, str]] = {
    "nothing": ("", "nothing in it"),
    "a billion laughs": (LAUGHS, "more than 100,000 values"),
    "laughs by merge keys": (
        "a: &a {x: 1, y: 2}\n"
        + "".join(
            f"{n}: &{n} {{<<: [{', '.join([f'*{m}'] * 9)}]}}\n" for m, n in pairwise("abcdefghi")
        ),
        "more than 100,000 values",
    ),
    "a cycle": ("a: &a [*a]\n", "nested deeper"),
    "a cycle of mappings": ("merge_method: &a {x: *a}\n", "nested deeper"),
    "a merge key of itself": ("&a\n<<: *a\n", "nested deeper"),
    "deep lists": ("[" * 10_000, "nested deeper|not YAML"),
    "deep blocks": ("".join(" " * n + "-\n" for n in range(2000)), "nested deeper"),
    "megabytes": ("a: " + "x" * 5_000_000, "longer than"),
    "gigabytes": (b"", "larger than"),
    "a Python tag": ("a: !!python/object/apply:os.system ['mkdir ran']\n", "tag .* not allowed"),
    "a Python name": ("!!python/name:os.system x: 1\n", "tag .* not allowed"),
    "an include": ("models: !include /etc/passwd\n", "tag .* not allowed"),
    "binary": ("a: !!binary R0lGODdh\n", "tag .* not allowed"),
    "a key twice": (GOOD + "merge_method: ties\n", "stands twice"),
    "an unknown key": (GOOD + "merge_methd: ties\n", "did you mean"),
    "an escape in a key": (GOOD + '"\\e[2J": 1\n', "has no key"),
    "an escape in a model": (GOOD.replace("model: a", 'model: "\\e[2J\\r"'), ""),
    "NUL in a model": (GOOD.replace("model: a", 'model: "a\\0b"'), ""),
    "a raw escape": (GOOD + "\x1b[2J", "cannot stand in YAML"),
    "no UTF-8": (b"\xff\xfe\xfd", "no text in UTF-8"),
    "UTF-16": (GOOD.encode("utf-16"), "no text in UTF-8"),
    "a weight of NaN": (GOOD.replace("weight: 1", "weight: .nan"), "out of range"),
    "a weight of infinity": (GOOD.replace("weight: 1", "weight: -.inf"), "out of range"),
    "a weight of 10^400": (
        GOOD.replace("weight: 1", "weight: 1" + "0" * 400),
        "out of range|takes",
    ),
    "layers of 10^18": (
        "merge_method: passthrough\nslices:\n"
        "- sources: [{model: a, layer_range: [0, 1000000000000000000]}]\n",
        "layer",
    ),
    "a circle of recipes": (
        "name: x\nmerge_method: passthrough\nmodels: [{model: y}]\n---\n"
        "name: y\nmerge_method: passthrough\nmodels: [{model: x}]\n",
        "circle",
    ),
    "a pattern that explodes": (
        GOOD.replace("weight: 1", "weight: [{filter: '(a+)+$', value: 0}]"),
        "",
    ),
    "a name that is a path": ("name: ../../x\n" + GOOD, ""),
}


@pytest.mark.parametrize("case", YAML)
@pytest.mark.promise("A hostile recipe (cycles, bombs, tags) is refused.")
def test_hostile_recipes(desk: Path, refuse: Refuse, case: str) -> None:
    text, match = YAML[case]
    path = desk / "recipe.yml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    if case == "gigabytes":
        os.truncate(path, 2**33)
    if case in ("a pattern that explodes", "a name that is a path"):
        run(["check", "recipe.yml"])  # may be allowed; it may not hang, or write anywhere
        assert run(["merge", "recipe.yml", "out"]) in (0, 1, 2)
        assert not (desk.parent.parent / "x").exists()
        return
    verbs = ("merge recipe.yml out", "check recipe.yml", "plan recipe.yml")
    for words in verbs[:1] if "laughs" in case else verbs:  # 100,000 values take a second
        refuse(words, match, lines=0)
    assert not (desk / "ran").exists()


def test_a_pipe_for_a_recipe(desk: Path, refuse: Refuse) -> None:
    (desk / "recipe.yml").unlink()
    os.mkfifo(desk / "recipe.yml")
    for words in ("check recipe.yml", "plan recipe.yml", "merge recipe.yml out"):
        refuse(words, "is not a file")


SIDE = ("config.json", "tokenizer.json", "vocab.json", "modules.json", "README.md", "vocab.txt")
VERBS = (
    "add base v.safetensors -o out",
    "merge recipe.yml out -q",
    "lora extract base a -o out --rank 1",
)


@pytest.mark.parametrize("name", SIDE)
def test_side_files_that_wait_are_refused_or_said_to_be_left(desk: Path, name: str) -> None:
    for model in ("base", "a"):
        (desk / model / name).unlink(missing_ok=True)
        os.mkfifo(desk / model / name)
    for words in VERBS:
        with within(10):
            code = run([*words.split(), "--replace"])
        assert code in (0, 1)
        if code == 0:
            assert not (desk / "out" / name).exists() or name == "README.md"


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Fails what takes longer, waiting for a pipe included: the command line then says 130."""
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


BOMBS = {
    "deep": "[" * 200_000,
    "digits": '{"vocab_size": %s}' % ("9" * 10_000),
    "a list": "[]",
    "nothing": "",
    "no text": "\udcff\udcfe",
    "cut": '{"model_type": "x',
}


@pytest.mark.parametrize("case", BOMBS)
def test_bombs_for_configs_and_tokenizers(desk: Path, refuse: Refuse, case: str) -> None:
    text = BOMBS[case].encode(errors="surrogateescape")
    (desk / "base" / "config.json").write_bytes(text)
    refuse("add base v.safetensors -o out --dtype float16", r"config\.json")
    (desk / "base" / "config.json").write_text('{"model_type": "desk"}')
    for name in ("tokenizer.json", "vocab.json", "modules.json"):
        (desk / "a" / name).write_bytes(text)
        (desk / "base" / name).write_bytes(text)
    for words in VERBS[:2]:
        code = run([*words.split(), "--replace"])
        assert code in (0, 1), words


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "notes.txt"])
@pytest.mark.promise("Links that lead out of a model's folder are not copied.")
def test_links_out_of_a_model_are_not_copied(desk: Path, refuse: Refuse, name: str) -> None:
    """Who unpacks a stranger's model does not publish his own keys with what he makes of it."""
    secret = desk.parent / "id_rsa"
    secret.write_text('{"secret": 1}')
    for model in ("base", "a"):
        (desk / model / name).unlink(missing_ok=True)
        (desk / model / name).symlink_to(secret)
    refuse("add base v.safetensors -o out", "is a link out of its folder")


def test_links_inside_a_model_and_of_the_hub_are_followed(desk: Path) -> None:
    cache = desk / "hub" / "models--o--base"
    (cache / "blobs").mkdir(parents=True)
    snapshot = cache / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for at, path in enumerate(sorted((desk / "base").iterdir())):
        path.rename(cache / "blobs" / str(at))
        (snapshot / path.name).symlink_to(f"../../blobs/{at}")
    (snapshot / "same.json").symlink_to("config.json")
    assert run(["add", str(snapshot), "v.safetensors", "-o", "out"]) == 0
    assert (desk / "out" / "same.json").read_text() == '{"model_type": "desk"}'
    assert not (desk / "out" / "config.json").is_symlink()


def test_a_licence_that_laughs(desk: Path) -> None:
    """Aliases are cheap to load and endless to compare or write."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    for model in ("base", "a"):
        card = "---\n" + "\n".join(lines) + "\nlicense: *a11\n---\n"
        (desk / model / "README.md").write_text(card)
    assert run(["add", "base", "v.safetensors", "-o", "out"]) == 0
    assert "*a11" not in (desk / "out" / "README.md").read_text()
    assert (desk / "out" / "README.md").stat().st_size < 10_000


def test_files_replaced_while_they_are_read(desk: Path) -> None:
    """Of the same size and time: the header that was read is of another file."""
    from taskbasis.errors import FileError
    from taskbasis.io.folder import open_tensors

    path = desk / "a" / "model.safetensors"
    store, seen = open_tensors(path), path.stat()
    twin = path.with_name("twin")
    twin.write_bytes(path.read_bytes())
    os.utime(twin, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    twin.replace(path)
    with pytest.raises(FileError, match="was changed since it was opened"):
        store["model.norm.weight"].load()


def test_a_pipe_put_there_after_the_header_was_read(desk: Path) -> None:
    from taskbasis.errors import FileError
    from taskbasis.io.folder import open_tensors

    path = desk / "a" / "model.safetensors"
    store = open_tensors(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(FileError, match="is not a file"):
        store["model.norm.weight"].load()


WORDS = (
    "show \udcff",
    "show \x1b[2J",
    "show a\nb",
    "extract base \x1b[2J -o out",
    "add base v.safetensors --exclude \x1b[2J\udcff -o out",
    "merge base a b --method \x1b[2J -o out",
    "merge base a b --method ties:\x1b[2J=1 -o out",
    "basis recover lib.safetensors \x1b[2J --base base -o out",
    "show " + "x" * 5000,
    "\x1b[2J",
    "show --\x1b[2J",
    "extract base a -o " + "x" * 5000,
)


@pytest.mark.parametrize("words", WORDS)
def test_words_that_steer_terminals_or_are_no_names(
    desk: Path, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    before = sorted(map(str, desk.rglob("*")))
    assert run(words.split(" ")) in (1, 2)
    found = capfd.readouterr()
    assert "Error: " in found.err
    assert not any(ord(c) < 32 and c != "\n" for c in found.err + found.out)
    assert sorted(map(str, desk.rglob("*"))) == before
