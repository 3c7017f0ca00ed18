"""What is merged with what: the edits of a recipe, for models seen under the output's names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from taskbasis.difference import unlike_matrices
from taskbasis.errors import MismatchError, Problems
from taskbasis.io.adapted import stored_dtype
from taskbasis.io.tensors import TensorInfo, TensorStore, Unmade
from taskbasis.recipe import Binding, Combination, Leaf, Term
from taskbasis.recipes import ModelRef, Step, Translation
from taskbasis.saving import Edit
from taskbasis.ties import is_twin
from taskbasis.vocabulary import Aligned


def make_edit(
    step: Step,
    names: Sequence[str],
    translation: Translation,
    stores: Mapping[ModelRef, TensorStore],
    aligned: Aligned,
) -> Edit:
    """The edit of tensors that share a step; models are seen under the output's names."""

    def tensor_of(ref: ModelRef, name: str) -> str:
        inputs = translation.wanted[name].inputs
        return next((one.tensor for one in inputs if one.model == ref), name)

    def view(ref: ModelRef) -> TensorStore:
        store, infos = stores[ref], {}
        for name in names:
            info = aligned.infos.get((ref, name)) or store[tensor_of(ref, name)]
            infos[name] = replace(info, name=name)
        return TensorStore(store.path, infos, {}, store.files)

    base = view(step.base)
    unchanged = step.method == "passthrough" and step.models == (step.base,) and not step.options
    as_stored = all(stored_dtype(info) == info.dtype for info in base.values())
    if unchanged and step.scale == 1 and as_stored:
        return Edit(base, (), step.build())
    problems, vectors = Problems(), []
    for ref in step.models:
        seen = view(ref)
        with problems:
            _check_alike(seen, base, ref)
        floats = {n: info for n, info in seen.items() if info.dtype.mergeable}
        binding = Binding(str(base.path), base)
        leaf = Leaf(str(ref), floats, True, binding, (seen.path, *seen.files))
        vectors.append(Combination((Term(leaf),)))
    problems.check()
    return Edit(
        base,
        tuple(vectors),
        step.build(),
        step.scale,
        weights=step.weights,
        names=tuple(map(str, step.models)),
    )


def _check_alike(seen: TensorStore, base: TensorStore, ref: ModelRef) -> None:
    wrong = []
    for name, info in seen.items():
        other = base[name]
        if info.dtype.mergeable != other.dtype.mergeable:
            wrong.append(
                f"{info.where} holds {info.dtype.name} in {ref}, but {other.where} holds "
                f"{other.dtype.name}; floats and whole numbers cannot be merged"
            )
        elif info.shape != other.shape:
            rows = info.shape[1:] == other.shape[1:] and len(info.shape) == 2
            hint = "; is it of another size?"
            if rows:
                hint = "; are they of different vocabularies?"
                hint += " tokenizer_source aligns rows by token" if is_twin(name) else ""
            wrong.append(
                f"{info.where} has shape {list(info.shape)} in {ref}, but {other.where} has "
                f"{list(other.shape)}{hint}"
            )
        elif _is_made(info, other) and unlike_matrices(info, other):
            wrong.append(
                f"{info.where} holds {info.dtype.name} that differ from those of {other.where}, "
                "but no arithmetic is done on them; convert quantised models to floats first"
            )
    if wrong:
        more = f" ({len(wrong) - 1} more tensors of {ref} do not fit)" if len(wrong) > 1 else ""
        raise MismatchError(wrong[0] + more)


def _is_made(*infos: TensorInfo) -> bool:
    return not any(isinstance(info.blob, Unmade) for info in infos)
