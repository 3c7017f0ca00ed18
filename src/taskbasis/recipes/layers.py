"""Layers, told from the names of tensors alone: no list of architectures."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from taskbasis.errors import UsageError, nearest

_FIRST = re.compile(r"wte|wpe|emb|rotary|relative_pe|patch|conv|shared|_pre$|^project_in$")
"""What comes before the layers, by a part of its name; all else outside them comes after."""
_LAST = {"embed_out"}

_REST = ("default", "text_decoder")
"""Names of modules for all that no other module holds."""
_ALSO = {
    "vision_tower": ("vision_model", "visual", "vision"),
    "vision_model": ("vision_tower", "visual", "vision"),
    "multi_modal_projector": ("merger", "deepstack_merger_list", "connector", "projector"),
}
"""mergekit's names of modules, and what the same is called in tensors."""


@dataclass(frozen=True)
class Tower:
    """A block that repeats: ``prefix.0``, ``prefix.1``, ... up to ``layers``."""

    prefix: str
    layers: int

    def name(self, layer: int, rest: str) -> str:
        """The name of a layer's tensor."""
        return f"{self.prefix}.{layer}.{rest}"


@dataclass(frozen=True)
class Place:
    """Where a tensor stands in a tower.

    Attributes:
        layer: from 0.
        rest: its name within the layer.
    """

    tower: Tower
    layer: int
    rest: str


def find_towers(names: Iterable[str]) -> tuple[Tower, ...]:
    """The repeated blocks of a model, sorted.

    A block is what has a number as a part of its name (the first there is), with layers from 0
    without a gap, that have something in common: a tensor of the same name, within a module. So
    experts within a layer are no tower, and neither are the steps of a small network.

    >>> find_towers(["h.0.ln.weight", "h.1.ln.weight", "wte.weight"])
    (Tower(prefix='h', layers=2),)
    """
    found: dict[str, dict[int, set[str]]] = {}
    for name in names:
        if (split := _split(name)) is not None:
            prefix, layer, rest = split
            found.setdefault(prefix, {}).setdefault(layer, set()).add(rest)
    towers = []
    for prefix, layers in sorted(found.items()):
        common = set.intersection(*layers.values())
        modules = [rest for rest in common if "." in rest]
        if modules and sorted(layers) == list(range(len(layers))):
            towers.append(Tower(prefix, len(layers)))
    return tuple(towers)


def _split(name: str) -> tuple[str, int, str] | None:
    """What stands before the first number, the number, and what stands after it."""
    parts = name.split(".")
    for at, part in enumerate(parts[:-1]):
        if at and part.isascii() and part.isdigit() and len(part) < 10 and str(int(part)) == part:
            return ".".join(parts[:at]), int(part), ".".join(parts[at + 1 :])
    return None


def find_place(name: str, towers: Sequence[Tower]) -> Place | None:
    """Where a tensor stands; None where it belongs to no layer.

    >>> place = find_place("h.1.ln.weight", find_towers(["h.0.ln.weight", "h.1.ln.weight"]))
    >>> place.layer, place.rest
    (1, 'ln.weight')
    """
    split = _split(name)
    if split is None:
        return None
    prefix, layer, rest = split
    for tower in towers:
        if tower.prefix == prefix and layer < tower.layers:
            return Place(tower, layer, rest)
    return None


def comes_first(name: str) -> bool:
    """Whether a tensor outside the layers belongs before them: embeddings, in short.

    Final norms, heads, poolers and classifiers come after.

    >>> [comes_first(name) for name in ("model.embed_tokens.weight", "model.norm.weight")]
    [True, False]
    """
    parts = name.split(".")
    if _LAST.intersection(parts):
        return False
    return any(_FIRST.search(part) for part in parts)


def only_tower(names: Collection[str], what: str) -> Tower:
    """The one repeated block of a model.

    Args:
        what: the model, for messages.

    Raises:
        UsageError: there is none, or there are several.
    """
    towers = find_towers(names)
    if not towers:
        raise UsageError(
            f"{what} has no repeated layers that could be told from the names of its tensors, "
            "so it cannot be merged by slices"
        )
    if len(towers) > 1:
        blocks = ", ".join(f"{tower.prefix} ({tower.layers} layers)" for tower in towers)
        raise UsageError(
            f"{what} has several towers, {blocks}: slices need 'modules:', one for each"
        )
    return towers[0]


def assign_modules(names: Iterable[str], modules: Sequence[str]) -> dict[str, str]:
    """The module of every tensor.

    A module holds the tensors whose names have it as a part (or several parts, as
    ``model.visual.blocks``); the last such part decides. ``default`` and ``text_decoder`` hold
    the rest.

    Raises:
        UsageError: a module holds nothing, or a tensor belongs to none.

    >>> assign_modules(["encoder.w", "model.w"], ["encoder", "default"])
    {'encoder.w': 'encoder', 'model.w': 'default'}
    """
    rest = next((module for module in modules if module in _REST), None)
    found: dict[str, str] = {}
    lost: list[str] = []
    seen: set[str] = set()
    for name in names:
        seen.update(name.split(".")[:-1])
        places = {module: _position(name, module) for module in modules if module not in _REST}
        best = max(places, key=lambda module: places[module], default=None)
        if best is not None and places[best] >= 0:
            found[name] = best
        elif rest is not None:
            found[name] = rest
        else:
            lost.append(name)
    empty = [module for module in modules if module not in found.values()]
    if empty:
        hint = nearest(empty[0], sorted(part for part in seen if not part.isdigit()))
        raise UsageError(f"module {empty[0]!r} holds no tensor of the model; {hint}")
    if lost:
        raise UsageError(
            f"{len(lost)} tensors belong to no module of the recipe, such as {lost[0]!r}; "
            "add a module 'default' for them"
        )
    return found


def _position(name: str, module: str) -> int:
    """Where a module's name stands last among the parts of a tensor's; -1: nowhere."""
    return max(f".{name}".rfind(f".{called}.") for called in (module, *_ALSO.get(module, ())))
