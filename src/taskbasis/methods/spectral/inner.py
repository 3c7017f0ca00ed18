"""A method that merges within another: on rotated coordinates, or before a correction."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from taskbasis.errors import UsageError
from taskbasis.methods.base import Chunk, Method
from taskbasis.methods.registry import parse_inner


def inner_method(text: str) -> Method:
    """The method written as ``NAME:OPTION=VALUE;OPTION=VALUE``.

    Semicolons part its options where the text is itself an option, parted by commas.

    Raises:
        UsageError: it is unknown, needs what belongs to a model's own coordinates (the base's
            weights, scores, moments or factors), or has to see all layers.

    >>> inner_method("ties:density=0.3").density
    0.3
    """
    found = parse_inner(text)
    if found.factors != "ignored":
        raise UsageError(
            f"inner {found.name!r} takes factors, which it cannot have inside another method; turn "
            f"them round, as {found.name}:inner=ties"
        )
    if found.name == "lines":
        raise UsageError(
            "inner 'lines' has to see all layers, but an inner method sees one tensor; turn them "
            "round, as lines:inner=svc"
        )
    for what, need in (
        ("the base's weights", found.base),
        ("scores", found.scores),
        ("moments", found.moments),
    ):
        if need == "required":
            raise UsageError(
                f"inner {found.name!r} needs {what}, which it cannot have inside another method; "
                "use one that looks at the vectors alone, such as 'ties'"
            )
    return found


def take_over(outer: Method, inner: Method) -> None:
    """Let a method with another inside say of itself what follows from that one."""
    for what in ("takes", "ordered", "identity", "signed"):
        object.__setattr__(outer, what, getattr(inner, what))


def merge_within(
    inner: Method, chunk: Chunk, deltas: NDArray[Any], shape: tuple[int, ...]
) -> NDArray[Any]:
    """[n] what the inner method makes of deltas [T, n] that stand for a whole tensor.

    Its stages, whatever they cover, see this tensor alone: TIES trims each tensor by itself.

    Args:
        chunk: where the deltas are from; names, weights and the tensor's name are passed on.
        deltas: may be overwritten.
        shape: of the tensor that they stand for.

    Raises:
        UsageError: the inner method does not take so many vectors.
    """
    least, most = inner.takes
    if len(deltas) < least or (most is not None and len(deltas) > most):
        raise UsageError(
            f"inner {inner.name!r} takes {inner.count_text()}, not {len(deltas)}; use another"
        )
    given = deltas.astype("f8") if inner.double else deltas
    part = replace(
        chunk, deltas=given, scores=None, moments=(), base=None, factors=(), shape=shape, start=0
    )
    scopes = inner.stages()
    found: list[Any] = []
    for stage, scope in enumerate(scopes):
        total = inner.observe(stage, replace(part, deltas=given.copy()), tuple(found))
        alike = [s if scopes[earlier] == scope else None for earlier, s in enumerate(found)]
        found.append(inner.finish(stage, total, tuple(alike)))
    return inner.apply(part, tuple(found)).astype(deltas.dtype, copy=False)
