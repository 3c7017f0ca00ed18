"""Opening a suite for the bench: its models made or reused, its tasks picked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from taskbasis.bench.spec import SUITES, Bench
from taskbasis.errors import UsageError, nearest
from taskbasis.evaluate.task import pick_tasks
from taskbasis.suites import clip, digits, images, text
from taskbasis.suites.digits_model import Settings
from taskbasis.suites.images_model import IMAGES
from taskbasis.suites.world import Tell, World


def open_suite(bench: Bench, seed: int, tell: Tell) -> tuple[World, str]:
    """The world of one seed, and what the family of its checkpoints is called.

    Raises:
        UsageError: there is no such suite or task, or an option does not belong to the suite.
    """
    check(bench)
    place = bench.place(seed) / "models"
    if bench.suite == "digits":
        settings = bench.settings or Settings()
        made = digits.prepare(place, seed, tell, settings)
        world = World(made.base, made.tuned, made.tasks, made.control, seed)
        return _restricted(world, bench.tasks), _vit(settings, "digits 0 to 4")
    if bench.suite == "clip":
        family = bench.encoder.name if bench.encoder else clip.FAMILY
        world = clip.prepare(
            bench.data, place, seed, tell, bench.tasks or None, family, bench.limits
        )
        return world, f"{family} with FusionBench's fine-tunes, {_source(bench.data)}"
    assert bench.data is not None
    if bench.suite == "images":
        settings = bench.settings or IMAGES
        world = images.prepare(bench.data, place, seed, tell, settings, bench.tasks or None)
        return world, _vit(settings, "half of all classes")
    world = text.prepare(
        bench.data, place, seed, tell, bench.tasks or None, bench.encoder, bench.settings,
        bench.limits,
    )  # fmt: skip
    return world, _encoder_name(bench.encoder)


def check(bench: Bench) -> None:
    """Refuse options that the suite has no use for, before anything is made.

    Raises:
        UsageError: naming the option.
    """
    if bench.suite not in SUITES:
        raise UsageError(f"there is no suite {bench.suite!r}; {nearest(bench.suite, SUITES)}")
    if bench.suite in ("images", "text") and bench.data is None:
        raise UsageError(f"the suite {bench.suite} needs --data, the folder with its sets")
    if bench.suite == "digits" and bench.data is not None:
        raise UsageError("the suite digits brings its own data; leave out --data")
    if bench.encoder is not None and bench.suite not in ("text", "clip"):
        raise UsageError(f"--encoder is for the suites text and clip, not for {bench.suite}")
    if bench.limits and bench.suite not in ("text", "clip"):
        raise UsageError(f"the splits of the suite {bench.suite} are fixed; leave out the limits")


def _source(data: Path | None) -> str:
    return "from the hub" if data is None else "or others in their layout, from a folder"


def _vit(settings: Settings, learnt: str) -> str:
    return f"a ViT of {settings.hidden} x {settings.layers}, pre-trained here on {learnt}"


def _encoder_name(folder: Path | None) -> str:
    if folder is None:
        return "a small BERT, pre-trained here on the texts"
    named = folder.resolve()
    generic = named.name in ("model", "encoder", "base")
    return f"the encoder {named.parent.name if generic else named.name}, fine-tuned here"


def _restricted(world: World, names: Sequence[str]) -> World:
    if not names:
        return world
    tasks = pick_tasks(world.tasks, names)
    tuned = {task.name: world.tuned[task.name] for task in tasks}
    return World(world.base, tuned, tasks, world.control, world.seed, world.controls)
