"""How much is done at once: samples per pass, and parameters per round when memory is short."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from taskbasis.engine import resident_bytes
from taskbasis.errors import MemoryCapError, UsageError
from taskbasis.learn.gradients import Group, Sums, alike, groups_of, hooked, vectorised
from taskbasis.learn.how import How
from taskbasis.learn.problem import Problem
from taskbasis.units import bytes_text

PER_SAMPLE_BYTES = 256 << 20
"""What the gradients of the samples of one vectorised pass may take, without a memory cap."""

_WORTH_IT = 4
"""A vectorised pass of fewer samples is not quicker than that many passes."""

_COPIES = 3
"""torch.func holds a gradient about this many times while it is made and folded."""

_FOR_ACTIVATIONS = 0.25
"""The share of the memory left under a cap that is kept free for activations."""


@dataclass(frozen=True)
class Way:
    """How gradients are taken: the kind, and the samples that are looked at together.

    Attributes:
        kind: ``per_sample``, ``single`` or ``batch``.
        size: the largest number of samples in a pass.
        runs: sample numbers that may share a pass.
    """

    kind: str
    size: int
    runs: tuple[tuple[int, ...], ...]

    def look(self, problem: Problem, parameters: Mapping[str, Any], sums: Sums, done: Any) -> None:
        """Fold the gradients of all samples into the sums."""
        for run in self.runs:
            groups = groups_of(problem, run, self.size)
            if self.kind == "per_sample":
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "There is a performance drop")
                    vectorised(problem, groups, parameters, sums.add_each, done)
            else:
                hooked(problem, groups, parameters, sums.add, done)


def choose_way(
    problem: Problem,
    how: How,
    numbers: Sequence[int],
    parameters: Mapping[str, Any],
    free: int | None = None,
) -> Way:
    """The way that was asked for; for ``auto`` the quickest exact one that works.

    Args:
        problem, how: what is measured, and how.
        numbers: the samples that were drawn.
        parameters: those that take gradients together.
        free: bytes that the gradients of a vectorised pass may take; None for the default.

    Raises:
        UsageError: ``per_sample`` was asked for and torch.func cannot do it.
    """
    together = Way("batch", how.batch, (tuple(numbers),))
    one_by_one = Way("single", 1, (tuple(numbers),))
    if how.gradients == "single":
        return one_by_one
    if how.gradients == "batch" or (how.gradients == "auto" and how.summed == "signed"):
        return together
    most = PER_SAMPLE_BYTES if free is None else min(free, PER_SAMPLE_BYTES)
    size = most // (_COPIES * 4 * sum(parameter.numel() for parameter in parameters.values()) or 1)
    if how.gradients == "auto" and size < _WORTH_IT:
        return one_by_one
    runs = tuple(map(tuple, alike(problem, numbers)))
    if how.gradients == "auto" and len(numbers) < 2 * len(runs):
        return one_by_one
    way = Way("per_sample", max(1, size), runs)
    refusal = _refusal(problem, max(runs, key=len)[:2], parameters)
    if refusal is None:
        return way
    if how.gradients == "auto":
        return one_by_one
    raise UsageError(
        f"torch.func cannot take the gradients of this module per sample ({refusal}); "
        "use --gradients single, which gives the same scores"
    )


def _refusal(problem: Problem, numbers: Sequence[int], parameters: Mapping[str, Any]) -> str | None:
    """What torch.func says of two samples; None when it can do them."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            groups = list(groups_of(problem, numbers, len(numbers)))
            vectorised(problem, groups, parameters, lambda *_: None, lambda _: None)
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError) as error:
        return str(error).strip().split("\n")[0][:160] or type(error).__name__
    return None


def reached(problem: Problem, number: int, parameters: Mapping[str, Any]) -> set[str]:
    """The parameters that a gradient comes to from one sample's loss."""
    found: set[str] = set()
    groups: list[Group] = list(groups_of(problem, [number], 1))
    hooked(problem, groups, parameters, lambda name, *_: found.add(name), lambda _: None)
    return found


def split_rounds(
    parameters: Mapping[str, Any], memory: int | None
) -> tuple[list[dict[str, Any]], int | None]:
    """The parameters in rounds whose sums fit into the memory, and what is left for more.

    A round takes its sums (float32) and one gradient at a time; a quarter of what is free under
    the cap is kept for activations.

    Raises:
        MemoryCapError: the largest parameter does not fit.
    """
    if memory is None:
        return [dict(parameters)], None
    free = int((memory - resident_bytes()) * (1 - _FOR_ACTIVATIONS))
    largest = max(parameter.numel() for parameter in parameters.values())
    room = free - 2 * 4 * largest
    if room < 4 * largest:
        raise MemoryCapError(
            f"a memory cap of {bytes_text(memory)} is too small: the program and the weights are "
            f"{bytes_text(resident_bytes())}, and the sums and gradients of the largest tensor "
            f"need {bytes_text(int(12 * largest / (1 - _FOR_ACTIVATIONS)))} more"
        )
    rounds: list[dict[str, Any]] = [{}]
    filled = 0
    for name, parameter in parameters.items():
        if rounds[-1] and filled + 4 * parameter.numel() > room:
            rounds.append({})
            filled = 0
        rounds[-1][name] = parameter
        filled += 4 * parameter.numel()
    return rounds, max(0, room - (filled if len(rounds) == 1 else room))
