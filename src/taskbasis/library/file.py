"""How a basis is laid out in a file, and how it is read back.

    atom.0:NAME, atom.1:NAME, ...   the atoms' tensors, in the stored dtype
    basis.encoder, basis.decoder    codes, float64: [groups, N, M] and [groups, M, T], zero-padded
    basis.addition, basis.gram      [groups, M] and [groups, N, N], float64
    basis.error                     [groups, T] squared norm that each task loses, float64
    metadata "taskbasis"            names, groups, options, base, version

Random atoms are not stored: the seed is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskbasis import stored
from taskbasis.basis.codes import Codes
from taskbasis.engine import Engine
from taskbasis.errors import HeaderError, UsageError
from taskbasis.io.digests import digest
from taskbasis.io.dtypes import BY_CODE, F64, DType
from taskbasis.io.noise import noise_tensor
from taskbasis.io.tensors import TensorInfo, TensorStore
from taskbasis.io.writer import OutputTensor, Staged
from taskbasis.library.groups import Group
from taskbasis.passes import Former, write
from taskbasis.plan import Plan
from taskbasis.recipe import Binding, Leaf

_DAMAGE = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, UsageError)
"""What reading a record that is not what it should be can raise."""

ARRAYS = ("encoder", "decoder", "addition", "gram", "error")


@dataclass(frozen=True, eq=False)
class Contents:
    """All of a basis but its atoms' numbers.

    Attributes:
        names: the tasks.
        shapes: of every tensor that any task changes.
        groups: tensors that share codes.
        base: what the tasks were taken from.
        options: how it was made: method, normalize, granularity, seed and so on.
        dtype: of the stored atoms; None when they are regenerated from the seed.
    """

    names: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    groups: tuple[Group, ...]
    base: Binding
    options: Mapping[str, Any] = field(default_factory=dict)
    dtype: DType | None = None

    @property
    def atoms(self) -> int:
        """The largest number of atoms that any group has."""
        return max((group.atoms for group in self.groups), default=0)

    def group_of(self) -> dict[str, Group]:
        """The group of every tensor."""
        return {tensor: group for group in self.groups for tensor in group.tensors}


def atom_key(index: int, tensor: str) -> str:
    """The name under which an atom's tensor is stored.

    >>> atom_key(2, "encoder.weight")
    'atom.2:encoder.weight'
    """
    return f"atom.{index}:{tensor}"


def layout(contents: Contents) -> list[OutputTensor]:
    """Every tensor of the file, codes first."""
    found = [
        OutputTensor(f"basis.{name}", F64, array.shape)
        for name, array in code_arrays(contents.groups).items()
    ]
    if contents.dtype is None:
        return found
    return found + [
        OutputTensor(atom_key(index, tensor), contents.dtype, contents.shapes[tensor])
        for index in range(contents.atoms)
        for group in contents.groups
        for tensor in (group.tensors if index < group.atoms else ())
    ]


def code_arrays(groups: Sequence[Group]) -> dict[str, NDArray[np.float64]]:
    """The groups' codes as arrays with a leading axis of groups, padded with zeros."""
    parts = [
        {
            "encoder": group.codes.encoder,
            "decoder": group.codes.decoder,
            "addition": group.codes.addition,
            "gram": group.gram,
            "error": group.error,
        }
        for group in groups
    ]
    return {name: _padded([part[name] for part in parts]) for name in ARRAYS}


