"""Images for the published CLIP suites: a local folder's, or the hub's.

A set is, in this order, what is found as

    DATA/datasets/TASK.npz            x_train, y_train, x_test, y_test, classes
    DATA/datasets/TASK/train/CLASS/*  an image folder, with test/CLASS/* beside it
    the hub                           see HUB; needs a network and the package datasets

``DATA/classes/TASK.txt`` (one name a line) replaces the names of the classes, which make the
zero-shot heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskbasis.errors import FileError, UsageError, nearest, require

PURPOSE = "the clip suite"

EIGHT = ("sun397", "stanford-cars", "resisc45", "eurosat", "svhn", "gtsrb", "mnist", "dtd")
FOURTEEN = (*EIGHT, "oxford_flowers102", "pcam", "fer2013", "oxford-iiit-pet", "stl10", "cifar100")
TWENTY = (
    *FOURTEEN, "cifar10", "food101", "fashion_mnist", "emnist_letters", "kmnist", "rendered-sst2"
)  # fmt: skip

SUITES: Mapping[str, tuple[str, ...]] = {"8": EIGHT, "14": FOURTEEN, "20": TWENTY}
"""The published suites, by how many tasks they have."""

HUB: Mapping[str, tuple[str, ...]] = {
    "sun397": ("tanganke/sun397",),
    "stanford-cars": ("tanganke/stanford_cars",),
    "resisc45": ("tanganke/resisc45",),
    "eurosat": ("tanganke/eurosat",),
    "svhn": ("ufldl-stanford/svhn", "cropped_digits"),
    "gtsrb": ("tanganke/gtsrb",),
    "mnist": ("ylecun/mnist",),
    "dtd": ("tanganke/dtd",),
    "oxford_flowers102": ("dpdl-benchmark/oxford_flowers102",),
    "pcam": ("1aurent/PatchCamelyon",),
    "fer2013": ("clip-benchmark/wds_fer2013",),
    "oxford-iiit-pet": ("timm/oxford-iiit-pet",),
    "stl10": ("tanganke/stl10",),
    "cifar100": ("uoft-cs/cifar100",),
    "cifar10": ("uoft-cs/cifar10",),
    "food101": ("ethz/food101",),
    "fashion_mnist": ("zalando-datasets/fashion_mnist",),
    "emnist_letters": ("tanganke/emnist_letters",),
    "kmnist": ("tanganke/kmnist",),
    "rendered-sst2": ("nateraw/rendered-sst2",),
}
"""Each task's data set on the hub: its name, and its configuration where it has several."""

_IMAGES, _LABELS = ("image", "img", "jpg"), ("label", "fine_label", "cls")
_ARRAYS = ("x_train", "y_train", "x_test", "y_test", "classes")


@dataclass(frozen=True)
class Part:
    """Images that are opened when they are asked for, and their classes [n]."""

    image: Callable[[int], Any]
    labels: NDArray[np.int64]

    def some(self, places: NDArray[np.int64]) -> Part:
        """Those at some places, in that order."""
        return Part(lambda number: self.image(int(places[number])), self.labels[places])


@dataclass(frozen=True)
class ImageTask:
    """A task's images by split (``train``, ``validation``, ``test``), and its classes' names."""

    parts: Mapping[str, Part]
    classes: tuple[str, ...]


def load_task(data: Path | None, task: str, seed: int, validation: int, tested: int) -> ImageTask:
    """A task split by ``seed``: ``validation`` images out of the training part, and ``tested``.

    Raises:
        FileError: the set is neither there nor on the hub, or cannot be read.
        UsageError: there is no such task. MissingExtraError: ``datasets`` is not installed.
    """
    raw = _raw(data, task)
    known = data / "classes" / f"{task}.txt" if data else None
    if known is not None and known.is_file():
        names = tuple(line.strip() for line in known.read_text(encoding="utf-8").splitlines())
        raw = replace(raw, classes=tuple(name for name in names if name))
    for name, part in raw.parts.items():
        if not len(part.labels) or not 0 <= part.labels.min() <= part.labels.max() < len(
            raw.classes
        ):
            raise FileError(
                f"{task}: {name} has no images, or labels outside of its {len(raw.classes)} "
                f"classes; name the classes in DATA/classes/{task}.txt"
            )
    count = len(raw.parts["train"].labels)
    if count <= validation:
        raise FileError(
            f"{task} has {count} images to train on; {validation} of them are wanted for "
            "validation, so it needs more"
        )
    order = np.random.default_rng([seed, 1]).permutation(count)
    asked = np.random.default_rng([seed, 2]).permutation(len(raw.parts["test"].labels))[:tested]
    parts = {
        "train": raw.parts["train"].some(order[validation:]),
        "validation": raw.parts["train"].some(order[:validation]),
        "test": raw.parts["test"].some(asked),
    }
    return ImageTask(parts, raw.classes)


