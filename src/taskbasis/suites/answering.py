"""Scores by item: which items of each task a model gets right, remembered model by model."""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskbasis.evaluate.task import Model, Split
from taskbasis.suites.digits_model import quiet_and_repeatable
from taskbasis.suites.network import Network


class Answering(ABC):
    """Accuracies of models on tasks whose items cost seconds.

    Which items a model gets right is remembered by a digest of its tensors, so that asking again,
    and for a control that holds the same items, costs nothing; only the items that are asked for
    are run.

    Args:
        names: the tasks.
        limits: items of a split that are scored, where that is fewer than there are.
    """

    def __init__(self, names: Sequence[str], limits: Mapping[str, int] | None = None) -> None:
        self.names = tuple(names)
        self._limits = dict(limits or {})
        self._known: dict[tuple[bytes, str, Split], NDArray[Any]] = {}
        self._lock = threading.Lock()

    @property
    @abstractmethod
    def network(self) -> Network:
        """The encoder, which takes the weights of any model of its shape."""

    @abstractmethod
    def count(self, task: str, split: str) -> int:
        """How many items a split of a task has."""

    @abstractmethod
    def answers(
        self, module: Any, task: str, split: Split, part: slice
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Logits [n, classes] of some items, in their order, and their classes [n]."""

    def score(self, task: str, model: Model, split: Split) -> float:
        """The share of a split's items that a model gets right; NaN if a logit is not finite."""
        return _mean(self.right(task, model, split, self._size(task, split)))

    def others(self, target: str | None, model: Model, split: Split) -> float:
        """The mean accuracy on all tasks but one, on the first items of each.

        Each of the T - 1 others gives as many as make one task's number together.
        """
        names = [name for name in self.names if name != target]
        sizes = [self._size(name, split) for name in names]
        share = math.ceil(max(sizes) / len(names))
        parts = [
            _mean(self.right(name, model, split, min(share, size)))
            for name, size in zip(names, sizes, strict=True)
        ]
        return _mean(np.array(parts))

    def right(self, task: str, model: Model, split: Split, count: int) -> NDArray[Any]:
        """[count] 1 where one of the first items is answered right, 0 where not; NaN as above."""
        with self._lock:
            digest, tensors = self.network.checked(model)
            key = (digest, task, split)
            known = self._known.get(key, np.zeros(0, np.float32))
            if len(known) < count:
                with quiet_and_repeatable(0):
                    module = self.network.take(digest, tensors)
                    logits, wanted = self.answers(module, task, split, slice(len(known), count))
                fresh = (logits.argmax(1) == wanted).astype(np.float32)
                fresh[~np.isfinite(logits).all(axis=1)] = np.nan
                known = self._known[key] = np.concatenate([known, fresh])
        return known[:count]

    def _size(self, task: str, split: Split) -> int:
        size = self.count(task, split)
        return min(size, self._limits.get(split, size))


def _mean(values: NDArray[Any]) -> float:
    return float(np.mean(values, dtype=np.float64))
