"""Making the digits suite: pre-train, fit the heads, fine-tune each task, save."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from taskbasis.suites.digits_data import CONTROL, LABELS, SEEN, Digits, load
from taskbasis.suites.digits_model import (
    Settings,
    features,
    fitted_head,
    new_encoder,
    quiet_and_repeatable,
    train,
)
from taskbasis.suites.world import Tell


def make(folder: Path, seed: int, settings: Settings, progress: Tell) -> None:
    """Train everything and save it into an empty folder; equal seeds give equal bytes.

    Only the training split is used.

    Args:
        folder: where ``base``, ``tuned/TASK`` and ``heads.safetensors`` go.
        seed: of the split, the initial weights and the order of the images.
        settings: sizes and rates.
        progress: is told what is being done.
    """
    digits = load(seed)
    with quiet_and_repeatable(seed) as torch:
        progress("pre-training on the digits 0 to 4")
        base, head = _pretrained(torch, digits, seed, settings)
        heads = {CONTROL: head, **_heads(torch, base, digits, settings)}
        _save_model(base, folder / "base")
        _save_heads(heads, folder / "heads.safetensors")
        for number, task in enumerate(LABELS, start=1):
            progress(f"fine-tuning for {task} ({number} of {len(LABELS)})")
            tuned = copy.deepcopy(base)
            frozen = tuple(torch.tensor(array) for array in heads[task])
            data = _data(torch, digits, task)
            train(tuned, frozen, data, settings.steps, settings.rate, settings.batch,
                  1000 * seed + number)  # fmt: skip
            _save_model(tuned, folder / "tuned" / task)


Head = tuple[NDArray[np.float32], NDArray[np.float32]]


def _data(torch: Any, digits: Digits, task: str) -> tuple[Any, Any]:
    chosen = digits.indices(task, "train")
    return torch.tensor(digits.images[chosen]), torch.tensor(digits.classes(task, chosen))


def _pretrained(torch: Any, digits: Digits, seed: int, settings: Settings) -> tuple[Any, Head]:
    encoder = new_encoder(settings)
    weight = (torch.randn(settings.hidden, SEEN) * 0.1).requires_grad_()
    bias = torch.zeros(SEEN, requires_grad=True)
    data = _data(torch, digits, CONTROL)
    train(encoder, (weight, bias), data, settings.pretrain_steps, settings.pretrain_rate,
          settings.batch, 1000 * seed)  # fmt: skip
    return encoder, (weight.detach().numpy(), bias.detach().numpy())


def _heads(torch: Any, base: Any, digits: Digits, settings: Settings) -> dict[str, Head]:
    chosen = digits.splits["train"]
    with torch.no_grad():
        found = features(base, torch.tensor(digits.images[chosen])).numpy()
    return {task: fitted_head(found, digits.classes(task, chosen), settings) for task in LABELS}


def _save_model(encoder: Any, folder: Path) -> None:
    folder.mkdir(parents=True)
    encoder.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)


def _save_heads(heads: dict[str, Head], path: Path) -> None:
    arrays = {f"{task}.weight": np.ascontiguousarray(head[0]) for task, head in heads.items()}
    arrays |= {f"{task}.bias": np.ascontiguousarray(head[1]) for task, head in heads.items()}
    save_file(arrays, path, metadata={"format": "pt"})
    path.chmod(0o644)
