"""Gradients of single samples, folded into sums as they come, in three ways.

``hooked`` runs a backward pass per batch and frees each parameter's gradient the moment it is
folded, so that one gradient is alive at a time. ``vectorised`` takes the gradients of many samples
in one pass with torch.func, where a module allows it. With batches of one sample both give the
same sums but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from taskbasis.errors import ValueProblem
from taskbasis.learn.problem import Problem
from taskbasis.learn.runtime import device_of, over_tensors, torch_for


@dataclass(frozen=True)
class Group:
    """A few samples that are looked at together.

    Attributes:
        numbers: which samples of the problem.
        batch: what its collate made of them, on the module's device.
    """

    numbers: tuple[int, ...]
    batch: Any = field(repr=False)


def groups_of(problem: Problem, numbers: Sequence[int], size: int) -> Iterator[Group]:
    """The samples in batches of at most ``size``, in order."""
    device = device_of(problem.module)
    for start in range(0, len(numbers), size):
        chosen = tuple(numbers[start : start + size])
        batch = problem.collate([problem.samples[number] for number in chosen])
        yield Group(chosen, over_tensors(batch, lambda tensor: tensor.to(device)))


def alike(problem: Problem, numbers: Sequence[int]) -> list[list[int]]:
    """The samples sorted into those whose batches of one have equal shapes, so none needs padding.

    Transformers decides by a mask's values which way to go, which torch.func does not allow;
    without padding there is no mask.
    """
    found: dict[str, list[int]] = {}
    for number in numbers:
        shapes: list[str] = []
        over_tensors(
            problem.collate([problem.samples[number]]),
            lambda tensor, into=shapes: into.append(str(tuple(tensor.shape))),  # type: ignore[misc]
        )
        found.setdefault(" ".join(shapes), []).append(number)
    return list(found.values())


@dataclass
class Sums:
    """What is kept of the gradients: per parameter, one float32 sum over samples.

    Attributes:
        summed: ``abs``, ``signed`` or ``square``.
        values: the sums, by parameter.
    """

    summed: str
    values: dict[str, Any]

    @classmethod
    def zeros(cls, summed: str, parameters: Mapping[str, Any]) -> Sums:
        """No sample yet."""
        torch = torch_for("summing gradients")
        return cls(
            summed,
            {
                name: torch.zeros(p.shape, dtype=torch.float32, device=p.device)
                for name, p in parameters.items()
            },
        )

    def add(self, name: str, gradient: Any, samples: int) -> None:
        """Fold in the gradient of the mean loss of a few samples, which count as that many."""
        one = gradient.detach().float()
        if self.summed == "abs":  # not in place: a view of it may still be on its way backwards
            self.values[name].add_(one.abs(), alpha=samples)
        elif self.summed == "square":
            self.values[name].addcmul_(one, one, value=samples)
        else:
            self.values[name].add_(one, alpha=samples)

    def add_each(self, name: str, gradients: Any, samples: int) -> None:
        """Fold in the gradients [samples, ...] of single samples."""
        del samples
        many = gradients.detach().float()
        if self.summed == "abs":
            many = many.abs()
        elif self.summed == "square":
            many = many.square()
        self.values[name].add_(many.sum(0))


Fold = Callable[[str, Any, int], None]
"""Takes a parameter's name, its gradient, and how many samples it stands for."""

Done = Callable[[int], None]
"""Told how many samples were just done."""


def hooked(
    problem: Problem,
    groups: Iterable[Group],
    parameters: Mapping[str, Any],
    fold: Fold,
    done: Done,
) -> None:
    """One backward pass per group, through the mean of its losses.

    Only ``parameters`` take gradients. Each is folded and freed as soon as the pass has made it.

    Raises:
        ValueProblem: a loss is not finite; the message names the samples.
    """
    size = 0

    def take(parameter: Any, name: str) -> None:
        gradient, parameter.grad = parameter.grad, None
        fold(name, gradient, size)

    handles = []
    try:
        for name, parameter in parameters.items():
            parameter.requires_grad_(True)
            handles.append(
                parameter.register_post_accumulate_grad_hook(
                    lambda tensor, name=name: take(tensor, name)
                )
            )
        for group in groups:
            size = len(group.numbers)
            losses = problem.loss(problem.module, group.batch)
            _check_losses(losses.detach(), group.numbers)
            if losses.requires_grad:
                losses.mean().backward()
            done(size)
    finally:
        for handle in handles:
            handle.remove()
        for parameter in parameters.values():
            parameter.grad = None
            parameter.requires_grad_(False)


def vectorised(
    problem: Problem,
    groups: Iterable[Group],
    parameters: Mapping[str, Any],
    fold: Fold,
    done: Done,
) -> None:
    """The gradients [n, ...] of all samples of a group in one pass, by ``vmap(grad)``.

    Raises:
        ValueProblem: a loss is not finite; the message names the sample.
        RuntimeError: torch.func cannot do it for this module.
    """
    torch = torch_for("per-sample gradients")
    losses = _as_module(torch, problem)
    frozen = {f"module.{name}": p.detach() for name, p in parameters.items()}

    def one(values: Mapping[str, Any], sample: Any) -> Any:
        batch = over_tensors(sample, lambda tensor: tensor.unsqueeze(0))
        return torch.func.functional_call(losses, dict(values), (batch,))[0]

    each = torch.func.vmap(torch.func.grad_and_value(one), in_dims=(None, 0))
    for group in groups:
        gradients, values = each(frozen, group.batch)
        _check_losses(values, group.numbers)
        for name in parameters:
            fold(name, gradients.pop(f"module.{name}"), len(group.numbers))
        done(len(group.numbers))


def _as_module(torch: Any, problem: Problem) -> Any:
    """The problem's loss as a module's forward, which is what functional_call calls."""

    class Losses(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.module = problem.module

        def forward(self, batch: Any) -> Any:
            return problem.loss(self.module, batch)

    return Losses()


def _check_losses(losses: Any, numbers: Sequence[int]) -> None:
    if tuple(losses.shape) != (len(numbers),):
        raise ValueProblem(
            f"the loss gave shape {list(losses.shape)} for {len(numbers)} samples; it must give "
            "one number for each, [n] (reduction='none')"
        )
    finite = losses.isfinite()
    if not bool(finite.all()):
        number = numbers[int((~finite).nonzero()[0])]
        raise ValueProblem(
            f"the loss of sample {number} is {float(losses[numbers.index(number)])}; look for NaN "
            "in the weights, or for a sample without content"
        )


def blame(problem: Problem, numbers: Sequence[int], name: str, parameter: Any) -> int | None:
    """The first sample whose gradient of one parameter is not finite; None when none is."""
    found: list[int] = []
    current = [0]

    def look(_: str, gradient: Any, samples: int) -> None:
        del samples
        if not bool(gradient.isfinite().all()):
            found.append(current[0])

    for group in groups_of(problem, numbers, 1):
        current[0] = group.numbers[0]
        hooked(problem, [group], {name: parameter}, look, lambda count: None)
        if found:
            return found[0]
    return None
