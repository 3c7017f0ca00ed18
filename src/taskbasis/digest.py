"""Fingerprints: what a checkpoint is, whatever files it is cut into.

A tensor's digest covers its name, dtype, shape and bytes. A fingerprint combines the digests in
the order of the names, so resharding or reordering changes nothing. XXH3 (128 bits) tells
accidents apart at the speed of memory; it is not meant to withstand an adversary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np

from taskbasis.engine import Engine, Scratch
from taskbasis.io.digests import BLOCK, block_digests, digest, tensor_digest
from taskbasis.io.tensors import TensorInfo, TensorStore

PIECE = BLOCK * 64
"""Bytes that a worker reads at once."""


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
    known = list(infos)
    names = [info.name for info in known]
    return dict(zip(names, digests_of(known, engine), strict=True))


def digests_of(
    infos: Sequence[TensorInfo], engine: Engine, title: str = "fingerprint"
) -> list[str]:
    """The digest of every tensor, in their order; two may have the same name."""
    pieces = [piece for info in infos for piece in _pieces(info)]
    engine = engine.within(PIECE, least=1)
    results = engine.map(_block_digests, pieces, lambda p: p.stop - p.start, title)
    blocks: list[list[bytes]] = []
    for piece, found in zip(pieces, results, strict=True):
        if piece.start == 0:
            blocks.append([])
        blocks[-1].append(found)
    return [
        tensor_digest(info.name, info.dtype, info.shape, parts)
        for info, parts in zip(infos, blocks, strict=True)
    ]


def _pieces(info: TensorInfo) -> list[_Piece]:
    starts = range(0, max(info.nbytes, 1), PIECE)
    return [_Piece(info, start, min(start + PIECE, info.nbytes)) for start in starts]


def _block_digests(piece: _Piece, scratch: Scratch) -> bytes:
    buffer = scratch.array("digest", (piece.stop - piece.start,), np.uint8)
    if buffer.size:
        piece.info.blob.read_into(piece.info.offset + piece.start, buffer.data)
    return block_digests(buffer.data)


def fingerprint(digests: Mapping[str, str]) -> str:
    """The fingerprint of a collection of tensor digests, independent of their order.

    >>> fingerprint({"a": "00", "b": "01"}) == fingerprint({"b": "01", "a": "00"})
    True
    """
    lines = (f"{name}\0{digest}\n" for name, digest in sorted(digests.items()))
    return digest("".join(lines).encode())
