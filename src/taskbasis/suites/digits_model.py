"""The tiny vision transformer of the digits suite: made, trained, and given frozen heads.

As with CLIP's zero-shot heads, a head is made once from the frozen base and never trained again;
fine-tuning moves the encoder alone. So all models share their heads and can be added.

Everything runs on one thread: it is as fast as two at this size, it does not suffer from
neighbours, and equal seeds give equal bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskbasis.errors import require

PURPOSE = "the digits suite"
"""Who asks, when an optional package is missing."""


@dataclass(frozen=True)
class Settings:
    """How the suite's models are made; folders made with other settings are not reused.

    Attributes:
        hidden, layers, attention_heads, patch: the size of the transformer.
        pretrain_steps, pretrain_rate: AdamW on digits 0 to 4.
        steps, rate: AdamW for every task.
        batch: images per step.
        head_strength: inverse regularisation (scikit-learn's C) of the heads' logistic regression.
        head_scale: what a head's logits are multiplied by, as CLIP multiplies its own by 100.
    """

    hidden: int = 64
    layers: int = 2
    attention_heads: int = 4
    patch: int = 4
    pretrain_steps: int = 100
    pretrain_rate: float = 2e-3
    steps: int = 100
    rate: float = 4e-4
    batch: int = 128
    head_strength: float = 0.01
    head_scale: float = 3.0


@contextmanager
def quiet_and_repeatable(seed: int) -> Iterator[Any]:
    """Torch on one thread, deterministic and seeded, transformers silent; all put back after."""
    torch = require("torch", "demo", PURPOSE)
    logs = require("transformers.utils.logging", "demo", PURPOSE)
    threads, bars = torch.get_num_threads(), logs.is_progress_bar_enabled()
    strict = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(True)
        logs.disable_progress_bar()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield torch
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict, warn_only=warns)
        if bars:
            logs.enable_progress_bar()


def new_encoder(settings: Settings, side: int = 8, channels: int = 1) -> Any:
    """A ViTModel with random weights, no pooling layer, for images [channels, side, side]."""
    transformers = require("transformers", "demo", PURPOSE)
    config = transformers.ViTConfig(
        image_size=side,
        patch_size=settings.patch,
        num_channels=channels,
        hidden_size=settings.hidden,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.attention_heads,
        intermediate_size=2 * settings.hidden,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return transformers.ViTModel(config, add_pooling_layer=False)


def features(encoder: Any, images: Any) -> Any:
    """[n, hidden] the class token after the last layer."""
    return encoder(images).last_hidden_state[:, 0]


def train(
    encoder: Any,
    head: tuple[Any, Any],
    data: tuple[Any, Any],
    steps: int,
    rate: float,
    batch: int,
    seed: int,
) -> None:
    """Cross-entropy with AdamW and a one-cycle rate; a head that takes gradients learns too.

    Args:
        encoder: a ViTModel, changed in place.
        head: weight [hidden, classes] and bias [classes].
        data: images [n, 1, 8, 8] and classes [n].
        steps, rate, batch: of the optimiser.
        seed: of the order of the images.
    """
    torch = require("torch", "demo", PURPOSE)
    weight, bias = head
    images, classes = data
    learned = [p for p in (*encoder.parameters(), weight, bias) if p.requires_grad]
    fused = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 4)
    optimiser = torch.optim.AdamW(learned, lr=rate, weight_decay=0.01, fused=fused)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, rate, total_steps=max(steps, 2), pct_start=0.1
    )
    order = torch.Generator().manual_seed(seed)
    encoder.train()
    for _ in range(steps):
        chosen = torch.randperm(len(images), generator=order)[:batch]
        logits = features(encoder, images[chosen]) @ weight + bias
        loss = torch.nn.functional.cross_entropy(logits, classes[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    encoder.eval()


def fitted_head(
    found: NDArray[np.float32], classes: NDArray[np.int64], settings: Settings
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logistic regression on the base's features, folded into weight and bias.

    Features are standardised before the fit; the logits are multiplied by ``head_scale``. Two
    classes get logits of opposite sign.

    Args:
        found: [n, hidden] features of the training images.
        classes: [n] their classes.
        settings: of the suite.

    Returns:
        Weight [hidden, classes] and bias [classes].
    """
    linear = require("sklearn.linear_model", "demo", PURPOSE)
    centre, spread = found.mean(0, dtype=np.float64), found.std(0, dtype=np.float64) + 1e-6
    fit = linear.LogisticRegression(C=settings.head_strength, max_iter=2000)
    fit.fit((found - centre) / spread, classes)
    weight, bias = np.asarray(fit.coef_), np.asarray(fit.intercept_)
    if len(weight) == 1:
        weight, bias = np.stack([-weight[0], weight[0]]) / 2, np.array([-bias[0], bias[0]]) / 2
    weight = weight / spread
    bias = bias - weight @ centre
    scale = settings.head_scale
    return (scale * weight.T).astype(np.float32), (scale * bias).astype(np.float32)
