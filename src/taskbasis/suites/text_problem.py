"""A task of the text suite as a problem: a model, the frozen head, and the training sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from taskbasis.errors import require
from taskbasis.learn.problem import Problem
from taskbasis.learn.skeleton import load
from taskbasis.suites.network import HeadLoss
from taskbasis.suites.text_model import PURPOSE, Reader, features, loader_of
from taskbasis.suites.text_score import TextScorer


def task_problem(scorer: TextScorer, task: str, folder: Path) -> Problem:
    """The model of ``folder`` asked for one task of a prepared suite.

    The head is not part of the model's file, so all its tensors are scored.

    Args:
        scorer: of the suite.
        task: its name.
        folder: of a model of the suite's shape.
    """
    name, more = loader_of(folder)
    found = load(folder, name, attn_implementation="eager", **more)
    tokens, classes = scorer.tokens(task, "train"), scorer.data(task).labels["train"]
    samples = [(row, int(kind)) for row, kind in zip(tokens, classes, strict=True)]
    about = {"loss": "cross-entropy under the frozen head", "data": f"text ({task}, train)"}
    loss = HeadLoss(_features, *scorer.heads[task])
    collate = partial(_collate, scorer.reader)
    return Problem(found.module, samples, collate, loss, found.names, {}, about, _mask)


def _features(module: Any, batch: Mapping[str, Any]) -> Any:
    return features(module, (batch["ids"], batch.get("mask")))


def _mask(batch: Mapping[str, Any]) -> Any:
    return batch.get("mask")


def _collate(reader: Reader, samples: Sequence[tuple[list[int], int]]) -> dict[str, Any]:
    """Sentences of one length get no mask, so that gradients can be taken side by side."""
    torch = require("torch", "demo", PURPOSE)
    tokens, classes = zip(*samples, strict=True)
    ids, mask = reader.batch(tokens)
    padded = len({len(row) for row in tokens}) > 1
    return {"ids": ids, "classes": torch.tensor(classes), **({"mask": mask} if padded else {})}
