"""The losses of transformers models, one number per sample."""

from __future__ import annotations

from typing import Any

from taskbasis.learn.runtime import torch_for

IGNORED = -100
"""The label of a position that is not predicted."""


def logits(module: Any, batch: dict[str, Any]) -> Any:
    """What the module says of a batch, in float32; labels are kept from it."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    return module(**inputs).logits.float()


def classification_loss(module: Any, batch: dict[str, Any]) -> Any:
    """[n] the cross-entropy of each sample's class."""
    torch = torch_for("a loss")
    return torch.nn.functional.cross_entropy(
        logits(module, batch), batch["labels"], reduction="none"
    )


def masked_loss(module: Any, batch: dict[str, Any]) -> Any:
    """[n] the mean cross-entropy over each sample's masked tokens."""
    return _mean_over_tokens(logits(module, batch), batch["labels"])


def causal_loss(module: Any, batch: dict[str, Any]) -> Any:
    """[n] the mean cross-entropy over each sample's tokens but the first."""
    return _mean_over_tokens(logits(module, batch)[:, :-1], batch["labels"][:, 1:])


def _mean_over_tokens(found: Any, labels: Any) -> Any:
    torch = torch_for("a loss")
    losses = torch.nn.functional.cross_entropy(
        found.transpose(1, 2), labels, reduction="none", ignore_index=IGNORED
    )
    counted = (labels != IGNORED).sum(1)
    return losses.sum(1) / counted
