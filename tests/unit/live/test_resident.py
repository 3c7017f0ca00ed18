"""Tasks kept beside a live module: the bytes that apply gives, any number of times, and undone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from taskbasis import Design, Engine, TaskVector, apply, fit, select
from taskbasis.errors import BaseError, MismatchError, UsageError, ValueProblem
from taskbasis.live import Resident

torch = pytest.importorskip("torch")
save_file = pytest.importorskip("safetensors.torch").save_file

ENGINE = Engine(workers=1)
NAMES = ("math", "code", "law", "art")


class Net(torch.nn.Module):  # type: ignore[misc,name-defined]
    """Two layers, a counter, a buffer that is a view; the first may be tied to the second."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.one = torch.nn.Linear(5, 5)
        self.two = torch.nn.Linear(5, 5, bias=False)
        self.norm = torch.nn.BatchNorm1d(5)
        if tied:
            self.two.weight = self.one.weight


def net(seed: int, dtype: Any, tied: bool = False) -> Any:
    module = Net(tied).to(dtype)
    random = np.random.default_rng(seed)
    with torch.no_grad():
        for value in module.parameters():
            value.copy_(torch.from_numpy(random.standard_normal(tuple(value.shape))))
    return module


def saved(module: Any, path: Path) -> Path:
    save_file({name: value.clone() for name, value in module.state_dict().items()}, path)
    return path


def bits(module: Any) -> dict[str, bytes]:
    return {
        name: value.detach().reshape(-1).view(torch.uint8).numpy().tobytes()
        for name, value in module.state_dict().items()
    }


