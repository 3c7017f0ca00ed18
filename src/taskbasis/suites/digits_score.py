"""Scoring a model of the digits suite: one forward pass, shared by all of its tasks."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from taskbasis.evaluate.task import Model, Split
from taskbasis.suites.digits_data import Digits, load
from taskbasis.suites.digits_model import features, quiet_and_repeatable
from taskbasis.suites.network import Network

_REMEMBERED = 128


class Scorer:
    """Accuracies of models on the tasks of one prepared folder.

    The features of the last few models are remembered by a digest of their tensors' bytes, so
    asking for several tasks costs one forward pass, and changing a model in place is noticed.

    Args:
        folder: what :func:`taskbasis.suites.digits.prepare` made.
        seed: the seed it was made with, which fixes the splits.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._seed = folder, seed
        self._known: OrderedDict[tuple[bytes, Split], NDArray[np.float32]] = OrderedDict()
        self._lock = threading.Lock()

    @cached_property
    def _digits(self) -> Digits:
        return load(self._seed)

    @cached_property
    def _heads(self) -> dict[str, NDArray[Any]]:
        return load_file(self._folder / "heads.safetensors")

    @cached_property
    def _network(self) -> Network:
        return Network(self._folder / "base", "ViTModel", add_pooling_layer=False)

    def score(self, task: str, model: Model, split: Split) -> float:
        """The accuracy of a model on one task: the share of the split's images it gets right.

        NaN when a feature is not finite, which :func:`taskbasis.evaluate.evaluate` refuses.

        Raises:
            MismatchError: the model's tensors are not those of the suite.
        """
        with self._lock:
            found = self._features(model, split)
        if not np.isfinite(found).all():
            return math.nan
        digits = self._digits
        asked = np.isin(digits.splits[split], digits.indices(task, split))
        logits = found[asked] @ self._heads[f"{task}.weight"] + self._heads[f"{task}.bias"]
        right = logits.argmax(1) == digits.classes(task, digits.splits[split][asked])
        return float(right.mean())

    def _features(self, model: Model, split: Split) -> NDArray[np.float32]:
        digest, tensors = self._network.checked(model)
        key = (digest, split)
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        images = self._digits.images[self._digits.splits[split]]
        with quiet_and_repeatable(0) as torch, torch.no_grad():
            found = features(self._network.take(digest, tensors), torch.tensor(images))
        self._known[key] = np.asarray(found.numpy(), dtype=np.float32)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return self._known[key]
