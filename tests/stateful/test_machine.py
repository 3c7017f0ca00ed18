"""The public API driven at random against a dense model in memory.

Every number is a multiple of a power of two and few bits long, so that float32 sums are exact and
what comes back is compared bit for bit; only what goes through a basis is compared to rounding.
More examples, drawn anew: TASKBASIS_STATEFUL=1000 pytest tests/stateful
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from safetensors.numpy import save_file

from taskbasis import Basis, Checkpoint, Design, Engine, TaskVector, fit, update
from taskbasis.errors import BaseError, FileError
from taskbasis.io.folder import open_tensors
from taskbasis.verifying import verify

MORE = int(os.environ.get("TASKBASIS_STATEFUL", "0"))
SHAPES = {"a.weight": (3, 2), "b.bias": (5,), "c": ()}
STEPS = np.array(7, np.int64)

Dense = dict[str, np.ndarray[Any, Any]]

factors = st.sampled_from([1.0, -1.0, 0.5, 2.0])
engines = st.sampled_from([1, 2])


def drawn(draw: Any) -> Dense:
    random = np.random.default_rng(draw(st.integers(0, 255)))
    return {name: random.integers(-8, 9, shape) / 8 for name, shape in SHAPES.items()}


def exact(values: Dense) -> Dense:
    """The same, if float32 holds every number as it is."""
    assume(all(np.array_equal(value, value.astype(np.float32)) for value in values.values()))
    return values


def combined(*terms: tuple[float, Dense]) -> Dense:
    return {name: np.sum([c * one[name] for c, one in terms], axis=0) for name in SHAPES}


def zero(values: Dense) -> bool:
    return not any(np.any(value) for value in values.values())


def write_checkpoint(path: Path, values: Dense) -> None:
    tensors = {name: np.asarray(value, np.float32) for name, value in values.items()}
    save_file({**tensors, "steps": STEPS}, path, {"format": "pt"})


def holds(path: Path, values: Dense) -> None:
    store = open_tensors(path)
    assert set(store) == {*SHAPES, "steps"}
    assert store["steps"].load() == STEPS
    for name, value in values.items():
        np.testing.assert_array_equal(store[name].load(), value)


def is_vector(vector: TaskVector, values: Dense, tolerance: float = 0.0) -> None:
    """Tensors that equal the base's may be left out: they are zero."""
    found = vector.tensors(Engine(workers=1))
    assert set(found) <= set(SHAPES)
    for name, value in values.items():
        there = found.get(name, np.zeros(value.shape))
        np.testing.assert_allclose(there, value, rtol=0, atol=tolerance)


@dataclass(frozen=True)
class Tuned:
    """A checkpoint on the disk: which base it came from, and what it holds."""

    path: Path
    base: int
    values: Dense


@dataclass(frozen=True)
class Vector:
    """A task vector, stored or not yet, and its numbers."""

    vector: TaskVector
    base: int
    values: Dense


@dataclass(frozen=True)
class Library:
    """A basis on the disk, and the vectors that it should give back."""

    path: Path
    base: int
    tasks: dict[str, Dense]


class Stop(Exception):
    """What breaks into a run."""


class Breaking:
    """A progress bar that raises after so many ticks."""

    def __init__(self, after: int) -> None:
        self.left = after

    @contextmanager
    def task(self, title: str, total: int) -> Iterator[Any]:
        def tick(done: int) -> None:
            self.left -= 1
            if self.left < 0:
                raise Stop

        yield tick