def _padded(arrays: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    shape = tuple(np.max([array.shape for array in arrays], axis=0))
    found = np.zeros((len(arrays), *shape))
    for row, array in zip(found, arrays, strict=True):
        row[tuple(slice(length) for length in array.shape)] = array
    return found


def record(contents: Contents) -> dict[str, str]:
    """The metadata of the file."""
    return stored.encode(
        stored.BASIS,
        {
            "names": list(contents.names),
            "shapes": {name: list(shape) for name, shape in contents.shapes.items()},
            "groups": [
                {
                    "name": group.name,
                    "tensors": list(group.tensors),
                    "atoms": group.atoms,
                    "mean_atom": group.codes.mean_atom,
                }
                for group in contents.groups
            ],
            "options": dict(contents.options),
            "dtype": contents.dtype.code if contents.dtype else None,
            "base": stored.encode_binding(contents.base),
        },
    )


def parse(store: TensorStore) -> Contents:
    """Read a basis back; its atoms are left on the disk.

    Raises:
        HeaderError: the file is not a basis, or its parts do not fit together.
    """
    content = stored.decode(store)
    if content is None or content["kind"] != stored.BASIS:
        raise HeaderError(f"{store.path}: is not a basis; make one with 'taskbasis basis fit'")
    try:
        contents = _parse(store, content)
        _check(contents)
        expectations = layout(contents)
    except _DAMAGE as error:
        raise HeaderError(f"{store.path}: its record is damaged ({error!r})") from None
    for expected in expectations:
        found = store.infos.get(expected.name)
        if found is None or (found.dtype, found.shape) != (expected.dtype, expected.shape):
            raise HeaderError(
                f"{store.path}: tensor {expected.name!r} is missing or not "
                f"{expected.dtype.name} of shape {list(expected.shape)}"
            )
    strangers = store.infos.keys() - {expected.name for expected in expectations}
    if strangers:
        raise HeaderError(
            f"{store.path}: holds {len(strangers)} tensors that its record does not name, e.g. "
            f"{min(strangers)!r}"
        )
    return contents


def _check(contents: Contents) -> None:
    """Refuse sizes that contradict each other."""
    tasks, tensors = len(contents.names), [t for group in contents.groups for t in group.tensors]
    if len(set(contents.names)) != tasks or len(set(tensors)) != len(tensors):
        raise ValueError("a name twice")
    if not all(group.tensors for group in contents.groups) or not tensors:
        raise ValueError("a group without tensors")
    if any(length < 0 for shape in contents.shapes.values() for length in shape):
        raise ValueError("tensors that cannot be")
    if contents.dtype is None:
        int(contents.options["seed"])
    elif not contents.dtype.mergeable:
        raise ValueError(f"atoms of {contents.dtype.name}")
    for group in contents.groups:
        vectors = len(group.codes.encoder)
        sizes = (group.codes.tasks, group.error.shape, group.gram.shape)
        if sizes != (tasks, (tasks,), (vectors, vectors)):
            raise ValueError(f"codes of the group {group.name!r} that do not fit {tasks} tasks")


def _parse(store: TensorStore, content: Mapping[str, Any]) -> Contents:
    arrays = {name: store.infos[f"basis.{name}"].load() for name in ARRAYS}
    if not all(np.all(np.isfinite(array)) for array in arrays.values()):
        raise ValueError("codes that are not finite")
    groups = tuple(
        _group(entry, {name: array[number] for name, array in arrays.items()})
        for number, entry in enumerate(content["groups"])
    )
    shapes = {name: tuple(map(int, shape)) for name, shape in content["shapes"].items()}
    dtype = content["dtype"]
    return Contents(
        tuple(map(str, content["names"])),
        {tensor: shapes[tensor] for group in groups for tensor in group.tensors},
        groups,
        stored.decode_binding(store, content),
        dict(content["options"]),
        None if dtype is None else BY_CODE[dtype],
    )


def _group(entry: Mapping[str, Any], arrays: Mapping[str, NDArray[np.float64]]) -> Group:
    atoms = int(entry["atoms"])
    if not 0 <= atoms <= arrays["encoder"].shape[1]:
        raise ValueError(f"{atoms} atoms")
    codes = Codes(
        arrays["encoder"][:, :atoms],
        arrays["decoder"][:atoms],
        arrays["addition"][:atoms],
        bool(entry["mean_atom"]),
    )
    return Group(
        str(entry["name"]),
        tuple(map(str, entry["tensors"])),
        codes,
        arrays["gram"],
        arrays["error"],
    )


def noise_leaf(index: int, seed: int, shapes: Mapping[str, tuple[int, ...]], base: Binding) -> Leaf:
    """The ``index``-th seeded random vector, as something that can be read."""
    infos = {name: noise_tensor(name, shape, seed, index) for name, shape in shapes.items()}
    return Leaf(f"noise {index} of seed {seed}", infos, False, base)


def atom_leaves(store: TensorStore, contents: Contents) -> list[Leaf]:
    """The stored atoms as leaves, with the model's tensor names."""
    leaves = []
    for index in range(contents.atoms):
        infos = {
            tensor: _renamed(store.infos[atom_key(index, tensor)], tensor)
            for group in contents.groups
            for tensor in (group.tensors if index < group.atoms else ())
        }
        label = f"atom {index} of {store.path}"
        files = (store.path, *store.files)
        leaves.append(Leaf(label, infos, False, contents.base, files))
    return leaves


def _renamed(info: TensorInfo, name: str) -> TensorInfo:
    return TensorInfo(name, info.dtype, info.shape, info.blob, info.offset)


def save_basis(
    contents: Contents,
    make: Callable[[Staged], Sequence[Group]],
    out: str | Path,
    *,
    shard_size: int | None,
    replace_used: bool,
    inputs: Iterable[Path],
    resume: bool = False,
) -> None:
    """Write a basis: ``make`` writes the atoms and returns the groups as they came out."""
    codes = [array.tobytes() for array in code_arrays(contents.groups).values()]
    with Staged(
        out,
        layout(contents),
        record(contents),
        shard_size=shard_size,
        replace=replace_used,
        inputs=inputs,
        stem=stored.BASIS,
        recipe=digest(b"".join(codes)),
        resume=resume,
    ) as staged:
        for name, array in code_arrays(make(staged)).items():
            staged.write_array(f"basis.{name}", array)
        staged.commit()


def write_atoms(
    plan: Plan, staged: Staged, contents: Contents, former: Former, engine: Engine
) -> list[NDArray[np.float64]]:
    """Write the atoms that ``former`` makes of the plan's vectors, all in one pass.

    Returns:
        Per group, [T] the squared norm of what rounding the atoms takes from each recovered
        task: ``sum_m W[m, t]^2 * ||rounding of atom m||^2``, rounding errors of different atoms
        taken as orthogonal.
    """
    groups = contents.group_of()
    names = {
        tensor: [atom_key(index, tensor) for index in range(group.atoms)]
        for tensor, group in groups.items()
    }
    totals = write(plan, staged, former, names.__getitem__, False, engine)
    found = []
    for group in contents.groups:
        rounded = [
            sum(float(totals[atom_key(index, tensor)][1]) for tensor in group.tensors)
            for index in range(group.atoms)
        ]
        found.append(np.asarray((group.codes.decoder**2).T @ np.asarray(rounded)))
    return found
