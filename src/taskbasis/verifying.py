"""Whether a file or folder still holds what was written, tensor by tensor."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from taskbasis import stored
from taskbasis.digest import PIECE, digests_of, store_digests
from taskbasis.engine import Engine
from taskbasis.errors import FileError, HeaderError, TaskbasisError, UsageError
from taskbasis.io import digests
from taskbasis.io.folder import weight_map_of
from taskbasis.io.regular import read_json, read_regular
from taskbasis.io.safetensors import read_safetensors
from taskbasis.io.suffixes import INDEX_SUFFIX, SAFETENSORS
from taskbasis.io.tensors import TensorInfo, TensorStore
from taskbasis.sidefiles import RECIPE_FILE

_NUMBERED = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})\.safetensors")
_ADAPTER = "adapter_config.json"
_RECORDED = (RECIPE_FILE, _ADAPTER, "config.json")
"""What is never written without a record of it."""


@dataclass(frozen=True)
class Fault:
    """One thing that is not as it was written.

    Attributes:
        file: the file or folder.
        tensor: the tensor, where it is one.
        what: what is wrong with it, as the rest of a sentence.
    """

    file: str
    tensor: str | None
    what: str

    def __str__(self) -> str:
        of = f"tensor {self.tensor!r} " if self.tensor is not None else ""
        return f"{self.file}: {of}{self.what}"


@dataclass(frozen=True)
class Verified:
    """What was compared with its digests, and what differs.

    Attributes:
        path: what was verified.
        kind: what it is: "a checkpoint", "a task vector", "a basis" and so on.
        tensors: how many tensors were read and compared.
        files: how many files, those beside the weights included.
        nbytes: bytes of the tensors read.
        faults: what is not as it was written; none where all is.
    """

    path: Path
    kind: str
    tensors: int
    files: int
    nbytes: int
    faults: tuple[Fault, ...]

    @property
    def intact(self) -> bool:
        """Whether everything is as it was written."""
        return not self.faults

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return {**asdict(self), "path": str(self.path), "intact": self.intact}


def verify(
    path: str | Path, base: TensorStore | None = None, engine: Engine | None = None
) -> Verified:
    """Compare a file or folder that taskbasis wrote with the digests recorded when it was.

    Every tensor is read. Files beside the weights are compared too, all but the README and those
    whose names begin with a dot. A fault is reported, not raised: a tensor or file that differs,
    is missing, or is not of the record.

    Args:
        path: a checkpoint, task vector, basis, adapter, mask, scores or moments.
        base: compare also with the base it is bound to, tensor by tensor.

    Raises:
        FileError: nothing is there, or nothing was recorded that it could be compared with.
        UsageError: a base for what is bound to none.

    >>> from taskbasis import TaskVector
    >>> folder = getfixture("tiny_checkpoints")
    >>> saved = TaskVector(folder / "base", folder / "math").save(folder / "math.safetensors")
    >>> verify(saved.path).intact
    True
    >>> with open(saved.path, "r+b") as file:
    ...     _ = file.seek(-1, 2), file.write(b"?")
    >>> [fault.tensor for fault in verify(saved.path).faults]
    ['weight']
    """
    path, engine = Path(path), engine or Engine()
    if not path.exists():
        raise FileError(f"{path}: no such file or folder")
    listing = _weights(path)
    faults = list(listing.faults)
    opened, recorded = [], False
    for file in listing.files:
        try:
            store = read_safetensors(file)
            record = digests.read_record(file, store.metadata)
        except TaskbasisError as error:
            faults.append(_unreadable(file, error))
            continue
        if record is None:
            faults.append(Fault(str(file), None, "carries no digests"))
            continue
        recorded = True
        opened.append((file, store, record))
    if not recorded and all(fault.what == "carries no digests" for fault in faults):
        raise FileError(
            f"{path}: carries no digests, so there is nothing to verify it against; what "
            "taskbasis writes does"
        )
    bound = _bound([store for _, store, _ in opened], path, base) if base is not None else None
    for file, store, record in opened:
        faults += _compared_names(file, store, record)
    faults += _compared_values(opened, engine)
    faults += _placed(path, opened)
    beside, more = _beside(path)
    if base is not None and bound is not None:
        more = [*more, *_of_base(*bound, path, base, engine)]
    return Verified(
        path,
        _kind(path, [store for _, store, _ in opened]),
        sum(len(store) for _, store, _ in opened),
        len(opened) + beside,
        sum(store.nbytes for _, store, _ in opened),
        (*faults, *more),
    )


Opened = tuple[Path, TensorStore, digests.FileRecord]


@dataclass(frozen=True)
class _Listing:
    files: tuple[Path, ...]
    faults: tuple[Fault, ...]


def _weights(path: Path) -> _Listing:
    """The weight files, and those that should be there or should not."""
    if path.is_file():
        if path.suffix != SAFETENSORS:
            raise FileError(f"{path}: carries no digests; only {SAFETENSORS} files can")
        return _Listing((path,), ())
    there = sorted(item.name for item in path.iterdir() if item.name.endswith(SAFETENSORS))
    try:
        wanted = _wanted(path, there)
    except HeaderError as error:
        return _Listing(tuple(path / name for name in there), (_unreadable(path, error),))
    if not wanted and not there:
        raise FileError(f"{path}: holds no {SAFETENSORS} file, so nothing can be verified")
    missing = [Fault(str(path / n), None, "is missing") for n in sorted(wanted - set(there))]
    extra = sorted(set(there) - wanted) if wanted else []
    strange = [Fault(str(path / n), None, "is not among the files written") for n in extra]
    chosen = [name for name in there if name in wanted or not wanted]
    return _Listing(tuple(path / name for name in chosen), (*missing, *strange))


def _wanted(path: Path, there: Sequence[str]) -> set[str]:
    """The weight files that the folder's record, its index, or their own names speak of."""
    found: set[str] = set()
    if (path / digests.FILE).is_file():
        found |= set(_folder_record(path).weights)
    for index in sorted(path.glob(f"*{INDEX_SUFFIX}")):
        found |= set(_weight_map(index).values())
    for name in there:
        parts = _NUMBERED.fullmatch(name)
        if parts is not None:
            count = int(parts["count"])
            found |= {
                f"{parts['stem']}-{n:05d}-of-{count:05d}{SAFETENSORS}" for n in range(1, count + 1)
            }
    return {name for name in found if Path(name).name == name}


