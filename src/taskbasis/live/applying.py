"""Task vectors added to the weights of a live ``torch.nn.Module``, in place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from taskbasis.binding import check_count, check_learnt
from taskbasis.digest import fingerprint, store_digests
from taskbasis.engine import Engine
from taskbasis.errors import BaseError, MismatchError, UsageError, finite, nearest, require
from taskbasis.io.tensors import TensorStore
from taskbasis.io.writer import MemorySink, OutputTensor
from taskbasis.live.states import groups, like, store_of, tied_as_one
from taskbasis.methods import Method
from taskbasis.methods.elementwise.task_arithmetic import TaskArithmetic
from taskbasis.passes import rounding, write
from taskbasis.recipe import Combination, Leaf, Term, find_naming
from taskbasis.saving import Edit, vector_in_memory
from taskbasis.vectors import EditedModel, TaskVector

_UNCHECKED = "check=False leaves that unchecked"

_NO_BASE = TensorStore(Path("the module"), {})
"""Stands for the base of a vector alone until the module is known."""


@dataclass(frozen=True)
class Applied:
    """What was done to a module.

    Attributes:
        names: the module's tensors that were changed, tied ones under each of their names.
        norm: the Euclidean norm of the delta.
        rounding: the norm of what rounding to the module's dtypes took from it.
    """

    names: tuple[str, ...] = field(repr=False)
    norm: float
    rounding: float

    @property
    def lost(self) -> float:
        """The share of the delta's norm that rounding took; 0 for a zero delta."""
        return self.rounding / self.norm if self.norm else 0.0


def apply(
    change: TaskVector | EditedModel,
    module: Any,
    scale: float = 1.0,
    *,
    check: bool = True,
    engine: Engine | None = None,
) -> Applied:
    """Add a task vector to a live ``torch.nn.Module``, in place, as saving would round it.

    Parameters and buffers become ``base + scale * vector``, rounded once to the dtype they have.
    All is computed before anything is changed, which needs room for a copy of what changes;
    tensors on another device are copied to the CPU and back.

    - The module's weights must be the vector's base, tensor by tensor, in name, dtype, shape and
      value; they are read once to see that. With ``check=False`` only the vector's own tensors
      have to be there, in their shapes, and it is added to whatever they hold.
    - Tied parameters are changed once. One prefix on all names (``module.``, ``_orig_mod.``) is
      seen through; of a model with a new head give the part that was the base.
    - Optimisers and gradients are left alone.

    Args:
        change: a task vector, also one recovered from a basis, or an edited model, whose base (or
            ``onto``) the module then holds.
        module: the live model.
        scale: lambda; for an edited model on top of its own.
        check: whether the module must be the base.
        engine: how the work is done.

    Raises:
        BaseError: the module holds other weights than the vector's base.
        MismatchError: a tensor is missing, unexpected or of another shape, or tied tensors would
            come out different.
        ValueProblem: a value is not finite, or too large for the module's dtype.
        UsageError: the module's weights have no values (``meta``), or cannot be written to.

    >>> import torch
    >>> folder = getfixture("tiny_checkpoints")
    >>> module = torch.nn.Linear(2, 2)
    >>> _ = module.load_state_dict({"weight": torch.zeros(2, 2), "bias": torch.zeros(2)})
    >>> math = TaskVector(folder / "base", folder / "math")
    >>> apply(math, module, scale=0.5, check=False).names
    ('bias', 'weight')
    >>> module.bias.tolist()
    [0.5, 0.5]
    """
    found = _Change.of(change, module, scale, check, engine or Engine())
    found.put(found.arrays)
    return found.applied


@contextmanager
def applied(
    change: TaskVector | EditedModel,
    module: Any,
    scale: float = 1.0,
    *,
    check: bool = True,
    engine: Engine | None = None,
) -> Iterator[Applied]:
    """Like :func:`apply`, for a ``with`` block; after it every tensor has its former bits again.

    What was changed inside the block, by training for instance, is lost for the tensors that the
    vector changes. A copy of those is kept beside the module.

    >>> import torch
    >>> folder = getfixture("tiny_checkpoints")
    >>> module = torch.nn.Linear(2, 2)
    >>> before = module.bias.tolist()
    >>> with applied(TaskVector(folder / "base", folder / "math"), module, check=False):
    ...     module.bias.tolist() == before
    False
    >>> module.bias.tolist() == before
    True
    """
    found = _Change.of(change, module, scale, check, engine or Engine())
    before = {name: found.tensors[name].detach().clone() for name in found.arrays}
    try:
        found.put(found.arrays)
        yield found.applied
    finally:
        found.put(before)


