"""Packing: which sequence of a block each exposure goes to, so that every exposure is whole."""

from __future__ import annotations

import heapq
from collections import Counter

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]


def pack_block(
    lengths: IntArray, facts: IntArray, ideal: IntArray, *, sequences: int, capacity: int
) -> IntArray | None:
    """Assigns the exposures of a block to its sequences, where their ideal places would overfill one or repeat a fact.

    They are dealt longest first, each to the emptiest sequence that does not hold its fact yet (the emptiest of all
    where every one does): fills end within one exposure of each other, and nothing is overfilled as long as the mean
    fill leaves room for the longest. Where that fails the sequences are filled one after another, to the last token
    wherever some choice of exposures allows it.

    Args:
        lengths: [exposures], tokens of each.
        facts: [exposures], identity of the fact of each.
        ideal: [exposures], sequence in [0, sequences) that the schedule asks for.
        sequences: number of sequences in the block.
        capacity: tokens of a sequence.

    Returns:
        [exposures], the sequence of each, or None if they do not fit.
    """
    if lengths.sum() > sequences * capacity:
        return None
    dealt = _deal(lengths, facts, ideal, sequences=sequences, capacity=capacity)
    return _fill(lengths, facts, ideal, sequences=sequences, capacity=capacity) if dealt is None else dealt


def _deal(lengths: IntArray, facts: IntArray, ideal: IntArray, *, sequences: int, capacity: int) -> IntArray | None:
    """Deals longest first, each to the emptiest sequence without its fact; None if that overfills one."""
    where = np.empty(len(lengths), dtype=np.int64)
    emptiest = [(0, sequence) for sequence in range(sequences)]  # a heap of (fill, sequence)
    holders: dict[int, set[int]] = {}
    # Longest first; among equals in the order of the schedule, so that equal lengths spread as they were planned.
    order = np.lexsort((ideal, -lengths))
    for item, length, fact in zip(order.tolist(), lengths[order].tolist(), facts[order].tolist(), strict=True):
        taken = holders.setdefault(fact, set())
        passed = []
        everywhere = len(taken) == sequences
        while not everywhere and emptiest and emptiest[0][1] in taken and emptiest[0][0] + length <= capacity:
            passed.append(heapq.heappop(emptiest))
        if not emptiest or emptiest[0][0] + length > capacity:  # each with room has the fact: take the emptiest of all
            for entry in passed:
                heapq.heappush(emptiest, entry)
            passed = []
        fill, sequence = emptiest[0]
        if fill + length > capacity:
            return None
        heapq.heapreplace(emptiest, (fill + length, sequence))
        for entry in passed:
            heapq.heappush(emptiest, entry)
        where[item] = sequence
        taken.add(sequence)
    return where


def _fill(lengths: IntArray, facts: IntArray, ideal: IntArray, *, sequences: int, capacity: int) -> IntArray | None:
    """Fills one sequence after another, as full as the remaining lengths allow; None if some exposures are left over.

    Long exposures go first and the rest of each sequence is the subset of lengths that comes nearest to filling it:
    packing is the cutting-stock problem, and with many exposures of few lengths nearly every sequence can be full.
    """
    where = np.empty(len(lengths), dtype=np.int64)
    shelves: dict[int, list[int]] = {}  # exposures by length, the earliest last
    for item in np.argsort(-ideal, kind="stable").tolist():
        shelves.setdefault(int(lengths[item]), []).append(item)
    longest = max(shelves, default=0)
    for sequence in range(sequences):
        gap, held = capacity, set[int]()
        available = Counter({length: len(items) for length, items in sorted(shelves.items(), reverse=True) if items})
        chosen: list[int] = []
        for length, count in available.items():
            copies = min(count, max(0, gap - 2 * longest) // length)
            chosen += [length] * copies
            gap -= copies * length
            available[length] -= copies
        chosen += _nearest_sum(gap, available)
        for length in chosen:
            item = _take(shelves[length], facts, held)
            held.add(int(facts[item]))
            where[item] = sequence
    return None if any(shelves.values()) else where


def _take(items: list[int], facts: IntArray, held: set[int]) -> int:
    """Removes and returns the earliest item whose fact is not held, or else the earliest."""
    for back in range(1, len(items) + 1):
        if int(facts[items[-back]]) not in held:
            return items.pop(-back)
    return items.pop()


def _nearest_sum(gap: int, available: Counter[int]) -> list[int]:
    """Returns lengths, each at most as often as available, whose sum is as near to ``gap`` as possible and not above.

    The subset-sum problem by dynamic programming over a bit set: bit n of ``reachable`` says that a sum of n is
    possible with the lengths so far. Going back over the lengths finds one choice that gives the largest sum.
    """
    reachable = 1
    within = (1 << (gap + 1)) - 1
    steps = []
    for length, count in available.items():
        steps.append((length, reachable))
        for _ in range(min(count, gap // length)):
            reachable |= (reachable << length) & within
        if reachable >> gap:
            break
    chosen, total = [], reachable.bit_length() - 1
    for length, before in reversed(steps):
        while not before >> total & 1:
            chosen.append(length)
            total -= length
    return chosen
