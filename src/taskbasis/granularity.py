"""What shares one number: the whole model, a layer, or a tensor."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

from taskbasis.errors import UsageError, nearest

Granularity = Literal["model", "layer", "tensor"]


def group_name(tensor: str, granularity: Granularity) -> str:
    """The group a tensor belongs to.

    A layer is everything under one number of a repeated block; a tensor outside any block forms
    a group with those of its own module.

    >>> group_name("model.layers.3.mlp.up.weight", "layer")
    'model.layers.3'
    >>> group_name("model.norm.weight", "layer"), group_name("model.norm.weight", "model")
    ('model.norm', 'model')

    Raises:
        UsageError: the granularity is not one of model, layer and tensor.
    """
    if granularity == "tensor":
        return tensor
    if granularity == "model":
        return "model"
    if granularity != "layer":
        known = get_args(Granularity)
        raise UsageError(f"granularity {granularity!r} is unknown; {nearest(granularity, known)}")
    parts = tensor.split(".")
    for position, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: position + 1])
    return ".".join(parts[:-1]) or tensor


def group_tensors(tensors: Iterable[str], granularity: Granularity) -> dict[str, list[str]]:
    """Group names, in order of appearance, with their tensors."""
    groups: dict[str, list[str]] = {}
    for tensor in tensors:
        groups.setdefault(group_name(tensor, granularity), []).append(tensor)
    return groups
