"""What a suite hands out: a base, its fine-tunes, and tasks that score models of their shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from taskbasis.evaluate.task import Task

Tell = Callable[[str], None]
"""Is told what is being done, a sentence at a time."""


@dataclass(frozen=True)
class World:
    """One base and its fine-tunes on disk, and the tasks that judge them.

    Attributes:
        base: the folder of the base.
        tuned: the folder of each task's fine-tuned model, in the order of ``tasks``.
        tasks: the tasks; a score is an accuracy from 0 to 1.
        control: what forgetting must leave alone.
        seed: what everything was drawn with.
        controls: a control of its own for some targets, where one for all would hold the target.

    >>> task, rest = Task("t", lambda model, split: 1.0), Task("rest", lambda model, split: 0.5)
    >>> World(Path("base"), {}, [task], rest, 0).kept("t").name
    'rest'
    """

    base: Path
    tuned: Mapping[str, Path]
    tasks: Sequence[Task]
    control: Task
    seed: int
    controls: Mapping[str, Task] = field(default_factory=dict)

    def kept(self, target: str) -> Task:
        """What must stay while ``target`` is forgotten."""
        return self.controls.get(target, self.control)
