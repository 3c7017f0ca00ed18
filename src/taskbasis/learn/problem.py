"""A problem: a module, samples, and a loss per sample. All that learning from data asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from taskbasis.errors import MismatchError, UsageError, ValueProblem, nearest


@dataclass(frozen=True, eq=False)
class Problem:
    """A module, the samples that it is asked about, and what it loses on each.

    Nothing in it is trained: gradients are taken and activations are looked at, in eval mode.

    Attributes:
        module: a ``torch.nn.Module``.
        samples: single samples of any kind; only those that are drawn are asked for.
        collate: makes a batch of a few samples: a tensor, or dicts, lists and tuples of tensors
            whose first dimension counts the samples.
        loss: ``loss(module, batch)`` gives the losses of the samples, a tensor [n].
        names: the name that a parameter of the module has in its checkpoint file. Parameters
            that are not in it are not scored. By default all of them, under their own names.
        rules: tensors of the file that are left out, by the rule that did it.
        about: how it came to be, recorded with what is learnt: plain data.
        row_mask: ``row_mask(batch)`` gives [n, positions] true where a position is real, for
            batches that are padded; None where none is.

    Raises:
        MismatchError: ``names`` mentions a parameter that the module lacks.
        ValueProblem: there are no samples.
    """

    module: Any
    samples: Sequence[Any]
    collate: Callable[[Sequence[Any]], Any]
    loss: Callable[[Any, Any], Any]
    names: Mapping[str, str] = field(default_factory=dict)
    rules: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    row_mask: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        known = {name: None for name, _ in self.module.named_parameters()}
        for name in self.names:
            if name not in known:
                raise MismatchError(f"the module has no parameter {name!r}; {nearest(name, known)}")
        if not self.names:
            object.__setattr__(self, "names", {name: name for name in known})
        if not len(self.samples):
            raise ValueProblem("there are no samples to learn from; give at least one")


def draw(available: int, wanted: int, seed: int) -> list[int]:
    """Which samples are looked at, without replacement, in rising order; all when too few.

    >>> draw(10, 3, seed=0)
    [2, 4, 6]
    >>> draw(2, 3, seed=0)
    [0, 1]
    """
    if wanted < 1:
        raise UsageError(f"{wanted} samples teach nothing; use at least 1")
    if seed < 0:
        raise UsageError(f"the seed is {seed}; give 0 or more")
    order = np.random.default_rng(seed).permutation(available)
    return sorted(int(number) for number in order[:wanted])
