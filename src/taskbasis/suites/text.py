"""Real text classification: one encoder, a fine-tune and a frozen head for every set of a folder.

:func:`prepare` makes what is missing and keeps it as ordinary Hugging Face folders::

    FOLDER/text.json                how everything is made, and of which data
    FOLDER/base/                    config, weights and tokenizer
    FOLDER/heads/trec6.safetensors  the frozen head of a task
    FOLDER/tuned/trec6/             the fine-tuned encoder, under the base's tensor names

Each part is made beside and renamed, so an interrupted run goes on where it was stopped, and a
task that is asked for later joins the others. While a task is forgotten, the control is the mean
accuracy on all others, on as many sentences as one task has, in equal shares.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from taskbasis.errors import FileError, UsageError, nearest
from taskbasis.evaluate.task import Task
from taskbasis.suites.digits_model import Settings, fitted_head, quiet_and_repeatable
from taskbasis.suites.folders import claim, digest_of, made_beside, read_marker
from taskbasis.suites.text_data import TextSet, load_set, pick_sets
from taskbasis.suites.text_model import (
    Reader,
    TextSettings,
    all_features,
    load_encoder,
    new_encoder,
    new_tokenizer,
    tune,
)
from taskbasis.suites.text_problem import task_problem
from taskbasis.suites.text_score import TextScorer
from taskbasis.suites.world import Tell, World

MARKER = "text.json"
"""The file that says how a folder is made."""

CONTROL = "control"
"""The control for no target in particular: the mean accuracy on all tasks."""

_PRETRAINING_TEXTS = 20_000


def prepare(
    data: Path,
    folder: Path,
    seed: int,
    tell: Tell,
    tasks: Sequence[str] | None = None,
    encoder: Path | None = None,
    settings: TextSettings | None = None,
    limits: Mapping[str, int] | None = None,
) -> World:
    """The suite in ``folder``, made from the sets in ``data`` where it is not there yet.

    Args:
        data: holds ``NAME.train.tsv`` and ``NAME.test.tsv`` (or ``.tsv.gz``), or ``text/`` with
            them: a label, a tab and a sentence a line.
        folder: where the models go; absent, empty, or made by this with equal settings.
        seed: of the splits, the small encoder's weights and the order of the sentences.
        tell: is told what is being done, a sentence at a time.
        tasks: which sets; all of them by default.
        encoder: a Hugging Face encoder folder with its tokenizer; without it a small BERT is
            pre-trained on the training sentences of all sets in ``data``.
        settings: how models are made.
        limits: sentences of a split that are scored, where that is fewer than were set apart.

    Raises:
        FileError: the folder is used for something else, or its models were made otherwise.
        UsageError: there is no such set. ValueProblem: a line of a set cannot be used.
        MissingExtraError: torch, transformers or scikit-learn is not installed.
    """
    settings = settings or TextSettings()
    files = pick_sets(data, tasks)
    facts = {
        "suite": "text",
        "version": 1,
        "seed": seed,
        "settings": asdict(settings),
        "encoder": _identity(encoder) if encoder else "pre-trained on the texts",
    }
    claim(folder, MARKER, facts)
    for name, pair in files.items():
        claim(folder / "sets" / name, "set.json", {"digest": digest_of(*pair)})
    with quiet_and_repeatable(seed):
        if not (folder / "base").exists():
            _make_base(data, folder, seed, encoder, settings, tell)
        _make_tasks(files, folder, seed, settings, tell)
    told = {"data": str(data.resolve()), "tasks": list(files)}
    with made_beside(folder / "tasks.json") as draft:
        draft.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    return open_world(folder, limits)


def open_world(folder: Path, limits: Mapping[str, int] | None = None) -> World:
    """The suite that :func:`prepare` left in a folder, with the tasks it was asked for last.

    Raises:
        FileError: the folder was not made by it, or something is missing from it.
    """
    facts, told = read_marker(folder, MARKER), read_marker(folder, "tasks.json")
    settings, seed = TextSettings(**facts["settings"]), int(facts["seed"])
    names = list(told["tasks"])
    tuned = {name: folder / "tuned" / name for name in names}
    for path in (folder / "base", *tuned.values()):
        if not (path / "model.safetensors").is_file():
            raise FileError(f"{path} holds no model.safetensors; prepare the suite again")
    scorer = TextScorer(Path(told["data"]), folder, names, seed, settings, limits)
    tasks = [
        Task(name, partial(scorer.score, name), partial(task_problem, scorer, name))
        for name in names
    ]
    controls = {name: Task(f"not-{name}", partial(scorer.others, name)) for name in names}
    whole = Task(CONTROL, partial(scorer.others, None))
    several = controls if len(names) > 1 else {}
    return World(folder / "base", tuned, tasks, whole, seed, several)


def open_tasks(folder: str) -> list[Task]:
    """The tasks of a prepared folder: what ``text:FOLDER`` means."""
    return list(open_world(Path(folder)).tasks)


def open_control(folder: str) -> list[Task]:
    """Its controls, ``control`` and ``not-TASK`` for each: what ``text-control:FOLDER`` means."""
    world = open_world(Path(folder))
    return [world.control, *world.controls.values()]


def _identity(encoder: Path) -> str:
    """What a given encoder is known by: its weights, config and vocabulary."""
    names = ("config.json", "model.safetensors", "pytorch_model.bin", "tokenizer.json", "vocab.txt")
    found = [encoder / name for name in names if (encoder / name).is_file()]
    if not found:
        hint = nearest(encoder.name, [path.name for path in encoder.parent.glob("*")])
        raise UsageError(f"--encoder {encoder} is no folder with a model in it; {hint}")
    return digest_of(*found)


def _make_base(
    data: Path, folder: Path, seed: int, encoder: Path | None, settings: TextSettings, tell: Tell
) -> None:
    if encoder is not None:
        module, tokenizer = load_encoder(encoder)
    else:
        tell(f"seed {seed}: pre-training a small encoder on the texts")
        texts = _training_texts(data, seed, settings)
        tokenizer = new_tokenizer(texts, settings.words, settings.max_length)
        reader = Reader(tokenizer, settings.max_length)
        module = new_encoder(reader, reader.read(texts), seed, settings)
    with made_beside(folder / "base") as draft:
        module.save_pretrained(draft)
        tokenizer.save_pretrained(draft)


def _training_texts(data: Path, seed: int, settings: TextSettings) -> list[str]:
    texts = [
        text
        for pair in pick_sets(data, None).values()
        for text in load_set(*pair, seed, settings.validation, settings.test).texts["train"]
    ]
    order = np.random.default_rng([seed, 3]).permutation(len(texts))[:_PRETRAINING_TEXTS]
    return [texts[place] for place in order]


def _make_tasks(
    files: dict[str, tuple[Path, Path]], folder: Path, seed: int, settings: TextSettings, tell: Tell
) -> None:
    for number, (name, pair) in enumerate(files.items(), start=1):
        head = folder / "heads" / f"{name}.safetensors"
        if head.exists() and (folder / "tuned" / name).exists():
            continue
        tell(f"seed {seed}: fine-tuning for {name} ({number} of {len(files)})")
        found = load_set(*pair, seed, settings.validation, settings.test)
        module, tokenizer = load_encoder(folder / "base")
        reader = Reader(tokenizer, settings.max_length)
        tokens = reader.read(found.texts["train"])
        if not head.exists():
            _make_head(module, reader, tokens, found, head, settings)
        arrays = load_file(head)
        own = int(digest_of_name(name), 16)
        tune(module, reader, (arrays["weight"], arrays["bias"]), (tokens, found.labels["train"]),
             1000 * seed + own, settings)  # fmt: skip
        with made_beside(folder / "tuned" / name) as draft:
            module.save_pretrained(draft)
            tokenizer.save_pretrained(draft)


def _make_head(
    module: Any,
    reader: Reader,
    tokens: Sequence[Sequence[int]],
    found: TextSet,
    out: Path,
    settings: TextSettings,
) -> None:
    count = settings.head_texts
    rows = all_features(module, reader, tokens[:count])
    fit = Settings(head_strength=settings.head_strength, head_scale=settings.head_scale)
    weight, bias = fitted_head(rows, found.labels["train"][:count], fit)
    with made_beside(out) as draft:
        save_file({"weight": np.ascontiguousarray(weight), "bias": bias}, draft)


def digest_of_name(name: str) -> str:
    """Three hex digits: a task's own seed does not depend on which others were asked for."""
    return hashlib.sha256(name.encode()).hexdigest()[:3]
