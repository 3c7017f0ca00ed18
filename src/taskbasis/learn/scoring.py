"""Importance of every parameter for a task, measured once and written to a file.

Source: Selective Task Arithmetic, arXiv 2411.16139: ``I_ij = |theta_i * dL_j/dtheta_i|``, the mean
over samples j. What is contested or may be better is an option (see :class:`~.how.How`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from taskbasis import stored
from taskbasis.engine import Engine
from taskbasis.errors import UsageError, ValueProblem, nearest
from taskbasis.io.dtypes import floating
from taskbasis.io.tensors import TensorStore
from taskbasis.io.writer import DEFAULT_SHARD
from taskbasis.learn.accounts import Accounts, account
from taskbasis.learn.gradients import Sums, blame
from taskbasis.learn.how import How
from taskbasis.learn.magnitude import sources
from taskbasis.learn.problem import Problem, draw
from taskbasis.learn.rounds import Way, choose_way, reached, split_rounds
from taskbasis.learn.runtime import looking_at
from taskbasis.learn.weights import Weights
from taskbasis.recipe import Binding
from taskbasis.scores import Importance, ImportanceWriter, Origin
from taskbasis.vectors import Checkpoint, as_checkpoint

Model = str | Path | Checkpoint


def importance(
    problem: Problem | None,
    out: str | Path,
    *,
    model: Model,
    base: Model | None = None,
    exclude: Sequence[str] = (),
    dtype: str = "float16",
    shard_size: int | None = DEFAULT_SHARD,
    replace: bool = False,
    engine: Engine | None = None,
    **how: Any,
) -> Importance:
    """Score every parameter of a model for a task, and write the scores to a file.

    The module is given the weights of the model's file (and of the base's, where gradients are
    taken there) and has the model's when this returns. Its dtype stays; sums are float32.
    Equal inputs give equal bytes on one machine with one number of threads.

    Memory: the weights, one sum per parameter, and one gradient at a time. Where an engine's cap
    leaves less, the parameters are done in several rounds over the samples, with the same result.

    Args:
        problem: a module, samples and a loss; None for the factor ``magnitude``.
        out: a ``.safetensors`` file, or a folder of shards for any other name.
        model: the tuned checkpoint.
        base: what it was tuned from, where the factor or the place of the gradients asks for it.
        exclude: patterns (``*`` and ``?``) of tensors that are not scored.
        dtype: scores are stored as float16 or float32.
        shard_size, replace: as for any output.
        engine: workers (torch's threads), memory cap and progress; torch's own threads when None.
        **how: the fields of :class:`~taskbasis.learn.how.How`: factor, aggregation, at, points,
            samples, seed, gradients, batch. The factor is ``delta`` where a base is given, and
            ``weight`` otherwise.

    Raises:
        UsageError: choices that do not fit together, or a base is needed and missing.
        MismatchError: the module and the files do not fit together; the message names the tensor.
        ValueProblem: a loss or gradient is not finite; the message names the tensor and sample.
        MemoryCapError: not even one parameter at a time fits under the cap.
    """
    chosen = How(**with_factor(_known(how), base is not None))
    if floating(dtype).name not in ("float16", "float32"):
        raise UsageError(f"scores are stored as float16 or float32, not {dtype}")
    tuned, start = as_checkpoint(model).store, None if base is None else as_checkpoint(base).store
    work = Engine() if engine is None else engine
    files = _Files(out, tuned, start, work, floating(dtype), shard_size, replace)
    if chosen.factor == "magnitude":
        _without_data(problem, chosen, files, exclude)
    else:
        if problem is None:
            raise UsageError(
                f"the factor {chosen.factor} needs data; give a task, or use the factor magnitude"
            )
        if chosen.needs_base and start is None:
            what = f"gradients at {chosen.at!r}" if chosen.at != "tuned" else chosen.factor
            raise UsageError(
                f"{what} needs the model that this one was tuned from; name it with --base"
            )
        accounts = account(tuned, problem.names, problem.rules, exclude)
        weights = Weights(dict(problem.names), tuned, start)
        weights.check(problem.module)
        with looking_at(problem.module, engine.workers if engine else None):
            try:
                _from_data(problem, chosen, files, accounts, weights)
            finally:
                weights.put(problem.module)
    return Importance.open(out)


@dataclass(frozen=True)
class _Files:
    """What is read and written."""

    out: str | Path
    tuned: TensorStore
    base: TensorStore | None
    engine: Engine
    dtype: Any
    shard_size: int | None
    replace: bool

    def writer(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        options: Mapping[str, Any],
        rules: Mapping[str, tuple[str, ...]],
    ) -> ImportanceWriter:
        """A writer bound to the model and, where it is used, the base."""
        bound = [
            stored.bind(Binding(str(store.path), store), self.engine)
            for store in (self.tuned, self.base)
            if store is not None
        ]
        origin = Origin(bound[0], bound[1] if len(bound) > 1 else None, options, rules)
        used = [path for s in (self.tuned, self.base) if s for path in (s.path, *s.files)]
        return ImportanceWriter(
            self.out,
            shapes,
            origin,
            self.dtype,
            shard_size=self.shard_size,
            replace=self.replace,
            inputs=used,
        )


def _without_data(problem: Problem | None, how: How, files: _Files, exclude: Sequence[str]) -> None:
    if problem is not None or how != How(factor="magnitude"):
        raise UsageError("the factor magnitude needs no data; leave out the task and its options")
    found, rules = sources(files.tuned, files.base, exclude)
    shapes = {name: source.tuned.shape for name, source in found.items()}
    of = "weights" if files.base is None else "delta"
    total = sum(source.tuned.nbytes for source in found.values())
    with (
        files.writer(shapes, {"factor": "magnitude", "of": of}, rules) as writer,
        files.engine.progress.task("magnitude", total) as tick,
    ):
        for name in sorted(found):
            writer.write(name, found[name].magnitude())
            tick(found[name].tuned.nbytes)
        writer.commit()


def _from_data(
    problem: Problem, how: How, files: _Files, accounts: Accounts, weights: Weights
) -> None:
    numbers = draw(len(problem.samples), how.samples, how.seed)
    known = dict(problem.module.named_parameters())
    parameters = {name: known[name] for name in accounts.wanted}
    weights.put(problem.module, how.shares[0])
    rounds, free = split_rounds(parameters, files.engine.memory)
    hit = reached(problem, numbers[0], parameters)
    if not hit:
        raise ValueProblem(
            "the loss depends on none of the parameters that are scored; look at the problem's "
            "loss and names"
        )
    way = choose_way(problem, how, numbers, rounds[0], free)
    missed = tuple(sorted(accounts.wanted[name] for name in parameters.keys() - hit))
    rules = {**accounts.rules, **({"unreached": missed} if missed else {})}
    options = {
        **how.record(len(numbers), way.kind),
        "available": len(problem.samples),
        "weights": str(next(iter(parameters.values())).dtype).removeprefix("torch."),
        **problem.about,
    }
    shapes = {stored: files.tuned[stored].shape for stored in accounts.wanted.values()}
    size = sum(parameter.nbytes for parameter in parameters.values())
    total = len(numbers) * len(how.shares) * size
    with (
        files.writer(shapes, options, rules) as writer,
        files.engine.progress.task(f"gradients of {len(numbers)} samples", total) as tick,
    ):
        for part in rounds:
            sums = _summed(problem, how, way, weights, part, tick)
            for name in part:
                mean = _mean(problem, how, way, weights, name, part[name], sums)
                writer.write(
                    accounts.wanted[name],
                    how.finish(
                        mean,
                        lambda name=name: weights.at(name, 1.0).float(),
                        lambda name=name: weights.delta(name),
                    ).numpy(),
                )
        writer.commit()


def _summed(
    problem: Problem, how: How, way: Way, weights: Weights, part: Mapping[str, Any], tick: Any
) -> Sums:
    """The sums over all samples and points for one round's parameters."""
    sums = Sums.zeros(how.summed, part)
    size = sum(parameter.nbytes for parameter in part.values())
    for share in how.shares:
        if len(how.shares) > 1:
            weights.put(problem.module, share)
        way.look(problem, part, sums, lambda count: tick(count * size))
    return sums


def _mean(
    problem: Problem, how: How, way: Way, weights: Weights, name: str, parameter: Any, sums: Sums
) -> Any:
    """The mean of one parameter's sum, which is freed; refused when it is not finite."""
    found = sums.values.pop(name)
    numbers = [number for run in way.runs for number in run]
    if not bool(found.isfinite().all()):
        for share in how.shares:
            weights.put(problem.module, share)
            number = blame(problem, numbers, name, parameter)
            if number is not None:
                raise ValueProblem(
                    f"the gradient of {weights.names[name]!r} is not finite for sample {number}; "
                    "leave that sample out, or compute in float32"
                )
        raise ValueProblem(
            f"the gradients of {weights.names[name]!r} are too large to sum in float32; look at "
            "the loss"
        )
    return found.div_(len(numbers) * len(how.shares)).cpu()


def with_factor(how: Mapping[str, Any], based: bool) -> dict[str, Any]:
    """The choices, with the factor that did best: ``delta`` where a base is given, else ``weight``.

    >>> with_factor({"samples": 8}, based=True)
    {'factor': 'delta', 'samples': 8}
    """
    return {"factor": "delta" if based else "weight", **how}


def _known(how: Mapping[str, Any]) -> dict[str, Any]:
    known = [field.name for field in fields(How)]
    for name in how:
        if name not in known:
            raise UsageError(f"importance has no option {name!r}; {nearest(name, known)}")
    return dict(how)
