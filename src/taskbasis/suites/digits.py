"""Eight real tasks on handwritten digits: one base, eight fine-tunes, no download.

:func:`prepare` makes them in seconds and keeps them as ordinary Hugging Face folders::

    FOLDER/digits.json          what was made, and how
    FOLDER/heads.safetensors    the frozen heads
    FOLDER/base/                config.json, model.safetensors
    FOLDER/tuned/parity/        the same for each task

A base that has learnt the digits 0 to 4 is fine-tuned on questions about all ten (see
:mod:`taskbasis.suites.digits_data`). The control task, for negation, is what the base was
trained for.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from taskbasis.errors import FileError, UsageError
from taskbasis.evaluate.task import Model, Split, Task, evaluate
from taskbasis.suites.digits_data import CONTROL, LABELS, SHARES
from taskbasis.suites.digits_make import make
from taskbasis.suites.digits_model import Settings
from taskbasis.suites.digits_problem import task_problem
from taskbasis.suites.digits_score import Scorer
from taskbasis.suites.folders import read_marker
from taskbasis.suites.world import Tell

MARKER = "digits.json"
"""The file that says a folder is complete."""

_FORMAT = "taskbasis.digits"
_VERSION = 1


@dataclass(frozen=True)
class DigitsWorld:
    """One base, its fine-tunes, and tasks that score any model of their shape.

    Attributes:
        base: the folder of the pre-trained model.
        tuned: the folder of each task's fine-tuned model.
        tasks: the tasks, in the order of ``tuned``; a score is an accuracy from 0 to 1.
        control: the pre-training task.
        seed: what everything was drawn with.
    """

    base: Path
    tuned: Mapping[str, Path]
    tasks: Sequence[Task]
    control: Task
    seed: int

    def scores(self, model: Model, split: Split) -> dict[str, float]:
        """The accuracy on every task and, last, on the control task."""
        return evaluate(model, [*self.tasks, self.control], split)


def prepare(
    folder: str | Path,
    seed: int,
    progress: Tell | None = None,
    settings: Settings | None = None,
) -> DigitsWorld:
    """The suite in ``folder``: opened if it is there complete, otherwise made.

    It is made beside and renamed, so a folder of that name is whole or not there.

    Args:
        folder: where it is, or goes; must be absent, empty, or made by this with equal settings.
        seed: of the splits, the initial weights and the order of the images; 0 or more.
        progress: is told what is being done, a sentence at a time.
        settings: how the models are made; the defaults take about ten seconds on one core.

    Raises:
        FileError: the folder is used for something else, or was made otherwise.
        MissingExtraError: torch, transformers or scikit-learn is not installed.
    """
    folder, settings = Path(folder), settings or Settings()
    if seed < 0:
        raise UsageError(f"the seed is {seed}; give 0 or more")
    facts = _facts(seed, settings)
    if (folder / MARKER).exists():
        if _marker(folder)["digest"] != facts["digest"]:
            raise FileError(
                f"{folder} holds digits made with another seed or other settings than seed {seed} "
                "of this version; name another folder, or delete it"
            )
        return open_world(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileError(f"{folder} is in use and holds no {MARKER}; name another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        make(draft, seed, settings, progress or _silent)
        (draft / MARKER).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        draft.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return open_world(folder)


def open_world(folder: str | Path) -> DigitsWorld:
    """The suite that :func:`prepare` left in a folder; nothing heavy is imported yet.

    Raises:
        FileError: the folder was not made by it, or something is missing from it.
    """
    folder = Path(folder)
    facts = _marker(folder)
    tuned = {name: folder / "tuned" / name for name in facts["tasks"]}
    models = [path / "model.safetensors" for path in (folder / "base", *tuned.values())]
    for path in (folder / "heads.safetensors", *models):
        if not path.is_file():
            raise FileError(f"{path} is missing; delete {folder} and make the digits again")
    scorer = Scorer(folder, facts["seed"])
    asked = partial(task_problem, folder, facts["seed"])
    tasks = [Task(name, partial(scorer.score, name), partial(asked, name)) for name in tuned]
    control = Task(CONTROL, partial(scorer.score, CONTROL), partial(asked, CONTROL))
    return DigitsWorld(folder / "base", tuned, tasks, control, facts["seed"])


def open_tasks(folder: str) -> list[Task]:
    """The tasks of a prepared folder: what ``digits:FOLDER`` means."""
    return list(open_world(folder).tasks)


def open_control(folder: str) -> list[Task]:
    """The control task of a prepared folder: what ``digits-control:FOLDER`` means."""
    return [open_world(folder).control]


def _facts(seed: int, settings: Settings) -> dict[str, Any]:
    facts = {
        "format": _FORMAT,
        "version": _VERSION,
        "seed": seed,
        "tasks": list(LABELS),
        "settings": asdict(settings),
    }
    told = json.dumps([facts, dict(LABELS), SHARES], sort_keys=True)
    return {**facts, "digest": hashlib.sha256(told.encode()).hexdigest()}


def _marker(folder: Path) -> dict[str, Any]:
    facts = read_marker(folder, MARKER)
    own = (facts.get("format"), facts.get("version")) == (_FORMAT, _VERSION)
    if not own or not set(facts.get("tasks", ())) <= set(LABELS):
        raise FileError(f"{folder / MARKER} is not the marker of digits made by this version")
    return facts


def _silent(sentence: str) -> None:
    del sentence
