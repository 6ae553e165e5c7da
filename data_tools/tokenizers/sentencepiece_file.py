"""Reads from a SentencePiece model file what its library does not say: types of pieces, the normaliser.

The file is a message of protocol buffers: ``pieces`` are field 1 (``piece`` 1, ``score`` 2, ``type`` 3), the
``normalizer_spec`` is field 3 (``precompiled_charsmap`` 2, ``remove_extra_whitespaces`` 4, ``escape_whitespaces`` 5,
``normalization_rule_tsv`` 6), of https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto.
"""

from __future__ import annotations

from collections.abc import Iterator

_PIECES = 1  # fields of the model
_NORMALIZER = 3
_TYPE_OF_PIECE = 3  # field of a piece
_USER_DEFINED = 4  # types of pieces
_UNUSED = 5
_VARINT = 0  # wire types of protocol buffers
_FIXED64 = 1
_BYTES = 2
_FIXED32 = 5


def special_pieces(model: bytes) -> tuple[list[int], list[int]]:
    """Returns the ids of the user-defined pieces, and of the unused ones."""
    found: dict[int, list[int]] = {_USER_DEFINED: [], _UNUSED: []}
    pieces = (value for field, value in _fields(model) if field == _PIECES and isinstance(value, bytes))
    for number, piece in enumerate(pieces):
        if b"\x18" in piece[-2:]:  # most have no type
            kind = _last(piece).get(_TYPE_OF_PIECE)
            if isinstance(kind, int) and kind in found:
                found[kind].append(number)
    return found[_USER_DEFINED], found[_UNUSED]


def only_marks_spaces(model: bytes) -> bool:
    """Returns whether the normaliser only replaces spaces by their mark, and puts one before a text."""
    spec = next((value for field, value in _fields(model) if field == _NORMALIZER), b"")
    settings = _last(spec) if isinstance(spec, bytes) else {}
    return not settings.get(2) and settings.get(4) == 0 and settings.get(5, 1) == 1 and not settings.get(6)


def _last(message: bytes) -> dict[int, int | bytes]:
    """Returns the fields of a message; the last of several counts."""
    return dict(_fields(message))


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        value: int | bytes
        if kind == _VARINT:
            value, at = _varint(message, at)
        else:
            size = {_FIXED64: 8, _FIXED32: 4}.get(kind)
            if size is None:
                if kind != _BYTES:
                    raise ValueError(f"wire type {kind}")
                size, at = _varint(message, at)
            value = message[at : at + size]
            at += size
        yield key >> 3, value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        byte = message[at]
        result |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:  # the highest bit says that another byte follows
            return result, at
        shift += 7
