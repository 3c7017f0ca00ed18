"""A task of the images suite as a problem: a model, the frozen head, and the training images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taskbasis.learn.problem import Problem
from taskbasis.learn.skeleton import load
from taskbasis.suites.digits_model import features
from taskbasis.suites.images_model import LOADER
from taskbasis.suites.images_score import ImagesScorer
from taskbasis.suites.network import HeadLoss, as_batch


def task_problem(scorer: ImagesScorer, task: str, folder: Path) -> Problem:
    """The model of ``folder`` asked for one task of a prepared suite.

    The head is not part of the model's file, so all its tensors are scored.

    Args:
        scorer: of the suite.
        task: its name.
        folder: of a model of the suite's shape.
    """
    found = load(folder, LOADER, add_pooling_layer=False, attn_implementation="eager")
    _, images, classes = scorer.asked(task, "train")
    samples = [(image, int(kind)) for image, kind in zip(images, classes, strict=True)]
    about = {"loss": "cross-entropy under the frozen head", "data": f"images ({task}, train)"}
    loss = HeadLoss(_features, *scorer.head(task))
    return Problem(found.module, samples, as_batch, loss, found.names, {}, about)


def _features(module: Any, batch: Mapping[str, Any]) -> Any:
    return features(module, batch["images"])
