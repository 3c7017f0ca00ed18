"""Scores that need no data: how far each weight has moved, or how large it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taskbasis.difference import difference_leaf, excluded
from taskbasis.io.tensors import TensorInfo, TensorStore


@dataclass(frozen=True)
class Source:
    """A tensor of the tuned model, and the base's that it is compared with."""

    tuned: TensorInfo
    base: TensorInfo | None = None

    def magnitude(self) -> NDArray[np.floating]:
        """``|tuned - base|``, or ``|tuned|`` without a base.

        Taken in float32, or in float64 where the base's tensor (or the only one) is stored so.
        """
        kind = (self.base or self.tuned).dtype.compute
        found = self.tuned.load().astype(kind)
        if self.base is not None:
            found -= self.base.load().astype(kind)
        return np.asarray(np.abs(found))


def sources(
    tuned: TensorStore, base: TensorStore | None, exclude: Sequence[str]
) -> tuple[dict[str, Source], dict[str, tuple[str, ...]]]:
    """What is scored, by the tuned model's names, and the other tensors by rule.

    Raises:
        MismatchError: the two sides do not fit together. UsageError: a pattern matches nothing.
    """
    if base is not None:
        leaf = difference_leaf(base, tuned, exclude)
        own = {name: info for name, info in leaf.infos.items() if name not in _tied(leaf.rules)}
        rules = {rule: names for rule, names in leaf.rules.items() if rule != "renamed"}
        return {info.name: Source(info, base[name]) for name, info in own.items()}, rules
    left_out = excluded(exclude, tuned)
    rest = {name: info for name, info in tuned.items() if name not in left_out}
    rules = {
        "excluded": tuple(sorted(left_out)),
        "integer": tuple(sorted(n for n, info in rest.items() if not info.dtype.mergeable)),
    }
    return (
        {name: Source(info) for name, info in rest.items() if info.dtype.mergeable},
        {rule: names for rule, names in rules.items() if names},
    )


def _tied(rules: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Names that stand for a tensor which is scored under its own."""
    return rules.get("tied", ())
