"""What enters a parameter, by the kind of module that it belongs to, and its second moment.

    linear      weight [out, in], input x [in]             E[x x^T]  [in, in]
    transposed  weight [in, out] (GPT-2's Conv1D)          E[x x^T]  [in, in]
    conv        weight [out, in, kh, kw], patches x        E[x x^T]  [in kh kw, in kh kw]
    embedding   weight [words, d], x a one-hot word        its diagonal, how often each is used
    norm        weight [d], x normalised but not scaled    its diagonal, E[x_i^2]

Other parameters (biases, tokens, scales of other norms) have no moment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from taskbasis.learn.runtime import torch_for

LINEAR, TRANSPOSED, CONV, EMBEDDING, NORM = "linear", "transposed", "conv", "embedding", "norm"


@dataclass(frozen=True, eq=False)
class Use:
    """A module that uses a parameter as its weight.

    Attributes:
        parameter: its name in the module that holds all.
        part: the module.
        kind: what enters it.
        shape: of the moment.
    """

    parameter: str
    part: Any
    kind: str
    shape: tuple[int, ...]


def uses(module: Any, wanted: Mapping[str, str]) -> list[Use]:
    """The first use of each wanted parameter that has a moment; a tied one's first is its own."""
    torch = torch_for("moments of activations")
    names = {id(p): name for name, p in module.named_parameters() if name in wanted}
    found: dict[str, Use] = {}
    for part in module.modules():
        weight = part._parameters.get("weight")
        name = None if weight is None else names.get(id(weight))
        kind = None if weight is None else _kind(torch, part, weight)
        if name is not None and kind is not None and name not in found:
            found[name] = Use(name, part, kind, _shape(kind, weight))
    return list(found.values())


def _kind(torch: Any, part: Any, weight: Any) -> str | None:
    """What enters a module's weight, or None where nothing is known of it."""
    if isinstance(part, torch.nn.Linear):
        return LINEAR
    if isinstance(part, torch.nn.Embedding):
        return EMBEDDING
    if isinstance(part, torch.nn.Conv2d):
        return CONV if part.groups == 1 and part.padding_mode == "zeros" else None
    name = type(part).__name__
    if weight.ndim == 1 and (isinstance(part, torch.nn.LayerNorm) or name.endswith("RMSNorm")):
        return NORM
    return TRANSPOSED if name == "Conv1D" and weight.ndim == 2 else None


def _shape(kind: str, weight: Any) -> tuple[int, ...]:
    sizes = {
        LINEAR: weight.shape[-1],
        TRANSPOSED: weight.shape[0],
        CONV: weight[0].numel(),
        EMBEDDING: weight.shape[0],
        NORM: weight.shape[0],
    }
    size = int(sizes[kind])
    return (size,) if kind in (EMBEDDING, NORM) else (size, size)


def add_input(use: Use, total: Any, given: Any, samples: int, real: Any | None) -> int:
    """Add the second moments of what entered a module to ``total``.

    Args:
        use: the module.
        total: float64, in the moment's shape, changed in place.
        given: the module's input.
        samples: how many the batch holds.
        real: [samples, positions] true where a position is not padding; None where all are.

    Returns:
        How many inputs were added.
    """
    return _ADD[use.kind](use.part, total, given.detach(), samples, real)


def _add_rows(total: Any, rows: Any) -> int:
    """``total += rows^T rows``: products in float32 (float64 for float64), sums in float64."""
    rows = rows if rows.dtype == total.dtype else rows.float()
    total += rows.T @ rows
    return len(rows)


def _rows(given: Any, real: Any | None) -> Any:
    """[inputs, size] the inputs that are not padding."""
    if real is not None and given.ndim == 3 and given.shape[:2] == real.shape:
        return given[real]
    return given.reshape(-1, given.shape[-1])


def _add_linear(part: Any, total: Any, given: Any, samples: int, real: Any | None) -> int:
    del part, samples
    return _add_rows(total, _rows(given, real))


def _add_patches(part: Any, total: Any, given: Any, samples: int, real: Any | None) -> int:
    del samples, real
    torch = torch_for("moments of activations")
    if isinstance(part.padding, str):  # "same" or "valid"
        sides = part._reversed_padding_repeated_twice if part.padding == "same" else (0, 0, 0, 0)
    else:
        high, wide = part.padding
        sides = (wide, wide, high, high)
    patches = torch.nn.functional.unfold(
        torch.nn.functional.pad(given, tuple(sides)),
        part.kernel_size,
        dilation=part.dilation,
        stride=part.stride,
    )
    return _add_rows(total, patches.transpose(1, 2).reshape(-1, patches.shape[1]))


def _add_words(part: Any, total: Any, given: Any, samples: int, real: Any | None) -> int:
    """Positions are looked up once for the whole batch, but every sample uses them."""
    del part
    if given.ndim == 1 or (given.ndim == 2 and len(given) == 1):
        given = given.reshape(1, -1).expand(samples, -1)
    words = given[real] if real is not None and given.shape == real.shape else given.reshape(-1)
    total += words.bincount(minlength=len(total))
    return int(words.numel())


def _add_norm(part: Any, total: Any, given: Any, samples: int, real: Any | None) -> int:
    del samples
    rows = _rows(given, real)
    rows = rows if rows.dtype == total.dtype else rows.float()
    if not type(part).__name__.endswith("RMSNorm"):
        rows = rows - rows.mean(1, keepdim=True)
    small = next((getattr(part, n) for n in ("variance_epsilon", "eps") if hasattr(part, n)), None)
    rows = rows * (rows.square().mean(1, keepdim=True) + (small or 1e-6)).rsqrt()
    total += rows.square().sum(0)
    return len(rows)


_ADD: dict[str, Callable[[Any, Any, Any, int, Any | None], int]] = {
    LINEAR: _add_linear,
    TRANSPOSED: _add_linear,
    CONV: _add_patches,
    EMBEDDING: _add_words,
    NORM: _add_norm,
}
