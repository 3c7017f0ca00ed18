"""Signed sums of LoRA adapters: their factors side by side, and back to a smaller rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from taskbasis.adapters import whole_tensors
from taskbasis.engine import Engine
from taskbasis.errors import MismatchError, UsageError, ValueProblem, finite, nearest
from taskbasis.io.adapter import Adapter, open_adapter
from taskbasis.io.dtypes import DType, floating
from taskbasis.io.lowrank import LowRank
from taskbasis.io.remote import located, open_anywhere
from taskbasis.io.tensors import TensorStore
from taskbasis.lora.factors import Cutoff, compressed, distance, product_norm
from taskbasis.lora.folder import Head, Module, Pair, check_out, find_targets, stored, write_adapter
from taskbasis.lora.made import Made, Row
from taskbasis.lora.rules import ZERO, module_of, modules_of
from taskbasis.methods.matrices import Matrix
from taskbasis.recipe import Naming, find_naming


@dataclass(frozen=True)
class Part:
    """One adapter's factors of one module, and the weight they have in the sum."""

    label: str
    weight: float
    pair: LowRank

    def factors(self) -> tuple[Matrix, Matrix]:
        """B times scaling and weight, and A; of a convolution as matrices."""
        up = np.asarray(self.pair.up.load(), np.float64).reshape(-1, self.pair.rank)
        down = np.asarray(self.pair.down.load(), np.float64).reshape(self.pair.rank, -1)
        if not np.all(np.isfinite(up)) or not np.all(np.isfinite(down)):
            raise ValueProblem(
                f"{self.pair.up.where}: a value of its factors is NaN or infinite; repair the "
                "adapter, or leave it out"
            )
        return up * (self.weight * self.pair.scaling), down


def add_adapters(
    adapters: Mapping[str, str | Path],
    weights: Mapping[str, float] | Sequence[float],
    out: str | Path,
    rank: int | None = None,
    energy: float | None = None,
    *,
    base: str | Path | None = None,
    base_name: str | None = None,
    dtype: str = "float32",
    replace_used: bool = False,
    engine: Engine | None = None,
) -> Made:
    """Write the signed sum of LoRA adapters as one adapter.

    ``sum_t w_t s_t B_t A_t = [w_1 s_1 B_1, w_2 s_2 B_2, ...] [A_1; A_2; ...]``, module by module,
    with s_t the adapter's own scaling there (alpha / r, or alpha / sqrt(r) for rsLoRA). Nothing is
    approximated: A is stored as it is, and B is rounded once, to ``dtype``. Ranks add up. A module
    that only some adapters have is zero in the others.

    With ``rank`` or ``energy`` the sum is truncated to the nearest product of fewer columns
    (:func:`~taskbasis.lora.factors.compressed`), and what is missed is stated.

    The base is not read, so adapters that name different ones are refused. Averaging A and B
    apart, as is often done, is something else: ``(B_1 + B_2)(A_1 + A_2)`` has products of factors
    of different adapters.

    Args:
        adapters: folders by name.
        weights: by name (1 where none is given), or one for each in order.
        out: the folder to write.
        rank, energy: how much of every module's sum is kept; all when neither is given.
        base: the base's weights; every adapter is then checked against them.
        base_name: what the config calls the base; settles it where adapters name different ones.
        dtype: of the stored factors.

    Raises:
        UsageError: a weight of 0, an unknown name, nothing to add.
        MismatchError: shapes differ, or the adapters belong to different models.
        ValueProblem: a value is not finite, or the sum is zero.
    """
    engine, kind = engine or Engine(), floating(dtype)
    cutoff = None if rank is None and energy is None else Cutoff(rank, energy)
    shares = _weights(adapters, weights)
    opened = {name: open_adapter(located(path)) for name, path in adapters.items()}
    inputs = [path for adapter in opened.values() for path in (adapter.path, *adapter.files)]
    folder = check_out(out, replace_used, [*inputs, *([located(base)] if base else [])])
    store = None if base is None else open_anywhere(base)
    _check_copies(opened, store)
    _check_naming(opened)
    named = _base_name(opened, base_name, base)
    parts = _by_module(opened, shares)
    _check_lying(parts)
    modules = [_module(name, found) for name, found in parts.items()]
    sums = {} if cutoff is None else _compress(parts, modules, cutoff, kind, engine)
    if cutoff is not None:
        ranks = {name: row.rank for name, (_, row) in sums.items()}
        modules = [replace(one, rank=ranks[one.name]) for one in modules if ranks[one.name]]
        if not modules:
            raise ValueProblem(f"{folder}: the sum is zero in every module; there is nothing left")
    kept = {module.name for module in modules}
    others = None if store is None else modules_of(store) - kept
    about = Head(
        named,
        find_targets(kept, others),
        any(part.pair.transposed for found in parts.values() for part in found if not _table(part)),
        None,
    )

    def make(module: Module) -> tuple[Pair, Row]:
        return sums.get(module.name) or _sum(parts[module.name], module.name, None, kind)

    text = " + ".join(f"{shares[name]:g} * {name}" for name in opened)
    nbytes, rows = write_adapter(
        folder,
        modules,
        make,
        about,
        lambda rows: _card(text, cutoff, rows),
        kind,
        replace=replace_used,
        inputs=inputs,
        engine=engine,
    )
    zero = tuple(sorted(parts.keys() - kept))
    return Made(folder, nbytes, rows, {ZERO: zero} if zero else {})


