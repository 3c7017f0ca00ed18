"""Eight real questions about six sets of images: one small vision transformer and its fine-tunes.

:func:`prepare` makes what is missing and keeps it as ordinary Hugging Face folders::

    FOLDER/images.json              how everything is made, and of which data
    FOLDER/base/                    config.json, model.safetensors
    FOLDER/heads/control.safetensors, mnist-parity.safetensors ...
    FOLDER/tuned/mnist-parity/      the same for each task

The base has learnt half of the classes of every set together; that is the control task, for
negation. Then each task fine-tunes it on all classes of one set, with a head fitted once on the
frozen base's features, while the features of the other sets' images are held near the base's.
Large pre-trained models keep their tasks apart without that; a transformer this small does not,
and its task vectors could not be added at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from taskbasis.errors import FileError, UsageError, nearest
from taskbasis.evaluate.task import Task
from taskbasis.suites.digits_model import Settings, fitted_head, quiet_and_repeatable
from taskbasis.suites.folders import claim, digest_of, made_beside, read_marker
from taskbasis.suites.images_data import (
    TASKS,
    Array,
    ImageSet,
    answers,
    find_sets,
    load_sets,
    mixture,
)
from taskbasis.suites.images_model import (
    HELD,
    IMAGES,
    Head,
    all_features,
    load_encoder,
    pretrained,
    tune,
)
from taskbasis.suites.images_problem import task_problem
from taskbasis.suites.images_score import CONTROL, ImagesScorer
from taskbasis.suites.world import Tell, World

MARKER = "images.json"
"""The file that says how a folder is made."""


def prepare(
    data: Path,
    folder: Path,
    seed: int,
    tell: Tell,
    settings: Settings = IMAGES,
    tasks: Sequence[str] | None = None,
) -> World:
    """The suite in ``folder``, made from the sets in ``data`` where it is not there yet.

    Args:
        data: holds ``NAME.npz`` or ``images/NAME.npz`` with x_train, y_train, x_test, y_test
            (uint8, 32 x 32 x 1 or 3) and classes, for the six sets.
        folder: where the models go; absent, empty, or made by this with equal settings.
        seed: of the splits, the initial weights and the order of the images.
        tell: is told what is being done, a sentence at a time.
        settings: how models are made.
        tasks: which of the eight; all by default.

    Raises:
        FileError: a set is missing, or the folder was made otherwise.
        UsageError: there is no such task.
    """
    names = _picked(tasks)
    files = find_sets(data)
    facts = {
        "suite": "images",
        "version": 3,
        "seed": seed,
        "settings": asdict(settings),
        "questions": {name: list(asked) for name, asked in TASKS.items()},
        "data": digest_of(*files.values()),
    }
    claim(folder, MARKER, facts)
    with quiet_and_repeatable(seed):
        _make(data, folder, seed, settings, names, tell)
    told = {"data": str(data.resolve()), "tasks": names}
    with made_beside(folder / "tasks.json") as draft:
        draft.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    return open_world(folder)


def open_world(folder: Path) -> World:
    """The suite that :func:`prepare` left in a folder, with the tasks it was asked for last.

    Raises:
        FileError: the folder was not made by it, or something is missing from it.
    """
    facts, told = read_marker(folder, MARKER), read_marker(folder, "tasks.json")
    tuned = {name: folder / "tuned" / name for name in told["tasks"]}
    for path in (folder / "base", *tuned.values()):
        if not (path / "model.safetensors").is_file():
            raise FileError(f"{path} holds no model.safetensors; prepare the suite again")
    scorer = ImagesScorer(Path(told["data"]), folder, int(facts["seed"]))
    asked = partial(task_problem, scorer)
    tasks = [Task(name, partial(scorer.score, name), partial(asked, name)) for name in tuned]
    control = Task(CONTROL, partial(scorer.score, CONTROL), partial(asked, CONTROL))
    return World(folder / "base", tuned, tasks, control, int(facts["seed"]))


def open_tasks(folder: str) -> list[Task]:
    """The tasks of a prepared folder: what ``images:FOLDER`` means."""
    return list(open_world(Path(folder)).tasks)


def open_control(folder: str) -> list[Task]:
    """The control task of a prepared folder: what ``images-control:FOLDER`` means."""
    return [open_world(Path(folder)).control]


def _picked(tasks: Sequence[str] | None) -> list[str]:
    for name in tasks or ():
        if name not in TASKS:
            raise UsageError(f"the images suite has no task {name!r}; {nearest(name, TASKS)}")
    return list(tasks or TASKS)


def _make(
    data: Path, folder: Path, seed: int, settings: Settings, names: Sequence[str], tell: Tell
) -> None:
    wanted = [n for n in names if not (_head(folder, n).exists() and _tuned(folder, n).exists())]
    if not wanted and (folder / "base").exists() and _head(folder, CONTROL).exists():
        return
    sets = load_sets(data, seed)
    if not ((folder / "base").exists() and _head(folder, CONTROL).exists()):
        tell(f"seed {seed}: pre-training")
        base, control = pretrained(mixture(sets, seed, "train"), seed, settings)
        _save_head(control, _head(folder, CONTROL))
        if not (folder / "base").exists():
            with made_beside(folder / "base") as draft:
                base.save_pretrained(draft)
    base = load_encoder(folder / "base")
    found = {name: all_features(base, held.images["train"]) for name, held in sets.items()}
    for name in wanted:
        number = list(TASKS).index(name) + 1
        tell(f"seed {seed}: fine-tuning for {name} ({number} of {len(TASKS)})")
        _make_task(sets, found, folder, name, 1000 * seed + number, settings)


def _make_task(
    sets: Mapping[str, ImageSet],
    found: Mapping[str, Array],
    folder: Path,
    task: str,
    seed: int,
    settings: Settings,
) -> None:
    name, question = TASKS[task]
    classes = answers(question, sets[name].labels["train"], sets[name].classes)
    if not _head(folder, task).exists():
        _save_head(fitted_head(found[name], classes, settings), _head(folder, task))
    arrays = load_file(_head(folder, task))
    others = [other for other in sets if other != name]
    held = (
        np.concatenate([sets[other].images["train"][:HELD] for other in others]),
        np.concatenate([found[other][:HELD] for other in others]),
    )
    encoder = load_encoder(folder / "base")
    data = (sets[name].images["train"], classes)
    tune(encoder, (arrays["weight"], arrays["bias"]), data, held, settings, seed)
    with made_beside(_tuned(folder, task)) as draft:
        encoder.save_pretrained(draft)


def _head(folder: Path, name: str) -> Path:
    return folder / "heads" / f"{name}.safetensors"


def _tuned(folder: Path, name: str) -> Path:
    return folder / "tuned" / name


def _save_head(head: Head, out: Path) -> None:
    with made_beside(out) as draft:
        weight, bias = map(np.ascontiguousarray, head)
        save_file({"weight": weight, "bias": bias}, draft)
