"""What goes wrong is told in one sentence, with an exit code, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from taskbasis import cli

LATER = {"evaluate", "search", "demo"}
VERBS = sorted(cli.VERBS.keys() - LATER)
BASIS_VERBS = ("fit", "show", "recover", "add", "negate", "update", "nearest")


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# Usage: exit code 2.


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("ad base a -o x", "there is no command 'ad'; did you mean 'add'?"),
        ("extrct base a -o x", "there is no command 'extrct'; did you mean 'extract'?"),
        (
            "basis fit a --base base -o x --method pcaa",
            "there is no construction 'pcaa'; did you mean 'pca'?",
        ),
        (
            "basis fit a --base base -o x --normalize cosin",
            "there is no normalization 'cosin'; did you mean 'cosine'?",
        ),
        (
            "basis fit a --base base -o x --set solvr=adam",
            "autoencoder has no option 'solvr'; did you mean 'solver'?",
        ),
        (
            "basis fit a --base base -o x --set solver=adm",
            "there is no solver 'adm'; did you mean 'adam'?",
        ),
        (
            "basis fit a --base base -o x --method cluster --set inner=tie",
            "there is no method 'tie'; did you mean 'ties'?",
        ),
        ("basis fit a --base base -o x --set solver", "--set 'solver': write NAME=VALUE"),
        (
            "basis fit a --base base -o x --set solver=[",
            "--set 'solver=[': the value '[' cannot be read",
        ),
        (
            "basis fit a --base base -o x --set steps=many",
            "option 'steps' of autoencoder takes a whole number, such as 6000; got 'many'",
        ),
        (
            "basis fit a --base base -o x --set temperature=true",
            "option 'temperature' of autoencoder takes a number, such as 5.0; got True",
        ),
        (
            "basis fit a b --base base -o x --method cluster --set inner=ties --set density=x",
            "option 'density' of ties takes a number, such as 0.2; got 'x' (or one number for each "
            "vector, [0.5,0.3])",
        ),
        (
            "basis fit a b --base base -k 3 -o x",
            "the size 3 is out of range; give a count from 1 to 2, the number of tasks, "
            "or a fraction between 0 and 1",
        ),
        (
            "basis fit a b --base base -k some -o x",
            "the size 'some' means nothing; give a count, a fraction between 0 and 1, "
            "or an error to meet such as error=0.1",
        ),
        (
            "basis fit t=a t=b --base base -o x",
            "two vectors are called 't'; name them as NAME=PATH",
        ),
        (
            "basis fit a b -o x",
            "a is a checkpoint, not a task vector; pass its base with --base, "
            "or extract the vector first",
        ),
        (
            "add base a -o x --dtype bfloat61",
            "'bfloat61' is not a float type: did you mean 'bfloat16'?",
        ),
        (
            "add base a -o x --dtype int8",
            "'int8' is not a float type: known: float64, float32, float16, bfloat16",
        ),
        (
            "add base a -o x --exclude nrm",
            "--exclude 'nrm' matches no tensor; did you mean 'norm'?",
        ),
        ("add base a -o x --out-shard-size 0", "a shard size of 0 bytes holds nothing"),
        ("add base a -o x --memory lots", "'lots' is not a size; write e.g. 800MB, 5GB or 512MiB"),
        ("add base a -o x --scale nan", "the scale must be a finite number, not nan"),
        ("add base lib -o x", "lib is a basis; name one of its tasks as lib:NAME (a, bb)"),
        ("add base lib:b -o x", "lib has no task 'b'; did you mean 'bb'?"),
        ("basis recover lib b -o x", "lib has no task 'b'; did you mean 'bb'?"),
        ("basis negate lib b -o x", "lib has no task 'b'; did you mean 'bb'?"),
        ("basis add lib --weight b=1 -o x", "lib has no task 'b'; did you mean 'bb'?"),
        ("basis add lib --weight a -o x", "--weight needs NAME=NUMBER, not ''"),
        ("basis add lib --weight a=x -o x", "--weight needs NAME=NUMBER, not 'x'"),
        (
            "basis add lib --weight a=inf -o x",
            "the weight of a task must be a finite number, not inf",
        ),
        (
            "basis add lib --atoms --weight a=1 -o x",
            "--atoms sums the atoms; --weight speaks of tasks. Use one of them",
        ),
        (
            "basis update lib a --base base -o x",
            "lib already holds a task 'a'; choose another name",
        ),
    ],
)
def test_usage(desk: Path, call: Any, words: str, sentence: str) -> None:
    call("basis fit a bb=b --base base -k 1 --method svd -o lib -q")
    before = listing(desk)
    said = call(words)
    assert said.code == 2
    assert said.sentence == sentence
    assert listing(desk) == before


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("add base a --sclae 2 -o x", "--scale"),
        ("basis fit a --base base --granularty layer -o x", "--granularity"),
        ("basis fitt a", "'fit'"),
        ("basis fit a --base base --granularity layers -o x", "'layer'"),
        ("add base a -o x -j 0", "not in the range"),
        ("add base a -o x --scale fast", "not a valid float"),
        ("add base a", "Missing option '-o'"),
        ("add base -o x", "Missing argument 'VECTORS...'"),
        ("extract base -o x", "Missing argument 'TUNED'"),
        ("analogy base --plus a -o x", "Missing option '--minus'"),
    ],
)
def test_usage_that_the_parser_refuses(desk: Path, call: Any, words: str, hint: str) -> None:
    before = listing(desk)
    said = call(words)
    assert said.code == 2
    assert said.out == ""
    assert said.err.startswith("Usage: ")
    assert hint in said.err.splitlines()[-1]
    assert "Traceback" not in said.err
    assert listing(desk) == before


# The rest: exit code 1.


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (
            "add stranger a.safetensors -o x",
            [
                "a.safetensors was taken from the base base (",
                "not from stranger (",
                "4 tensors differ, e.g. 'embed.weight'",
                "Apply it to its own base",
            ],
        ),
        ("add base nothing -o x", ["nothing: no such file or folder"]),
        ("add nothing a -o x", ["nothing: no such file or folder"]),
        ("show nothing", ["nothing: no such file or folder"]),
        ("show notes.txt", ["notes.txt: is neither a folder, nor a .safetensors file"]),
        ("show empty", ["empty: holds no weights"]),
        ("basis show a.safetensors", ["a.safetensors: is not a basis; make one with"]),
        ("add base a -o a", ["a: writing there would touch the input a"]),
        ("add base a -o base/x", ["base/x: writing there would touch the input base"]),
        ("add base a -o no/x", ["the folder ", "no does not exist; create it first"]),
        ("add base a -o notes.txt", ["notes.txt: already exists; pass --replace"]),
        (
            "add base a -o x --memory 1MB",
            [
                "a memory cap of 1.00 MB is too small: this work needs",
                "of which the program itself",
            ],
        ),
        (
            "extract base broken -o x",
            [
                "tensor 'norm': a value is NaN or infinite (inputs: base/model.safetensors, broken",
                "--exclude",
            ],
        ),
        ("add base broken -o x", ["tensor 'norm': a value is NaN or infinite"]),
        ("basis fit a broken --base base -o x", ["tensor 'norm': a value is NaN or infinite"]),
        ("add base small -o x", ["small lacks 1 tensor (norm) of the base base"]),
        (
            "basis fit a.safetensors s.safetensors -k 1 -o x",
            ["s.safetensors was taken from the base stranger", "not from base"],
        ),
        ("basis update random c --base base -o x", []),
    ],
)
def test_what_cannot_be_done(desk: Path, call: Any, words: str, parts: list[str]) -> None:
    call("extract base a -o a.safetensors -q")
    call("extract stranger a -o s.safetensors -q")
    call("basis fit a b --base base -k 1 --method random -o random -q")
    (desk / "notes.txt").write_text("not a model")
    (desk / "empty").mkdir()
    tensors = load_file(desk / "a" / "model.safetensors")
    shutil.copytree(desk / "a", desk / "broken")
    save_file(
        {**tensors, "norm": tensors["norm"] * np.float32("nan")},
        desk / "broken" / "model.safetensors",
    )
    shutil.copytree(desk / "a", desk / "small")
    tensors.pop("norm")
    save_file(tensors, desk / "small" / "model.safetensors")
    before = listing(desk)
    said = call(words)
    assert said.code == (1 if parts else 2)
    for part in parts:
        assert part in said.sentence
    assert listing(desk) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(desk: Path, call: Any) -> None:
    (desk / "locked").mkdir(mode=0o500)
    said = call("add base a -o locked/x")
    assert said.code == 1
    assert "cannot be written: Permission denied" in said.sentence


@pytest.mark.parametrize(
    ("failure", "code", "sentence"),
    [
        (KeyboardInterrupt(), 130, "stopped; nothing was written"),
        (MemoryError(), 1, "out of memory"),
        (OSError(28, "No space left on device", "x"), 1, "No space left on device"),
        (BrokenPipeError(), 1, ""),
    ],
)
def test_what_may_happen_on_the_way(
    desk: Path,
    call: Any,
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
    code: int,
    sentence: str,
) -> None:
    from taskbasis.io.writer import Staged

    def failing(*_: object) -> None:
        raise failure

    monkeypatch.setattr(Staged, "write", failing)
    before = listing(desk)
    said = call("add base a b -o x")
    assert said.code == code
    assert sentence in said.err
    assert said.err.strip().count("\n") == 0
    assert said.out == ""
    assert listing(desk) == before


# Warnings.


def test_a_dropped_task_is_told(desk: Path, call: Any) -> None:
    """Random directions: next to nothing of any task is left."""
    call("basis fit a b c d --base base -k 1 --method select -o lib -q")
    said = call("basis negate lib a --base base -o less -q")
    assert said.code == 0
    assert re.match(r"warning: the basis has dropped 'a' \(relative error (0.9|1.0)", said.err)
    assert said.err.count("\n") == 1
    assert "warning: the basis has dropped" in call("basis recover lib a -o a.safetensors").err
    assert call("basis recover lib d -o d.safetensors").err == ""


def test_what_rounding_takes_is_told_when_it_is_much(desk: Path, call: Any) -> None:
    base = load_file(desk / "base" / "model.safetensors")
    near = {name: value * np.float32(1 + 1e-3) for name, value in base.items()}
    (desk / "near").mkdir()
    save_file(near, desk / "near" / "model.safetensors")
    said = call("add base near -o x --dtype bfloat16")
    assert said.code == 0
    assert "% of the update is lost to rounding; --dtype float32 keeps it, --rounding" in said.err
    drawn = call("add base near -o z --dtype bfloat16 --rounding stochastic")
    assert "warning: stochastic rounding adds noise of " in drawn.err
    assert "to which rounding added noise of " in drawn.out
    call("add base near -o w --dtype bfloat16 --keep-float32 *")
    assert call("add base near -o w --replace --dtype bfloat16 --keep-float32 *").err == ""
    assert call("add base near -o y").err == ""
    assert call("extract base near -o v.safetensors --dtype bfloat16").err == ""


# Help, and what is imported for it.


@pytest.mark.parametrize("verb", [*VERBS, *(f"basis {verb}" for verb in BASIS_VERBS)])
def test_help_of_every_verb(call: Any, verb: str) -> None:
    said = call(f"{verb} --help")
    assert said.code == 0
    assert said.err == ""
    assert said.out.startswith("Usage: ")
    assert verb in said.out.splitlines()[0]
    assert call(f"{verb} -h").out == said.out


def test_help_lists_every_verb(call: Any) -> None:
    said = call("--help")
    assert said.code == 0
    for verb, what in cli.VERBS.items():
        assert verb in said.out
        assert what in said.out
    assert call("--version").out.startswith("taskbasis, version ")
    without = call("basis")
    assert without.code == 2
    assert "nearest" in without.err


def test_help_imports_nothing_heavy(loaded_by: Callable[[str], set[str]]) -> None:
    code = f"""
        from taskbasis.cli import run
        for words in {[[], *([verb] for verb in VERBS), *(["basis", v] for v in BASIS_VERBS)]!r}:
            assert run([*words, "--help"]) == 0
    """
    heavy = {"numpy", "numba", "torch", "scipy", "transformers", "sklearn", "rich", "yaml"}
    assert loaded_by(textwrap.dedent(code)) & heavy == set()


# The real thing.


def process(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "taskbasis", *words], cwd=cwd, capture_output=True, text=True
    )


def test_a_real_process(desk: Path) -> None:
    done = process("add", "base", "a", "b", "-o", "out", "--scale", "0.3", cwd=desk)
    assert (done.returncode, done.stderr) == (0, "")
    assert "wrote out: 380 B" in done.stdout
    failed = process("add", "base", "a", "-o", "out", cwd=desk)
    assert failed.returncode == 1
    assert failed.stderr.startswith("Error: out: already exists")
    assert failed.stdout == ""
    wrong = process("ad", cwd=desk)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "Error: there is no command 'ad'; did you mean 'add'?\n"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_leaves_nothing(desk: Path, workers: str) -> None:
    """A real signal while tensors are being written, slowed down to be met there."""
    code = """
        import signal, sys, time
        from taskbasis.cli import main
        from taskbasis.io.writer import Staged
        # A process that a shell started in the background ignores the signal, and its children too.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        real = Staged.write

        def slow(self, name, start, words):
            real(self, name, start, words)
            print("writing", flush=True)
            time.sleep(0.4)

        Staged.write = slow
        main(sys.argv[1:])
    """
    before = listing(desk)
    words = [sys.executable, "-c", textwrap.dedent(code), "add", "base", "a", "b", "-o", "out"]
    with subprocess.Popen(
        [*words, "-j", workers], cwd=desk, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline().startswith("writing")
        assert len(listing(desk)) > len(before), "something is on its way"
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=30)
    assert running.returncode == 130
    assert err.strip() == "stopped; nothing was written"
    assert set(out.split()) <= {"writing"}
    assert listing(desk) == before
