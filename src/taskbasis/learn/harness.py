"""Tasks of EleutherAI's lm-evaluation-harness as tasks of ours: validation and test kept apart.

    lm_eval:MODEL_FOLDER:TASK          the documents of TASK, halved by seed 0
    lm_eval:MODEL_FOLDER:TASK,OTHER    validation is TASK, test is OTHER

The harness may download data sets, and a task of its is code that it runs: name tasks you trust.
"""

from __future__ import annotations

import io
import logging
import math
import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from taskbasis.errors import FileError, UsageError, nearest, require
from taskbasis.evaluate.task import Model, Split, Task
from taskbasis.learn.huggingface import CAUSAL, Asked, open_model
from taskbasis.learn.runtime import looking_at
from taskbasis.learn.skeleton import quiet
from taskbasis.learn.task import put_model
from taskbasis.learn.text import load_tokenizer
from taskbasis.recipe import find_naming

EXTRA, PURPOSE = "harness", "a task of lm-evaluation-harness"

Spec = str | Mapping[str, Any]
"""A task by its name or the path of its YAML, or its config."""


@dataclass(frozen=True)
class Harness:
    """How the harness is asked.

    Attributes:
        metric: which of the task's, such as ``acc_norm``; the first that is better when higher.
        share: of the documents that become validation, where there is one task for both splits.
        limit: documents of each split at most.
        seed: by which documents are shared out, and few-shot examples drawn.
        fewshot: examples before every question; as the task says by default.
        batch: questions at a time.
        include: a folder with more tasks, as YAML.
    """

    metric: str | None = None
    share: float = 0.5
    limit: int | None = None
    seed: int = 0
    fewshot: int | None = None
    batch: int = 8
    include: Path | None = None

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise UsageError(f"a share of {self.share:g} leaves one split empty; use 0.5, say")
        for what, number in (("limit", self.limit), ("batch", self.batch)):
            if number is not None and number < 1:
                raise UsageError(f"a {what} of {number} asks nothing; use at least 1")
        if self.fewshot is not None and self.fewshot < 0:
            raise UsageError(f"{self.fewshot} few-shot examples cannot be given; use 0 or more")


def open_tasks(rest: str) -> list[Task]:
    """The task of ``MODEL_FOLDER:TASK``: what ``lm_eval:MODEL_FOLDER:TASK`` means.

    Raises:
        UsageError: it is not of that form. FileError: there is no such folder.
    """
    folder, colon, names = rest.rpartition(":")
    if not (folder and colon and names):
        raise UsageError(f"'lm_eval:{rest}' names no task; write lm_eval:MODEL_FOLDER:TASK")
    validation, _, test = names.partition(",")
    return [harness_task(folder, validation, test or None)]


def harness_task(
    folder: str | Path,
    validation: Spec,
    test: Spec | None = None,
    how: Harness | None = None,
    name: str | None = None,
) -> Task:
    """A task that scores any model of a folder's architecture by a metric of the harness.

    What is chosen never sees what is reported: with one task its documents are shared out by a
    seed, each to one split; two tasks must not score the same documents. Few-shot examples may
    not come from documents that are shared out, nor those of validation from test's.

    Args:
        folder: a Hugging Face folder of a causal language model, with its tokenizer; opened when
            it is first scored.
        validation: the task that is chosen by.
        test: the task that is reported; by default the other documents of the same.
        how: metric, sizes and seed.
        name: of the task; the harness's by default.

    Raises:
        UsageError: there is no such task, it is a group, or the splits would not be apart.
        FileError: a task's data cannot be loaded, or there is no such folder.
        MissingExtraError: the harness is not installed.
    """
    how, folder = how or Harness(), Path(folder)
    if not folder.is_dir():
        raise FileError(f"{folder}: no such model folder; write lm_eval:MODEL_FOLDER:TASK")
    with _aside():
        parts = _parts(validation, test, how)
    return Task(name or parts["validation"].name, _Scorer(folder, parts, how).score)


def _parts(validation: Spec, test: Spec | None, how: Harness) -> dict[Split, _Part]:
    manager = _manager([validation, *([test] if test is not None else [])], how)
    chosen = _load(manager, validation, how)
    if test is None:
        return _halves(chosen, how)
    reported = _load(manager, test, how)
    if _documents(chosen) == _documents(reported):
        raise UsageError(
            f"{chosen.config.task!r} and {reported.config.task!r} score the same documents; name "
            "one of them alone, and its documents are shared out"
        )
    if chosen.config.num_fewshot and _shots(chosen) == _documents(reported):
        raise UsageError(
            f"{chosen.config.task!r} takes its few-shot examples from the documents that "
            f"{reported.config.task!r} scores, so validation would see test; use fewshot=0"
        )
    return {"validation": _whole(chosen, how), "test": _whole(reported, how)}


@dataclass(frozen=True, eq=False)
class _Part:
    """A task of the harness, and the numbers of the documents that make up one split."""

    name: str
    task: Any
    documents: tuple[int, ...]


def _manager(specs: Sequence[Spec], how: Harness) -> Any:
    """What finds tasks; the harness's own are listed only where a name may be one of theirs."""
    tasks = require("lm_eval.tasks", EXTRA, PURPOSE)
    named = any(isinstance(spec, str) and not Path(spec).is_file() for spec in specs)
    include = None if how.include is None else str(how.include)
    return tasks.TaskManager(include_path=include, include_defaults=named)


