"""Scoring a model of the text suite: only the texts of the task that is asked for are run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors.numpy import load_file

from taskbasis.evaluate.task import Split
from taskbasis.suites.answering import Answering
from taskbasis.suites.network import Network
from taskbasis.suites.text_data import TextSet, load_set, pick_sets
from taskbasis.suites.text_model import (
    Reader,
    TextSettings,
    all_features,
    load_tokenizer,
    loader_of,
)


class TextScorer(Answering):
    """Accuracies of models on the tasks of one prepared folder.

    Args:
        data: where the sets are.
        folder: what :func:`taskbasis.suites.text.prepare` made.
        names: the tasks.
        seed: of the splits.
        settings: what the folder was made with.
        limits: sentences of a split that are scored, where that is fewer than there are.
    """

    def __init__(
        self,
        data: Path,
        folder: Path,
        names: Sequence[str],
        seed: int,
        settings: TextSettings,
        limits: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(names, limits)
        self._data, self._folder, self._seed, self._settings = data, folder, seed, settings
        self._tokens: dict[tuple[str, str], list[list[int]]] = {}

    def count(self, task: str, split: str) -> int:
        return len(self.data(task).labels[split])

    def answers(
        self, module: Any, task: str, split: Split, part: slice
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        found = all_features(module, self.reader, self.tokens(task, split)[part])
        weight, bias = self.heads[task]
        return found @ weight + bias, self.data(task).labels[split][part]

    def data(self, task: str) -> TextSet:
        """The sentences of a task."""
        return self._sets[task]

    def tokens(self, task: str, split: str) -> list[list[int]]:
        """The tokens of a task's sentences, read once."""
        key = (task, split)
        if key not in self._tokens:
            self._tokens[key] = self.reader.read(self.data(task).texts[split])
        return self._tokens[key]

    @cached_property
    def reader(self) -> Reader:
        """The base's tokenizer."""
        return Reader(load_tokenizer(self._folder / "base"), self._settings.max_length)

    @cached_property
    def _sets(self) -> dict[str, TextSet]:
        sizes = self._settings.validation, self._settings.test
        files = pick_sets(self._data, self.names)
        return {name: load_set(*pair, self._seed, *sizes) for name, pair in files.items()}

    @cached_property
    def heads(self) -> Mapping[str, tuple[NDArray[Any], NDArray[Any]]]:
        """Weight and bias of every task's frozen head."""
        found = {n: load_file(self._folder / "heads" / f"{n}.safetensors") for n in self.names}
        return {name: (arrays["weight"], arrays["bias"]) for name, arrays in found.items()}

    @cached_property
    def network(self) -> Network:
        """The encoder, which takes the weights of any model of its shape."""
        name, more = loader_of(self._folder / "base")
        return Network(self._folder / "base", name, **more)
