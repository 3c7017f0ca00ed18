"""Handwritten digits and the eight label functions that make tasks of them.

The 1797 images of 8 x 8 pixels come with scikit-learn (UCI, Optical Recognition of Handwritten
Digits, Alpaydin and Kaynak 1998). A task is a function of the digit, so all tasks share their
images and differ in what is asked: some questions are close to one another, some are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taskbasis.errors import require

LABELS: Mapping[str, tuple[int, ...]] = {
    "parity": (0, 1, 0, 1, 0, 1, 0, 1, 0, 1),  # odd?
    "high": (0, 0, 0, 0, 0, 1, 1, 1, 1, 1),  # five or more?
    "loop": (1, 0, 0, 0, 0, 0, 1, 0, 1, 1),  # is there a closed loop in it?
    "mod3": (0, 1, 2, 0, 1, 2, 0, 1, 2, 0),  # what is left when divided by three?
    "prime": (0, 0, 1, 1, 0, 1, 0, 1, 0, 0),  # a prime?
    "letters": (1, 0, 0, 2, 1, 1, 0, 2, 2, 1),  # three, four or five letters in its English name?
    "square": (1, 1, 0, 0, 1, 0, 0, 0, 0, 1),  # a perfect square?
    "segments": (0, 0, 1, 1, 0, 1, 0, 1, 1, 0),  # an odd number of bars on a pocket calculator?
}
"""The class of each digit 0 to 9, for every task."""

CONTROL = "control"
"""The pre-training task: which of the digits 0 to 4 is it? Kept while others are negated."""

SEEN = 5
"""Digits below this are what the base was trained on."""

SHARES = {"train": 0.60, "validation": 0.15, "test": 0.25}
"""How each digit's images are shared out; no image is in two splits."""


@dataclass(frozen=True)
class Digits:
    """Images, digits and three disjoint splits.

    Attributes:
        images: [1797, 1, 8, 8] float32, from -0.8 (paper) to 1.87 (ink): mean 0, deviation 1.
        digits: [1797] int64 from 0 to 9.
        splits: indices of ``train``, ``validation`` and ``test``, each stratified by digit.
    """

    images: NDArray[np.float32]
    digits: NDArray[np.int64]
    splits: Mapping[str, NDArray[np.int64]]

    def classes(self, task: str, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """[len(indices)] the class of each image in a task; in the control task, the digit."""
        digits = self.digits[indices]
        return digits if task == CONTROL else np.asarray(LABELS[task], dtype=np.int64)[digits]

    def indices(self, task: str, split: str) -> NDArray[np.int64]:
        """Which images a task asks about; the control task leaves out the unseen digits."""
        found = self.splits[split]
        return found[self.digits[found] < SEEN] if task == CONTROL else found


def load(seed: int) -> Digits:
    """The data, split by ``seed``.

    Raises:
        MissingExtraError: scikit-learn is not installed.

    >>> {name: len(part) for name, part in load(0).splits.items()}
    {'train': 1078, 'validation': 269, 'test': 450}
    """
    bunch = require("sklearn.datasets", "demo", "the digits suite").load_digits()
    digits = np.asarray(bunch.target, dtype=np.int64)
    images = np.asarray(bunch.images, dtype=np.float32)[:, None] / np.float32(6) - np.float32(0.8)
    rng = np.random.default_rng([seed, 0])
    parts: dict[str, list[NDArray[np.int64]]] = {name: [] for name in SHARES}
    for digit in range(10):
        order = rng.permutation(np.flatnonzero(digits == digit))
        bounds = np.round(np.cumsum(list(SHARES.values()))[:-1] * len(order)).astype(int)
        for name, part in zip(SHARES, np.split(order, bounds), strict=True):
            parts[name].append(part)
    return Digits(images, digits, {n: np.sort(np.concatenate(p)) for n, p in parts.items()})
