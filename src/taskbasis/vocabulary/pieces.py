"""The pieces of a SentencePiece model, read from its bytes."""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5
"""Kinds of fields in a protocol buffer; the numbers are those of its encoding."""


def pieces(raw: bytes) -> list[str] | None:
    """The pieces in the order of their numbers; None where the bytes are no SentencePiece model.

    A model is a protocol buffer (``ModelProto`` in sentencepiece_model.proto): its field 1 is a
    piece, whose field 1 is the text.

    >>> pieces(bytes([10, 3, 10, 1, 97, 10, 3, 10, 1, 98]))
    ['a', 'b']
    >>> pieces(b"no such model") is None
    True
    """
    found = []
    try:
        for number, kind, value in _fields(raw):
            if number == 1 and kind == _BYTES:
                texts = [text for n, k, text in _fields(value) if n == 1 and k == _BYTES]
                found.append(texts[-1].decode())
    except (ValueError, IndexError):
        return None
    return found or None


def _fields(raw: bytes) -> Iterator[tuple[int, int, bytes]]:
    """The number, the kind and the bytes of each field.

    Raises:
        ValueError, IndexError: the bytes are no protocol buffer.
    """
    at = 0
    while at < len(raw):
        tag, at = _varint(raw, at)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            start = at
            _, at = _varint(raw, at)
        else:
            size = {_EIGHT: 8, _FOUR: 4}.get(kind, -1)
            if kind == _BYTES:
                size, at = _varint(raw, at)
            start, at = at, at + size
        if not number or kind not in (_VARINT, _EIGHT, _BYTES, _FOUR) or at > len(raw):
            raise ValueError(tag)
        yield number, kind, raw[start:at]


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first; and where the next thing begins."""
    value = shift = 0
    while True:
        byte = raw[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
