"""The nouns people hold: checkpoints, task vectors and edited models, with their algebra.

Building an expression reads headers only; ``save`` and ``tensors`` do the work.

    base, math, code = Checkpoint("base"), Checkpoint("math"), Checkpoint("code")
    merged = base + 0.4 * ((math - base) + (code - base))
    merged.save("merged")
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar, cast, overload

import numpy as np
from numpy.typing import NDArray

from taskbasis import notebook, spaces, stored
from taskbasis.adapters import adapter_leaves
from taskbasis.algebra import Weights, mismatched, name_of, space_of
from taskbasis.difference import difference_leaf
from taskbasis.digest import fingerprint, store_digests
from taskbasis.engine import Engine
from taskbasis.errors import UsageError, ValueProblem, finite
from taskbasis.io.adapter import is_adapter, open_adapter
from taskbasis.io.remote import located, open_anywhere
from taskbasis.io.storing import Rounding, storing
from taskbasis.io.tensors import TensorStore
from taskbasis.io.writer import DEFAULT_SHARD
from taskbasis.masks import Mask, masked
from taskbasis.methods import Method
from taskbasis.methods.elementwise.task_arithmetic import TaskArithmetic
from taskbasis.recipe import Combination, Term
from taskbasis.saving import Edit, Saved, model_in_memory, save_model, save_vector, vector_in_memory
from taskbasis.scores import Importance, Moments


@dataclass(frozen=True, eq=False)
class Checkpoint(Weights):
    """A model's named tensors on disk, opened lazily.

    Args:
        path: a Hugging Face folder (single file or shards with an index), a ``.safetensors``
            file, or a torch ``.bin`` loaded with weights only.

    Raises:
        FileError: nothing readable is there. HeaderError: its header and files disagree.

    >>> folder = getfixture("tiny_checkpoints")
    >>> base = Checkpoint(folder / "base")
    >>> sorted(base.store)
    ['bias', 'steps', 'weight']
    """

    path: Path
    store: TensorStore = field(repr=False)

    def __init__(self, path: str | Path) -> None:
        self._hold(open_anywhere(path))

    def _hold(self, store: TensorStore) -> None:
        object.__setattr__(self, "path", store.path)
        object.__setattr__(self, "store", store)

    @classmethod
    def of(cls, store: TensorStore) -> Checkpoint:
        """The checkpoint that a store's tensors are, wherever they lie."""
        found = cls.__new__(cls)
        found._hold(store)
        return found

    @cached_property
    def _digests(self) -> dict[str, str]:
        return store_digests(self.store, Engine())

    @property
    def fingerprint(self) -> str:
        """32 hex digits that name its tensors, however they are sharded; reads them once."""
        return fingerprint(self._digests)

    @overload
    def __sub__(self, other: Checkpoint) -> TaskVector: ...
    @overload
    def __sub__(self, other: TaskVector) -> EditedModel: ...

    def __sub__(self, other: Checkpoint | TaskVector) -> TaskVector | EditedModel:
        if isinstance(other, Checkpoint):
            return TaskVector(other, self)
        return cast(EditedModel, EditedModel(self) - other)

    def __add__(self, other: TaskVector) -> EditedModel:
        return EditedModel(self) + other

    __radd__ = __add__

    def __str__(self) -> str:
        return str(self.path)

    def _repr_html_(self) -> str:
        return notebook.of_store("checkpoint", self.store)