def _weights(
    adapters: Mapping[str, str | Path], weights: Mapping[str, float] | Sequence[float]
) -> dict[str, float]:
    names = list(adapters)
    if not names:
        raise UsageError("there is no adapter to add; give at least one")
    if isinstance(weights, Mapping):
        for name in weights:
            if name not in adapters:
                raise UsageError(f"there is no adapter {name!r}; {nearest(name, names)}")
        found = {name: float(weights.get(name, 1.0)) for name in names}
    elif len(weights) not in (0, len(names)):
        raise UsageError(f"{len(names)} adapters ({', '.join(names)}) need as many weights")
    else:
        found = dict(zip(names, map(float, weights or [1.0] * len(names)), strict=True))
    for name, weight in found.items():
        if not finite(f"the weight of {name!r}", weight):
            raise UsageError(f"the weight of {name!r} is 0; leave the adapter out")
    return found


def _check_copies(opened: Mapping[str, Adapter], base: TensorStore | None) -> None:
    """Every adapter against the base; refuse whole tensors that were trained beside factors."""
    for adapter in opened.values():
        if base is not None:
            for trained in whole_tensors(adapter, base):
                raise MismatchError(
                    f"{trained.where} was trained whole, so no factors hold its change; make a "
                    "model of it instead: taskbasis merge BASE ADAPTER ADAPTER -o OUT"
                )
        elif adapter.copies:
            copy = next(iter(adapter.copies.values()))
            raise MismatchError(
                f"{copy.where} is a whole tensor beside the factors; give the base with --base, "
                "to see whether it was trained, too"
            )


def _check_naming(opened: Mapping[str, Adapter]) -> None:
    """Refuse adapters whose modules differ by a prefix: their models are of two classes."""
    (first, own), *rest = opened.items()
    for name, other in rest:
        naming = find_naming(own.infos, other.infos)
        if naming != Naming():
            raise MismatchError(
                f"{other.path} and {own.path} call the same modules differently (one puts "
                f"{(naming.tuned or naming.base)!r} before all of them): {name!r} and {first!r} "
                "were trained in models of two classes; train or save them in one"
            )


def _base_name(opened: Mapping[str, Adapter], given: str | None, base: str | Path | None) -> str:
    if given is not None:
        return given
    names = {adapter.base_name: adapter for adapter in opened.values() if adapter.base_name}
    if len(names) > 1 and base is None:
        (one, first), (two, second) = list(names.items())[:2]
        raise MismatchError(
            f"{first.path} was trained on the base {one!r} and {second.path} on {two!r}; deltas of "
            "two bases do not mix. If both are the same, say what it is called with --base-name"
        )
    return next(iter(names)) if len(names) == 1 else str(base or "")


def _table(part: Part) -> bool:
    return part.pair.down.name.endswith("lora_embedding_A")


def _by_module(opened: Mapping[str, Adapter], shares: Mapping[str, float]) -> dict[str, list[Part]]:
    """The parts of every module, in the order of the adapters."""
    found: dict[str, list[Part]] = {}
    for name, adapter in opened.items():
        for tensor, info in adapter.infos.items():
            assert isinstance(info.blob, LowRank)
            part = Part(name, shares[name], info.blob)
            known = found.setdefault(module_of(tensor), [])
            if known:
                _check_alike(module_of(tensor), known[0], part)
            known.append(part)
    return dict(sorted(found.items()))


