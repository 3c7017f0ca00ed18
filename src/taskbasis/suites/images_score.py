"""Scoring a model of the images suite: the features of a model on a set are found once."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from taskbasis.evaluate.task import Model, Split
from taskbasis.suites.digits_model import quiet_and_repeatable
from taskbasis.suites.images_data import SIZES, TASKS, Array, ImageSet, answers, load_sets, mixture
from taskbasis.suites.images_model import LOADER, all_features
from taskbasis.suites.network import Network

CONTROL = "control"
"""What the base was trained for: which of the seen classes of all sets is it?"""

_REMEMBERED = 400


class ImagesScorer:
    """Accuracies of models on the tasks of one prepared folder.

    Args:
        data: where the sets are.
        folder: what :func:`taskbasis.suites.images.prepare` made.
        seed: of the splits.
    """

    def __init__(self, data: Path, folder: Path, seed: int) -> None:
        self._data, self._folder, self._seed = data, folder, seed
        self._known: OrderedDict[tuple[bytes, str, str], Array] = OrderedDict()
        self._lock = threading.Lock()

    @cached_property
    def sets(self) -> dict[str, ImageSet]:
        """The images, split."""
        return load_sets(self._data, self._seed)

    @cached_property
    def network(self) -> Network:
        """The encoder, which takes the weights of any model of its shape."""
        return Network(self._folder / "base", LOADER, add_pooling_layer=False)

    @cached_property
    def _mixtures(self) -> dict[str, tuple[Array, Array]]:
        return {split: mixture(self.sets, self._seed, split) for split in SIZES}

    def head(self, task: str) -> tuple[Array, Array]:
        """Weight and bias of a task's frozen head."""
        arrays = load_file(self._folder / "heads" / f"{task}.safetensors")
        return arrays["weight"], arrays["bias"]

    def asked(self, task: str, split: str) -> tuple[str, Array, Array]:
        """The set of a task, its images, and the right answers."""
        if task == CONTROL:
            return CONTROL, *self._mixtures[split]
        name, question = TASKS[task]
        held = self.sets[name]
        return name, held.images[split], answers(question, held.labels[split], held.classes)

    def score(self, task: str, model: Model, split: Split) -> float:
        """The share of a split's images that a model gets right; NaN if a feature is not finite."""
        name, images, wanted = self.asked(task, split)
        with self._lock:
            found = self._features(model, name, split, images)
        if not np.isfinite(found).all():
            return math.nan
        weight, bias = self.head(task)
        return float(((found @ weight + bias).argmax(1) == wanted).mean())

    def _features(self, model: Model, name: str, split: Split, images: Array) -> Array:
        digest, tensors = self.network.checked(model)
        key = (digest, name, split)
        if key not in self._known:
            with quiet_and_repeatable(0):
                self._known[key] = all_features(self.network.take(digest, tensors), images)
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return self._known[key]