@dataclass(frozen=True, eq=False)
class TaskVector:
    """The difference of two checkpoints, or a sum of such differences; nothing is read yet.

    ``tau = theta_tuned - theta_base``, taken in float32 (float64 for float64 tensors) before any
    rounding. Supports ``+``, ``-``, unary minus, multiplication by a number, and ``sum``.

    Args:
        pretrained: the base, or its path.
        finetuned: the tuned model, or its path; or the folder of a LoRA adapter, whose update is
            the difference.
        exclude: patterns of tensors to leave out on both sides.

    Raises:
        MismatchError: names or shapes differ. BaseError: two vectors have different bases.

    Source: Ilharco et al., Editing Models with Task Arithmetic, ICLR 2023.

    >>> folder = getfixture("tiny_checkpoints")
    >>> math = TaskVector(folder / "base", folder / "math")
    >>> code = TaskVector(folder / "base", folder / "code")
    >>> both = math + code
    >>> both.apply_to(folder / "base", scaling_coef=0.5).tensors()["bias"]
    array([1. , 1.5], dtype=float32)
    """

    combination: Combination

    space: ClassVar[spaces.Space] = "delta"

    def __init__(
        self,
        pretrained: str | Path | Checkpoint,
        finetuned: str | Path | Checkpoint,
        exclude: Sequence[str] = (),
    ) -> None:
        base = as_checkpoint(pretrained).store
        folder = None if isinstance(finetuned, Checkpoint) else located(finetuned)
        if folder is not None and is_adapter(folder):
            leaves = adapter_leaves(open_adapter(folder), base, exclude)
        else:
            leaves = (difference_leaf(base, as_checkpoint(finetuned).store, exclude),)
        object.__setattr__(self, "combination", Combination(tuple(map(Term, leaves))))

    @classmethod
    def of(cls, combination: Combination) -> TaskVector:
        """The task vector that a combination of leaves describes."""
        vector = cls.__new__(cls)
        object.__setattr__(vector, "combination", combination)
        return vector

    @classmethod
    def open(cls, path: str | Path) -> TaskVector:
        """A stored task vector.

        Raises:
            HeaderError: the file is not a task vector.
        """
        return cls.of(Combination((Term(stored.vector_leaf(open_anywhere(path))),)))

    def __add__(self, other: TaskVector | int) -> TaskVector:
        if isinstance(other, int) and other == 0:  # what sum() starts with
            return self
        if not isinstance(other, TaskVector):
            return cast(TaskVector, mismatched(self, "+", other))
        return TaskVector.of(self.combination + other.combination)

    def __radd__(self, other: int) -> TaskVector:
        if isinstance(other, int) and other == 0:
            return self
        return cast(TaskVector, mismatched(other, "+", self))

    def __sub__(self, other: TaskVector) -> TaskVector:
        if not isinstance(other, TaskVector):
            return cast(TaskVector, mismatched(self, "-", other))
        return self + (-other)

    def __rsub__(self, other: object) -> Any:
        return mismatched(other, "-", self)

    def __neg__(self) -> TaskVector:
        return TaskVector.of(self.combination.scaled(-1.0))

    def __mul__(self, factor: float | Mask) -> TaskVector:
        if isinstance(factor, Mask):
            return TaskVector.of(masked(self.combination, factor))
        if not isinstance(factor, Real):
            return cast(TaskVector, mismatched(self, "*", factor))
        return TaskVector.of(self.combination.scaled(finite("a coefficient", float(factor))))

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> TaskVector:
        if not isinstance(divisor, Real):
            return cast(TaskVector, mismatched(self, "/", divisor))
        if divisor == 0:
            raise UsageError(f"{self} cannot be divided by zero")
        return self * (1.0 / float(divisor))

    def __rtruediv__(self, other: object) -> Any:
        return mismatched(other, "/", self)

    def apply_to(self, base: str | Path | Checkpoint, scaling_coef: float = 1.0) -> EditedModel:
        """The weights ``base + scaling_coef * self``, not computed yet."""
        return EditedModel(as_checkpoint(base)) + scaling_coef * self

    def save(
        self,
        out: str | Path,
        dtype: str = "float32",
        *,
        float32: Sequence[str] = (),
        rounding: Rounding = "nearest",
        rounding_seed: int | None = None,
        shard_size: int | None = DEFAULT_SHARD,
        replace: bool = False,
        engine: Engine | None = None,
    ) -> Saved:
        """Store it: a ``.safetensors`` file, or a folder of shards for any other name.

        Tensors that equal the base's are not stored. The file is bound to the base's fingerprint.
        ``float32``, ``rounding`` and ``rounding_seed`` are as for :meth:`EditedModel.save`.

        Raises:
            ValueProblem: a value is not finite. FileError: the destination is refused.
        """
        return save_vector(
            self.combination,
            out,
            storing(dtype, float32, rounding, rounding_seed),
            shard_size=shard_size,
            replace_used=replace,
            engine=engine or Engine(),
        )

    def tensors(self, engine: Engine | None = None) -> dict[str, NDArray[Any]]:
        """The delta as NumPy arrays in memory, for models small enough."""
        return vector_in_memory(self.combination, engine or Engine())

    def __str__(self) -> str:
        return self.combination.label

    def _repr_html_(self) -> str:
        return notebook.of_combination("task vector", self.combination)


