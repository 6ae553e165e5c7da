"""Ranges of one array, taken together: many pieces of different lengths in a few operations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def starts_of(lengths: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns where pieces of given lengths begin, and where the last one ends: [N + 1]."""
    starts = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


def ranges(first: NDArray[np.int64], starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Joins the ranges that begin at each of ``first`` and are as long as the pieces of ``starts``."""
    return np.arange(starts[-1]) + np.repeat(first - starts[:-1], np.diff(starts))
