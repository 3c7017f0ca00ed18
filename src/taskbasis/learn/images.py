"""Images into pixels: by the model's own processor, or scaled to -1 to 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskbasis.errors import FileError, ValueProblem, require
from taskbasis.learn.coding import Labels, Sample
from taskbasis.learn.runtime import EXTRA, torch_for
from taskbasis.learn.skeleton import quiet


def load_processor(folder: Path) -> Any | None:
    """The image processor of a folder, or None where it has none.

    Raises:
        FileError: it is damaged.
    """
    if not (folder / "preprocessor_config.json").exists():
        return None
    with quiet() as transformers:
        try:
            return transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise FileError(f"{folder}: its image processor cannot be read: {error}") from None


@dataclass(frozen=True)
class ImageCoder:
    """Encodes images for one model.

    Attributes:
        column: holds an array, an image of PIL, or a path relative to ``folder``.
        labels: the classes.
        size: height and width in pixels.
        channels: 1 for grey, 3 for colour.
        processor: the model's own; None scales to -1 to 1.
        folder: what paths are relative to.
    """

    column: str
    labels: Labels
    size: tuple[int, int]
    channels: int
    processor: Any | None = field(default=None, repr=False)
    folder: Path = Path()

    def encode(self, number: int, row: Mapping[str, Any], where: str) -> Sample:
        """The pixels [channels, height, width] of a row in float32, and its label.

        Raises:
            ValueProblem: the row holds no image, or no known label.
            FileError: its path leads to none.
        """
        del number
        pixels = self._pixels(row.get(self.column), where)
        return {"pixel_values": pixels, "labels": self.labels.number(row, where)}

    def _pixels(self, value: Any, where: str) -> NDArray[np.float32]:
        if isinstance(value, np.ndarray) and value.dtype != np.uint8:
            return self._as_given(value, where)
        image = self._open(value, where).convert("L" if self.channels == 1 else "RGB")
        if self.processor is not None:
            with quiet():
                found = self.processor(images=[image], return_tensors="np")["pixel_values"][0]
            return np.asarray(found, np.float32)
        height, width = self.size
        if image.size != (width, height):
            image = image.resize((width, height), resample=2)
        array = np.asarray(image, np.float32) / np.float32(127.5) - np.float32(1)
        planes = array.reshape(height, width, self.channels)
        return np.ascontiguousarray(np.moveaxis(planes, 2, 0))

    def _as_given(self, value: NDArray[Any], where: str) -> NDArray[np.float32]:
        """Arrays of floats are taken to be pixels that are ready."""
        wanted = (self.channels, *self.size)
        if value.shape != wanted or value.dtype.kind != "f":
            raise ValueProblem(
                f"{where}: the image is {value.dtype} of shape {list(value.shape)}; give uint8 "
                f"pixels, or floats of shape {list(wanted)} that are scaled already"
            )
        return np.asarray(value, np.float32)

    def _open(self, value: Any, where: str) -> Any:
        pillow = require("PIL.Image", EXTRA, "reading images")
        if isinstance(value, np.ndarray):
            plain = value[..., 0] if value.ndim == 3 and value.shape[2] == 1 else value
            if plain.ndim != 2 and plain.shape[2:] != (3,):
                raise ValueProblem(
                    f"{where}: the image has shape {list(value.shape)}; give height, width and 1 "
                    "or 3 channels"
                )
            return pillow.fromarray(plain)
        if isinstance(value, str):
            path = self.folder / value
            try:
                with pillow.open(path) as image:
                    image.load()
                    return image
            except (OSError, ValueError) as error:
                raise FileError(f"{where}: {path} cannot be read as an image: {error}") from None
        if not hasattr(value, "convert"):
            raise ValueProblem(f"{where}: {self.column!r} should hold an image or its path")
        return value

    def collate(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Pixels [n, channels, height, width] and labels [n]."""
        torch = torch_for("a batch of images")
        return {
            "pixel_values": torch.from_numpy(np.stack([s["pixel_values"] for s in samples])),
            "labels": torch.tensor([s["labels"] for s in samples]),
        }
