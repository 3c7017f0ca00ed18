"""A task of the digits suite as a problem: a model, the frozen head, and the training images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from taskbasis.errors import require
from taskbasis.learn.problem import Problem
from taskbasis.learn.skeleton import load as load_module
from taskbasis.suites.digits_data import load
from taskbasis.suites.digits_model import PURPOSE, features

Sample = tuple[NDArray[np.float32], int]


@dataclass(frozen=True)
class _Loss:
    """[n] the cross-entropy of images under a frozen head."""

    weight: Any
    bias: Any

    def __call__(self, module: Any, batch: tuple[Any, Any]) -> Any:
        torch = require("torch", "demo", PURPOSE)
        images, classes = batch
        head = self.weight.to(images.device), self.bias.to(images.device)
        logits = features(module, images) @ head[0] + head[1]
        return torch.nn.functional.cross_entropy(logits, classes, reduction="none")


def task_problem(suite: Path, seed: int, task: str, folder: Path) -> Problem:
    """The model of ``folder`` asked for one task of a prepared suite.

    The head is not part of the model's file, so all its tensors are scored.

    Args:
        suite: what :func:`taskbasis.suites.digits.prepare` made.
        seed: the seed it was made with, which fixes the splits.
        task: its name.
        folder: of a model of the suite's shape.

    Raises:
        MismatchError: the model is of another shape.
    """
    torch = require("torch", "demo", PURPOSE)
    heads = load_file(suite / "heads.safetensors")
    loss = _Loss(*(torch.tensor(heads[f"{task}.{part}"]) for part in ("weight", "bias")))
    digits = load(seed)
    chosen = digits.indices(task, "train")
    classes = digits.classes(task, chosen)
    samples = [
        (digits.images[image], int(kind)) for image, kind in zip(chosen, classes, strict=True)
    ]
    found = load_module(folder, "ViTModel", add_pooling_layer=False, attn_implementation="eager")
    return Problem(
        found.module,
        samples,
        _collate,
        loss,
        found.names,
        {},
        {"loss": "cross-entropy under the frozen head", "data": f"{suite} ({task}, train)"},
    )


def _collate(samples: Sequence[Sample]) -> tuple[Any, Any]:
    torch = require("torch", "demo", PURPOSE)
    images, classes = zip(*samples, strict=True)
    return torch.from_numpy(np.stack(images)), torch.tensor(classes)
