"""Inputs that would poison an output: refused by name, and nothing is left behind."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from taskbasis.engine import Engine
from taskbasis.errors import FileError, MismatchError, TaskbasisError, UsageError, ValueProblem
from taskbasis.io.folder import open_tensors
from taskbasis.library import fit
from taskbasis.merging import merge
from taskbasis.methods import Method
from taskbasis.methods.elementwise.magmax import MagMax
from taskbasis.methods.elementwise.task_arithmetic import TaskArithmetic
from taskbasis.methods.elementwise.ties import Ties
from taskbasis.passes import writing
from taskbasis.vectors import TaskVector

Write = Callable[..., Path]
Verb = Callable[[Path, Path, Path, Engine], object]


def extract(base: Path, tuned: Path, out: Path, engine: Engine) -> object:
    return TaskVector(base, tuned).save(out, engine=engine)


def extract_file(base: Path, tuned: Path, out: Path, engine: Engine) -> object:
    return TaskVector(base, tuned).save(out.with_suffix(".safetensors"), engine=engine)


def add_with(method: Method) -> Verb:
    def add(base: Path, tuned: Path, out: Path, engine: Engine) -> object:
        vectors = [TaskVector(base, base.parent / "good"), TaskVector(base, tuned)]
        return merge(base, vectors, method, 0.5).save(out, engine=engine)

    return add


def fit_basis(base: Path, tuned: Path, out: Path, engine: Engine) -> object:
    good = TaskVector(base, base.parent / "good")
    return fit({"good": good, "bad": TaskVector(base, tuned)}, out, engine=engine)


VERBS: dict[str, Verb] = {
    "extract": extract,
    "extract to a file": extract_file,
    "add": add_with(TaskArithmetic()),
    "magmax": add_with(MagMax()),
    "ties": add_with(Ties()),
    "fit": fit_basis,
}


@pytest.fixture
def model(floats: Callable[..., NDArray[Any]]) -> Callable[[int], dict[str, NDArray[Any]]]:
    return lambda seed: {
        "layer.weight": floats([seed, 0], (70, 50)),
        "norm.bias": floats([seed, 1], 3),
        "steps": np.array(seed),
    }


@pytest.fixture
def base(write_folder: Write, model: Any) -> Path:
    write_folder("good", model(1))
    return write_folder("base", model(0), 2)


@pytest.fixture
def untouched(tmp_path: Path, base: Path) -> Callable[[], None]:
    """Call it to see that the folder holds what it held, nothing hidden included."""

    def listing() -> list[tuple[str, bytes]]:
        files = [p for p in sorted(tmp_path.rglob("*")) if p.is_file()]
        return [(str(p), p.read_bytes()) for p in files]

    def names() -> list[str]:
        return sorted(str(p) for p in tmp_path.rglob("*"))

    before: list[Any] = []

    def check() -> None:
        state = [names(), listing()]
        if not before:
            before.extend(state)
        assert state == before

    return check


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.promise("NaN and infinity are refused, naming vector and tensor.")
def test_nan_and_infinity(
    verb: str,
    value: float,
    workers: int,
    base: Path,
    write_folder: Write,
    model: Any,
    untouched: Any,
) -> None:
    broken = model(2)
    broken["layer.weight"][69, 49] = value
    tuned = write_folder("tuned", broken)
    untouched()
    with pytest.raises(ValueProblem, match=r"tensor 'layer\.weight': a value is NaN") as caught:
        VERBS[verb](base, tuned, base.parent / "out", Engine(workers))
    assert str(tuned / "model.safetensors") in str(caught.value)
    assert caught.value.exit_code == 1
    untouched()


@pytest.mark.parametrize("verb", VERBS)
def test_a_base_with_nan(verb: str, base: Path, write_folder: Write, model: Any) -> None:
    broken = model(0)
    broken["layer.weight"][0, 0] = np.nan
    other = write_folder("broken", broken)
    with pytest.raises(ValueProblem, match=r"tensor 'layer\.weight'"):
        VERBS[verb](other, base.parent / "good", base.parent / "out", Engine(1))
    assert not (base.parent / "out").exists()


@pytest.mark.parametrize("workers", [1, 5])
@pytest.mark.promise("A number too large for the stored type is an error, not infinity.")
def test_overflow_in_float16(
    workers: int, base: Path, write_folder: Write, model: Any, untouched: Any
) -> None:
    large = model(3)
    large["layer.weight"][3, 3] = 1e5
    tuned = write_folder("tuned", large)
    vector, engine, out = TaskVector(base, tuned), Engine(workers), base.parent / "out"
    untouched()
    with pytest.raises(ValueProblem, match=r"'layer\.weight': a value is too large for float16"):
        vector.save(out, "float16", engine=engine)
    with pytest.raises(ValueProblem, match=r"'layer\.weight': a value is too large for float16"):
        vector.apply_to(base).save(out, "float16", engine=engine)
    with pytest.raises(ValueProblem, match="too large for float16"):
        fit({"v": vector}, out, dtype="float16", engine=engine)
    untouched()
    vector.save(out, "bfloat16", engine=engine)
    stored = float(open_tensors(out)["layer.weight"].load()[3, 3])
    assert stored == pytest.approx(1e5, rel=0.01)


@pytest.mark.parametrize("scale", [1e38, -1e38])
@pytest.mark.parametrize("method", [TaskArithmetic(), MagMax(), Ties()], ids=repr)
def test_overflow_by_the_scale(scale: float, method: Method, base: Path, untouched: Any) -> None:
    vector = TaskVector(base, base.parent / "good")
    untouched()
    for factor, by in ((1, scale), (scale, 1), (100, scale)):
        with pytest.raises(ValueProblem, match=r"tensor 'layer\.weight'"):
            merge(base, [factor * vector], method, 9 * by).save(base.parent / "out")
    untouched()


@pytest.mark.parametrize("one", [(3,), (1,), (), (3, 1), (2,), (0,)])
@pytest.mark.parametrize("other", [(1, 3), (3,), (1,)])
@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_shapes_that_would_broadcast(
    one: tuple[int, ...], other: tuple[int, ...], dtype: Any, write_folder: Write, tmp_path: Path
) -> None:
    if one == other:
        return
    folders = [write_folder(n, {"x": np.ones(s, dtype)}) for n, s in (("a", one), ("b", other))]
    with pytest.raises(MismatchError, match="tensor 'x'") as caught:
        TaskVector(*folders)
    message = str(caught.value)
    assert all(str(folder / "model.safetensors") in message for folder in folders)
    assert str(list(one)) in message
    assert str(list(other)) in message


@pytest.mark.parametrize("shape", [(1,), (1, 3), ()])
def test_a_stored_delta_that_would_broadcast(
    shape: tuple[int, ...], write_folder: Write, write_vector: Any, tmp_path: Path
) -> None:
    base = write_folder("base", {"x": np.ones(3, np.float32)})
    path = write_vector("v", open_tensors(base), {"x": np.ones(shape, np.float32)})
    with pytest.raises(MismatchError, match="tensor 'x'") as caught:
        TaskVector.open(path).apply_to(base).save(tmp_path / "out")
    assert str(path) in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("case", ["missing", "extra", "renamed"])
def test_missing_and_extra_tensors(case: str, base: Path, write_folder: Write, model: Any) -> None:
    tensors = model(1)
    bias = tensors["norm.bias"]
    if case != "extra":
        del tensors["norm.bias"]
    if case != "missing":
        tensors["norm.beta"] = bias + 1
    tuned = write_folder("tuned", tensors)
    with pytest.raises(MismatchError) as caught:
        TaskVector(base, tuned)
    assert ("lacks 1 tensor (norm.bias)" in str(caught.value)) == (case != "extra")
    assert ("has 1 tensor (norm.beta)" in str(caught.value)) == (case != "missing")
    assert str(base) in str(caught.value)
    assert str(tuned) in str(caught.value)


def test_integers_against_floats(base: Path, write_folder: Write, model: Any) -> None:
    tensors = model(1)
    tensors["norm.bias"] = np.array([1, 2, 3])
    with pytest.raises(MismatchError, match=r"'norm\.bias'.*int64.*float32") as caught:
        TaskVector(base, write_folder("tuned", tensors))
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("workers", [1, 2])
def test_interrupted(
    verb: str, workers: int, base: Path, untouched: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while the last pass writes."""
    good = base.parent / "good"
    untouched()
    real = writing.read_cut
    calls: list[int] = []

    def interrupt(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(writing, "read_cut", interrupt)
    with pytest.raises(KeyboardInterrupt):
        VERBS[verb](base, good, base.parent / "out", Engine(workers))
    untouched()


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk(
    verb: str, workers: int, base: Path, untouched: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    untouched()
    real, calls = os.pwrite, []

    def full(descriptor: int, data: Any, at: int) -> int:
        calls.append(1)
        if len(calls) > 2:
            raise OSError(28, "No space left on device")
        return real(descriptor, data, at)

    monkeypatch.setattr(os, "pwrite", full)
    out = base.parent / "out"
    with pytest.raises(FileError, match="cannot be written: No space left on device"):
        VERBS[verb](base, base.parent / "good", out, Engine(workers))
    untouched()


@pytest.mark.parametrize("verb", VERBS)
def test_a_file_that_shrinks_meanwhile(
    verb: str, base: Path, write_folder: Write, model: Any
) -> None:
    tuned = write_folder("tuned", model(2))
    file = tuned / "model.safetensors"

    class Shrinking(Engine):
        def map(self, *args: Any) -> Any:
            if file.stat().st_size > 100:
                os.truncate(file, 100)
            return super().map(*args)

    with pytest.raises(FileError, match=r"tuned/model\.safetensors: was changed since"):
        VERBS[verb](base, tuned, base.parent / "out", Shrinking(2))
    assert sorted(p.name for p in base.parent.iterdir()) == ["base", "good", "tuned"]


def test_denormal_and_extreme_but_finite_values_are_no_error(
    write_folder: Write, tmp_path: Path
) -> None:
    extremes = np.array([1e-45, -1e-40, 1e18, -1e18, 0, -0.0], np.float32)
    base = write_folder("base", {"x": np.zeros(6, np.float32)})
    tuned = write_folder("tuned", {"x": extremes})
    TaskVector(base, tuned).save(tmp_path / "v.safetensors")
    found = TaskVector.open(tmp_path / "v.safetensors").apply_to(base).tensors()
    np.testing.assert_array_equal(found["x"], extremes)


def test_errors_are_one_family() -> None:
    def every(kind: type[TaskbasisError]) -> list[type[TaskbasisError]]:
        return [kind, *(found for child in kind.__subclasses__() for found in every(child))]

    usage = set(every(UsageError))
    assert {kind.exit_code for kind in usage} == {2}
    assert {kind.exit_code for kind in every(TaskbasisError) if kind not in usage} == {1}
