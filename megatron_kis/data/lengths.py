"""Lengths of exposures by fact and template: what they must be, and their fingerprint."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import ArrayLike, NDArray

from megatron_kis.common.errors import InputError

IntArray = NDArray[np.int64]

_ROWS = 1 << 16  # hashed together, so that no second table is held


def length_table(lengths: ArrayLike, sequence_length: int, name: str) -> IntArray:
    """Checks lengths of exposures.

    Args:
        lengths: int [facts, templates] tokens; 0 (trailing) where a fact has fewer templates than others.
        sequence_length: L, tokens; no exposure may be longer.
        name: of the argument, for messages.

    Returns:
        The table, in the type that was given if that is one of integers: a copy of it could take most of the memory.

    Raises:
        InputError: another shape, a length of 0 before another, or one that is too long.
    """
    table = np.asarray(lengths)
    if table.dtype.kind not in "iu":
        table = table.astype(np.int64)
    if table.ndim != 2:
        raise InputError(f"has {table.ndim} dimensions", where=name, remedy="must be [facts, templates]")
    if not table.size:
        return table.reshape(0, max(1, table.shape[1]))
    if table.min() <= 0:
        inner = (table[:, :-1] == 0) & (table[:, 1:] > 0)  # only trailing templates may be absent
        bad = (table < 0).any(axis=1) | (table[:, 0] == 0) | inner.any(axis=1)
        if bad.any():
            raise InputError(
                f"fact {int(bad.argmax())} has an exposure without tokens", where=name, remedy="give positive lengths"
            )
    if table.max() > sequence_length:
        fact = int(table.max(axis=1).argmax())
        raise InputError(
            f"an exposure of fact {fact} has {table.max()} tokens, a sequence {sequence_length}",
            where=name,
            remedy="use longer sequences or shorter templates",
        )
    return table


def fingerprint_of(*tables: IntArray) -> str:
    """Hexadecimal SHA-256 of integer arrays, by shape and values whatever their types."""
    digest = hashlib.sha256()
    for table in tables:
        digest.update(f"{table.shape};".encode())
        for first in range(0, len(table), _ROWS):
            digest.update(np.ascontiguousarray(table[first : first + _ROWS], dtype="<i8").tobytes())
    return digest.hexdigest()
