"""Six sets of real images, the eight questions that are asked of them, and what a base learns."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskbasis.errors import FileError

SETS = ("mnist", "notmnist", "signdigits", "clothing", "dogcat", "cifar10")

ANIMALS = ("bird", "cat", "deer", "dog", "frog", "horse")

TASKS: Mapping[str, tuple[str, str]] = {
    "mnist-digit": ("mnist", "class"),
    "mnist-parity": ("mnist", "parity"),
    "notmnist-letter": ("notmnist", "class"),
    "sign-digit": ("signdigits", "class"),
    "clothing-kind": ("clothing", "class"),
    "dog-or-cat": ("dogcat", "class"),
    "cifar-class": ("cifar10", "class"),
    "cifar-animal": ("cifar10", "animal"),
}
"""The set and the question of every task: those of one set are related, others hardly."""

SIZES = {"validation": 150, "test": 400}
"""Images per set, at most; validation images are taken from the training part."""

Array = NDArray[Any]

_NAMES = ("x_train", "y_train", "x_test", "y_test", "classes")


@dataclass(frozen=True)
class ImageSet:
    """One set: images [n, 3, 32, 32] float32 about 0 and classes [n], by split."""

    images: Mapping[str, NDArray[np.float32]]
    labels: Mapping[str, NDArray[np.int64]]
    classes: tuple[str, ...]


def pixels(images: Array) -> NDArray[np.float32]:
    """[n, 32, 32, 1 or 3] bytes as [n, 3, 32, 32] numbers from -2 to 2; grey fills all channels.

    >>> pixels(np.full((1, 32, 32, 1), 255, np.uint8)).shape
    (1, 3, 32, 32)
    """
    scaled = images.astype(np.float32) / np.float32(63.75) - np.float32(2)
    spread = np.broadcast_to(scaled, (*scaled.shape[:3], 3))
    return np.ascontiguousarray(spread.transpose(0, 3, 1, 2))


def load_set(path: Path, seed: int) -> ImageSet:
    """A set from its file: validation is drawn from the training part, by seed.

    Raises:
        FileError: the file is no such archive; the message says what is wrong.
    """
    raw = _arrays(path)
    classes = tuple(str(name) for name in raw["classes"])
    order = np.random.default_rng([seed, 1]).permutation(len(raw["x_train"]))
    count = SIZES["validation"]
    if len(order) <= count:
        raise FileError(
            f"{path} has {len(order)} images to train on; {count} of them are wanted for "
            "validation, so it needs more"
        )
    places = {"validation": order[:count], "train": order[count:]}
    images = {name: pixels(raw["x_train"][where]) for name, where in places.items()}
    labels = {name: raw["y_train"][where].astype(np.int64) for name, where in places.items()}
    images["test"] = pixels(raw["x_test"][: SIZES["test"]])
    labels["test"] = raw["y_test"][: SIZES["test"]].astype(np.int64)
    return ImageSet(images, labels, classes)


def _arrays(path: Path) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            raw = {name: np.asarray(stored[name]) for name in _NAMES}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise FileError(f"{path} is no archive of {', '.join(_NAMES)}: {error}") from None
    for part in ("train", "test"):
        images, labels = raw[f"x_{part}"], raw[f"y_{part}"]
        if images.shape[1:3] != (32, 32) or images.ndim != 4 or images.shape[3] not in (1, 3):
            raise FileError(f"{path}: x_{part} has shape {images.shape}, not [n, 32, 32, 1 or 3]")
        if labels.shape != images.shape[:1] or not 0 <= labels.min() <= labels.max() < len(
            raw["classes"]
        ):
            raise FileError(f"{path}: y_{part} does not give every image one of the classes")
    return raw


def find_sets(folder: Path) -> dict[str, Path]:
    """The file of every set in ``folder`` or ``folder/images``.

    Raises:
        FileError: a set is missing; the message names it.
    """
    place = folder / "images" if (folder / "images").is_dir() else folder
    found = {name: place / f"{name}.npz" for name in SETS}
    for path in found.values():
        if not path.is_file():
            raise FileError(
                f"{path} is missing; the images suite needs {', '.join(SETS)} as .npz files with "
                "x_train, y_train, x_test, y_test and classes"
            )
    return found


def load_sets(folder: Path, seed: int) -> dict[str, ImageSet]:
    """All sets of ``folder`` or ``folder/images``."""
    return {name: load_set(path, seed) for name, path in find_sets(folder).items()}


def answers(question: str, labels: NDArray[np.int64], classes: Sequence[str]) -> Array:
    """What a question asks of every image.

    >>> answers("parity", np.array([0, 3]), "0123").tolist()
    [0, 1]
    >>> answers("animal", np.array([0, 1]), ["ship", "cat"]).tolist()
    [0, 1]
    """
    if question == "parity":
        return labels % 2
    if question == "animal":
        return np.array([name in ANIMALS for name in classes], dtype=np.int64)[labels]
    return labels


def seen_classes(sets: Mapping[str, ImageSet], seed: int) -> dict[str, Array]:
    """Half of the classes of every set, which the base learns, drawn by seed."""
    rng = np.random.default_rng([seed, 2])
    return {
        name: np.sort(rng.permutation(len(held.classes))[: (len(held.classes) + 1) // 2])
        for name, held in sets.items()
    }


def mixture(sets: Mapping[str, ImageSet], seed: int, split: str) -> tuple[Array, Array]:
    """Images of the seen classes of all sets, and their place in the union of those classes.

    No set gives more than 4000 images to train on, and 40 to any other split.
    """
    images, labels, offset = [], [], 0
    rng = np.random.default_rng([seed, 3])
    chosen = seen_classes(sets, seed)
    share = 4000 if split == "train" else 40
    for name, held in sets.items():
        known = np.flatnonzero(np.isin(held.labels[split], chosen[name]))
        known = rng.permutation(known)[:share]
        images.append(held.images[split][known])
        labels.append(np.searchsorted(chosen[name], held.labels[split][known]) + offset)
        offset += len(chosen[name])
    return np.concatenate(images), np.concatenate(labels).astype(np.int64)
