"""Second moments of activations, over a task's inputs, written to a file.

RegMean and LOT merge a linear weight by what enters it: they need E[x x^T] of each task, a
calibration pass over a few samples, without gradients or labels.

Source: RegMean (Jin et al., ICLR 2023).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskbasis import stored
from taskbasis.engine import Engine, resident_bytes
from taskbasis.errors import MemoryCapError, UsageError, ValueProblem
from taskbasis.io.tensors import TensorStore
from taskbasis.io.writer import DEFAULT_SHARD
from taskbasis.learn.accounts import Accounts, account
from taskbasis.learn.gradients import Group, groups_of
from taskbasis.learn.inputs import TRANSPOSED, Use, add_input, uses
from taskbasis.learn.problem import Problem, draw
from taskbasis.learn.runtime import looking_at
from taskbasis.learn.weights import Weights
from taskbasis.recipe import Binding
from taskbasis.scores import Moments, MomentsWriter, Origin
from taskbasis.units import bytes_text
from taskbasis.vectors import Checkpoint, as_checkpoint

WIDEST = 8192
"""Inputs with more numbers than this have no moment, unless asked: it would be their square."""

ROUND_BYTES = 4 << 30
"""What the sums of one round over the samples may take, without a memory cap."""

_FOR_ACTIVATIONS = 0.25


def moments(
    problem: Problem,
    out: str | Path,
    *,
    model: str | Path | Checkpoint,
    samples: int = 256,
    seed: int = 0,
    batch: int = 8,
    widest: int = WIDEST,
    exclude: Sequence[str] = (),
    shard_size: int | None = DEFAULT_SHARD,
    replace: bool = False,
    engine: Engine | None = None,
) -> Moments:
    """Collect the second moment of what enters every weight, and write them to a file.

    See :mod:`~taskbasis.learn.inputs` for what enters what. Padding is left out. Parameters
    without one are named by rule: ``no moment``, ``too wide``, ``unreached``. Products are
    float32, sums float64; where not all sums fit at once, the samples are gone through in several
    rounds, with the same result. Weights stored as [in, out] are listed in the option
    ``transposed``. A tied weight has the moment of its first use.

    Args:
        problem: a module, samples and a loss, which is computed but not looked at.
        out: a ``.safetensors`` file, or a folder of shards for any other name.
        model: the checkpoint; the module is given its weights.
        samples, seed: how many are looked at, and how they are drawn.
        batch: samples per forward pass.
        widest: the largest size of an input whose moment is kept.
        exclude: patterns (``*`` and ``?``) of tensors to leave out.
        shard_size, replace: as for any output.
        engine: workers (torch's threads), memory cap and progress; torch's own threads when None.

    Raises:
        MismatchError: the module and the file do not fit together.
        ValueProblem: no parameter has a moment, or an activation is not finite.
        MemoryCapError: not even one moment at a time fits under the cap.
    """
    for what, value in (("batch", batch), ("widest", widest)):
        if value < 1:
            raise UsageError(f"{what} is {value}; give 1 or more")
    store = as_checkpoint(model).store
    numbers = draw(len(problem.samples), samples, seed)
    work = Engine() if engine is None else engine
    accounts = account(store, problem.names, problem.rules, exclude)
    weights = Weights(dict(problem.names), store)
    weights.check(problem.module)
    files = _Files(out, store, shard_size, replace, work)
    steps = _Steps(problem, numbers, batch)
    with looking_at(problem.module, engine.workers if engine else None) as torch, torch.no_grad():
        weights.put(problem.module)
        found, rules = _sorted_out(problem, accounts, numbers[0], widest)
        transposed = [accounts.wanted[u.parameter] for u in found if u.kind == TRANSPOSED]
        options = {
            "samples": len(numbers),
            "available": len(problem.samples),
            "seed": seed,
            "batch": batch,
            "transposed": sorted(transposed),
            **problem.about,
        }
        _collect(files, steps, found, accounts.wanted, options, rules)
    return Moments.open(out)


@dataclass(frozen=True)
class _Files:
    """What is read and written, and how."""

    out: str | Path
    store: TensorStore
    shard_size: int | None
    replace: bool
    engine: Engine


@dataclass(frozen=True)
class _Steps:
    """The forward passes of one round."""

    problem: Problem
    numbers: Sequence[int]
    batch: int

    def groups(self) -> Iterator[Group]:
        return groups_of(self.problem, self.numbers, self.batch)


def _collect(
    files: _Files,
    steps: _Steps,
    found: Sequence[Use],
    names: Mapping[str, str],
    options: Mapping[str, Any],
    rules: Mapping[str, tuple[str, ...]],
) -> None:
    """Write the moments of all uses, round by round."""
    store, engine = files.store, files.engine
    model = stored.bind(Binding(str(store.path), store), engine)
    parts = _rounds(found, engine.memory)
    total = len(steps.numbers) * len(parts) * store.nbytes
    with (
        MomentsWriter(
            files.out,
            {names[use.parameter]: use.shape for use in found},
            Origin(model, None, options, rules),
            shard_size=files.shard_size,
            replace=files.replace,
            inputs=(store.path, *store.files),
        ) as writer,
        engine.progress.task(f"activations of {len(steps.numbers)} samples", total) as tick,
    ):
        for part in parts:
            sums, counts = _summed(steps, part, lambda count: tick(count * store.nbytes))
            for name in list(sums):
                mean = sums.pop(name).div_(max(counts[name], 1)).cpu().numpy()
                writer.write(names[name], mean, counts[name])
        writer.commit()


def _sorted_out(
    problem: Problem, accounts: Accounts, number: int, widest: int
) -> tuple[list[Use], dict[str, tuple[str, ...]]]:
    """The uses whose moments are kept, and every other tensor by rule."""
    wanted = accounts.wanted
    every = uses(problem.module, wanted)
    narrow = [use for use in every if len(use.shape) < 2 or use.shape[0] <= widest]
    called: set[str] = set()
    with _hooked(narrow, lambda use, given: called.add(use.parameter)):
        for group in groups_of(problem, [number], 1):
            problem.loss(problem.module, group.batch)
    kept = [use for use in narrow if use.parameter in called]
    if not kept:
        raise ValueProblem("no parameter of the module has a moment; look at the problem's names")
    known = {use.parameter for use in every}
    rules = {
        "no moment": [name for name in wanted if name not in known],
        "too wide": [use.parameter for use in every if use not in narrow],
        "unreached": [use.parameter for use in narrow if use.parameter not in called],
    }
    named = {r: tuple(sorted(wanted[n] for n in names)) for r, names in rules.items() if names}
    return kept, {**accounts.rules, **named}


@contextmanager
def _hooked(found: Sequence[Use], look: Callable[[Use, Any], None]) -> Iterator[None]:
    """Call ``look(use, input)`` whenever one of the modules is called."""
    handles = [
        use.part.register_forward_pre_hook(
            lambda part, args, kwargs, use=use: look(use, (*args, *kwargs.values())[0]),
            with_kwargs=True,
        )
        for use in found
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _summed(
    steps: _Steps, part: Sequence[Use], done: Callable[[int], None]
) -> tuple[dict[str, Any], dict[str, int]]:
    """The sums of one round's moments, and how many inputs went into each."""
    sums: dict[str, Any] = {}
    counts = dict.fromkeys((use.parameter for use in part), 0)
    for use in part:
        place = use.part._parameters["weight"]
        sums[use.parameter] = place.new_zeros(use.shape).double()
    now: dict[str, Any] = {}

    def look(use: Use, given: Any) -> None:
        counts[use.parameter] += add_input(
            use, sums[use.parameter], given, now["samples"], now["real"]
        )

    mask = steps.problem.row_mask
    with _hooked(part, look):
        for group in steps.groups():
            found = mask(group.batch) if mask is not None else None
            now["samples"], now["real"] = (
                len(group.numbers),
                None if found is None else found.bool(),
            )
            steps.problem.loss(steps.problem.module, group.batch)
            done(len(group.numbers))
    return sums, counts


def _rounds(found: Sequence[Use], memory: int | None) -> list[list[Use]]:
    """The uses in rounds whose sums fit into the memory.

    Raises:
        MemoryCapError: the largest does not fit.
    """
    room = ROUND_BYTES
    largest = max(8 * math.prod(use.shape) for use in found)
    if memory is not None:  # beside the sums stand one product and one copy to be written
        room = int((memory - resident_bytes()) * (1 - _FOR_ACTIVATIONS)) - largest
        if room < largest:
            raise MemoryCapError(
                f"a memory cap of {bytes_text(memory)} is too small: the program and the weights "
                f"are {bytes_text(resident_bytes())}, and the largest moment needs "
                f"{bytes_text(int(2 * largest / (1 - _FOR_ACTIVATIONS)))} more"
            )
    rounds: list[list[Use]] = [[]]
    filled = 0
    for use in found:
        size = 8 * math.prod(use.shape)
        if rounds[-1] and filled + size > room:
            rounds.append([])
            filled = 0
        rounds[-1].append(use)
        filled += size
    return rounds
