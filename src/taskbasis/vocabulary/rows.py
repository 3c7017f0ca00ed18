"""Which tensors have a row for each token, and models seen with the rows of other tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from taskbasis.errors import MismatchError, UsageError, nearest
from taskbasis.io.dtypes import F32, widest
from taskbasis.io.gathered import AVERAGE, REST, ZERO, gathered
from taskbasis.io.tensors import TensorInfo, TensorStore
from taskbasis.recipes.layers import find_place, find_towers
from taskbasis.recipes.schema import ModelRef, TokenRule, TokenSource
from taskbasis.vocabulary.reading import Vocabulary

_INPUT = re.compile(
    r"(^|\.)(embed_tokens(_per_layer)?|wte|word_embeddings?|tok_embeddings?|token_embeddings?"
    r"|embed_in|shared)\.weight$"
)
"""Input embeddings, by the end of their names."""
_OUTPUT = re.compile(
    r"(^|\.)((lm_head|generator_lm_head|embed_out|vocab_projector|lm_loss)(\.decoder)?"
    r"\.(weight|bias)|predictions\.(decoder\.(weight|bias)|bias)|final_logits_bias)$"
)
"""Heads with a row for each token, and their biases."""
_PERHAPS = re.compile(
    r"(^|\.)(embeddings?|head|output|output_layer|decoder|proj_out)\.(weight|bias)$"
)
"""Names that either have, where their size agrees, and many other tensors, too."""


def input_rows(store: TensorStore) -> set[int]:
    """How many rows the input embeddings of a model have; several numbers where they differ."""
    found = {info.shape[0] for name, info in store.items() if _INPUT.search(name) and info.shape}
    perhaps = [
        info.shape[0]
        for name, info in store.items()
        if name.endswith(("embedding.weight", "embeddings.weight")) and len(info.shape) == 2
    ]
    return found or set(perhaps)


def has_tokens(name: str, infos: Sequence[TensorInfo], rows: Sequence[set[int]]) -> bool:
    """Whether a tensor of the output has a row for each token: by its name and its size.

    Args:
        name: of the tensor.
        infos: what it is merged from.
        rows: how many rows the input embeddings of each of those models have.

    Raises:
        UsageError: by its name it has, by its size it has not.
    """
    fits = all(
        info.shape[:1] and info.shape[0] in known for info, known in zip(infos, rows, strict=True)
    )
    if not (_INPUT.search(name) or _OUTPUT.search(name)):
        return bool(_PERHAPS.search(name)) and fits
    if not fits:
        shapes = ", ".join(str(list(info.shape)) for info in infos)
        raise UsageError(
            f"tensor {name!r} should have a row for each token, but its shape is {shapes}; rows "
            "of different vocabularies cannot be aligned there: drop tokenizer settings, or bring "
            "the models to one vocabulary first"
        )
    return True


def look_alikes(store: TensorStore, known: set[str]) -> list[str]:
    """Tensors outside the layers that have as many rows as there are embeddings, by other names."""
    rows, towers = input_rows(store), find_towers(store)
    return [
        name
        for name, info in store.items()
        if name not in known
        and len(info.shape) > 1
        and rows.intersection(info.shape)
        and rows.isdisjoint(_inner(store))
        and find_place(name, towers) is None
    ]


def _inner(store: TensorStore) -> set[int]:
    """The widths of the embeddings: tensors of that size are no sign of anything."""
    return {i.shape[1] for n, i in store.items() if _INPUT.search(n) and len(i.shape) > 1}


@dataclass(frozen=True)
class Rows:
    """What the rows of a tensor of the output are, and where every model has them.

    Attributes:
        names: the token of every row; None where there is none.
        vocabularies: of the models.
        rules: what the recipe says of single tokens.
        stores: the models' tensors.
    """

    names: Sequence[str | None] = field(repr=False)
    vocabularies: Mapping[ModelRef, Vocabulary]
    rules: Mapping[str, TokenRule]
    stores: Mapping[ModelRef, TensorStore]
    _found: dict[ModelRef, NDArray[np.int64]] = field(default_factory=dict, repr=False)

    def numbers(self, ref: ModelRef, height: int) -> NDArray[np.int64]:
        """[rows] where a model of so many rows has the tokens; -1 where it has not."""
        if ref not in self._found:
            own = self.vocabularies[ref].numbers
            found = (-1 if name is None else own.get(name, -1) for name in self.names)
            self._found[ref] = np.fromiter(found, np.int64, len(self.names))
        return np.where(self._found[ref] < height, self._found[ref], -1)


def gather(
    rows: Rows,
    name: str,
    inputs: Sequence[tuple[ModelRef, TensorInfo]],
    base: ModelRef | None,
) -> tuple[dict[ModelRef, TensorInfo], Counts]:
    """The models' tensors seen with the output's rows, as mergekit 0.1.5 fills them.

    A model has its own row of every token that it has. For a token that it lacks it takes the
    row of the only model that has it, else of the base model, else the mean of the models that
    have it; zeros where none has. What the recipe says of a token goes before that, and with
    ``force`` before the model's own row, too. Rows without a token (padding) hold the mean of
    all rows with one.

    Args:
        name: of the tensor in the output.
        inputs: the models that it is merged from, and what each has.
        base: the base model.

    Raises:
        MismatchError: rows differ in more than their number. UsageError: a rule asks for a token
            or a row that is not there.
    """
    infos = [info for _, info in inputs]
    _check_widths(inputs)
    numbers = np.stack([rows.numbers(ref, info.shape[0]) for ref, info in inputs])
    present = numbers >= 0
    bases = [at for at, (ref, _) in enumerate(inputs) if ref == base]
    origin, number = _stand_ins(rows.names, numbers, bases)
    forced = np.zeros(origin.size, bool)
    for token, row in _ruled(rows).items():
        rule = rows.rules[token]
        if rule.source is not None:
            info, at = _asked(rows, token, rule.source, name)
            if info is None:
                origin[row] = ZERO
            else:
                infos.append(info)
                origin[row], number[row] = len(infos) - 1, at
            forced[row] = rule.force
    # Only rows that a model lacks are averaged: what all have needs no stand-in.
    averaged = np.flatnonzero((origin == AVERAGE) & ~present.all(axis=0))
    number[averaged] = np.arange(averaged.size)
    members = np.ascontiguousarray(numbers[:, averaged].T)
    dtype = widest([info.dtype for info in infos])
    if averaged.size or (origin == REST).any():
        dtype = widest([dtype, F32])
    found = {}
    for at, (ref, info) in enumerate(inputs):
        own = present[at] & ~forced
        where = np.where(own, np.int32(at), origin).astype(np.int32)
        which = np.where(own, numbers[at], number)
        same = own.all() and np.array_equal(which, np.arange(info.shape[0]))
        found[ref] = info if same else gathered(name, dtype, tuple(infos), where, which, members)
    named = origin != REST
    lacking = {
        ref: int((named & ~own).sum()) for (ref, _), own in zip(inputs, present, strict=True)
    }
    return found, Counts(
        lacking,
        averaged.size,
        int(((origin == ZERO) & ~forced).sum()),
        int((origin == REST).sum()),
        int(forced.sum()),
    )


def _stand_ins(
    names: Sequence[str | None], numbers: NDArray[np.int64], bases: Sequence[int]
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """For every row of the output which model's row a model takes that has none, and its number.

    Args:
        names: the token of every row; None where there is none.
        numbers: [models, rows] where the models have the tokens; -1 where they have not.
        bases: which of the models is the base, if it is among them.
    """
    present = numbers >= 0
    count = present.sum(axis=0)
    origin = np.full(len(names), AVERAGE, np.int32)
    number = np.zeros(len(names), np.int64)
    for at in bases:
        origin[present[at]] = at
    alone = count == 1
    origin[alone] = present.argmax(axis=0)[alone]
    known = origin >= 0
    number[known] = numbers[origin[known], np.flatnonzero(known)]
    origin[count == 0] = ZERO
    origin[[token is None for token in names]] = REST
    return origin, number


@dataclass(frozen=True)
class Counts:
    """How the rows of a tensor came about.

    Attributes:
        lacking: for every model how many tokens it lacks.
        averaged: rows that are the mean of those models that have them, in the others.
        zero: rows of zeros, in those models that lack them.
        padding: rows without a token.
        forced: rows that all models take from where the recipe says.
    """

    lacking: Mapping[ModelRef, int]
    averaged: int
    zero: int
    padding: int
    forced: int


def _ruled(rows: Rows) -> dict[str, int]:
    """The row of every token that the recipe says something of."""
    return {token: row for row, token in enumerate(rows.names) if token in rows.rules}  # type: ignore[misc]


def _check_widths(inputs: Sequence[tuple[ModelRef, TensorInfo]]) -> None:
    first, theirs = inputs[0]
    for ref, info in inputs:
        if not info.dtype.mergeable:
            raise MismatchError(
                f"{info.where} holds {info.dtype.name}; rows of different vocabularies are "
                "aligned in floats only"
            )
        if info.shape[1:] != theirs.shape[1:]:
            raise MismatchError(
                f"{info.where} has shape {list(info.shape)} in {ref}, but {theirs.where} has "
                f"{list(theirs.shape)} in {first}; is it of another size?"
            )


def _asked(rows: Rows, token: str, source: TokenSource, name: str) -> tuple[TensorInfo | None, int]:
    """The tensor and the row that a rule asks for."""
    if source.model is None:
        return None, 0
    info = rows.stores[source.model][name]
    own = rows.vocabularies[source.model]
    wanted = source.token if source.token is not None else token
    row = source.token_id if source.token_id is not None else own.numbers.get(wanted)
    if row is None:
        raise UsageError(
            f"token {token!r} is to be {wanted!r} of {source.model}, whose tokenizer has no such "
            f"token; {_near(wanted, own)}"
        )
    if row >= info.shape[0]:
        raise UsageError(
            f"token {token!r} is to be row {row} of {source.model}, but {info.where} has only "
            f"{info.shape[0]} rows, numbered from 0"
        )
    return info, row


def _near(token: str, vocabulary: Vocabulary) -> str:
    # A vocabulary is too long to be listed, and to be searched whole.
    close = [
        one for one in vocabulary.numbers if one[:1] == token[:1] and abs(len(one) - len(token)) < 3
    ]
    hint = nearest(token, close[:2000])
    return hint if hint.startswith("did") else "see its tokenizer for what there is"
