"""One small vision transformer and its eight fine-tunes on real images.

    FOLDER/images.json          what was made, and how; written last
    FOLDER/heads.safetensors    the frozen heads
    FOLDER/base/                config.json, model.safetensors
    FOLDER/tuned/mnist-parity/  the same for each task

The base has learnt half of the classes of every set together. Then each task fine-tunes it on all
classes of one set, with a head fitted once on the frozen base's features, while the features of
the other sets' images are held near the base's. Large pre-trained models keep their tasks apart
without that; a transformer this small does not, and its task vectors could not be added at all.

The control task, for negation, is what the base was trained for.
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
import xxhash
from images import SIZES, TASKS, Array, ImageSet, answers, load_sets, mixture
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

CONTROL = "control"
MARKER = "images.json"
VERSION = 2

IMAGES = Settings(
    hidden=64,
    layers=3,
    patch=8,
    pretrain_steps=400,
    pretrain_rate=2e-3,
    steps=150,
    rate=5e-4,
    batch=64,
    head_strength=0.03,
    head_scale=1.0,
)
"""Sizes and rates; patches of 8 x 8 of 32 x 32 pixels."""

EPOCHS = 8
"""No task sees its images more often than this, or a small set would be learnt by heart."""
HELD = 500
"""Images of every other set whose features are held while a task is fine-tuned."""

_REMEMBERED = 400

Progress = Callable[[str], None]
Tensors = tuple[Any, Any]


@dataclass(frozen=True)
class ImagesWorld:
    """One base, its fine-tunes and the tasks that score them, as the digits suite has it."""

    base: Path
    tuned: Mapping[str, Path]
    tasks: Sequence[Task]
    control: Task
    seed: int


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
        images = {name: torch.tensor(held.images["train"]) for name, held in sets.items()}
        with torch.no_grad():
            found = {n: torch.cat([features(base, x) for x in i.split(500)])
                     for n, i in images.items()}  # fmt: skip
        for number, (task, (name, question)) in enumerate(TASKS.items(), start=1):
            tell(f"seed {seed}: fine-tuning for {task}")
            classes = answers(question, sets[name].labels["train"], sets[name].classes)
            heads[task] = fitted_head(found[name].numpy(), classes, settings)
            tuned = copy.deepcopy(base)
            held = [torch.cat([array[n][:HELD] for n in sets if n != name])
                    for array in (images, found)]  # fmt: skip
            head = tuple(torch.tensor(array) for array in heads[task])
            data = (images[name], torch.tensor(classes))
            _tune(torch, tuned, head, data, (held[0], held[1]), settings, 1000 * seed + number)
            tuned.save_pretrained(folder / "tuned" / task)
    _save_heads(heads, folder / "heads.safetensors")


def _tune(
    torch: Any,
    encoder: Any,
    head: tuple[Any, ...],
    data: Tensors,
    held: Tensors,
    settings: Settings,
    seed: int,
) -> None:
    """Cross-entropy on the task, plus the mean squared change of the held images' features."""
    images, classes = data
    steps = max(2, min(settings.steps, EPOCHS * len(images) // settings.batch))
    optimiser = torch.optim.AdamW(encoder.parameters(), lr=settings.rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, settings.rate, total_steps=steps, pct_start=0.1
    )
    order = torch.Generator().manual_seed(seed)
    encoder.train()
    for _ in range(steps):
        own = torch.randperm(len(images), generator=order)[: settings.batch]
        other = torch.randperm(len(held[0]), generator=order)[: settings.batch]
        found = features(encoder, torch.cat([images[own], held[0][other]]))
        logits = found[: len(own)] @ head[0] + head[1]
        loss = torch.nn.functional.cross_entropy(logits, classes[own])
        loss = loss + ((found[len(own) :] - held[1][other]) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    encoder.eval()


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
    hasher = xxhash.xxh3_128()
    for tensor in tensors.values():
        hasher.update(tensor.data)
    return hasher.digest()


def smaller(settings: Settings) -> Settings:
    """Settings that show in seconds whether everything runs; the models learn next to nothing."""
    return replace(settings, hidden=16, layers=1, pretrain_steps=5, steps=3, batch=8)