def _folder_record(path: Path) -> digests.FolderRecord:
    file = path / digests.FILE
    try:
        return digests.read_folder_record(file, read_regular(file).decode())
    except UnicodeDecodeError:
        raise HeaderError(f"{file}: the record of digests is damaged: it is no text") from None


def _weight_map(index: Path) -> dict[str, str]:
    return weight_map_of(read_json(index), index)


def _unreadable(file: Path, error: TaskbasisError) -> Fault:
    return Fault(str(file), None, f"cannot be read: {str(error).removeprefix(f'{file}: ')}")


def _compared_names(file: Path, store: TensorStore, record: digests.FileRecord) -> Iterator[Fault]:
    if not record.intact:
        yield Fault(str(file), None, "has other metadata than was written")
    for name in sorted(record.tensors.keys() - store.keys()):
        yield Fault(str(file), name, "is missing")
    for name in sorted(store.keys() - record.tensors.keys()):
        yield Fault(str(file), name, "is not among those written")


def _compared_values(opened: Sequence[Opened], engine: Engine) -> Iterator[Fault]:
    known: list[tuple[Path, TensorInfo, str]] = [
        (file, info, record.tensors[name])
        for file, store, record in opened
        for name, info in store.items()
        if name in record.tensors
    ]
    found = digests_of([info for _, info, _ in known], engine.within(PIECE), "verify")
    for (file, info, expected), now in zip(known, found, strict=True):
        if now != expected:
            yield Fault(str(file), info.name, "differs from what was written")