def _check_alike(module: str, one: Part, other: Part) -> None:
    ours, theirs = _shape(one), _shape(other)
    if _table(one) != _table(other):
        raise MismatchError(
            f"module {module!r} is an embedding in {(one if _table(one) else other).label} and a "
            f"linear layer in {(other if _table(one) else one).label}; they belong to two models"
        )
    if ours != theirs:
        raise MismatchError(
            f"{other.pair.up.where}: the module is {theirs} (out, in) there, but {ours} in "
            f"{one.pair.up.blob.label}; the adapters belong to models of two sizes"
        )


def _check_lying(parts: Mapping[str, Sequence[Part]]) -> None:
    """Refuse adapters that say both of linear layers: the sum's config says one of all."""
    sides: dict[bool, tuple[str, Part]] = {}
    for module, found in parts.items():
        for part in found:
            if not _table(part) and len(part.pair.down.shape) == 2:
                sides.setdefault(part.pair.transposed, (module, part))
    if len(sides) > 1:
        (turned, one), (straight, other) = sides[True], sides[False]
        raise MismatchError(
            f"{one.label} sets fan_in_fan_out (for {turned!r}) and {other.label} does not (for "
            f"{straight!r}), but their sum has one config; set it alike in both: true where the "
            "model is made of Conv1D, as GPT-2 is"
        )


def _shape(part: Part) -> tuple[tuple[int, ...], tuple[int, ...]]:
    up, down = part.pair.up.shape, part.pair.down.shape
    return (up[0], *up[2:]), down[1:]


def _module(name: str, parts: Sequence[Part]) -> Module:
    up, down = _shape(parts[0])
    rank = sum(part.pair.rank for part in parts)
    return Module(name, rank, up, down, _table(parts[0]))


def _sum(
    parts: Sequence[Part], module: str, cutoff: Cutoff | None, dtype: DType
) -> tuple[Pair, Row]:
    """The stored factors of a module's sum, and how far their product is from it."""
    ups, downs = zip(*(part.factors() for part in parts), strict=True)
    whole = np.concatenate(ups, axis=1), np.concatenate(downs)
    kept = whole if cutoff is None else compressed(*whole, cutoff)
    pair = (stored(kept[0], dtype, module), stored(kept[1], dtype, module))
    wide = (pair[0].astype(np.float64), pair[1].astype(np.float64))
    return pair, Row(module, kept[0].shape[1], product_norm(*whole), _missed(whole, wide))


def _missed(whole: tuple[Matrix, Matrix], kept: tuple[Matrix, Matrix]) -> float:
    """``||B A - D C||_F``; where A was not touched, of the difference of B and D alone."""
    if whole[1].shape == kept[1].shape and np.array_equal(whole[1], kept[1]):
        return product_norm(whole[0] - kept[0], whole[1])
    return distance(whole, kept)


def _compress(
    parts: Mapping[str, Sequence[Part]],
    modules: Sequence[Module],
    cutoff: Cutoff,
    dtype: DType,
    engine: Engine,
) -> dict[str, tuple[Pair, Row]]:
    """Every module's sum, truncated: ranks are known only then, so all are held."""

    def size(module: Module) -> int:
        return module.rank * (module.up[0] + int(np.prod(module.down)))

    held = sum(
        cutoff.most(module.rank) * (module.up[0] + int(np.prod(module.down))) * dtype.itemsize
        for module in modules
    )
    engine = engine.within(8 * 6 * max(map(size, modules)), held)

    def work(module: Module, scratch: object) -> tuple[Pair, Row]:
        return _sum(parts[module.name], module.name, cutoff, dtype)

    with closing(engine.map(work, modules, size, "compress")) as results:
        return {module.name: found for module, found in zip(modules, results, strict=True)}


def _card(text: str, cutoff: Cutoff | None, rows: Sequence[Row]) -> str:
    error = Made(Path(), 0, tuple(rows)).error
    how = "exactly, by concatenation" if cutoff is None else f"truncated ({cutoff})"
    return f"Sum of LoRA adapters, {how}: {text}.\n\nRelative error (Frobenius): {error:.3g}."
