"""Scoring a model of the digits suite: one forward pass, shared by all of its tasks."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from safetensors.numpy import load_file

from taskbasis.errors import MismatchError, require
from taskbasis.evaluate.task import Model, Split
from taskbasis.suites.digits_data import Digits, load
from taskbasis.suites.digits_model import PURPOSE, features, quiet_and_repeatable

_REMEMBERED = 128


class Encoder:
    """A transformer that takes its weights from NumPy tensors named as in its files.

    The names in ``model.safetensors`` are not always those of the module's own parameters (they
    differ from transformers 5 on), so the mapping is found by loading tensors that hold their own
    number, once, through ``from_pretrained``.

    Args:
        folder: a Hugging Face folder, whose config is read.
        shapes: name and shape of every tensor in its ``model.safetensors``.

    Raises:
        MismatchError: the file's tensors are not those of the transformer.
    """

    def __init__(self, folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
        torch = require("torch", "demo", PURPOSE)
        transformers = require("transformers", "demo", PURPOSE)
        self.shapes = dict(sorted(shapes.items()))
        names = list(self.shapes)
        numbered = {n: torch.full(s, float(i)) for i, (n, s) in enumerate(self.shapes.items())}
        with quiet_and_repeatable(0):
            self._module = transformers.ViTModel.from_pretrained(
                None,
                config=transformers.ViTConfig.from_pretrained(folder),
                state_dict=numbered,
                add_pooling_layer=False,
            ).eval()
        found = list(self._module.parameters())
        self._parameters = {names[int(p.flatten()[0]) % len(names)]: p for p in found}
        lost = sorted(set(names) - set(self._parameters))
        if lost or len(found) != len(names):
            raise MismatchError(
                f"{folder} holds {len(names)} tensors where its ViTModel has {len(found)}; "
                f"it does not use {lost}"
            )

    def checked(self, model: Model) -> dict[str, NDArray[np.float32]]:
        """The model's tensors as contiguous float32, sorted by name.

        Raises:
            MismatchError: a tensor is missing, unknown or of another shape; the message names it.
        """
        for name in sorted(set(model) ^ set(self.shapes)):
            what = "is missing from" if name in self.shapes else "does not belong to"
            raise MismatchError(f"tensor {name!r} {what} the model of the digits suite")
        for name, shape in self.shapes.items():
            if np.shape(model[name]) != shape:
                found = np.shape(model[name])
                raise MismatchError(f"tensor {name!r} has shape {found}, not {shape}")
        return {n: np.ascontiguousarray(model[n], dtype=np.float32) for n in self.shapes}

    def features(
        self, tensors: Mapping[str, NDArray[np.float32]], images: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """[n, hidden] the features of the images [n, 1, 8, 8] under checked tensors."""
        with quiet_and_repeatable(0) as torch, torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(torch.tensor(tensors[name]))
            found = features(self._module, torch.tensor(images))
        return np.asarray(found.numpy(), dtype=np.float32)


class Scorer:
    """Accuracies of models on the tasks of one prepared folder.

    The features of the last few models are remembered by a digest of their tensors' bytes, so
    asking for several tasks costs one forward pass, and changing a model in place is noticed.

    Args:
        folder: what :func:`taskbasis.suites.digits.prepare` made.
        seed: the seed it was made with, which fixes the splits.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._seed = folder, seed
        self._known: OrderedDict[tuple[str, Split], NDArray[np.float32]] = OrderedDict()
        self._lock = threading.Lock()

    @cached_property
    def _digits(self) -> Digits:
        return load(self._seed)

    @cached_property
    def _heads(self) -> dict[str, NDArray[Any]]:
        return load_file(self._folder / "heads.safetensors")

    @cached_property
    def _encoder(self) -> Encoder:
        base = load_file(self._folder / "base" / "model.safetensors")
        shapes = {name: tensor.shape for name, tensor in base.items()}
        return Encoder(self._folder / "base", shapes)

    def score(self, task: str, model: Model, split: Split) -> float:
        """The accuracy of a model on one task: the share of the split's images it gets right.

        NaN when a feature is not finite, which :func:`taskbasis.evaluate.evaluate` refuses.

        Raises:
            MismatchError: the model's tensors are not those of the suite.
        """
        with self._lock:
            found = self._features(model, split)
        if not np.isfinite(found).all():
            return math.nan
        digits = self._digits
        asked = np.isin(digits.splits[split], digits.indices(task, split))
        logits = found[asked] @ self._heads[f"{task}.weight"] + self._heads[f"{task}.bias"]
        right = logits.argmax(1) == digits.classes(task, digits.splits[split][asked])
        return float(right.mean())

    def _features(self, model: Model, split: Split) -> NDArray[np.float32]:
        tensors = self._encoder.checked(model)
        key = (_digest(tensors), split)
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        images = self._digits.images[self._digits.splits[split]]
        self._known[key] = self._encoder.features(tensors, images)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return self._known[key]


def _digest(tensors: Mapping[str, NDArray[np.float32]]) -> str:
    hasher = xxhash.xxh3_128()
    for tensor in tensors.values():  # names and shapes were checked, and the order is theirs
        hasher.update(tensor.data if tensor.size else b"")
    return hasher.hexdigest()
