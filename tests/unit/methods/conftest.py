"""Scores and moments as files, bound to the models they are said to be learnt of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from taskbasis import stored
from taskbasis.engine import Engine
from taskbasis.io.dtypes import F16, DType
from taskbasis.recipe import Binding
from taskbasis.scores import Importance, ImportanceWriter, Moments, MomentsWriter, Origin
from taskbasis.vectors import Checkpoint

Arrays = Mapping[str, NDArray[Any]]


def origin(folder: Path, options: Mapping[str, Any]) -> Origin:
    binding = Binding(str(folder), Checkpoint(folder).store)
    return Origin(stored.bind(binding, Engine(1)), options=options)


@pytest.fixture
def write_scores(tmp_path: Path) -> Callable[..., Importance]:
    """``write_scores(name, model, scores, dtype)``: scores of a model's tensors."""

    def write(name: str, model: Path, scores: Arrays, dtype: DType = F16) -> Importance:
        out = tmp_path / f"{name}.safetensors"
        shapes = {tensor: array.shape for tensor, array in scores.items()}
        with ImportanceWriter(out, shapes, origin(model, {}), dtype) as writer:
            for tensor, array in scores.items():
                writer.write(tensor, array)
            writer.commit()
        return Importance.open(out)

    return write


@pytest.fixture
def write_moments(tmp_path: Path) -> Callable[..., Moments]:
    """``write_moments(name, model, moments, transposed)``: moments of a model's tensors."""

    def write(name: str, model: Path, moments: Arrays, transposed: Iterable[str] = ()) -> Moments:
        out = tmp_path / f"{name}.safetensors"
        shapes = {tensor: array.shape for tensor, array in moments.items()}
        options = {"transposed": list(transposed)}
        with MomentsWriter(out, shapes, origin(model, options)) as writer:
            for tensor, array in moments.items():
                writer.write(tensor, np.asarray(array), 100)
            writer.commit()
        return Moments.open(out)

    return write
