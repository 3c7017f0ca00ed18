"""What was learnt from data, once, as files: importance scores and activation moments.

Both hold one tensor per parameter of a model under the parameter's name, are bound to that
model's fingerprint, and say how they were made. They are written tensor by tensor, so a model's
scores never have to be in memory at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from taskbasis import spaces, stored
from taskbasis.errors import HeaderError, MismatchError, UsageError, ValueProblem, nearest
from taskbasis.io.dtypes import F16, F32, F64, DType
from taskbasis.io.remote import open_anywhere
from taskbasis.io.tensors import TensorInfo, TensorStore
from taskbasis.io.writer import DEFAULT_SHARD, OutputTensor, Staged
from taskbasis.recipe import Binding, Learnt

_LARGEST, _SMALLEST_SCALE = 15, -126
"""Scores in float16 are stored times a power of two that brings the largest of a tensor below
2^15, so that ratios down to 2^-39 are held. The power that restores them is a normal float32."""


@dataclass(frozen=True)
class Origin:
    """Where a file of scores or moments comes from.

    Attributes:
        model: the model that was looked at, with its fingerprint.
        base: the base it was tuned from, where that was looked at, too.
        options: how it was made: plain data.
        rules: tensors that were left out, by the rule that did it.
    """

    model: Binding
    base: Binding | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    rules: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Learnt:
    """Tensors under the names of a model's parameters, and one number for each."""

    path: Path
    store: TensorStore = field(repr=False)
    origin: Origin = field(repr=False)
    infos: Mapping[str, TensorInfo] = field(repr=False)

    kind: ClassVar[str]
    numbers_key: ClassVar[str]
    advice: ClassVar[str]

    @cached_property
    def numbers(self) -> dict[str, float]:
        """The number that stands beside each tensor: its scale, or its count."""
        info = self.store[self.numbers_key]
        if info.dtype != F64 or info.shape != (len(self.infos),):
            raise HeaderError(f"{info.where} does not hold one number for every other tensor")
        numbers = info.load()
        if not np.all(np.isfinite(numbers)) or np.any(numbers < 0):
            raise HeaderError(f"{info.where}: a number is negative, NaN or infinite")
        return dict(zip(sorted(self.infos), map(float, numbers), strict=True))

    @property
    def learnt(self) -> Learnt:
        """What merging reads of it."""
        transposed = self.origin.options.get("transposed", ())
        return Learnt(
            str(self.path),
            self.infos,
            self.numbers,
            (self.path, *self.store.files),
            frozenset(map(str, transposed)),
            self.origin.model,
        )

    def _info(self, name: str) -> TensorInfo:
        if name not in self.infos:
            what = stored.NAMES[self.kind]
            raise MismatchError(
                f"{self.path} holds no {what.split()[-1]} of {name!r}; {nearest(name, self.infos)}"
            )
        return self.infos[name]


def _open(kind: type[_Learnt], path: str | Path) -> dict[str, Any]:
    store = open_anywhere(path)
    content = stored.expect(store, kind.kind, kind.advice)
    base = stored.decode_binding(store, content) if content.get("base") is not None else None
    options, rules = content.get("options"), content.get("rules")
    if not (
        isinstance(options, dict)
        and isinstance(options.get("transposed", []), list)
        and isinstance(rules, dict)
        and all(isinstance(names, list) for names in rules.values())
    ):
        raise HeaderError(f"{store.path}: its taskbasis record does not say how it was made")
    origin = Origin(
        stored.decode_binding(store, content, "model"),
        base,
        options,
        {str(rule): tuple(map(str, names)) for rule, names in rules.items()},
    )
    infos = {name: info for name, info in store.items() if name != kind.numbers_key}
    store[kind.numbers_key]
    for info in infos.values():
        if not info.dtype.mergeable:
            raise HeaderError(f"{info.where} holds {info.dtype.name}, but it must hold floats")
    return {"path": Path(path), "store": store, "origin": origin, "infos": infos}


