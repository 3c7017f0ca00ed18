"""Weighted sums and inner products on a torch device: the bytes of the compiled loops.

A worker has a :class:`Lane` of its own: on a GPU a stream, between page-locked buffers. While one
worker reads from the disk, the cut of another is on its way or being computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from taskbasis import kernels
from taskbasis.errors import MemoryCapError, UsageError, require
from taskbasis.kernels import BLOCK

_KINDS = {"uint16": "bfloat16", "int16": "float16", "float32": "float32", "float64": "float64"}
"""What torch calls what the stored words mean."""

_WIDENED = 1 << 23
"""Elements that are widened to float64 at once for inner products: 64 MiB."""

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory")
"""How torch says so, on its various devices."""


class Loops(Protocol):
    """What computes over a stretch: the module :mod:`taskbasis.kernels`, or a lane to a device."""

    def form(
        self,
        base: NDArray[Any] | None,
        words: NDArray[Any],
        difference: bool,
        coefficients: NDArray[Any],
        add_base: bool,
        out: NDArray[Any],
        scratch: NDArray[Any],
        stats: NDArray[np.float64],
    ) -> None:
        """As :func:`taskbasis.kernels.form`."""

    def gram(
        self,
        base: NDArray[Any] | None,
        words: NDArray[Any],
        difference: bool,
        scratch: NDArray[Any],
        out: NDArray[np.float64],
    ) -> None:
        """As :func:`taskbasis.kernels.gram`."""


@dataclass(frozen=True)
class Device:
    """A torch device that was tried and computes as the processor does.

    Attributes:
        name: what people call it.
        torch: the package.
        place: the ``torch.device``.
    """

    name: str
    torch: Any
    place: Any

    @property
    def locks_pages(self) -> bool:
        """Whether what is copied to and from it stands in page-locked memory."""
        return bool(self.place.type == "cuda")

    def lane(self) -> Lane:
        """A worker's own way to it."""
        return Lane(self)


