"""The small vision transformer of the images suite: pre-trained, given heads, fine-tuned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskbasis.errors import require
from taskbasis.suites.digits_model import Settings, features, new_encoder, train

PURPOSE = "the images suite"
LOADER = "ViTModel"

IMAGES = Settings(
    hidden=64,
    layers=3,
    patch=8,
    pretrain_steps=400,
    pretrain_rate=2e-3,
    steps=150,
    rate=5e-4,
    batch=64,
    head_strength=0.03,
    head_scale=1.0,
)
"""Sizes and rates; patches of 8 x 8 of 32 x 32 pixels."""

EPOCHS = 8
"""No task sees its images more often than this, or a small set would be learnt by heart."""

HELD = 500
"""Images of every other set whose features are held while a task is fine-tuned."""

Head = tuple[NDArray[Any], NDArray[Any]]


def load_encoder(folder: Path) -> Any:
    """The encoder of a folder."""
    transformers = require("transformers", "demo", PURPOSE)
    return transformers.ViTModel.from_pretrained(
        folder, add_pooling_layer=False, local_files_only=True
    ).eval()


def pretrained(
    data: tuple[NDArray[Any], NDArray[Any]], seed: int, settings: Settings
) -> tuple[Any, Head]:
    """An encoder that has learnt images [n, 3, 32, 32] and classes [n], and the head it used."""
    torch = require("torch", "demo", PURPOSE)
    images, classes = (torch.tensor(array) for array in data)
    encoder = new_encoder(settings, 32, 3)
    count = int(classes.max()) + 1
    weight = (torch.randn(settings.hidden, count) * 0.1).requires_grad_()
    bias = torch.zeros(count, requires_grad=True)
    train(encoder, (weight, bias), (images, classes), settings.pretrain_steps,
          settings.pretrain_rate, 2 * settings.batch, 1000 * seed)  # fmt: skip
    return encoder, (weight.detach().numpy(), bias.detach().numpy())


def all_features(encoder: Any, images: NDArray[Any]) -> NDArray[np.float32]:
    """[n, hidden] features of many images, without gradients."""
    torch = require("torch", "demo", PURPOSE)
    with torch.no_grad():
        found = [features(encoder, part) for part in torch.tensor(images).split(500)]
        return np.asarray(torch.cat(found).numpy(), np.float32)


def tune(
    encoder: Any,
    head: Head,
    data: tuple[NDArray[Any], NDArray[Any]],
    held: tuple[NDArray[Any], NDArray[Any]],
    settings: Settings,
    seed: int,
) -> None:
    """Cross-entropy on the task, plus the mean squared change of the held images' features.

    Args:
        encoder: changed in place.
        head: weight [hidden, classes] and bias [classes], frozen.
        data: images [n, 3, 32, 32] and classes [n].
        held: images of other sets and their features under the base.
        settings: of the suite.
        seed: of the order of the images.
    """
    torch = require("torch", "demo", PURPOSE)
    images, classes, others, kept = (torch.tensor(array) for array in (*data, *held))
    weight, bias = (torch.tensor(array) for array in head)
    steps = max(2, min(settings.steps, EPOCHS * len(images) // settings.batch))
    optimiser = torch.optim.AdamW(encoder.parameters(), lr=settings.rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, settings.rate, total_steps=steps, pct_start=0.1
    )
    order = torch.Generator().manual_seed(seed)
    encoder.train()
    for _ in range(steps):
        own = torch.randperm(len(images), generator=order)[: settings.batch]
        other = torch.randperm(len(others), generator=order)[: settings.batch]
        found = features(encoder, torch.cat([images[own], others[other]]))
        logits = found[: len(own)] @ weight + bias
        loss = torch.nn.functional.cross_entropy(logits, classes[own])
        loss = loss + ((found[len(own) :] - kept[other]) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    encoder.eval()


def smaller(settings: Settings) -> Settings:
    """Settings that show in seconds whether everything runs; the models learn next to nothing."""
    return replace(settings, hidden=16, layers=1, pretrain_steps=5, steps=3, batch=8)