@dataclass(frozen=True, eq=False)
class Importance(_Learnt):
    """A score per parameter: how much a task's loss depends on it.

    A stored number times its tensor's scale (a power of two) is the score, 0 or larger. Made by
    :func:`taskbasis.learn.importance`; turned into masks by the method ``sta`` and others.

    Source: Selective Task Arithmetic, arXiv 2411.16139.
    """

    space: ClassVar[spaces.Space] = "score"
    kind: ClassVar[str] = stored.IMPORTANCE
    numbers_key: ClassVar[str] = "importance.scales"
    advice: ClassVar[str] = "make them with: taskbasis importance MODEL --task DATA -o SCORES"

    @classmethod
    def open(cls, path: str | Path) -> Importance:
        """The scores at ``path``, opened lazily.

        Raises:
            HeaderError: they are something else, or their record is damaged.
        """
        return cls(**_open(cls, path))

    def scores(self, name: str) -> NDArray[np.float32]:
        """All scores of one tensor, as float32 of its shape.

        Raises:
            MismatchError: there are none of that name.
        """
        values = self._info(name).load().astype(np.float32)
        return np.asarray(values * np.float32(self.numbers[name]))

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, eq=False)
class Moments(_Learnt):
    """Second moments ``E[x x^T]`` of what enters each parameter, over a task's inputs.

    For a linear weight [out, in] a matrix [in, in]; for an embedding [words, d] and for a
    normalisation's scale [d] only the diagonal, [words] and [d]. Beside each stands how many
    inputs x it is the mean of.

    Source: RegMean (Jin et al., ICLR 2023).
    """

    kind: ClassVar[str] = stored.MOMENTS
    numbers_key: ClassVar[str] = "moments.counts"
    advice: ClassVar[str] = "make them with: taskbasis moments MODEL --task DATA -o MOMENTS"

    @classmethod
    def open(cls, path: str | Path) -> Moments:
        """The moments at ``path``, opened lazily.

        Raises:
            HeaderError: they are something else, or their record is damaged.
        """
        return cls(**_open(cls, path))

    def moment(self, name: str) -> NDArray[np.float32]:
        """[in, in] or [d]: the second moment of what enters one parameter.

        Raises:
            MismatchError: there is none of that name.
        """
        return np.asarray(self._info(name).load(), np.float32)

    def __str__(self) -> str:
        return str(self.path)


class _Writer:
    """Writes tensor by tensor, then the numbers beside them; shown whole by ``commit`` or never."""

    kind: ClassVar[type[_Learnt]]

    def __init__(
        self,
        out: str | Path,
        shapes: Mapping[str, tuple[int, ...]],
        origin: Origin,
        dtype: DType,
        *,
        shard_size: int | None = DEFAULT_SHARD,
        replace: bool = False,
        inputs: Iterable[Path] = (),
    ) -> None:
        if not shapes:
            raise ValueProblem(f"{out}: there is no parameter to write anything of")
        if self.kind.numbers_key in shapes:
            raise ValueProblem(f"{out}: a parameter cannot be called {self.kind.numbers_key!r}")
        self._dtype, self._shapes = dtype, dict(shapes)
        self._numbers: dict[str, float] = {}
        tensors = [OutputTensor(name, dtype, shape) for name, shape in sorted(shapes.items())]
        tensors.append(OutputTensor(self.kind.numbers_key, F64, (len(tensors),)))
        content = {
            "model": stored.encode_binding(origin.model),
            "base": stored.encode_binding(origin.base) if origin.base else None,
            "options": dict(origin.options),
            "rules": {rule: list(names) for rule, names in origin.rules.items()},
        }
        self._staged = Staged(
            out,
            tensors,
            stored.encode(self.kind.kind, content),
            shard_size=shard_size,
            replace=replace,
            inputs=inputs,
            stem=self.kind.kind,
        )

    def __enter__(self) -> Any:
        self._staged.__enter__()
        return self

    def _put(self, name: str, values: NDArray[Any], number: float) -> None:
        if name not in self._shapes:
            raise MismatchError(f"{name!r} was not announced; {nearest(name, self._shapes)}")
        if values.shape != self._shapes[name]:
            raise MismatchError(
                f"{name!r} has shape {list(values.shape)}, not {list(self._shapes[name])}"
            )
        self._staged.write_array(name, values)
        self._numbers[name] = number

    def commit(self) -> None:
        """Show the file under its name.

        Raises:
            ValueProblem: a tensor was never written.
        """
        missing = sorted(self._shapes.keys() - self._numbers.keys())
        if missing:
            raise ValueProblem(f"nothing was written for {missing[0]!r}")
        numbers = [self._numbers[name] for name in sorted(self._numbers)]
        self._staged.write_array(self.kind.numbers_key, np.asarray(numbers, np.float64))
        self._staged.commit()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._staged.__exit__(kind, error, trace)


