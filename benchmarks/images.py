"""Eight tasks on six sets of real images: one small vision transformer, eight fine-tunes.

    FOLDER/images.json          what was made, and how; written last
    FOLDER/heads.safetensors    the frozen heads
    FOLDER/base/                config.json, model.safetensors
    FOLDER/tuned/mnist-parity/  the same for each task

The base has learnt half of the classes of every set together. Then each task fine-tunes it on all
classes of one set, with a head fitted once on the frozen base's features. The control task, for
negation, is what the base was trained for.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from taskbasis.evaluate import Model, Split, Task
from taskbasis.suites.digits_model import (
    Settings,
    features,
    fitted_head,
    quiet_and_repeatable,
    train,
)
from taskbasis.suites.digits_score import Encoder

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

CONTROL = "control"
MARKER = "images.json"
VERSION = 1

IMAGES = Settings(
    hidden=64,
    layers=3,
    patch=8,
    pretrain_steps=400,
    pretrain_rate=2e-3,
    steps=200,
    rate=5e-4,
    batch=64,
    head_strength=0.01,
    head_scale=3.0,
)
"""Sizes and rates; patches of 8 x 8 of 32 x 32 pixels."""

SIZES = {"validation": 200, "test": 500}
"""Images per set, at most; validation images are taken from the training part."""

_REMEMBERED = 400

Array = NDArray[Any]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class ImageSet:
    """One set: images [n, 3, 32, 32] float32 about 0 and classes [n], by split."""

    images: Mapping[str, NDArray[np.float32]]
    labels: Mapping[str, NDArray[np.int64]]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class ImagesWorld:
    """One base, its fine-tunes and the tasks that score them, as the digits suite has it."""

    base: Path
    tuned: Mapping[str, Path]
    tasks: Sequence[Task]
    control: Task
    seed: int


def pixels(images: Array) -> NDArray[np.float32]:
    """[n, 32, 32, 1 or 3] bytes as [n, 3, 32, 32] numbers from -2 to 2; grey fills all channels.

    >>> pixels(np.full((1, 32, 32, 1), 255, np.uint8)).shape
    (1, 3, 32, 32)
    """
    scaled = images.astype(np.float32) / np.float32(63.75) - np.float32(2)
    spread = np.broadcast_to(scaled, (*scaled.shape[:3], 3))
    return np.ascontiguousarray(spread.transpose(0, 3, 1, 2))


def load_set(path: Path, seed: int) -> ImageSet:
    """A set from its file: validation is drawn from the training part, by seed."""
    with np.load(path) as stored:
        raw = {name: stored[name] for name in ("x_train", "y_train", "x_test", "y_test")}
        classes = tuple(str(name) for name in stored["classes"])
    order = np.random.default_rng([seed, 1]).permutation(len(raw["x_train"]))
    count = SIZES["validation"]
    places = {"validation": order[:count], "train": order[count:]}
    images = {name: pixels(raw["x_train"][where]) for name, where in places.items()}
    labels = {name: raw["y_train"][where].astype(np.int64) for name, where in places.items()}
    images["test"] = pixels(raw["x_test"][: SIZES["test"]])
    labels["test"] = raw["y_test"][: SIZES["test"]].astype(np.int64)
    return ImageSet(images, labels, classes)


def load_sets(folder: Path, seed: int) -> dict[str, ImageSet]:
    """All sets of ``folder/images``."""
    return {name: load_set(folder / "images" / f"{name}.npz", seed) for name in SETS}


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

    Every set gives about as many images as the smallest does, so that none is drowned.
    """
    images, labels, offset = [], [], 0
    rng = np.random.default_rng([seed, 3])
    chosen = seen_classes(sets, seed)
    share = 4000 if split == "train" else 60
    for name, held in sets.items():
        known = np.flatnonzero(np.isin(held.labels[split], chosen[name]))
        known = rng.permutation(known)[:share]
        images.append(held.images[split][known])
        labels.append(np.searchsorted(chosen[name], held.labels[split][known]) + offset)
        offset += len(chosen[name])
    return np.concatenate(images), np.concatenate(labels).astype(np.int64)


def prepare(
    data: Path, folder: Path, seed: int, tell: Progress, settings: Settings = IMAGES
) -> ImagesWorld:
    """The suite in ``folder``, made from the sets in ``data`` unless it is there, complete."""
    facts = {"version": VERSION, "seed": seed, "tasks": TASKS, "settings": asdict(settings)}
    told = json.dumps(facts, indent=2) + "\n"
    if not (folder / MARKER).exists() or (folder / MARKER).read_text() != told:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _make(load_sets(data, seed), folder, seed, settings, tell)
        (folder / MARKER).write_text(told)
    scorer = Scorer(data, folder, seed)
    tasks = [Task(name, partial(scorer.score, name)) for name in TASKS]
    tuned = {name: folder / "tuned" / name for name in TASKS}
    return ImagesWorld(
        folder / "base", tuned, tasks, Task(CONTROL, partial(scorer.score, CONTROL)), seed
    )


