"""How floats are stored: in which dtypes, and how they are rounded to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

import xxhash

from taskbasis.errors import UsageError, check_word, nearest
from taskbasis.io.dtypes import F32, DType, floating

Rounding = Literal["nearest", "stochastic"]


@dataclass(frozen=True)
class Storing:
    """How the float tensors of an output are stored.

    Attributes:
        dtype: of all of them; None: each in its own.
        float32: patterns (``*`` and ``?``) of tensors that are stored in float32 all the same.
        seed: of stochastic rounding; None rounds to nearest even.
        twins: names of tensors that are rounded as others are, by whose names they are drawn:
            what is stored twice stays equal.

    >>> from taskbasis.io.dtypes import BF16, F16
    >>> half = Storing(F16, ("*norm*",))
    >>> half.of("layers.0.norm", BF16).name, half.of("layers.0.up", BF16).name
    ('float32', 'float16')
    """

    dtype: DType | None = None
    float32: tuple[str, ...] = ()
    seed: int | None = None
    twins: Mapping[str, str] = field(default_factory=dict, hash=False)

    def of(self, name: str, own: DType) -> DType:
        """What a tensor is stored in that would be ``own`` if nothing were asked for."""
        if not own.mergeable:
            return own
        if any(fnmatchcase(name, pattern) for pattern in self.float32):
            return F32
        return self.dtype or own

    def check(self, floats: Iterable[str]) -> None:
        """Refuse patterns that match none of the names of float tensors.

        Raises:
            UsageError: naming the nearest tensor.
        """
        known = list(floats)
        for pattern in self.float32:
            if not any(fnmatchcase(name, pattern) for name in known):
                raise UsageError(
                    f"--keep-float32 {pattern!r} matches no tensor of floats; "
                    f"{nearest(pattern, known)}"
                )

    def key(self, name: str) -> int:
        """What a tensor's stochastic rounding is drawn by: 64 bits of its name and the seed."""
        text = f"{self.seed}/{self.twins.get(name, name)}"
        return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))

    @property
    def record(self) -> dict[str, Any]:
        """What was asked for beside a dtype, as plain data; empty where nothing was."""
        drawn = {"rounding": "stochastic", "rounding_seed": self.seed}
        return {
            **({"float32": list(self.float32)} if self.float32 else {}),
            **(drawn if self.seed is not None else {}),
        }

    @property
    def options(self) -> list[str]:
        """The options that say the same on the command line.

        >>> " ".join(storing("bfloat16", ["*norm*"], "stochastic", 3).options)
        '--dtype bfloat16 --keep-float32 *norm* --rounding stochastic --rounding-seed 3'
        """
        words = ["--dtype", self.dtype.name] if self.dtype else []
        for pattern in self.float32:
            words += ["--keep-float32", pattern]
        if self.seed is not None:
            words += ["--rounding", "stochastic"]
            words += ["--rounding-seed", str(self.seed)] if self.seed else []
        return words


AS_IT_IS = Storing()
"""Every tensor in its own dtype, rounded to nearest even."""


def storing(
    dtype: str | None = None,
    float32: Sequence[str] = (),
    rounding: str = "nearest",
    seed: int | None = None,
) -> Storing:
    """How people say it.

    Args:
        dtype: of the float tensors.
        float32: patterns of tensors that are stored in float32 all the same.
        rounding: ``nearest`` or ``stochastic``.
        seed: of stochastic rounding, 0 by default.

    Raises:
        UsageError: a word is unknown, or a seed is given where nothing is drawn.
    """
    check_word("rounding", rounding, Rounding)
    if rounding == "nearest" and seed is not None:
        raise UsageError("a rounding seed has no part in rounding to nearest; leave it out")
    return Storing(
        floating(dtype) if dtype else None,
        (float32,) if isinstance(float32, str) else tuple(float32),
        (seed or 0) if rounding == "stochastic" else None,
    )
