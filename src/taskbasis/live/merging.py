"""Merging state dicts in memory: the same mechanism as for files, and the same bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from taskbasis.engine import Engine
from taskbasis.errors import UsageError, nearest
from taskbasis.live.states import State, groups, is_tensor, like, store_of, tied_as_one
from taskbasis.merging import by_name, merge
from taskbasis.methods import Method
from taskbasis.methods.registry import as_method
from taskbasis.recipe import Learnt
from taskbasis.saving import model_in_memory
from taskbasis.scores import Importance, Moments
from taskbasis.vectors import Checkpoint, TaskVector

_FACTORS = (".lora_A.", ".lora_B.", ".lora_embedding_A", ".lora_embedding_B")


def merge_state_dicts(
    base: State,
    fine_tuned: Mapping[str, State] | Sequence[State],
    method: str | Method = "task_arithmetic",
    scale: float = 1.0,
    weights: Sequence[float] | Mapping[str, float] = (),
    *,
    exclude: Sequence[str] = (),
    scores: Sequence[Importance | State] = (),
    moments: Sequence[Moments] = (),
    engine: Engine | None = None,
) -> dict[str, Any]:
    """The weights ``base + scale * method(weights * (fine_tuned - base))``, all in memory.

    The bytes are those of saving the state dicts and merging the files. Every result is what the
    base's tensor is: a torch tensor on its device or a NumPy array, of its dtype, rounded once.

    - Tensors on another device are copied to the CPU, and the results back.
    - Integers and booleans are the base's, copied. Nothing of the result is memory of the inputs.
    - Where two names of the base are one tensor (tied embeddings), they are one in the result.
      A fine-tuned model may leave a tied name out.
    - Room is needed for the result, and for inputs that are not contiguous on the CPU.

    Args:
        base: the state dict that the others were fine-tuned from.
        fine_tuned: T state dicts, by name or in order; random methods draw by the names.
        method: how the T deltas are merged, as ``NAME`` or ``NAME:OPTION=VALUE,...``.
        scale: lambda.
        weights: one per fine-tuned model, of either sign, in order or by name.
        exclude: patterns (``*`` and ``?``) of tensors that stay the base's.
        scores: importance scores per model, where the method takes them: a file, or arrays by
            the names of the parameters, 0 or larger.
        moments: activation moments per model, likewise, as files.
        engine: how the work is done.

    Raises:
        MismatchError: names or shapes differ, tied tensors come out different, or matrices differ
            that hold no floats: those of quantised models.
        UsageError: a value is no tensor or has no values (``meta``), or an option means nothing.
        ValueProblem: a value is not finite.

    >>> import numpy as np
    >>> base = {"w": np.zeros(3, np.float32)}
    >>> one, two = ({"w": np.array(w, np.float32)} for w in ([1, 0, 2], [1, 4, -3]))
    >>> merge_state_dicts(base, {"one": one, "two": two}, "ties:density=1,normalize=false")["w"]
    array([ 2.,  4., -3.], dtype=float32)
    """
    engine = engine or Engine()
    found = as_method(method)
    origin = _checkpoint(base, "the base")
    vectors = {
        name: TaskVector(origin, _checkpoint(state, f"the fine-tuned model {name!r}"), exclude)
        for name, state in _named(fine_tuned).items()
    }
    edited = merge(
        origin,
        vectors if isinstance(fine_tuned, Mapping) else list(vectors.values()),
        found,
        scale,
        moments=moments,
        weights=_weights(weights, list(vectors)),
    )
    edit = replace(edited.edit(), scores=tuple(map(_scores, scores)))
    arrays = model_in_memory(edit, engine)
    tied = groups(base, base)
    tied_as_one(
        arrays, tied, "the base", "clone one of them in the base, so that each is merged alone"
    )
    merged = {names[0]: like(arrays[names[0]], base[names[0]]) for names in tied}
    first = {name: names[0] for names in tied for name in names}
    return {name: merged[first[name]] for name in base}


def checkpoint(state: State, label: str) -> Checkpoint:
    """A state dict as a checkpoint: what a path is to files, for the algebra and for ``merge``.

    Nothing is copied where that can be helped: do not change the tensors before the work is done.

    Raises:
        UsageError: it is no state dict, or a value is no tensor or has no values.

    >>> import numpy as np
    >>> base, tuned = ({"w": np.full(2, v, np.float32)} for v in (1, 3))
    >>> start = checkpoint(base, "base")
    >>> (start + 0.5 * (checkpoint(tuned, "tuned") - start)).tensors()["w"]
    array([2., 2.], dtype=float32)
    """
    # Where a folder has the label for a name, its config and tokenizer are not this model's.
    return _checkpoint(state, f"{label} (in memory)")


def _checkpoint(state: State, label: str) -> Checkpoint:
    store = store_of(state, label)
    factors = [name for name in store if any(part in name for part in _FACTORS)]
    if factors:
        raise UsageError(
            f"{label} holds {factors[0]!r}, a factor of a LoRA adapter; save the adapter and merge "
            "its folder, or merge it into its model first"
        )
    return Checkpoint.of(store)


def _named(fine_tuned: Mapping[str, State] | Sequence[State]) -> dict[str, State]:
    if isinstance(fine_tuned, Mapping) and any(map(is_tensor, fine_tuned.values())):
        raise UsageError("one state dict was given; give a list of them, or a dict by name")
    return by_name(fine_tuned)


def _weights(
    weights: Sequence[float] | Mapping[str, float], names: Sequence[str]
) -> Sequence[float]:
    if not isinstance(weights, Mapping):
        return weights
    for name in weights:
        if name not in names:
            raise UsageError(f"there is no model {name!r} to weigh; {nearest(name, names)}")
    return [weights.get(name, 1.0) for name in names]


def _scores(scores: Importance | State) -> Learnt:
    if isinstance(scores, Importance):
        return scores.learnt
    store = store_of(scores, "the scores")
    for info in store.values():
        if not info.dtype.mergeable:
            raise UsageError(f"{info.where} holds {info.dtype.name}, but scores are floats")
    return Learnt("the scores", store.infos, dict.fromkeys(store, 1.0))