class ImportanceWriter(_Writer):
    """Writes scores, as float16 times a power of two per tensor unless said otherwise.

    Args:
        out: a ``.safetensors`` file, or a folder of shards for any other name.
        shapes: of the parameters that will be written, by name.
        origin: where the scores come from.
        dtype: float16, or float32 where scores within a tensor span more than 2^39.

    >>> from taskbasis.recipe import Binding, Learnt
    >>> out = getfixture("tmp_path") / "scores.safetensors"
    >>> with ImportanceWriter(out, {"w": (2,)}, Origin(Binding("m", None, "00"))) as writer:
    ...     writer.write("w", np.array([1e-9, 3e-9]))
    ...     writer.commit()
    >>> Importance.open(out).scores("w") * 1e9
    array([1.0004442, 2.9995136], dtype=float32)
    """

    kind: ClassVar[type[_Learnt]] = Importance

    def __init__(
        self,
        out: str | Path,
        shapes: Mapping[str, tuple[int, ...]],
        origin: Origin,
        dtype: DType = F16,
        *,
        shard_size: int | None = DEFAULT_SHARD,
        replace: bool = False,
        inputs: Iterable[Path] = (),
    ) -> None:
        if dtype not in (F16, F32):
            raise UsageError(f"scores are stored as float16 or float32, not {dtype.name}")
        super().__init__(
            out, shapes, origin, dtype, shard_size=shard_size, replace=replace, inputs=inputs
        )

    def write(self, name: str, scores: NDArray[Any]) -> None:
        """Write all scores of one tensor, in its shape.

        Raises:
            ValueProblem: a score is negative, NaN, infinite or nearly so.
            MismatchError: the shape is another.
        """
        largest = float(np.max(scores, initial=0.0))
        smallest = float(np.min(scores, initial=0.0))
        if not (largest < 2.0**127 and smallest >= 0):
            raise ValueProblem(
                f"the scores of {name!r} are not all 0 or larger and below 2^127 (from {smallest} "
                f"to {largest}); look for NaN in the weights, or use fewer samples at a time"
            )
        exponent = 0
        if self._dtype == F16 and largest:
            exponent = max(math.frexp(largest)[1] - _LARGEST, _SMALLEST_SCALE)
        words = np.abs(np.ldexp(scores, -exponent))  # no -0.0, whose bits are large
        self._put(name, _narrow(words, self._dtype), math.ldexp(1.0, exponent))


class MomentsWriter(_Writer):
    """Writes second moments as float32, with how many inputs each is the mean of."""

    kind: ClassVar[type[_Learnt]] = Moments

    def __init__(
        self,
        out: str | Path,
        shapes: Mapping[str, tuple[int, ...]],
        origin: Origin,
        *,
        shard_size: int | None = DEFAULT_SHARD,
        replace: bool = False,
        inputs: Iterable[Path] = (),
    ) -> None:
        super().__init__(
            out, shapes, origin, F32, shard_size=shard_size, replace=replace, inputs=inputs
        )

    def write(self, name: str, moment: NDArray[Any], count: int) -> None:
        """Write the moment of what enters one parameter, the mean over ``count`` inputs.

        Raises:
            ValueProblem: a value is NaN or infinite, or there were no inputs.
            MismatchError: the shape is another.
        """
        with np.errstate(over="ignore"):
            values = np.asarray(moment, np.float32)
        if count < 1 or not np.all(np.isfinite(values)):
            raise ValueProblem(
                f"the moment of {name!r} over {count} inputs is not finite; look for NaN in the "
                "weights, and for an empty data set"
            )
        self._put(name, values, float(count))


def _narrow(values: NDArray[Any], dtype: DType) -> NDArray[Any]:
    """Rounded once, to nearest even, to float16 or float32."""
    return values.astype(np.float16 if dtype == F16 else np.float32)
