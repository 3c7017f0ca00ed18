"""From what people type to vectors: a vector file, a tuned checkpoint, or LIB:NAME."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from taskbasis import stored
from taskbasis.difference import excluded
from taskbasis.errors import UsageError
from taskbasis.io.adapter import Adapter, is_adapter, open_adapter
from taskbasis.io.remote import located, open_anywhere
from taskbasis.library.basis import Basis
from taskbasis.masks import Masks
from taskbasis.recipe import Combination, Term
from taskbasis.scores import Importance, Moments
from taskbasis.vectors import Checkpoint, TaskVector


def open_vector(
    spec: str, base: Checkpoint | None = None, exclude: Sequence[str] = ()
) -> TaskVector:
    """The task vector that ``spec`` names.

    Args:
        spec: a stored task vector; a fine-tuned checkpoint, whose delta to ``base`` is meant; a
            LoRA adapter of ``base``; or ``LIB:NAME``, a task of a basis.
        base: what checkpoints were fine-tuned from and adapters belong to.
        exclude: patterns of tensors to leave out.

    Raises:
        UsageError: a checkpoint without a base, or a basis without the name of a task.
        FileError: nothing readable is there.
    """
    library, colon, task = spec.rpartition(":")
    if colon and not Path(spec).exists() and Path(library).exists():
        return _without(Basis.open(library)[task], exclude)
    adapter = is_adapter(located(spec))
    store = None if adapter else open_anywhere(spec)
    record = None if store is None else stored.decode(store)
    if store is not None and record is not None and record["kind"] == stored.VECTOR:
        # Not opened again: that would take as long as all else until work begins.
        opened = TaskVector.of(Combination((Term(stored.vector_leaf(store)),)))
        return _without(opened, exclude)
    if record is not None and record["kind"] != stored.BASIS:
        raise UsageError(f"{spec} is {stored.NAMES[record['kind']]}, not a task vector")
    if record is not None:
        names = Basis.open(spec).names
        known = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
        raise UsageError(f"{spec} is a basis; name one of its tasks as {spec}:NAME ({known})")
    if base is None:
        what = "an adapter" if adapter else "a checkpoint, not a task vector"
        raise UsageError(
            f"{spec} is {what}; pass its base with --base, or extract the vector first"
        )
    return TaskVector(base, spec, exclude)


def _without(vector: TaskVector, exclude: Sequence[str]) -> TaskVector:
    """The vector without tensors matching a pattern; one the base lacks too is refused."""
    terms = []
    for term in vector.combination.terms:
        infos, base = term.leaf.infos, term.leaf.base
        gone = excluded(exclude, {*infos, *base.digests})
        kept = {name: info for name, info in infos.items() if name not in gone}
        rules = term.leaf.rules
        known = {*rules.get("excluded", ()), *gone}
        if known:
            rules = {**rules, "excluded": tuple(sorted(known))}
        terms.append(replace(term, leaf=replace(term.leaf, infos=kept, rules=rules)))
    return TaskVector.of(Combination(tuple(terms)))


def task_name(spec: str) -> tuple[str, str]:
    """A task's name and the rest of ``NAME=PATH``; by default the stem of the file or folder.

    >>> task_name("math=runs/7/model"), task_name("vectors/code.safetensors")
    (('math', 'runs/7/model'), ('code', 'vectors/code.safetensors'))
    """
    name, equals, path = spec.partition("=")
    if equals and name and not Path(spec).exists():
        return name, path
    library, colon, task = spec.rpartition(":")
    if colon and Path(library).exists():
        return task, spec
    path_of = Path(_without_revision(spec))
    return (path_of.stem if path_of.suffix == ".safetensors" else path_of.name), spec


def _without_revision(spec: str) -> str:
    """``owner/name@revision`` of the hub without its revision; a path that exists as it is."""
    path, _, revision = spec.partition("@")
    plain = path.count("/") == 1 and "/" not in revision and not Path(spec).exists()
    return path if spec.startswith("hf://") or plain else spec


def named_specs(specs: Sequence[str], what: str = "vectors") -> list[tuple[str, str]]:
    """Names and paths, as :func:`task_name` tells them; revisions of one model keep theirs.

    Raises:
        UsageError: two have the same name.

    >>> named_specs(["org/x@v1", "org/y@v1"]), named_specs(["org/x@v1", "org/x@v2"])
    ([('x', 'org/x@v1'), ('y', 'org/y@v1')], [('x@v1', 'org/x@v1'), ('x@v2', 'org/x@v2')])
    """
    pairs = [task_name(spec) for spec in specs]
    names = [name for name, _ in pairs]
    for at, (name, path) in enumerate(pairs):
        if names.count(name) > 1 and path in specs and path != _without_revision(path):
            pairs[at] = (Path(path).name, path)
    found: set[str] = set()
    for name, _ in pairs:
        if name in found:
            raise UsageError(f"two {what} are called {name!r}; name them as NAME=PATH")
        found.add(name)
    return pairs


def open_vectors(
    specs: Sequence[str], base: Checkpoint | None = None, exclude: Sequence[str] = ()
) -> dict[str, TaskVector]:
    """Vectors by task name, in the order given.

    Raises:
        UsageError: two have the same name, or a pattern matches no tensor of any.
    """
    found: dict[str, TaskVector] = {}
    pairs = named_specs(specs)
    tensors = {path: _tensor_names(path, base) if exclude else set[str]() for _, path in pairs}
    excluded(exclude, set().union(*tensors.values()))
    for name, path in pairs:
        own = [p for p in exclude if any(fnmatchcase(tensor, p) for tensor in tensors[path])]
        found[name] = open_vector(path, base, own)
    return found


def _tensor_names(spec: str, base: Checkpoint | None) -> set[str]:
    """What a pattern may match: the tensors of the vector or checkpoint, and of its base."""
    library, colon, _ = spec.rpartition(":")
    path = library if colon and not Path(spec).exists() and Path(library).exists() else spec
    if is_adapter(located(path)):
        adapter = open_adapter(located(path))
        return {*adapter.infos, *adapter.copies, *(base.store if base is not None else ())}
    found = open_any(path)
    if isinstance(found, Basis):
        return {*found.contents.shapes, *found.contents.base.digests}
    if isinstance(found, TaskVector):
        return {name for leaf in found.combination.leaves for name in leaf.base_names}
    return {*open_anywhere(path), *(base.store if base is not None else ())}


Anything = Checkpoint | TaskVector | Basis | Importance | Moments | Masks | Adapter

_OPENERS: dict[str, Callable[[str | Path], Anything]] = {
    stored.VECTOR: TaskVector.open,
    stored.BASIS: Basis.open,
    stored.IMPORTANCE: Importance.open,
    stored.MOMENTS: Moments.open,
    stored.MASK: Masks.open,
}


def open_any(path: str | Path) -> Anything:
    """Whatever stands at ``path``: a checkpoint, an adapter, or what taskbasis writes.

    Raises:
        FileError: nothing readable is there.
    """
    folder = located(path)
    if is_adapter(folder):
        return open_adapter(folder)
    record = stored.decode(open_anywhere(path))
    if record is None:
        return Checkpoint(path)
    return _OPENERS[record["kind"]](path)
