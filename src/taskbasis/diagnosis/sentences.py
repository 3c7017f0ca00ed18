"""What a diagnosis says in words: only what is worth doing something about."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from itertools import combinations
from statistics import median

from taskbasis.diagnosis.origin import Likeness
from taskbasis.diagnosis.records import Diagnosis
from taskbasis.diagnosis.rounding import Rounding
from taskbasis.units import bytes_text

ALIKE, OPPOSED = 0.99, -0.5
"""Cosines from which two vectors count as one, or as against each other."""

CONFLICT = 0.6
"""A weighted sign conflict that unrelated vectors, who have 0.5, do not reach."""

SHARED = 0.3
"""A mean inner product, over the mean squared norm, that is worth a word."""

LONG = 5.0
"""How many times the median norm makes one vector drown the others."""

LARGE = 1.0
"""A norm over the base's that fine-tuning does not reach."""

HALF = 0.5
"""A share that rounding takes of one layer's update which is worth a word of its own."""

_SOME = 4

_MANY = 10
"""Options that are printed."""


def sentences(found: Diagnosis) -> tuple[str, ...]:
    """Everything worth a word, the worst first."""
    parts = (_origins, _zeros, _rounding, _pairs, _lengths, _shared)
    return tuple(text for part in parts for text in part(found))


def _origins(found: Diagnosis) -> Iterator[str]:
    for origin in found.origins:
        whole = origin.whole
        if origin.suspicious and whole.verdict == "other":
            yield (
                f"{origin.vector}: looks as if it was taken from another base: it takes away "
                f"{whole.taken:.0%} of {found.base} and is {whole.ratio:.2f} times as long "
                "(of its own base next to nothing is taken away); take it from the model that "
                "was fine-tuned"
            )
        elif origin.suspicious:
            yield _scaled(origin.vector, f"{found.base}", whole)
        else:
            if whole.ratio > LARGE:
                yield (
                    f"{origin.vector}: is {whole.ratio:.2f} times as long as what it changes of "
                    f"{found.base}; a fine-tune seldom is longer: look for a wrong alpha of an "
                    "adapter, a wrong scale, or a model that was trained anew"
                )
            if origin.strangers:
                yield (
                    f"{origin.vector}: {_some(origin.strangers)} "
                    f"{'have' if len(origin.strangers) > 1 else 'has'} nothing in common with the "
                    "base, as if made anew, resized, or taken from elsewhere; leave out what is "
                    "a head of its own with --exclude"
                )
            for layer in origin.layers:
                if layer.verdict == "scaled":
                    yield _scaled(origin.vector, layer.name, layer)


def _scaled(vector: str, what: str, found: Likeness) -> str:
    return (
        f"{vector}: makes {what} {1 - found.taken:.2f} times as long and hardly turns it; one of "
        "the two models was multiplied by a number, or trained with much weight decay"
    )


def _zeros(found: Diagnosis) -> Iterator[str]:
    for name, norm in zip(found.names, found.whole.norms, strict=True):
        if norm == 0:
            yield f"{name}: is zero; it does nothing, so its model may be the base itself"


def _rounding(found: Diagnosis) -> Iterator[str]:
    of = found.rounding
    if of is None:
        return
    large = [tensor for tensor in of.tensors if tensor.overflow]
    if large:
        count = sum(tensor.overflow for tensor in large)
        yield (
            f"{count} entries are too large for {large[0].dtype}, in "
            f"{_some(tuple(tensor.name for tensor in large))}; store them in float32 or bfloat16, "
            "with --keep-float32 PATTERN or --dtype bfloat16"
        )
    if of.safe:
        lost = sorted((la for la in of.layers if la.lost > HALF), key=lambda la: -la.lost)
        if lost:
            yield (
                f"rounding to {_dtype(of)} takes {lost[0].lost:.0%} of the update's norm in "
                f"{_some(tuple(layer.name for layer in lost))}, a small part of the whole; store "
                "it in float32 if it matters, with --keep-float32 PATTERN"
            )
        return
    alone = f" (of the base alone as much as {of.whole.base:.1%})" if of.whole.base > 0 else ""
    yield (
        f"rounding to {_dtype(of)} loses {of.whole.lost:.1%} of the update's norm{alone}: "
        f"{of.whole.unchanged:.1%} of the changed entries stay as they are, and "
        f"{of.whole.kept:.1%} of the step is made"
    )
    yield _float32(of)
    yield (
        f"stochastic rounding would make {of.whole.drawn_kept:.1%} of the step (on average all of "
        f"it), with noise of {of.whole.drawn:.1%} of the update's norm (expected "
        f"{of.whole.stochastic:.1%}): write the model with {_typed(of.advice['stochastic'])}"
    )


