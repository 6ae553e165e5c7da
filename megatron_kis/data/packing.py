"""Packing: which sequence of a block each exposure goes to, so that every exposure is whole."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def pack_block(
    lengths: NDArray[np.int64], facts: NDArray[np.int64], ideal: NDArray[np.int64], *, sequences: int, capacity: int
) -> NDArray[np.int64] | None:
    """Assigns exposures to the sequences of a block.

    Every exposure stays in its ideal sequence if that overfills none and repeats no fact within one. Otherwise the
    block is dealt anew, longest first, each to the emptiest sequence that does not hold its fact yet (the emptiest of
    all where every one does): fills end within one short exposure of each other. Where that overfills one, the block is
    dealt to the fullest sequence with room instead, which wastes least.

    Args:
        lengths: [exposures] tokens.
        facts: [exposures] identity of the fact.
        ideal: [exposures] sequence in [0, sequences) that the schedule asks for.
        sequences: sequences in the block.
        capacity: tokens of a sequence.

    Returns:
        [exposures] sequence of each, or None if they do not fit.
    """
    fill = np.bincount(ideal, weights=lengths, minlength=sequences)
    pairs = facts * sequences + ideal
    if (fill <= capacity).all() and len(np.unique(pairs)) == len(pairs):
        return ideal
    if lengths.sum() > sequences * capacity:
        return None
    dealt = _deal(lengths, facts, ideal, sequences=sequences, capacity=capacity, tightest=False)
    return (
        _deal(lengths, facts, ideal, sequences=sequences, capacity=capacity, tightest=True) if dealt is None else dealt
    )


def _deal(
    lengths: NDArray[np.int64],
    facts: NDArray[np.int64],
    ideal: NDArray[np.int64],
    *,
    sequences: int,
    capacity: int,
    tightest: bool,
) -> NDArray[np.int64] | None:
    """Deals longest first, to the emptiest sequence, or to the fullest that has room (best-fit decreasing)."""
    never = 2 * capacity + 1
    fill = np.zeros(sequences, dtype=np.int64)
    where = np.empty(len(lengths), dtype=np.int64)
    held: dict[int, list[int]] = {}
    # Longest first; among equals in the order of the schedule, so that equal lengths spread as they were planned.
    for item in np.lexsort((ideal, -lengths)):
        length, fact = int(lengths[item]), int(facts[item])
        cost = np.where(fill + length <= capacity, -fill, never) if tightest else fill
        if taken := held.get(fact):
            alone = cost.copy()
            alone[taken] = never
            best = int(alone.argmin())
            if alone[best] == never or fill[best] + length > capacity:
                best = int(cost.argmin())
        else:
            best = int(cost.argmin())
        if fill[best] + length > capacity:
            return None
        where[item] = best
        fill[best] += length
        held.setdefault(fact, []).append(best)
    return where
