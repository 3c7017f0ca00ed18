"""Scoring a model of the clip suite, and its tasks as problems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from taskbasis.evaluate.task import Split
from taskbasis.learn.problem import Problem
from taskbasis.learn.skeleton import load
from taskbasis.suites.answering import Answering
from taskbasis.suites.clip_data import ImageTask, Part, load_task
from taskbasis.suites.clip_model import LOADER, Eye
from taskbasis.suites.network import HeadLoss, Network, as_batch


class ClipScorer(Answering):
    """Accuracies of image towers on the tasks of one prepared folder.

    Args:
        data: where the sets are; None for the hub's.
        folder: what :func:`taskbasis.suites.clip.prepare` made.
        names: the tasks.
        seed: of the splits.
        sizes: images of a task that are scored: ``validation`` and ``test``.
    """

    def __init__(
        self,
        data: Path | None,
        folder: Path,
        names: Sequence[str],
        seed: int,
        sizes: Mapping[str, int],
    ) -> None:
        super().__init__(names)
        self._data, self._folder, self._seed, self._sizes = data, folder, seed, sizes
        self._tasks: dict[str, ImageTask] = {}

    def count(self, task: str, split: str) -> int:
        return len(self.data(task).parts[split].labels)

    def answers(
        self, module: Any, task: str, split: Split, part: slice
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        images = self.data(task).parts[split]
        numbers = range(part.start, part.stop)
        found = self.eye.see(module, images, numbers)
        return found @ self.head(task), images.labels[part]

    def data(self, task: str) -> ImageTask:
        """A task's images, opened when they are asked for."""
        if task not in self._tasks:
            sizes = self._sizes["validation"], self._sizes["test"]
            self._tasks[task] = load_task(self._data, task, self._seed, *sizes)
        return self._tasks[task]

    def head(self, task: str) -> NDArray[np.float32]:
        """[shared, classes] the zero-shot head of a task."""
        return load_file(self._folder / "heads" / f"{task}.safetensors")["weight"]

    @cached_property
    def eye(self) -> Eye:
        """Reads images, and projects what the image tower makes of them."""
        projection = load_file(self._folder / "projection.safetensors")["weight"]
        return Eye(projection, int(self.network.module.config.image_size))

    @cached_property
    def network(self) -> Network:
        """The image tower, which takes the weights of any model of its shape."""
        return Network(self._folder / "base", LOADER)

    def problem(self, task: str, folder: Path) -> Problem:
        """The model of ``folder`` asked for one task, with its training images."""
        found = load(folder, LOADER, attn_implementation="eager")
        head = self.head(task)
        loss = HeadLoss(self.eye.features, head, np.zeros(head.shape[1], np.float32))
        about = {"loss": "cross-entropy under the zero-shot head", "data": f"{task}, train"}
        samples = _Samples(self.eye, self.data(task).parts["train"])
        return Problem(found.module, samples, as_batch, loss, found.names, {}, about)


class _Samples(Sequence[Any]):
    """Training images that are read when they are drawn."""

    def __init__(self, eye: Eye, part: Part) -> None:
        self._eye, self._part = eye, part

    def __len__(self) -> int:
        return len(self._part.labels)

    def __getitem__(self, number: Any) -> Any:
        return self._eye.read(self._part, number), int(self._part.labels[number])