def _load(manager: Any, spec: Spec, how: Harness) -> Any:
    """One task of the harness, with its data.

    Raises:
        UsageError: there is none, or several. FileError: its data cannot be loaded.
    """
    known = manager.all_tasks
    if isinstance(spec, str) and spec not in known and not Path(spec).is_file():
        hint = nearest(spec, known)  # of thousands, which no sentence lists
        hint = hint if hint.startswith("did") else "'lm_eval ls tasks' lists them"
        raise UsageError(f"lm_eval has no task {spec!r}; {hint}")
    label = spec if isinstance(spec, str) else spec.get("task", "without a name")
    try:
        found = manager.load([spec if isinstance(spec, str) else dict(spec)])["tasks"]
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise FileError(f"the lm_eval task {label!r} cannot be loaded: {error}") from None
    if len(found) != 1:
        names = ", ".join(sorted(found)[:4])
        raise UsageError(f"{label!r} is a group of {len(found)} tasks; name one ({names}, ...)")
    (task,) = found.values()
    if how.fewshot is not None or task.config.num_fewshot is None:
        task.set_config(key="num_fewshot", value=how.fewshot or 0)
    task.set_fewshot_seed(seed=how.seed)
    return task


def _split_of(task: Any) -> str | None:
    """The split of the data set that the harness scores: test where there is one."""
    config = task.config
    found = config.test_split if task.has_test_docs() else config.validation_split
    return None if found is None else str(found)


def _documents(task: Any) -> tuple[Any, ...]:
    """What tells the documents of one task from another's."""
    return *_data(task), _split_of(task)


def _shots(task: Any) -> tuple[Any, ...]:
    """The same of those that few-shot examples are taken from."""
    return *_data(task), task.fewshot_cfg.split


def _data(task: Any) -> tuple[Any, ...]:
    config = task.config
    more = repr(sorted((config.dataset_kwargs or {}).items()))
    return config.dataset_path, config.dataset_name, more


def _halves(task: Any, how: Harness) -> dict[Split, _Part]:
    if task.config.num_fewshot and _shots(task) == _documents(task):
        raise UsageError(
            f"{task.config.task!r} takes its few-shot examples from the documents it scores, so "
            "validation would see test; use fewshot=0, or name a second task for test"
        )
    count = len(task.eval_docs)
    order = np.random.default_rng(how.seed).permutation(count)
    middle = round(how.share * count)
    parts = {"validation": order[:middle], "test": order[middle:]}
    return {split: _part(task, parts[split], how) for split in ("validation", "test")}


def _whole(task: Any, how: Harness) -> _Part:
    return _part(task, np.random.default_rng(how.seed).permutation(len(task.eval_docs)), how)


def _part(task: Any, documents: Any, how: Harness) -> _Part:
    if not len(documents):
        raise UsageError(
            f"{task.config.task!r} has {len(task.eval_docs)} documents, too few for two splits; "
            "name a second task for test"
        )
    return _Part(str(task.config.task), task, tuple(sorted(map(int, documents[: how.limit]))))


@dataclass(frozen=True, eq=False)
class _Scorer:
    """Scores models one after the other in one module."""

    folder: Path
    parts: Mapping[Split, _Part]
    how: Harness

    @cached_property
    def _lock(self) -> threading.Lock:
        return threading.Lock()

    @cached_property
    def _asked(self) -> Asked:
        asked = open_model(self.folder)
        if asked.kind != CAUSAL:
            raise UsageError(
                f"{self.folder}: is no causal language model, which {PURPOSE} is asked of"
            )
        return asked

    @cached_property
    def _wrapped(self) -> Any:
        wrapper = require("lm_eval.models.huggingface", EXTRA, PURPOSE).HFLM
        tokenizer = load_tokenizer(self.folder)
        module = self._asked.skeleton.module
        return wrapper(pretrained=module, tokenizer=tokenizer, batch_size=self.how.batch)

    def score(self, model: Model, split: Split) -> float:
        """The metric of a split's documents; NaN for a model that is not finite."""
        if not all(np.isfinite(np.asarray(array, np.float32)).all() for array in model.values()):
            return math.nan  # the harness would compare likelihoods that are none
        part = self.parts[split]
        with self._lock, _aside(), quiet():
            evaluate = require("lm_eval.evaluator", EXTRA, PURPOSE).evaluate
            skeleton = self._asked.skeleton
            put_model(skeleton.module, skeleton.names, model, find_naming(model, skeleton.store))
            with looking_at(skeleton.module):
                found = evaluate(
                    lm=self._wrapped,
                    task_dict={part.name: part.task},
                    samples={part.name: list(part.documents)},
                    bootstrap_iters=0,
                    log_samples=False,
                )
        return _metric(found, part.name, self.how.metric)


@contextmanager
def _aside() -> Iterator[None]:
    """The harness without bars and advice, and the random numbers of others as they were."""
    logger = logging.getLogger("lm_eval")
    level, states = logger.level, (random.getstate(), np.random.get_state())
    try:
        logger.setLevel(logging.ERROR)
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        random.setstate(states[0])
        np.random.set_state(states[1])


def _metric(found: Mapping[str, Any], name: str, wanted: str | None) -> float:
    """One number of a task's results.

    Raises:
        UsageError: it has no such metric, or it is better when lower.
    """
    higher = found["higher_is_better"][name]
    results = {
        key: value
        for key, value in found["results"][name].items()
        if "," in key and "_stderr" not in key and isinstance(value, (int, float))
    }
    known = [key for key in results if higher.get(key.partition(",")[0])]
    asked = [key for key in results if wanted in (key, key.partition(",")[0])]
    chosen = [key for key in (known if wanted is None else asked) if key in known]
    if chosen:
        return float(results[chosen[0]])
    if asked:
        raise UsageError(f"{wanted!r} of {name!r} is better when lower; use one of {known}")
    if wanted is None:
        raise UsageError(f"{name!r} has no metric that is better when higher")
    hint = nearest(wanted, [key.partition(",")[0] for key in known])
    raise UsageError(f"{name!r} has no metric {wanted!r}; {hint}")