class Machine(RuleBasedStateMachine):
    """Two bases; fine-tunes, vectors, edited models and libraries that come and go."""

    tuned = Bundle("tuned")
    vectors = Bundle("vectors")
    libraries = Bundle("libraries")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="taskbasis-machine-"))
        self.count = 0
        self.written: dict[Path, bytes] = {}

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    def new(self, suffix: str = ".safetensors") -> Path:
        self.count += 1
        return self.folder / f"{self.count}{suffix}"

    def keep(self, path: Path) -> Path:
        """Note what a file holds, which nothing may ever change."""
        self.written[path] = self.bytes_of(path)
        return path

    @staticmethod
    def bytes_of(path: Path) -> bytes:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        return b"\0".join(file.read_bytes() for file in files if file.is_file())

    # Files of others: numbers come from a seed, so that few choices are left to shrink

    @initialize(data=st.data(), target=tuned)
    def begin(self, data: st.DataObject) -> Any:
        """Two bases; two fine-tunes of the first, one of the second."""
        self.bases_of = [drawn(data.draw) for _ in range(2)]
        self.bases_of[1]["c"] = self.bases_of[0]["c"] + 1
        self.paths = [self.new() for _ in range(2)]
        for path, values in zip(self.paths, self.bases_of, strict=True):
            write_checkpoint(path, values)
            self.keep(path)
        return multiple(*(self.made(data, base) for base in (0, 0, 1)))

    @rule(data=st.data(), base=st.sampled_from([0, 0, 1]), target=tuned)
    def tune(self, data: st.DataObject, base: int) -> Tuned:
        return self.made(data, base)

    def made(self, data: st.DataObject, base: int) -> Tuned:
        values = drawn(data.draw)
        if data.draw(st.booleans()):  # a tensor that training left alone
            values["b.bias"] = self.bases_of[base]["b.bias"]
        path = self.new()
        write_checkpoint(path, values)
        return Tuned(self.keep(path), base, values)

    # Vectors

    def delta(self, of: Tuned) -> Dense:
        return exact(combined((1, of.values), (-1, self.bases_of[of.base])))

    @rule(of=tuned, target=vectors)
    def difference(self, of: Tuned) -> Vector:
        return Vector(TaskVector(self.paths[of.base], of.path), of.base, self.delta(of))

    @rule(of=tuned, workers=engines, shards=st.booleans(), target=vectors)
    def extract(self, of: Tuned, workers: int, shards: bool) -> Vector:
        values = self.delta(of)
        path = self.new("" if shards else ".safetensors")
        vector = TaskVector(self.paths[of.base], of.path)
        vector.save(path, shard_size=24 if shards else None, engine=Engine(workers))
        return Vector(TaskVector.open(self.keep(path)), of.base, values)

    @rule(one=vectors, other=vectors, factor=factors, target=vectors)
    def sum(self, one: Vector, other: Vector, factor: float) -> Any:
        if one.base != other.base:  # known at once of stored vectors, of others when it is read
            with pytest.raises(BaseError, match="was taken from the base"):
                (one.vector + factor * other.vector).save(self.new(), engine=Engine(1))
            return multiple()
        made = one.vector + factor * other.vector
        values = exact(combined((1, one.values), (factor, other.values)))
        is_vector(made, values)
        return Vector(made, one.base, values)

    @rule(one=vectors, target=vectors)
    def minus(self, one: Vector) -> Vector:
        return Vector(-one.vector, one.base, combined((-1, one.values)))

    # Models

    def edited(self, one: Vector, scale: float) -> tuple[Any, Dense]:
        model = Checkpoint(self.paths[one.base]) + scale * one.vector
        return model, exact(combined((1, self.bases_of[one.base]), (scale, exact(one.values))))

    @rule(one=vectors, scale=factors, workers=engines, folder=st.booleans(), target=tuned)
    def add(self, one: Vector, scale: float, workers: int, folder: bool) -> Tuned:
        model, values = self.edited(one, scale)
        path = self.new("" if folder else ".safetensors")
        model.save(path, shard_size=30, engine=Engine(workers))
        holds(path, values)
        return Tuned(self.keep(path), one.base, values)

    @rule(one=vectors)
    def negate_in_memory(self, one: Vector) -> None:
        model, values = self.edited(one, -1.0)
        found = model.tensors(Engine(1))
        for name, value in values.items():
            np.testing.assert_array_equal(found[name], value)

    @rule(one=vectors)
    def another_base_is_refused(self, one: Vector) -> None:
        path = self.new()
        with pytest.raises(BaseError, match="was taken from the base"):
            (Checkpoint(self.paths[1 - one.base]) + one.vector).save(path, engine=Engine(1))
        assert not path.exists()

    @rule(one=vectors, other=vectors, replace=st.booleans())
    def write_where_something_stands(self, one: Vector, other: Vector, replace: bool) -> None:
        path = self.new("")
        first, before = self.edited(one, 1.0)
        second, after = self.edited(other, 1.0)
        first.save(path, engine=Engine(1))
        if replace:
            second.save(path, replace=True, engine=Engine(1))
        else:
            with pytest.raises(FileError, match="already exists"):
                second.save(path, engine=Engine(1))
        holds(path, after if replace else before)
        self.keep(path)

    @rule(one=vectors, other=vectors, after=st.integers(0, 3), used=st.booleans(), workers=engines)
    def crash(self, one: Vector, other: Vector, after: int, used: bool, workers: int) -> None:
        """An error in the middle of a write: what stood there still does, or nothing does."""
        path = self.new()
        first, before = self.edited(one, 1.0)
        second, values = self.edited(other, 1.0)
        if used:
            first.save(path, engine=Engine(1))
        stopped = False
        try:
            second.save(path, replace=True, engine=Engine(workers, progress=Breaking(after)))
        except Stop:
            stopped = True
        assert stopped or after > 0
        if stopped and not used:
            assert not path.exists()
        else:
            holds(path, before if stopped else values)
            self.keep(path)

    # Libraries

    @rule(data=st.data(), of=st.lists(vectors, min_size=1, max_size=3), target=libraries)
    def fit(self, data: st.DataObject, of: list[Vector]) -> Library:
        """As many atoms as tasks lose nothing but rounding."""
        same = [one for one in of if one.base == of[0].base and not zero(one.values)]
        assume(same)
        method = data.draw(st.sampled_from(["svd", "pca"]))
        tasks = {f"t{n}": exact(one.values) for n, one in enumerate(same)}
        path = self.new()
        design = Design(k=len(same), method=method, normalize="none")
        vectors = {f"t{n}": one.vector for n, one in enumerate(same)}
        fit(vectors, path, design, engine=Engine(data.draw(engines)))
        self.gives_back(path, tasks)
        return Library(self.keep(path), of[0].base, tasks)

    @staticmethod
    def gives_back(path: Path, tasks: dict[str, Dense]) -> None:
        library = Basis.open(path)
        assert library.names == tuple(tasks)
        largest = max(np.abs(value).max() for one in tasks.values() for value in one.values())
        for name, values in tasks.items():
            is_vector(library[name], values, tolerance=1e-5 * max(largest, 1.0))

    @rule(library=libraries, one=vectors, target=libraries)
    def update(self, library: Library, one: Vector) -> Any:
        path, name = self.new(), f"t{len(library.tasks)}"
        if one.base != library.base:
            with pytest.raises(BaseError, match="was taken from the base"):
                update(Basis.open(library.path), name, one.vector, path, engine=Engine(1))
            assert not path.exists()
            return multiple()
        assume(len(library.tasks) < 4 and not zero(one.values))
        tasks = {**library.tasks, name: exact(one.values)}
        update(Basis.open(library.path), name, one.vector, path, k=len(tasks), engine=Engine(1))
        self.gives_back(path, tasks)
        return Library(self.keep(path), library.base, tasks)

    @rule(library=libraries, data=st.data())
    def recover(self, library: Library, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(library.tasks)))
        path = self.new()
        opened = Basis.open(library.path)
        (Checkpoint(self.paths[library.base]) - opened[name]).save(path, engine=Engine(1))
        largest = max(
            float(np.abs(v).max()) for one in library.tasks.values() for v in one.values()
        )
        found = open_tensors(path)
        for key, value in combined(
            (1, self.bases_of[library.base]), (-1, library.tasks[name])
        ).items():
            np.testing.assert_allclose(
                found[key].load(), value, rtol=0, atol=1e-5 * max(largest, 1)
            )

    # What always holds

    @rule(data=st.data())
    def reopen(self, data: st.DataObject) -> None:
        """Anything written before is as it was, and its digests say so."""
        ours = sorted(path for path in self.written if path not in self.paths)
        assume(ours)
        path = data.draw(st.sampled_from(ours))
        try:
            assert verify(path, engine=Engine(1)).intact
        except FileError as error:
            assert "carries no digests" in str(error)  # noqa: PT017 - written by another program

    @invariant()
    def nothing_is_left_or_changed(self) -> None:
        names = [path.name for path in self.folder.iterdir()]
        assert not [name for name in names if name.startswith(".")]
        for path, content in self.written.items():
            assert self.bytes_of(path) == content


@pytest.mark.promise(
    "Extract, add, negate, fit, update, recover, write, reopen and a crash in the middle of a "
    "write, in any order: results equal those of a dense model in memory, inputs and earlier "
    "outputs never change, and nothing half-written is left."
)
def test_the_library_is_its_dense_model() -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=MORE or 40,
            stateful_step_count=25,
            derandomize=not MORE,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
