"""Torch, quiet and repeatable, with everything put back as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from taskbasis.errors import MemoryCapError, require

_OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")
"""How torch says so, on its various devices."""

EXTRA = "learn"
"""The extra of taskbasis that brings what is needed here."""


def torch_for(purpose: str) -> Any:
    """Torch, or the sentence that says how to install it."""
    return require("torch", EXTRA, purpose)


@contextmanager
def looking_at(module: Any, threads: int | None = None) -> Iterator[Any]:
    """Torch, with the module in eval mode and deterministic; all put back after.

    What is put back: each submodule's mode, each parameter's ``requires_grad`` and gradient, the
    number of threads, and whether torch insists on deterministic algorithms.

    Args:
        module: what will be looked at.
        threads: how many torch may use; as many as it is set to when None.

    Raises:
        MemoryCapError: torch ran out of memory.
    """
    torch = torch_for("learning from data")
    before, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    modes = [(part, part.training) for part in module.modules()]
    kept = [(p, p.requires_grad, p.grad) for p in module.parameters()]
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        if not any(parameter.is_cuda for parameter in module.parameters()):
            torch.use_deterministic_algorithms(True)
        module.eval()
        for parameter, _, _ in kept:
            parameter.grad = None
            parameter.requires_grad_(False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            yield torch
    except RuntimeError as error:
        if not any(words in str(error) for words in _OUT_OF_MEMORY):
            raise
        raise MemoryCapError(
            "torch ran out of memory; use shorter samples (--max-length), fewer at a time "
            "(--gradients single, --batch), or a --memory cap, which makes several rounds"
        ) from error
    finally:
        for parameter, wanted, gradient in kept:
            parameter.requires_grad_(wanted)
            parameter.grad = gradient
        for part, mode in modes:
            part.training = mode
        torch.use_deterministic_algorithms(strict, warn_only=warns)
        torch.set_num_threads(before)


def device_of(module: Any) -> Any:
    """Where the module's parameters are."""
    return next(module.parameters()).device


def over_tensors(batch: Any, change: Callable[[Any], Any]) -> Any:
    """A batch with every tensor in it changed; the dicts, lists and tuples around them kept.

    >>> import torch
    >>> over_tensors({"x": torch.zeros(2), "n": 3}, lambda tensor: tensor + 1)
    {'x': tensor([1., 1.]), 'n': 3}
    """
    if isinstance(batch, Mapping):
        return {key: over_tensors(value, change) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)([over_tensors(value, change) for value in batch])
    return change(batch) if hasattr(batch, "is_floating_point") else batch
