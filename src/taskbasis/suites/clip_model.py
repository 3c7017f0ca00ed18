"""CLIP's two towers: images through any model of the suite, class names through the base, once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskbasis.errors import FileError, require
from taskbasis.learn.skeleton import quiet
from taskbasis.suites.clip_data import PURPOSE, Part, prepared

LOADER = "CLIPVisionModel"

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
SPREAD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
"""Of the pixels CLIP was trained on, by channel."""

PROMPTS = ("a photo of a {}.", "a picture of a {}.", "an image of the {}.")
"""What class names are put into. Published numbers use prompts written for every data set; heads
made of these give somewhat lower ones."""

_BATCH = 32


def vision_of(folder: Path) -> Any:
    """The image tower of a folder, which may hold a whole CLIP or that tower alone.

    Raises:
        FileError: transformers cannot open it.
    """
    with quiet() as transformers:
        try:
            return transformers.CLIPVisionModel.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise FileError(f"{folder} cannot be opened as a CLIP model: {_line(error)}") from None


class Tower:
    """The text tower of a whole CLIP: zero-shot heads out of class names.

    Raises:
        FileError: the folder holds no whole CLIP with its tokenizer.
    """

    def __init__(self, folder: Path) -> None:
        with quiet() as transformers:
            try:
                self._model, found = transformers.CLIPModel.from_pretrained(
                    folder, local_files_only=True, output_loading_info=True
                )
                self._tokenizer = transformers.AutoTokenizer.from_pretrained(
                    folder, local_files_only=True
                )
            except (OSError, ValueError, RuntimeError) as error:
                raise FileError(
                    f"{folder} cannot be opened as a CLIP model: {_line(error)}"
                ) from None
        if lost := sorted(found["missing_keys"]):
            raise FileError(
                f"{folder} is no whole CLIP: it lacks {lost[0]} and {len(lost) - 1} more"
            )
        self._model.eval()

    @property
    def projection(self) -> NDArray[np.float32]:
        """[hidden, shared] from the image tower to the space that both towers share."""
        weight = self._model.visual_projection.weight
        return np.ascontiguousarray(weight.detach().float().numpy().T)

    def head(self, classes: Sequence[str]) -> NDArray[np.float32]:
        """[shared, classes]: directions of the classes' prompts, times CLIP's own logit scale."""
        torch = require("torch", "demo", PURPOSE)
        columns = []
        with torch.no_grad():
            for name in classes:
                texts = [prompt.format(name) for prompt in PROMPTS]
                tokens = self._tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
                pooled = self._model.text_model(
                    input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
                ).pooler_output
                rows = _unit(torch, self._model.text_projection(pooled))
                columns.append(_unit(torch, rows.mean(0)))
            scaled = torch.stack(columns, 1) * self._model.logit_scale.exp()
        return np.ascontiguousarray(scaled.float().numpy())


class Eye:
    """Features of images under an image tower: projected, of unit length.

    Args:
        projection: [hidden, shared], frozen.
        size: height and width of an image in pixels.
    """

    def __init__(self, projection: NDArray[np.float32], size: int) -> None:
        self._projection, self.size = projection, size

    def features(self, module: Any, batch: Mapping[str, Any]) -> Any:
        """[n, shared] for a batch of ``images`` [n, 3, size, size]."""
        torch = require("torch", "demo", PURPOSE)
        pooled = module(pixel_values=batch["images"]).pooler_output
        return _unit(torch, pooled @ torch.tensor(self._projection, device=pooled.device))

    def read(self, part: Part, number: int) -> NDArray[np.float32]:
        """One image [3, size, size], standardised."""
        scaled = prepared(part.image(number), self.size).astype(np.float32) / np.float32(255)
        standard = (scaled - MEAN) / SPREAD
        return np.ascontiguousarray(standard.transpose(2, 0, 1))

    def see(self, module: Any, part: Part, numbers: Sequence[int]) -> NDArray[np.float32]:
        """[n, shared] features of many images, without gradients."""
        torch = require("torch", "demo", PURPOSE)
        found = []
        with torch.no_grad():
            for start in range(0, len(numbers), _BATCH):
                images = [self.read(part, number) for number in numbers[start : start + _BATCH]]
                batch = {"images": torch.from_numpy(np.stack(images))}
                found.append(self.features(module, batch).numpy())
        return np.concatenate(found)


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _unit(torch: Any, rows: Any) -> Any:
    return torch.nn.functional.normalize(rows, dim=-1)
