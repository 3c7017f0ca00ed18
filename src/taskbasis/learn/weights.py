"""Weights from files into a module: the model's own, its base's, or points between the two."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from taskbasis.errors import MismatchError, nearest
from taskbasis.io.tensors import TensorInfo, TensorStore
from taskbasis.learn.runtime import torch_for
from taskbasis.recipe import Naming, find_naming

_TORCH = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def as_torch(info: TensorInfo) -> Any:
    """A tensor of a file, read whole, as a torch tensor of its stored dtype.

    Raises:
        MismatchError: it is of a type that no arithmetic is done on.
    """
    torch = torch_for("reading weights into a module")
    if not info.dtype.mergeable:
        raise MismatchError(f"{info.where} holds {info.dtype.name}, but weights are floats")
    bits = np.empty(info.size, info.dtype.bits)
    info.read(0, info.size, bits)
    if info.dtype.itemsize == 2:  # numpy has no bfloat16, and torch no uint16 to speak of
        bits = bits.view(np.int16)
    return torch.from_numpy(bits).view(getattr(torch, _TORCH[info.dtype.code])).view(info.shape)


@dataclass(frozen=True)
class Weights:
    """The weights of a model and, where there is one, of its base, by a module's names.

    Attributes:
        names: the name that a parameter of the module has in the tuned model's file; the base's
            may differ by a prefix, as an encoder's do from those of a classifier on top of it.
        tuned, base: the files.
    """

    names: Mapping[str, str]
    tuned: TensorStore
    base: TensorStore | None = None

    @cached_property
    def _naming(self) -> Naming:
        return find_naming(self.base or (), self.tuned)

    def _files(self, name: str) -> list[tuple[TensorStore, str]]:
        """Where a parameter stands, and under which name: in the model and in the base."""
        stored = self.names[name]
        found = [(self.tuned, stored)]
        return found + ([(self.base, self._naming.to_base(stored))] if self.base else [])

    def check(self, module: Any) -> None:
        """See that every named parameter is in the files, in its shape.

        Raises:
            MismatchError: one is not; the message names it, and the file.
        """
        shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
        for name in self.names:
            for store, stored in self._files(name):
                if stored not in store:
                    raise MismatchError(
                        f"{store.path} holds no tensor {stored!r}, which the module needs as "
                        f"{name!r}; {nearest(stored, store)}"
                    )
                if store[stored].shape != shapes[name]:
                    raise MismatchError(
                        f"{store[stored].where} has shape {list(store[stored].shape)}, but in the "
                        f"module it has {list(shapes[name])}"
                    )

    def at(self, name: str, share: float) -> Any:
        """``base + share * (tuned - base)`` of one parameter, float32 where both have a part."""
        files = self._files(name)
        if share in (0, 1):
            store, stored = files[0 if share == 1 else -1]
            return as_torch(store[stored])
        end, start = (as_torch(store[stored]).float() for store, stored in files)
        return start + share * (end - start)

    def delta(self, name: str) -> Any:
        """``tuned - base`` of one parameter in float32."""
        end, start = (as_torch(store[stored]).float() for store, stored in self._files(name))
        return end - start

    def put(self, module: Any, share: float = 1.0, only: Iterable[str] | None = None) -> None:
        """Give the module's named parameters these weights, in the dtype and place they have."""
        parameters = dict(module.named_parameters())
        for name in self.names if only is None else only:
            place = parameters[name].data
            parameters[name].data = self.at(name, share).to(device=place.device, dtype=place.dtype)