@pytest.fixture(params=["float32", "bfloat16", "float16", "float64"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, dict[str, TaskVector]]:
    """The base in a module, and the vectors of four fine-tunes."""
    dtype = getattr(torch, request.param)
    base = saved(net(0, dtype), tmp_path / "base.safetensors")
    vectors = {
        name: TaskVector(base, saved(net(seed, dtype), tmp_path / f"{name}.safetensors"))
        for seed, name in enumerate(NAMES, start=1)
    }
    return net(0, dtype), vectors


def as_applied(module: Any, vector: TaskVector, scale: float = 1.0) -> dict[str, bytes]:
    """What applying once to a copy gives."""
    copy = Net().to(next(module.parameters()).dtype)
    copy.load_state_dict(module.state_dict())
    apply(vector, copy, scale, engine=ENGINE)
    return bits(copy)


@pytest.mark.promise("A resident basis gives a module the bytes that applying or saving does.")
@pytest.mark.parametrize("scale", [1.0, -0.3])
def test_every_task_of_a_basis_is_as_applied(world: Any, tmp_path: Path, scale: float) -> None:
    module, vectors = world
    fit(vectors, tmp_path / "lib.safetensors", Design(k=2), engine=ENGINE)
    from taskbasis import Basis

    basis = Basis.open(tmp_path / "lib.safetensors")
    tasks = {name: basis[name] for name in basis.names}
    wanted = {name: as_applied(module, vector, scale) for name, vector in tasks.items()}
    before = bits(module)
    with Resident(tasks, module, engine=ENGINE) as resident:
        assert resident.names == NAMES
        for name in (*NAMES, *reversed(NAMES)):
            resident.put(name, scale)
            assert bits(module) == wanted[name]
        resident.put(None)
        assert bits(module) == before
        resident.put("law")
    assert bits(module) == before


def test_vectors_of_other_kinds(world: Any, tmp_path: Path) -> None:
    """Differences of checkpoints, sums of them, stored vectors, masked ones."""
    module, vectors = world
    vectors["math"].save(tmp_path / "v.safetensors", engine=ENGINE)
    masks = select({"law": vectors["law"]}, tmp_path / "m.safetensors", engine=ENGINE).masks
    kinds = {
        "difference": vectors["code"],
        "sum": vectors["code"] - 0.25 * vectors["art"],
        "stored": TaskVector.open(tmp_path / "v.safetensors"),
        "masked": masks["law"] * vectors["law"],
    }
    wanted = {name: as_applied(module, vector) for name, vector in kinds.items()}
    resident = Resident(kinds, module, engine=ENGINE)
    for name in kinds:
        resident.put(name)
        assert bits(module) == wanted[name], name


def test_atoms_stay_in_the_dtype_they_are_stored_in(tmp_path: Path) -> None:
    """Two atoms of bfloat16 and a copy of the base, whatever the number of tasks."""
    base = saved(net(0, torch.float32), tmp_path / "base.safetensors")
    vectors = {
        name: TaskVector(base, saved(net(seed, torch.float32), tmp_path / f"{name}.safetensors"))
        for seed, name in enumerate(NAMES, start=1)
    }
    lib = fit(vectors, tmp_path / "lib.safetensors", Design(k=2), dtype="bfloat16", engine=ENGINE)
    module = net(0, torch.float32)
    kept = Resident({name: lib[name] for name in lib.names}, module, engine=ENGINE)
    entries = sum(value.numel() for value in module.parameters())
    floats = entries + sum(v.numel() for v in module.buffers() if v.is_floating_point())
    assert entries * (4 + 2 * 2) <= kept.nbytes <= floats * (4 + 2 * 2)


def test_the_module_must_hold_the_base(world: Any) -> None:
    module, vectors = world
    with torch.no_grad():
        module.one.bias += 1
    before = bits(module)
    with pytest.raises(BaseError, match="a model loaded in another dtype holds other weights"):
        Resident(vectors, module, engine=ENGINE)
    assert bits(module) == before
    resident = Resident(vectors, module, check=False, engine=ENGINE)
    resident.put("math")
    assert bits(module) != before
    resident.put(None)
    assert bits(module) == before


def test_tied_tensors_are_changed_once(tmp_path: Path) -> None:
    def tied(seed: int, name: str) -> Path:
        return saved(net(seed, torch.float32, tied=True), tmp_path / name)

    vector = TaskVector(tied(0, "base.safetensors"), tied(1, "math.safetensors"))
    module, other = net(0, torch.float32, tied=True), net(0, torch.float32, tied=True)
    Resident({"math": vector}, module, engine=ENGINE).put("math", 0.5)
    apply(vector, other, 0.5, engine=ENGINE)
    assert bits(module) == bits(other)
    assert module.one.weight is module.two.weight


def test_a_vector_that_unties_is_refused(tmp_path: Path) -> None:
    base = saved(net(0, torch.float32, tied=True), tmp_path / "base.safetensors")
    apart = net(0, torch.float32)
    with torch.no_grad():
        apart.two.weight.copy_(apart.one.weight + 1)
    tuned = saved(apart, tmp_path / "tuned.safetensors")
    module = net(0, torch.float32, tied=True)
    with pytest.raises(MismatchError, match=r"ties 'one.weight' and 'two.weight'.* untie them"):
        Resident({"x": TaskVector(base, tuned)}, module, engine=ENGINE)


def test_what_is_too_large_is_refused_and_undone(tmp_path: Path) -> None:
    base = saved(net(0, torch.float16), tmp_path / "base.safetensors")
    vector = TaskVector(base, saved(net(1, torch.float16), tmp_path / "math.safetensors"))
    module = net(0, torch.float16)
    before, resident = bits(module), Resident({"math": vector}, module, engine=ENGINE)
    with pytest.raises(ValueProblem, match=r"'math' times 1e\+06 is too large for float16"):
        resident.put("math", 1e6)
    assert bits(module) == before


def test_mistakes(world: Any, tmp_path: Path) -> None:
    module, vectors = world
    with pytest.raises(UsageError, match="there is no task vector to keep"):
        Resident({}, module)
    with pytest.raises(UsageError, match=r"a torch.nn.Module is changed, not a dict"):
        Resident(vectors, {})
    resident = Resident(vectors, module, engine=ENGINE)
    with pytest.raises(UsageError, match="there is no task 'maths'; did you mean 'math'"):
        resident.put("maths")
    with pytest.raises(UsageError, match="scale"):
        resident.put("math", float("nan"))


def test_a_vector_that_is_not_finite(tmp_path: Path) -> None:
    base = saved(net(0, torch.float32), tmp_path / "base.safetensors")
    TaskVector(base, saved(net(1, torch.float32), tmp_path / "t.safetensors")).save(
        tmp_path / "v.safetensors", engine=ENGINE
    )
    path = tmp_path / "v.safetensors"
    vector = TaskVector.open(path)
    info = next(iter(vector.combination.leaves)).infos["one.bias"]
    raw = bytearray(path.read_bytes())
    raw[info.offset : info.offset + 4] = np.float32(np.nan).tobytes()
    path.write_bytes(raw)
    with pytest.raises(ValueProblem, match=r"tensor 'one.bias' of .* NaN or infinite; repair"):
        Resident({"x": TaskVector.open(path)}, net(0, torch.float32), engine=ENGINE)