@dataclass(frozen=True, eq=False)
class _Change:
    """What is to be put into a module: arrays by the base's names, one for every tensor."""

    tensors: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]
    applied: Applied

    @classmethod
    def of(
        cls,
        change: TaskVector | EditedModel,
        module: Any,
        scale: float,
        check: bool,
        engine: Engine,
    ) -> _Change:
        finite("the scale", scale)
        tensors, edit = _bound(_edit(change, scale), module, check, engine)
        store, label = edit.target, _label(module)
        arrays, norms = _formed(edit, store, engine)
        own = module.state_dict(keep_vars=True)
        tied = [g for g in groups(tensors, tensors) if not arrays.keys().isdisjoint(g)]
        _refuse_untying(arrays, tied, store, label)
        changed = {id(tensors[name]) for group in tied for name in group}
        touched = tuple(sorted(name for name, value in own.items() if id(value) in changed))
        once = {next(name for name in group if name in arrays) for group in tied}
        kept = {name: array for name, array in arrays.items() if name in once}
        for name in kept:
            refuse_unwritable(tensors[name], f"tensor {name!r} of {label}")
        return cls(tensors, kept, Applied(touched, *norms))

    def put(self, values: Mapping[str, Any]) -> None:
        """Give tensors new values, arrays or tensors, where they are."""
        torch = require("torch", "torch", "a live module")
        with torch.no_grad():
            for name, value in values.items():
                place = self.tensors[name]
                place.copy_(value if isinstance(value, torch.Tensor) else like(value, place))


def bound_edit(
    vectors: Sequence[Combination], method: Method, module: Any, check: bool, engine: Engine
) -> tuple[Mapping[str, Any], Edit]:
    """Vectors on a module that holds their base: its tensors by the base's names, and the edit.

    Raises:
        BaseError, MismatchError, UsageError: as for :func:`apply`.
    """
    return _bound(Edit(_NO_BASE, tuple(vectors), method), module, check, engine)


def _bound(edit: Edit, module: Any, check: bool, engine: Engine) -> tuple[Mapping[str, Any], Edit]:
    torch = require("torch", "torch", "a live module")
    if not isinstance(module, torch.nn.Module):
        raise UsageError(f"a torch.nn.Module is changed, not a {type(module).__name__}")
    label = _label(module)
    names, store = _by_base_names(edit, module, label, check)
    own = module.state_dict(keep_vars=True)
    tensors = {name: own[names[name]] for name in store}
    return tensors, _onto_module(edit, store, check, engine)


def _label(module: Any) -> str:
    return f"the module {type(module).__name__}"


def _formed(
    edit: Edit, store: TensorStore, engine: Engine
) -> tuple[dict[str, NDArray[Any]], tuple[float, float]]:
    """What changes, as arrays by the base's names; the norms of the delta and of what was lost."""
    plan = replace(edit.plan(), copies=())
    sink = MemorySink([OutputTensor(m.name, store[m.name].dtype, m.shape) for m in plan.merges])
    totals = write(plan, sink, edit.former(plan, engine), lambda name: (name,), True, engine)
    return sink.arrays(), rounding(totals)


def refuse_unwritable(value: Any, where: str) -> None:
    """Refuse what torch would refuse half-way through.

    Raises:
        UsageError: naming it.
    """
    torch = require("torch", "torch", "a live module")
    if value.is_inference() and not torch.is_inference_mode_enabled():
        raise UsageError(
            f"{where} was made in torch.inference_mode, where alone it can be changed; do it there"
        )
    if any(n > 1 and step == 0 for n, step in zip(value.shape, value.stride(), strict=True)):
        raise UsageError(f"{where} is an expanded view, whose entries share memory; clone it first")