def _dtype(of: Rounding) -> str:
    return of.dtype if of.dtype == of.whole.dtype else f"{of.whole.dtype} ({of.dtype})"


def _float32(of: Rounding) -> str:
    if not of.in_float32:
        return (
            "no tensor would lose less in float32; the update is too small beside the base for "
            "any dtype but float64"
        )
    more = f"{bytes_text(of.more_bytes)} more"
    if not of.enough:
        return (
            f"in float32 {of.then:.1%} would still be lost, above the "
            f"{100 * of.target:.3g}% aimed at; it takes {more}, with {_typed(of.advice['float32'])}"
        )
    what = "all tensors" if of.all else _some(of.in_float32)
    number = "" if len(of.in_float32) <= _SOME or of.all else f" ({len(of.in_float32)} tensors)"
    words = of.advice["float32"]
    return (
        f"stored in float32, {what}{number} would bring that to {of.then:.1%}, for {more}: write "
        f"the model with {_typed(words)}"
    )


def _typed(words: list[str]) -> str:
    """Options as they are typed; many patterns are left to --json."""
    short = words[: 2 * _MANY]
    return shlex.join(short) + (" ... (all of them with --json)" if len(words) > len(short) else "")


def _pairs(found: Diagnosis) -> Iterator[str]:
    """The worst few pairs of each kind, and how many more there are."""
    strange = {origin.vector for origin in found.origins if origin.suspicious}
    kinds: tuple[list[tuple[float, str]], ...] = ([], [], [])
    for i, j in combinations(range(len(found.names)), 2):
        pair = found.names[i], found.names[j]
        if not strange & set(pair):  # what they share is the base that is not theirs
            kind, weight, text = _pair(*pair, found.pairs.cosines[i][j], found.pairs.weighted[i][j])
            if text:
                kinds[kind].append((weight, text))
    for texts in kinds:
        texts.sort(key=lambda item: -item[0])
        for number, (_, text) in enumerate(texts[:_SOME]):
            left = len(texts) - _SOME if number == _SOME - 1 else 0
            yield text + (f"; and so for {left} more pairs" if left > 0 else "")


def _pair(one: str, two: str, cosine: float, weighted: float) -> tuple[int, float, str]:
    """The kind of what is wrong with a pair, how bad it is, and the words; none where it is not."""
    if cosine > ALIKE:
        return (
            0,
            cosine,
            (
                f"{one} and {two} point the same way (cosine {cosine:.4f}); they may be one model "
                "under two names"
            ),
        )
    if cosine < OPPOSED:
        return (
            1,
            -cosine,
            (
                f"{one} and {two} point against each other (cosine {cosine:.2f}); their sum "
                "undoes both"
            ),
        )
    if weighted > CONFLICT:
        return (
            2,
            weighted,
            (
                f"{one} and {two} disagree in sign on {weighted:.0%} of what they share, by size "
                "(chance gives 50%); a method that elects signs, such as ties, helps"
            ),
        )
    return 0, 0.0, ""


def _lengths(found: Diagnosis) -> Iterator[str]:
    norms = [norm for norm in found.whole.norms if norm > 0]
    for name, norm in zip(found.names, found.whole.norms, strict=True):
        if len(norms) > 1 and norm > LONG * median(norms):
            yield (
                f"{name}: is {norm / median(norms):.1f} times as long as the median vector and "
                "will decide the sum; give it a smaller weight"
            )


def _shared(found: Diagnosis) -> Iterator[str]:
    strange = any(origin.suspicious for origin in found.origins)
    if found.shared is not None and found.shared.share > SHARED and not strange:
        yield (
            f"the vectors share {found.shared.share:.0%} of their squared length, which a sum "
            "adds as often as there are vectors; if they were fine-tuned from one relative of the "
            "base, take them from that; otherwise disentangle them first"
        )


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:_SOME]) + (", ..." if len(names) > _SOME else "")
