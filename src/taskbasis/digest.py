"""Fingerprints: what a checkpoint is, whatever files it is cut into.

A tensor's digest covers its name, dtype, shape and bytes. A fingerprint combines the digests in
the order of the names, so resharding or reordering changes nothing. XXH3 (128 bits) tells
accidents apart at the speed of memory; it is not meant to withstand an adversary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import xxhash

from taskbasis.engine import Engine, Scratch
from taskbasis.io.tensors import TensorInfo, TensorStore

_BLOCK = 1 << 20
_BLOCKS_PER_PIECE = 8


_known: WeakKeyDictionary[TensorStore, dict[str, str]] = WeakKeyDictionary()


def store_digests(store: TensorStore, engine: Engine) -> dict[str, str]:
    """The digests of a store's tensors; read the first time only."""
    if store not in _known:
        _known[store] = tensor_digests(store.values(), engine)
    return _known[store]


@dataclass(frozen=True)
class _Piece:
    info: TensorInfo
    start: int
    stop: int


def tensor_digests(infos: Iterable[TensorInfo], engine: Engine) -> dict[str, str]:
    """The digest of every tensor, read once, in pieces: a dict from name to 32 hex digits."""
    pieces = [piece for info in infos for piece in _pieces(info)]
    hashers: dict[str, xxhash.xxh3_128] = {}
    results = engine.map(_block_digests, pieces, lambda p: p.stop - p.start, "fingerprint")
    for piece, digests in zip(pieces, results, strict=True):
        info = piece.info
        if info.name not in hashers:
            head = f"{info.name}\0{info.dtype.code}\0{list(info.shape)}\0"
            hashers[info.name] = xxhash.xxh3_128(head.encode())
        hashers[info.name].update(digests)
    return {name: hasher.hexdigest() for name, hasher in hashers.items()}


def _pieces(info: TensorInfo) -> list[_Piece]:
    step = _BLOCK * _BLOCKS_PER_PIECE
    starts = range(0, max(info.nbytes, 1), step)
    return [_Piece(info, start, min(start + step, info.nbytes)) for start in starts]


def _block_digests(piece: _Piece, scratch: Scratch) -> bytes:
    buffer = scratch.array("digest", (piece.stop - piece.start,), np.uint8)
    if buffer.size:
        piece.info.blob.read_into(piece.info.offset + piece.start, buffer.data)
    return b"".join(
        xxhash.xxh3_128_digest(buffer[at : at + _BLOCK].data)
        for at in range(0, buffer.size, _BLOCK)
    )


def fingerprint(digests: Mapping[str, str]) -> str:
    """The fingerprint of a collection of tensor digests, independent of their order.

    >>> fingerprint({"a": "00", "b": "01"}) == fingerprint({"b": "01", "a": "00"})
    True
    """
    lines = (f"{name}\0{digest}\n" for name, digest in sorted(digests.items()))
    return xxhash.xxh3_128_hexdigest("".join(lines).encode())