def _new_encoder(settings: Settings) -> Any:
    import transformers

    config = transformers.ViTConfig(
        image_size=32,
        patch_size=settings.patch,
        num_channels=3,
        hidden_size=settings.hidden,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.attention_heads,
        intermediate_size=2 * settings.hidden,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return transformers.ViTModel(config, add_pooling_layer=False)


def _make(
    sets: Mapping[str, ImageSet], folder: Path, seed: int, settings: Settings, tell: Progress
) -> None:
    with quiet_and_repeatable(seed) as torch:
        tell(f"seed {seed}: pre-training")
        base, control = _pretrained(torch, mixture(sets, seed, "train"), seed, settings)
        base.save_pretrained(folder / "base")
        heads = {CONTROL: control}
        for number, (task, (name, question)) in enumerate(TASKS.items(), start=1):
            tell(f"seed {seed}: fine-tuning for {task}")
            held = sets[name]
            images = torch.tensor(held.images["train"])
            classes = answers(question, held.labels["train"], held.classes)
            with torch.no_grad():
                found = np.concatenate([features(base, x).numpy() for x in images.split(500)])
            heads[task] = fitted_head(found, classes, settings)
            tuned, head = copy.deepcopy(base), tuple(torch.tensor(a) for a in heads[task])
            train(tuned, head, (images, torch.tensor(classes)), settings.steps, settings.rate,
                  settings.batch, 1000 * seed + number)  # fmt: skip
            tuned.save_pretrained(folder / "tuned" / task)
    _save_heads(heads, folder / "heads.safetensors")


def _pretrained(
    torch: Any, data: tuple[Array, Array], seed: int, settings: Settings
) -> tuple[Any, tuple[Array, Array]]:
    images, classes = (torch.tensor(array) for array in data)
    encoder = _new_encoder(settings)
    count = int(classes.max()) + 1
    weight = (torch.randn(settings.hidden, count) * 0.1).requires_grad_()
    bias = torch.zeros(count, requires_grad=True)
    train(encoder, (weight, bias), (images, classes), settings.pretrain_steps,
          settings.pretrain_rate, 2 * settings.batch, 1000 * seed)  # fmt: skip
    return encoder, (weight.detach().numpy(), bias.detach().numpy())


def _save_heads(heads: Mapping[str, tuple[Array, Array]], path: Path) -> None:
    arrays = {f"{task}.weight": np.ascontiguousarray(head[0]) for task, head in heads.items()}
    arrays |= {f"{task}.bias": np.ascontiguousarray(head[1]) for task, head in heads.items()}
    save_file(arrays, path)


class Scorer:
    """Accuracies of models on the tasks; the features of a model on a set are found once.

    Args:
        data: where ``images/`` is.
        folder: what :func:`prepare` made.
        seed: of the splits.
    """

    def __init__(self, data: Path, folder: Path, seed: int) -> None:
        self._data, self._folder, self._seed = data, folder, seed
        self._known: OrderedDict[tuple[bytes, str, str], Array] = OrderedDict()

    @cached_property
    def _sets(self) -> dict[str, ImageSet]:
        return load_sets(self._data, self._seed)

    @cached_property
    def _heads(self) -> dict[str, Array]:
        return load_file(self._folder / "heads.safetensors")

    @cached_property
    def _encoder(self) -> Encoder:
        base = load_file(self._folder / "base" / "model.safetensors")
        return Encoder(self._folder / "base", {n: tensor.shape for n, tensor in base.items()})

    @cached_property
    def _mixtures(self) -> dict[str, tuple[Array, Array]]:
        return {split: mixture(self._sets, self._seed, split) for split in SIZES}

    def score(self, task: str, model: Model, split: Split) -> float:
        """The share of a split's images that a model gets right; NaN if a feature is not finite."""
        if task == CONTROL:
            name, (images, wanted) = CONTROL, self._mixtures[split]
        else:
            name, question = TASKS[task]
            held = self._sets[name]
            images = held.images[split]
            wanted = answers(question, held.labels[split], held.classes)
        found = self._features(model, name, split, images)
        if not np.isfinite(found).all():
            return math.nan
        logits = found @ self._heads[f"{task}.weight"] + self._heads[f"{task}.bias"]
        return float((logits.argmax(1) == wanted).mean())

    def _features(self, model: Model, name: str, split: Split, images: Array) -> Array:
        tensors = self._encoder.checked(model)
        key = (_digest(tensors), name, split)
        if key not in self._known:
            self._known[key] = self._encoder.features(tensors, images)
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return self._known[key]


def _digest(tensors: Mapping[str, Array]) -> bytes:
    import xxhash

    hasher = xxhash.xxh3_128()
    for tensor in tensors.values():
        hasher.update(tensor.data)
    return hasher.digest()


def smaller(settings: Settings) -> Settings:
    """Settings that show in seconds whether everything runs; the models learn next to nothing."""
    return replace(settings, hidden=16, layers=1, pretrain_steps=5, steps=3, batch=8)
