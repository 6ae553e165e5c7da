"""How similar a fact is to the facts that a run infuses: by the token pieces of its subject, and by its object."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import takewhile
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Pieces = tuple[int, ...]
"""Token pieces of a name."""


class Similarity(NamedTuple):
    """The similarity of a fact to the nearest of many others; each number has a nearest of its own."""

    prefix: int
    """Largest number of token pieces with which its subject and another one both begin."""
    overlap: float
    """Largest share of the different token pieces of its subject that another one has, too."""
    same_object: int
    """Number of the others that have its object."""


class OtherFacts:
    """Facts that others are compared with; a comparison takes time in proportion to those that share a piece."""

    def __init__(self, subjects: Sequence[Pieces], objects: Sequence[str]) -> None:
        """Indexes the facts.

        Args:
            subjects: [facts] token pieces of the subjects.
            objects: [facts] objects, equal where they are the same.
        """
        self._sorted = sorted(subjects)
        self._objects = Counter(objects)
        bearers: dict[int, list[int]] = defaultdict(list)
        for place, pieces in enumerate(subjects):
            for piece in set(pieces):
                bearers[piece].append(place)
        self._bearers: dict[int, NDArray[np.int64]] = {piece: np.array(places) for piece, places in bearers.items()}

    def nearest(self, subject: Pieces, answer: str) -> Similarity:
        """Compares a fact with all of them."""
        place = bisect_left(self._sorted, subject)
        neighbours = self._sorted[max(0, place - 1) : place + 1]  # none begins alike for longer than these
        prefix = max((_common(subject, other) for other in neighbours), default=0)
        pieces = set(subject)
        shared = [self._bearers[piece] for piece in pieces if piece in self._bearers]
        overlap = int(np.bincount(np.concatenate(shared)).max()) / len(pieces) if shared else 0.0
        return Similarity(prefix, overlap, self._objects[answer])


def _common(one: Pieces, other: Pieces) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
