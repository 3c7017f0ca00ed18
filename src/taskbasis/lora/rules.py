"""Which tensors of a model can be adapted by factors, and which way round they lie.

    adapted       the weight of a linear layer: two axes
    embedding     a table of embeddings, adapted only when that is asked
    head          the projection to the vocabulary, adapted only when that is asked
    one axis      norms and biases
    convolution   more than two axes
    parameter     a tensor that is not the ``weight`` of a module
    left out      what the patterns of the caller leave out
    zero          a delta of exactly zero

Files hold tensors, not modules. An embedding is known by its name (``embed_tokens``, ``wte``,
...) and by having no bias, a head by its name. A linear layer is [out, in]; Conv1D, which GPT-2
is made of, is [in, out] and always has a bias, whose length tells the two apart.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase

from taskbasis.errors import UsageError, nearest
from taskbasis.io.tensors import TensorInfo

ADAPTED, EMBEDDING, HEAD = "adapted", "embedding", "head"
FLAT, KERNEL, PARAMETER = "one axis", "convolution", "parameter"
LEFT, ZERO = "left out", "zero"

_WEIGHT = ".weight"
_EMBEDDING = re.compile(r"(.*\.)?(\w*embed\w*|wte|wpe|shared|relative_attention_bias)")
_HEAD = re.compile(
    r"(.*\.)?(lm_head|embed_out|output_projection)(\.decoder)?|.*predictions\.decoder"
)


def module_of(tensor: str) -> str:
    """The module that a weight belongs to.

    >>> module_of("h.0.attn.c_attn.weight")
    'h.0.attn.c_attn'
    """
    return tensor.removesuffix(_WEIGHT)


def rule_of(name: str, shape: Sequence[int], known: Collection[str]) -> str:
    """What becomes of a tensor, by its name, its axes, and the names of all others.

    >>> rule_of("model.embed_tokens.weight", (32, 8), ()), rule_of("h.0.mlp.weight", (8, 8), ())
    ('embedding', 'adapted')
    """
    module = module_of(name)
    if len(shape) < 2:
        return FLAT
    if module == name:
        return PARAMETER
    if len(shape) > 2:
        return KERNEL
    if _HEAD.fullmatch(module):
        return HEAD
    if _EMBEDDING.fullmatch(module) and f"{module}.bias" not in known:
        return EMBEDDING
    return ADAPTED


def matching(option: str, patterns: Sequence[str], names: Collection[str]) -> set[str]:
    """The names that any of the patterns (``*`` and ``?``) matches.

    Raises:
        UsageError: a pattern matches none of them.
    """
    found: set[str] = set()
    for pattern in patterns:
        hits = {name for name in names if fnmatchcase(name, pattern)}
        if not hits:
            raise UsageError(
                f"{option} {pattern!r} matches no tensor of the delta; {nearest(pattern, names)}"
            )
        found |= hits
    return found


def lying(adapted: Collection[str], base: Mapping[str, TensorInfo], given: bool | None) -> set[str]:
    """The adapted tensors that are [in, out], as Conv1D stores them.

    Args:
        adapted: names of weights.
        base: all tensors of the base.
        given: what is said of all of them that have a bias; None: what the biases' lengths say,
            and of a square matrix what they say of the others.

    Raises:
        UsageError: a matrix fits neither way, or all that have a bias are square.
    """
    sides: dict[str, bool | None] = {}
    for name in sorted(adapted):
        beside = f"{module_of(name)}.bias"
        if beside not in base:  # Conv1D always has one
            continue
        bias, (out, inputs) = base[beside], base[name].shape
        straight, turned = bias.shape == (out,), bias.shape == (inputs,)
        if not straight and not turned:
            raise UsageError(
                f"{base[name].where} has shape {[out, inputs]} and its bias {list(bias.shape)}, so "
                "it is no linear layer; leave it out with --exclude"
            )
        sides[name] = given if given is not None else None if out == inputs else turned
    seen = {side for side in sides.values() if side is not None}
    if not seen and sides:
        raise UsageError(
            f"all linear layers with a bias are square, e.g. {next(iter(sides))!r}, so nothing "
            "tells [out, in] from the [in, out] of Conv1D; say --fan-in-fan-out (GPT-2 and its "
            "kin) or --no-fan-in-fan-out (all others)"
        )
    return {name for name, side in sides.items() if side or (side is None and True in seen)}


def modules_of(tensors: Collection[str]) -> set[str]:
    """All modules that tensors stand in, and the modules that hold those.

    >>> sorted(modules_of(["h.0.q.weight"]))
    ['h', 'h.0', 'h.0.q']
    """
    found = set()
    for name in tensors:
        parts = name.split(".")
        found |= {".".join(parts[:end]) for end in range(1, len(parts))}
    return found