@dataclass(frozen=True, eq=False)
class EditedModel(Weights):
    """Weights that are described but not computed: a checkpoint plus merged task vectors.

    Attributes:
        base: the checkpoint.
        vectors: the T task vectors.
        method: how they are merged; the sum unless said otherwise.
        scale: lambda, what multiplies the merged delta.
        scores, moments: what was learnt of each vector's task, for methods that take it.
        onto: the weights that are added to, where they are not the base: a model merged on it.
        weights: what the vectors are multiplied by; none means 1.
        names: what the vectors are called, by which random methods draw; none: by their numbers.
    """

    base: Checkpoint
    vectors: tuple[TaskVector, ...] = ()
    method: Method = field(default_factory=TaskArithmetic)
    scale: float = 1.0
    scores: tuple[Importance, ...] = ()
    moments: tuple[Moments, ...] = ()
    onto: Checkpoint | None = None
    weights: tuple[float, ...] = ()
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        finite("the scale", self.scale)
        for what, given in (("weights", self.weights), ("names", self.names)):
            if given and len(given) != len(self.vectors):
                raise UsageError(f"{len(self.vectors)} vectors need as many {what}: {given}")
        for weight in self.weights:
            if not finite("a weight", weight):
                raise UsageError("a weight of 0 takes no part; leave the vector out")

    def __add__(self, other: TaskVector) -> EditedModel:
        spaces.combine("weights", "+", space_of(other), str(self), name_of(other))
        return EditedModel(
            self.base, (self.delta + other if self.vectors else other,), onto=self.onto
        )

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        spaces.combine("weights", "-", space_of(other), str(self), name_of(other))
        if isinstance(other, TaskVector):
            return self + (-other)
        theirs = EditedModel(other) if isinstance(other, Checkpoint) else other
        ours, origin = self.onto or self.base, theirs.onto or theirs.base
        between = [] if ours.store.same_as(origin.store) else [TaskVector(origin, ours)]
        parts = [*between, *([self.delta] if self.vectors else [])]
        parts += [-theirs.delta] if theirs.vectors else []
        return sum(parts[1:], parts[0]) if parts else TaskVector(origin, ours)

    @property
    def delta(self) -> TaskVector:
        """What is added to the base, as one task vector; for linear methods only.

        Raises:
            UsageError: the method is not linear, so no sum of vectors equals it.
            ValueProblem: no vector was added.
        """
        if not self.vectors:
            raise ValueProblem(f"nothing was added to {self.base.path}; add a task vector first")
        weights = np.asarray(self.weights or np.ones(len(self.vectors)), np.float64)
        coefficients = self.method.coefficients(weights)
        if coefficients is None:
            raise UsageError(
                f"{self.method.name} is not linear: save the model, then take its difference"
            )
        numbers = self.scale * coefficients * weights
        scaled = [float(n) * v for n, v in zip(numbers, self.vectors, strict=True)]
        return sum(scaled[1:], scaled[0])

    def edit(self) -> Edit:
        """The model as what writing takes: stores, combinations and numbers."""
        vectors = tuple(vector.combination for vector in self.vectors)
        scores, moments = (
            tuple(part.learnt for part in parts) for parts in (self.scores, self.moments)
        )
        onto = self.onto.store if self.onto is not None else None
        return Edit(
            self.base.store,
            vectors,
            self.method,
            self.scale,
            scores,
            moments,
            onto,
            self.weights,
            self.names,
        )

    def save(
        self,
        out: str | Path,
        dtype: str | None = None,
        *,
        float32: Sequence[str] = (),
        rounding: Rounding = "nearest",
        rounding_seed: int | None = None,
        shard_size: int | None = DEFAULT_SHARD,
        replace: bool = False,
        engine: Engine | None = None,
    ) -> Saved:
        """Write it as the base is laid out: a Hugging Face folder, or one ``.safetensors`` file.

        Args:
            out: where to.
            dtype: of the float tensors; each tensor's own when None.
            float32: patterns (``*`` and ``?``) of tensors that are stored in float32 all the same.
            rounding: ``nearest``, or ``stochastic``: to one of the two stored numbers around a
                weight, drawn so that the mean is the weight. Updates below half a step of the
                dtype, which nearest drops, are then made on average.
            rounding_seed: of what is drawn, with the tensor's name and the entry's position.
            shard_size: bytes per weights file.
            replace: whether a used folder may be replaced, whole.
            engine: how the work is done.

        Raises:
            BaseError: a vector was taken from another base. ValueProblem: a value is not finite.
            UsageError: a pattern matches no tensor, or an option has no meaning.
        """
        return save_model(
            self.edit(),
            out,
            storing(dtype, float32, rounding, rounding_seed),
            shard_size=shard_size,
            replace_used=replace,
            engine=engine or Engine(),
        )

    def tensors(self, engine: Engine | None = None) -> dict[str, NDArray[Any]]:
        """The weights as NumPy arrays in memory, for models small enough."""
        return model_in_memory(self.edit(), engine or Engine())

    def __str__(self) -> str:
        return " + ".join(map(str, (self.base.path, *self.vectors)))

    def _repr_html_(self) -> str:
        return notebook.facts("edited model, not computed yet", self.edit().recipe())


def as_checkpoint(value: str | Path | Checkpoint) -> Checkpoint:
    """The checkpoint, opened where it is a path."""
    return value if isinstance(value, Checkpoint) else Checkpoint(value)