class Lane:
    """One worker's way to a device.

    Every product, sum and rounding is an operation of its own, so that none is fused with
    another, and they come in the order of :func:`taskbasis.kernels.form`: what is stored has the
    same bytes. Squared norms and inner products are summed in float64, so they may differ from
    those of the loops, which sum blocks in float32, in the seventh digit.
    """

    def __init__(self, device: Device) -> None:
        self._device, self._torch = device, device.torch
        cuda = device.locks_pages
        self._stream = device.torch.cuda.Stream(device.place) if cuda else None

    def empty(self, count: int) -> NDArray[np.uint8]:
        """Bytes to copy from and to: page-locked for a GPU, which then copies by itself."""
        if not self._device.locks_pages:
            return np.empty(count, np.uint8)
        with self._working():
            locked = self._torch.empty(
                count, dtype=self._torch.uint8, device="cpu", pin_memory=True
            )
        return np.asarray(locked.numpy(), np.uint8)

    def form(
        self,
        base: NDArray[Any] | None,
        words: NDArray[Any],
        difference: bool,
        coefficients: NDArray[Any],
        add_base: bool,
        out: NDArray[Any],
        scratch: NDArray[Any],
        stats: NDArray[np.float64],
    ) -> None:
        """As :func:`taskbasis.kernels.form`, to the byte but for the bits of a NaN.

        Words that are none of bfloat16, float16, float32 and float64 go through the loops.
        """
        if not _known(base, words, out):
            kernels.form(base, words, difference, coefficients, add_base, out, scratch, stats)
            return
        if not words.shape[1]:
            return
        torch, compute = self._torch, self._kind(coefficients)
        with self._working():
            origin = None if base is None else self._there(base).to(compute)
            shape = (len(out), words.shape[1])
            totals = torch.zeros(shape, dtype=compute, device=self._device.place)
            rows = self._there(words)
            for r in range(len(words)):
                row = _delta(rows[r].to(compute), origin if difference else None)
                for total, by in zip(totals, coefficients[:, r].tolist(), strict=True):
                    total.add_(row * by)
            rows = row = None  # room for what follows
            found = []
            for total, line in zip(totals, out, strict=True):
                stored, error = _stored(torch, total, origin if add_base else None, self._kind(out))
                self._here(line).copy_(stored, non_blocking=True)
                found += [_square(torch, total), _square(torch, error)]
            stats += torch.stack(found).cpu().numpy().reshape(stats.shape)

    def gram(
        self,
        base: NDArray[Any] | None,
        words: NDArray[Any],
        difference: bool,
        scratch: NDArray[Any],
        out: NDArray[np.float64],
    ) -> None:
        """As :func:`taskbasis.kernels.gram`, with products and sums in float64."""
        if not _known(base, words):
            kernels.gram(base, words, difference, scratch, out)
            return
        torch, (inputs, size) = self._torch, words.shape
        compute = self._kind(scratch)
        step = max(_WIDENED // max(inputs, 1) // BLOCK, 1) * BLOCK
        with self._working():
            there = self._there(words)
            origin = self._there(base) if difference and base is not None else None
            total = torch.zeros((inputs, inputs), dtype=torch.float64, device=self._device.place)
            for start in range(0, size, step):
                stop = min(start + step, size)
                begin = None if origin is None else origin[start:stop].to(compute)
                wide = _delta(there[:, start:stop].to(compute), begin).to(torch.float64)
                total += _products(torch, wide)
            out += np.tril(total.cpu().numpy())

    @contextmanager
    def _working(self) -> Iterator[None]:
        """On the lane's stream; what was asked for is done at the end."""
        try:
            with nullcontext() if self._stream is None else self._torch.cuda.stream(self._stream):
                try:
                    yield
                finally:  # nothing may still be copied to or from buffers that are used again
                    if self._stream is not None:
                        self._stream.synchronize()
        except RuntimeError as error:
            if not any(words in str(error) for words in _OUT_OF_MEMORY):
                raise
            raise MemoryCapError(
                f"the device {self._device.name} ran out of memory; use fewer workers"
            ) from None

    def _kind(self, like: NDArray[Any]) -> Any:
        return getattr(self._torch, _KINDS[like.dtype.name])

    def _here(self, words: NDArray[Any]) -> Any:
        """The same memory as a tensor of what the words mean."""
        signed = words.view(np.int16) if words.dtype == np.uint16 else words
        return self._torch.from_numpy(signed).view(self._kind(words))

    def _there(self, words: NDArray[Any]) -> Any:
        return self._here(words).to(self._device.place, non_blocking=True)


def _known(*arrays: NDArray[Any] | None) -> bool:
    return all(array is None or array.dtype.name in _KINDS for array in arrays)


def _delta(rows: Any, origin: Any) -> Any:
    """Equal values differ by zero, infinite ones too."""
    return rows if origin is None else (rows - origin).masked_fill_(rows == origin, 0.0)


def _stored(torch: Any, total: Any, origin: Any, kind: Any) -> tuple[Any, Any]:
    """What is stored of a sum, and what rounding took from it; ``origin`` is added if any."""
    exact = total if origin is None else origin + total
    twice = exact.dtype == torch.float64 and kind.itemsize == 2  # torch would round twice
    stored = (_to_odd(torch, exact) if twice else exact).to(kind)
    value = stored.to(total.dtype)
    if origin is None:
        return stored, value - total
    still = (value == origin) & (total == 0)
    return stored, (value - origin).masked_fill_(still, 0.0) - total


def _to_odd(torch: Any, exact: Any) -> Any:
    """float64 as float32, cut off and made odd if anything was lost; see :mod:`taskbasis.words`."""
    near = exact.to(torch.float32)
    wide = near.to(torch.float64)
    away = (wide.abs() > exact.abs()).to(torch.int32)
    lost = ((wide < exact) | (wide > exact)).to(torch.int32)
    return ((near.view(torch.int32) - away) | lost).view(torch.float32)


def _square(torch: Any, row: Any) -> Any:
    wide = row.to(torch.float64)
    return (wide * wide).sum()


def _products(torch: Any, wide: Any) -> Any:
    """[T, T] of rows [T, n] in float64: many short products at once, so that all of a GPU works."""
    inputs, size = wide.shape
    whole = size // BLOCK * BLOCK
    blocks = wide[:, :whole].reshape(inputs, whole // BLOCK, BLOCK).transpose(0, 1)
    rest = wide[:, whole:]
    return torch.bmm(blocks, blocks.mT).sum(0) + rest @ rest.T


@cache
def open_device(name: str) -> Device:
    """The torch device of a name, once it has shown that it computes as the processor does.

    Args:
        name: as torch calls it: ``cuda``, ``cuda:1``; ``cpu`` does the same in torch.

    Raises:
        UsageError: there is no such device, or its numbers are not those of the processor.
        MissingExtraError: torch is not installed.

    >>> out, stats = np.empty((1, 2), np.float32), np.zeros((1, 2))
    >>> open_device("cpu").lane().form(None, np.ones((1, 2), np.float32), False,
    ...     np.full((1, 1), 3, np.float32), False, out, np.empty((4, 2048), np.float32), stats)
    >>> out.tolist(), stats.tolist()
    ([[3.0, 3.0]], [[18.0, 0.0]])
    """
    torch = require("torch", "torch", f"the device {name}")
    try:
        device = Device(name, torch, torch.zeros(1, device=name).device)
        sound = _rounds_alike(device.lane())
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].partition(". ")[0]
        raise UsageError(f"the device {name} cannot be used: {reason}") from None
    if not sound:
        raise UsageError(
            f"the device {name} cannot be used: it rounds otherwise than the processor, "
            "or torch is set to flush small numbers to zero"
        )
    return device


_STEP = 2.0**-12
_HARD: tuple[tuple[str, str, list[list[float]], list[float], list[int]], ...] = (
    # A product and a sum, each rounded: fused they would leave 2^-24. Then a subnormal.
    ("f4", "f4", [[1 + _STEP, 1e-40], [1 + 2 * _STEP, 0]], [1 + _STEP, -1], [0, 71379]),
    # Two ties, the smallest number, and one too large.
    ("f4", "i2", [[1 + 2**-11, 1 + 3 * 2**-11, 2**-24, 65520]], [1],
     [0x3C00, 0x3C02, 1, 0x7C00]),
    ("f4", "u2", [[1 + 2**-8, 1 + 3 * 2**-8, 2**-133, 3.4e38]], [1],
     [0x3F80, 0x3F82, 1, 0x7F80]),
    # No ties, but in float32 they would be.
    ("f8", "i2", [[1 + 2**-11 + 2**-40, 2**-25 + 2**-60]], [1], [0x3C01, 1]),
    ("f8", "u2", [[1 + 2**-8 + 2**-40, 2**-134 + 2**-170]], [1], [0x3F81, 1]),
)  # fmt: skip
"""Numbers that are hard to get right: their type and what is stored; rows, coefficients, words."""


def _rounds_alike(lane: Lane) -> bool:
    """Whether hard numbers become the words that IEEE 754 says; inner products are exact."""
    alike = True
    for kind, stored, rows, coefficients, bits in _HARD:
        words: NDArray[Any] = np.array(rows, kind)
        mixed: NDArray[Any] = np.array([coefficients], kind)
        out: NDArray[Any] = np.empty((1, len(bits)), stored)
        lane.form(None, words, False, mixed, False, out, words, np.zeros((1, 2)))
        alike = alike and out.view(f"u{out.itemsize}").tolist() == [bits]
    gram, row = np.zeros((1, 1)), np.full((1, BLOCK), 1 + _STEP, np.float32)
    lane.gram(None, row, False, row, gram)
    return alike and gram.item() == BLOCK * (1 + _STEP) ** 2