def _refuse_untying(
    arrays: Mapping[str, NDArray[Any]], tied: Iterable[list[str]], store: TensorStore, label: str
) -> None:
    several = [group for group in tied if len(group) > 1]
    seen = {
        name: arrays[name] if name in arrays else store[name].load()
        for group in several
        for name in group
    }
    advice = "the vector changes them unlike each other, so untie them first"
    tied_as_one(seen, several, label, advice)


def _edit(change: TaskVector | EditedModel, scale: float) -> Edit:
    """The change as what saving takes; of a vector alone the base is not known yet."""
    if isinstance(change, EditedModel):
        edit = change.edit()
        return replace(edit, scale=scale * edit.scale)
    if not isinstance(change, TaskVector):
        raise UsageError(
            f"a task vector or an edited model is applied, not a {type(change).__name__}"
        )
    return Edit(_NO_BASE, (change.combination,), TaskArithmetic(), scale)


def _by_base_names(
    edit: Edit, module: Any, label: str, check: bool
) -> tuple[dict[str, str], TensorStore]:
    """The module's names by the base's, and its tensors under the base's names."""
    torch = require("torch", "torch", "a live module")
    own = {
        name: value
        for name, value in module.state_dict(keep_vars=True).items()
        if isinstance(value, torch.Tensor)
    }
    leaves = [leaf for vector in edit.vectors for leaf in vector.leaves]
    needed = {name for leaf in leaves for name in leaf.infos}
    known = needed | set(edit.target)
    for leaf in leaves if edit.onto is None else ():
        known |= leaf.base_names
    naming = find_naming(known, own)
    names = {naming.to_base(name): name for name in own}
    missing = sorted((known if check else needed) - names.keys())
    if missing:
        raise MismatchError(
            f"{label} has no tensor {missing[0]!r}{_more(missing)} of the base; "
            f"{nearest(missing[0], own)}{'' if missing[0] in needed else f'; {_UNCHECKED}'}"
        )
    kept = {name: names[name] for name in sorted(names.keys() & known)}
    if check:
        _refuse_strangers(own, set(kept.values()), label)
    store = store_of({name: own[inner] for name, inner in kept.items()}, label)
    return kept, store


def _refuse_strangers(own: Mapping[str, Any], known: set[str], label: str) -> None:
    strangers = [
        group[0]
        for group in groups(own, own)
        if known.isdisjoint(group) and own[group[0]].is_floating_point()
    ]
    if strangers:
        raise MismatchError(
            f"{label} has {strangers[0]!r}{_more(strangers)} that the base lacks; give the part "
            f"of it that was the base, or {_UNCHECKED}"
        )


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _onto_module(edit: Edit, store: TensorStore, check: bool, engine: Engine) -> Edit:
    """The edit with the module's weights as what is added to."""
    if edit.onto is not None:
        edit.check(engine)
        theirs, ours = store_digests(edit.onto, engine), store_digests(store, engine)
        if check and fingerprint(theirs) != fingerprint(ours):
            raise BaseError(f"{store.path} does not hold the weights of {edit.onto.path}{_HINT}")
        return replace(edit, onto=store)
    if not check:
        check_learnt(edit.method, edit.vectors, edit.scores, edit.moments, engine)
        check_count(edit.method, len(edit.vectors))
        vectors = tuple(_as_deltas(vector, engine) for vector in edit.vectors)
        return replace(edit, base=store, vectors=vectors)
    found = replace(edit, base=store)
    try:
        found.check(engine)
    except BaseError as error:
        raise BaseError(f"{error}{_HINT}") from None
    return found


_HINT = f" (a model loaded in another dtype holds other weights); {_UNCHECKED}"


def _as_deltas(combination: Combination, engine: Engine) -> Combination:
    """The combination with differences taken now: their base is not the module's weights."""

    def plain(leaf: Leaf) -> Leaf:
        if not leaf.difference:
            return leaf
        delta = vector_in_memory(Combination((Term(replace(leaf, masks={})),)), engine)
        return replace(leaf, infos=store_of(delta, leaf.label).infos, difference=False)

    made = {id(leaf): plain(leaf) for leaf in combination.leaves}
    return Combination(tuple(replace(t, leaf=made[id(t.leaf)]) for t in combination.terms))
