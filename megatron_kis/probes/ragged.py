"""Sequences of different lengths in two arrays: a million statements are two objects, not a million tuples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_kis.data_tools.storage.ranges import ranges, starts_of


@dataclass(frozen=True)
class Ragged:
    """N sequences of integers, one after the other."""

    values: NDArray[np.int32] | NDArray[np.uint8]
    """[sum of the lengths] integers, or the bytes of texts."""

    starts: NDArray[np.int64]
    """[N + 1] start of each sequence, and the end of the last one."""

    @classmethod
    def of(cls, sequences: Iterable[Sequence[int]]) -> Ragged:
        """Makes the arrays of some sequences."""
        held = [np.asarray(sequence, dtype=np.int32) for sequence in sequences]
        values = np.concatenate([np.zeros(0, dtype=np.int32), *held])
        return cls(values, starts_of([len(sequence) for sequence in held]))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> NDArray[Any]:
        """Returns the sequence of this number."""
        return self.values[self.starts[index] : self.starts[index + 1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[N] lengths of the sequences."""
        return np.diff(self.starts)

    def joined(self, other: Ragged) -> Ragged:
        """Returns these sequences, followed by the other ones."""
        values = np.concatenate([self.values, other.values])
        return Ragged(values, np.concatenate([self.starts, self.starts[-1] + other.starts[1:]]))

    def parts(self, first: NDArray[np.int64], last: NDArray[np.int64]) -> Ragged:
        """Returns the values from ``first`` on and before ``last`` of each sequence, both [N]."""
        starts = starts_of(last - first)
        return Ragged(self.values[ranges(self.starts[:-1] + first, starts)], starts)

    def taken(self, chosen: NDArray[np.int64]) -> Ragged:
        """Returns some sequences, in the order of ``chosen``."""
        starts = starts_of(self.lengths[chosen])
        return Ragged(self.values[ranges(self.starts[chosen], starts)], starts)

    def after(self, before: Sequence[int]) -> Ragged:
        """Returns each sequence with the same values before it."""
        if not before:
            return self
        at = np.repeat(self.starts[:-1], len(before))
        values: NDArray[Any] = np.insert(self.values, at, np.tile(before, len(self)))
        return Ragged(values, self.starts + len(before) * np.arange(len(self.starts)))

    def padded(self, width: int) -> NDArray[np.int32]:
        """Returns a table of the sequences, [N, width]; -1 after the end of each."""
        table = np.full((len(self), width), -1, dtype=np.int32)
        table[np.arange(width) < self.lengths[:, None]] = self.values
        return table