def _raw(data: Path | None, task: str) -> ImageTask:
    place = data / "datasets" / task if data else None
    if place is not None and (file := place.with_name(f"{task}.npz")).is_file():
        return _from_arrays(file)
    if place is not None and place.is_dir():
        return _from_folder(place)
    return _from_hub(task)


def _from_arrays(path: Path) -> ImageTask:
    try:
        with np.load(path, allow_pickle=False) as stored:
            raw = {name: np.asarray(stored[name]) for name in _ARRAYS}
    except (OSError, ValueError, KeyError) as error:
        raise FileError(f"{path} is no archive of {', '.join(_ARRAYS)}: {error}") from None

    def part(name: str) -> Part:
        images = raw[f"x_{name}"]
        return Part(lambda number: images[number], raw[f"y_{name}"].astype(np.int64))

    return ImageTask({n: part(n) for n in ("train", "test")}, tuple(map(str, raw["classes"])))


def _from_folder(place: Path) -> ImageTask:
    if not ((place / "train").is_dir() and (place / "test").is_dir()):
        raise FileError(f"{place} needs train/CLASS/IMAGE and test/CLASS/IMAGE")
    classes = tuple(sorted(path.name for path in (place / "train").iterdir() if path.is_dir()))

    def part(name: str) -> Part:
        files = [
            (file, number)
            for number, kind in enumerate(classes)
            for file in sorted((place / name / kind).glob("*"))
        ]
        labels = np.array([number for _, number in files], np.int64)
        return Part(lambda number: files[number][0], labels)

    return ImageTask({n: part(n) for n in ("train", "test")}, classes)


def _from_hub(task: str) -> ImageTask:
    if task not in HUB:
        raise UsageError(f"the clip suite has no task {task!r}; {nearest(task, HUB)}")
    datasets = require("datasets", "hub", PURPOSE)
    name, *configuration = HUB[task]
    try:
        found = datasets.load_dataset(name, *configuration)
    except (OSError, ValueError) as error:
        raise FileError(
            f"the data set {name} cannot be fetched from the hub ({_first_line(error)}); without "
            f"a network, put it into --data DIR as DIR/datasets/{task}.npz or an image folder"
        ) from None
    test = "test" if "test" in found else "validation"
    columns = found["train"].column_names
    image, label = (next((c for c in known if c in columns), "") for known in (_IMAGES, _LABELS))
    if not (image and label and test in found):
        raise FileError(f"the data set {name} has other columns or splits than expected: {columns}")

    def part(split: str) -> Part:
        rows = found[split]
        labels = np.asarray(rows[label], np.int64)
        return Part(lambda number: rows[number][image], labels)

    names = getattr(found["train"].features[label], "names", None) or ()
    parts = {"train": part("train"), "test": part(test)}
    return ImageTask(parts, tuple(str(one).replace("_", " ") for one in names))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def prepared(image: Any, size: int) -> NDArray[np.uint8]:
    """An image as CLIP takes it, [size, size, 3] bytes: shortest side to size, centre cut out.

    Args:
        image: a file, bytes [height, width] or [height, width, 1 or 3], or an image of PIL.
        size: in pixels.
    """
    pillow = require("PIL.Image", "demo", PURPOSE)
    if isinstance(image, Path):
        try:
            with pillow.open(image) as opened:
                opened.load()
                image = opened
        except OSError as error:
            raise FileError(f"{image} cannot be read as an image: {error}") from None
    if isinstance(image, np.ndarray):
        image = pillow.fromarray(image[..., 0] if image.shape[2:] == (1,) else image)
    image = image.convert("RGB")
    width, height = image.size
    scale = size / min(width, height)
    if scale != 1:
        image = image.resize((max(size, round(width * scale)), max(size, round(height * scale))),
                             pillow.Resampling.BICUBIC)  # fmt: skip
    left, top = (image.size[0] - size) // 2, (image.size[1] - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)), np.uint8)


def local_tasks(data: Path, family: str) -> Sequence[str]:
    """The tasks whose fine-tunes of one family lie in ``DATA/models``, by name."""
    prefix = f"{family}_"
    folder = data / "models"
    found = sorted(path.name for path in folder.glob(f"{prefix}*") if path.is_dir())
    return [name.removeprefix(prefix) for name in found]
