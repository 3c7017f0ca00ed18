"""A live encoder that takes its weights from NumPy tensors, and its frozen heads as problems."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from taskbasis.errors import MismatchError, require
from taskbasis.evaluate.task import Model
from taskbasis.learn.skeleton import load

PURPOSE = "the suite"

Tensors = Mapping[str, NDArray[np.float32]]


class Network:
    """The encoder of a Hugging Face folder, and which of its parameters is which tensor.

    Args:
        folder: a Hugging Face folder whose file holds exactly the module's parameters.
        loader: its class in transformers, such as ``ViTModel``.
        **more: passed to the class.

    Attributes:
        module: the encoder, in eval mode.
        shapes: of every tensor, by its name in the file.

    Raises:
        MismatchError: the file's tensors are not those of the encoder.
    """

    def __init__(self, folder: Path, loader: str, **more: Any) -> None:
        skeleton = load(folder, loader, "float32", **more)
        unused = {name for name, info in skeleton.store.items() if info.dtype.mergeable}
        unused -= {*skeleton.names.values(), *skeleton.buffers}
        if unused:
            raise MismatchError(f"{folder} holds {sorted(unused)}, which its {loader} does not use")
        self.module = skeleton.module
        self._names = skeleton.names
        self.shapes = {name: skeleton.store[name].shape for name in sorted(skeleton.store)}
        self._live = b""

    def checked(self, model: Model) -> tuple[bytes, dict[str, NDArray[np.float32]]]:
        """The model's tensors as contiguous float32 and 16 bytes that name all their numbers.

        Raises:
            MismatchError: a tensor is missing, unknown or of another shape; the message names it.
        """
        for name in sorted(set(model) ^ set(self.shapes)):
            what = "is missing from" if name in self.shapes else "does not belong to"
            raise MismatchError(f"tensor {name!r} {what} the model of the suite")
        for name, shape in self.shapes.items():
            if np.shape(model[name]) != shape:
                found = np.shape(model[name])
                raise MismatchError(f"tensor {name!r} has shape {found}, not {shape}")
        tensors = {n: np.ascontiguousarray(model[n], dtype=np.float32) for n in self.shapes}
        hasher = xxhash.xxh3_128()
        for tensor in tensors.values():  # names and shapes were checked, and the order is theirs
            hasher.update(tensor.data if tensor.size else b"")
        return hasher.digest(), tensors

    def take(self, digest: bytes, tensors: Tensors) -> Any:
        """The module with the weights of checked tensors; they are copied once per digest."""
        if self._live != digest:
            torch = require("torch", "demo", PURPOSE)
            with torch.no_grad():
                for own, parameter in self.module.named_parameters():
                    parameter.copy_(torch.tensor(tensors[self._names[own]]))
            self._live = digest
        return self.module


def as_batch(samples: Sequence[tuple[Any, int]]) -> dict[str, Any]:
    """Images and their classes as one batch of torch tensors."""
    torch = require("torch", "demo", PURPOSE)
    images, classes = zip(*samples, strict=True)
    return {"images": torch.from_numpy(np.stack(images)), "classes": torch.tensor(classes)}


@dataclass(frozen=True)
class HeadLoss:
    """[n] the cross-entropy of a batch under a frozen head: ``loss(module, batch)``.

    Attributes:
        features: gives [n, hidden] for a module and a batch.
        weight, bias: of the head, [hidden, classes] and [classes].
    """

    features: Callable[[Any, Mapping[str, Any]], Any]
    weight: NDArray[Any]
    bias: NDArray[Any]

    def __call__(self, module: Any, batch: Mapping[str, Any]) -> Any:
        torch = require("torch", "demo", PURPOSE)
        found = self.features(module, batch)
        weight, bias = (torch.tensor(a, device=found.device) for a in (self.weight, self.bias))
        return torch.nn.functional.cross_entropy(
            found @ weight + bias, batch["classes"], reduction="none"
        )