def _placed(path: Path, opened: Sequence[Opened]) -> Iterator[Fault]:
    """What an index says wrongly of the files that could be read."""
    if path.is_file():
        return
    stores: Mapping[str, TensorStore] = {file.name: store for file, store, _ in opened}
    for index in sorted(path.glob(f"*{INDEX_SUFFIX}")):
        try:
            placed = _weight_map(index)
        except HeaderError:
            continue  # said already
        for name, file in sorted(placed.items()):
            if file in stores and name not in stores[file]:
                yield Fault(str(index), name, f"is placed in {file}, which lacks it")
        for file, store in stores.items():
            for name in sorted(store.keys() - {n for n, f in placed.items() if f == file}):
                yield Fault(str(index), name, f"is not placed in {file}, which holds it")


def _beside(path: Path) -> tuple[int, list[Fault]]:
    """How many files beside the weights are recorded, and what is wrong with them."""
    record = path / digests.FILE
    if path.is_file():
        return 0, []
    if not record.is_file():
        named = [name for name in _RECORDED if (path / name).is_file()]
        what = f"is missing, so {', '.join(named)} cannot be compared"
        return 0, [Fault(str(record), None, what)] if named else []
    try:
        files = _folder_record(path).files
    except HeaderError:
        return 0, []  # said already
    faults = [
        Fault(str(path / name), None, "is not among the files written")
        for name in sorted(_files_beside(path) - files.keys())
    ]
    for name, expected in sorted(files.items()):
        file = path / name
        if path not in file.parents or ".." in file.parts:
            faults.append(Fault(str(path / digests.FILE), None, f"names {name!r}, outside it"))
        elif not file.is_file():
            faults.append(Fault(str(file), None, "is missing"))
        elif digests.digest(file.read_bytes()) != expected:
            faults.append(Fault(str(file), None, "differs from what was written"))
    return len(files), faults


def _files_beside(path: Path) -> set[str]:
    """The files of a folder that a record would name: weights and indexes have their own."""
    found = set()
    for file in path.rglob("*"):
        inside = file.relative_to(path)
        hidden = any(part.startswith(".") for part in inside.parts)
        weights = len(inside.parts) == 1 and file.name.endswith((SAFETENSORS, INDEX_SUFFIX))
        if not (hidden or weights or file.is_dir()):
            found.add(inside.as_posix())
    return found - {digests.FILE, *digests.EDITED}


def _record_of(stores: Sequence[TensorStore]) -> tuple[TensorStore, dict[str, Any]] | None:
    for store in stores:
        try:
            content = stored.decode(store)
        except HeaderError:
            continue
        if content is not None:
            return store, content
    return None


def _kind(path: Path, stores: Sequence[TensorStore]) -> str:
    found = _record_of(stores)
    if found is not None:
        return stored.NAMES[found[1]["kind"]]
    return "an adapter" if (path / _ADAPTER).is_file() else "a checkpoint"


def _bound(
    stores: Sequence[TensorStore], path: Path, base: TensorStore
) -> tuple[str, Mapping[str, str]]:
    """What is recorded of the base, or of the model that was learnt of: its tensors' digests."""
    found = _record_of(stores)
    what = next((w for w in ("base", "model") if found is not None and found[1].get(w)), None)
    if found is None or what is None:
        raise UsageError(f"{path}: records no base, so it cannot be compared with {base.path}")
    return what, stored.decode_binding(*found, what).digests


def _of_base(
    what: str, bound: Mapping[str, str], path: Path, base: TensorStore, engine: Engine
) -> Iterator[Fault]:
    now = store_digests(base, engine)
    for name in sorted(bound.keys() | now.keys()):
        if name not in now:
            yield Fault(str(base.path), name, f"is missing; the {what} of {path} has it")
        elif name not in bound:
            yield Fault(str(base.path), name, f"is not in the {what} of {path}")
        elif now[name] != bound[name]:
            yield Fault(str(base.path), name, f"differs from the {what} of {path}")
