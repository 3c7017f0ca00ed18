"""The published CLIP suites of 8, 14 and 20 tasks: checkpoints of others, from the hub or a folder.

Base and fine-tunes are FusionBench's (Tang et al., arXiv 2406.03280): ``openai/FAMILY`` and
``tanganke/FAMILY_TASK``, image towers that were fine-tuned with the text tower frozen. Without a
network, ``DATA/models/FAMILY`` (a whole CLIP with its tokenizer) and ``DATA/models/FAMILY_TASK``
hold the same; :mod:`taskbasis.suites.clip_data` says where images are found. ::

    FOLDER/clip.json                what it was prepared from
    FOLDER/base/                    the image tower of the base
    FOLDER/tuned/mnist/             a fine-tune, saved anew under the base's tensor names
    FOLDER/projection.safetensors   frozen, from the image tower to the space of both
    FOLDER/heads/mnist.safetensors  frozen, out of class names by the text tower

Nothing is trained. Forgetting is controlled by the mean accuracy on all other tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from taskbasis.errors import FileError, UsageError, require
from taskbasis.evaluate.task import Task
from taskbasis.io.folder import open_tensors
from taskbasis.suites.clip_data import EIGHT, PURPOSE, SUITES, local_tasks
from taskbasis.suites.clip_model import Tower, vision_of
from taskbasis.suites.clip_score import ClipScorer
from taskbasis.suites.digits_model import quiet_and_repeatable
from taskbasis.suites.folders import claim, made_beside
from taskbasis.suites.world import Tell, World

FAMILY = "clip-vit-base-patch32"
SIZES = {"validation": 200, "test": 1000}
"""Images of a task that are scored, unless said otherwise."""

_FILES = ("*.json", "*.txt", "model.safetensors", "pytorch_model.bin")


def prepare(
    data: Path | None,
    folder: Path,
    seed: int,
    tell: Tell,
    tasks: Sequence[str] | None = None,
    family: str = FAMILY,
    limits: Mapping[str, int] | None = None,
) -> World:
    """The suite in ``folder``, fetched where it is not there yet.

    Args:
        data: a folder with ``models/`` and ``datasets/``; None for the hub.
        folder: where models and heads go; absent, empty, or prepared by this for the same.
        seed: of the splits alone: the checkpoints are what they are.
        tell: is told what is being done, a sentence at a time.
        tasks: which, or one of 8, 14 and 20; by default those that ``data`` holds fine-tunes
            of, and the eight of the hub.
        family: the base's name.
        limits: images of a task that are scored, where that is not as in :data:`SIZES`.

    Raises:
        FileError: a model or data set is neither there nor to be fetched.
        UsageError: there are no such tasks. MissingExtraError: a package is not installed.
    """
    names = _names(data, tasks, family)
    sizes = {**SIZES, **(limits or {})}
    claim(folder, "clip.json", {"suite": "clip", "version": 1, "seed": seed, "family": family})
    scorer = ClipScorer(data, folder, names, seed, sizes)
    with quiet_and_repeatable(seed):
        if not (folder / "projection.safetensors").exists():
            tell(f"seed {seed}: the base {family}")
            _make_base(_model(data, "openai", family), folder)
        missing = [name for name in names if not _head(folder, name).exists()]
        if missing:
            tower = Tower(_model(data, "openai", family))
            for name in missing:
                tell(f"seed {seed}: a zero-shot head for {name}")
                _save(tower.head(scorer.data(name).classes), _head(folder, name))
        for name in names:
            if not (folder / "tuned" / name).exists():
                tell(f"seed {seed}: the fine-tune {family}_{name}")
                _make_tuned(_model(data, "tanganke", f"{family}_{name}"), folder, name)
    return _world(scorer, folder, names, seed)


def _world(scorer: ClipScorer, folder: Path, names: Sequence[str], seed: int) -> World:
    tasks = [
        Task(name, partial(scorer.score, name), partial(scorer.problem, name)) for name in names
    ]
    controls = {name: Task(f"not-{name}", partial(scorer.others, name)) for name in names}
    whole = Task("control", partial(scorer.others, None))
    tuned = {name: folder / "tuned" / name for name in names}
    several = controls if len(names) > 1 else {}
    return World(folder / "base", tuned, tasks, whole, seed, several)


def _names(data: Path | None, tasks: Sequence[str] | None, family: str) -> list[str]:
    if tasks and len(tasks) == 1 and tasks[0] in SUITES:
        return list(SUITES[tasks[0]])
    if tasks:
        return list(tasks)
    found = list(local_tasks(data, family)) if data else list(EIGHT)
    if not found:
        raise UsageError(f"{data}/models holds no fine-tune {family}_TASK; name --tasks, or look")
    return found


def _model(data: Path | None, owner: str, name: str) -> Path:
    """A model's folder: the local one, or the hub's."""
    if data is not None and (local := data / "models" / name).is_dir():
        return local
    hub = require("huggingface_hub", "hub", PURPOSE)
    try:
        return Path(hub.snapshot_download(f"{owner}/{name}", allow_patterns=list(_FILES)))
    except (OSError, ValueError) as error:
        told = (str(error).splitlines() or [type(error).__name__])[0]
        raise FileError(
            f"{owner}/{name} cannot be fetched from the hub ({told}); without a network, give "
            f"--data DIR with DIR/models/{name}"
        ) from None


def _make_base(source: Path, folder: Path) -> None:
    vision = vision_of(source)
    if not (folder / "base").exists():
        with made_beside(folder / "base") as draft:
            vision.float().save_pretrained(draft)
    _save(Tower(source).projection, folder / "projection.safetensors")


def _make_tuned(source: Path, folder: Path, name: str) -> None:
    with made_beside(folder / "tuned" / name) as draft:
        vision_of(source).float().save_pretrained(draft)
        shapes = [
            {key: info.shape for key, info in open_tensors(place).items()}
            for place in (draft, folder / "base")
        ]
        if shapes[0] != shapes[1]:
            raise FileError(f"{source} is no fine-tune of the base: its tensors are others")


def _head(folder: Path, name: str) -> Path:
    return folder / "heads" / f"{name}.safetensors"


def _save(weight: Any, out: Path) -> None:
    with made_beside(out) as draft:
        save_file({"weight": np.ascontiguousarray(weight)}, draft)
