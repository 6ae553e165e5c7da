"""From streams to layouts: blocks of sequences with their exposures packed, and in a random order within each sequence.

Several blocks are built in one pass: an array of a thousand exposures costs little more than one of ten.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from megatron_kis.common.terms import RENDERED_GROUPS
from megatron_kis.data.counter_rng import mix
from megatron_kis.data.packing import pack_block
from megatron_kis.data.stream import IntArray, Stream

ShortArray = NDArray[np.int32]

_BLOCKS_PER_TRIAL = 64  # blocks that are packed in one pass to see whether they hold their exposures
_STREAM, _FACT, _TEMPLATE, _ORDINAL, _LENGTH = range(5)  # rows of the table of a block's exposures


class PlacedExposure(NamedTuple):
    """One exposure in a sequence."""

    group: str
    """Group of the fact: ``infused`` or ``background``."""

    fact: int
    """Row of the fact within its group."""

    template: int
    """Train template of the fact's relation."""

    ordinal: int
    """Place of this exposure among the fact's exposures, from 0."""

    offset: int
    """Place of the first token in the sequence."""

    length: int
    """Number of tokens, including the end-of-document token."""


class SequenceLayout(NamedTuple):
    """The content of one sequence: exposures, and one piece of general text."""

    exposures: tuple[PlacedExposure, ...]
    """Exposures in the order of their offsets."""

    general_offset: int
    """Place of the first token of general text."""

    general_tokens: int
    """Tokens of general text: sequence_length minus the exposures' lengths. If an exposure follows, the last of these
    tokens ends the document: a fact is never read as the rest of a sentence that was cut."""


class Block:
    """A packed block: its exposures by sequence, from which layouts are made when they are needed."""

    def __init__(self, rows: ShortArray, ends: IntArray, text_places: ShortArray, sequence_length: int) -> None:
        """Takes rows of stream, fact, template, ordinal and length, and where each sequence's rows end."""
        self._rows, self._ends, self._text_places = rows, ends, text_places
        self._sequence_length = sequence_length

    def layout(self, number: int) -> SequenceLayout:
        """Returns the layout of a sequence of the block."""
        rows = self._rows[self._ends[number - 1] if number else 0 : self._ends[number]].tolist()
        text_place = self._text_places[number]
        general = self._sequence_length - sum([row[_LENGTH] for row in rows])
        offset, general_offset, placed = 0, 0, []
        for position, (stream, fact, template, ordinal, length) in enumerate(rows):
            if position == text_place:
                general_offset = offset
                offset += general
            placed.append(PlacedExposure(RENDERED_GROUPS[stream], fact, template, ordinal, offset, length))
            offset += length
        if text_place == len(rows):
            general_offset = offset
        return SequenceLayout(tuple(placed), general_offset, general)


class BlockBuilder:
    """Builds blocks of the infused and the background stream."""

    def __init__(
        self, streams: Sequence[Stream], *, sequences: int, sequence_length: int, key: int, text_first: bool = False
    ) -> None:
        """Makes a builder.

        Args:
            streams: the streams in the order of ``RENDERED_GROUPS``.
            sequences: S.
            sequence_length: L.
            key: key of orders within sequences.
            text_first: whether general text comes before the exposures of its sequence, and not at a random place.
        """
        self.streams = streams
        self.sequences = sequences
        self.sequence_length = sequence_length
        self._key = np.uint64(key)
        self._text_first = text_first

    def can_pack(self, blocks: Iterable[range]) -> bool:
        """Returns whether each of some blocks can hold its exposures."""
        remaining = iter(blocks)
        while some := list(itertools.islice(remaining, _BLOCKS_PER_TRIAL)):
            if self._packed(some)[1] is None:
                return False
        return True

    def build(self, blocks: Sequence[range]) -> list[Block] | None:
        """Returns the blocks of ranges of sequences; None if one of them cannot hold its exposures."""
        table, where = self._packed(blocks)
        if where is None:
            return None
        # A sequence's exposures are sorted by random draws, and its general text goes before, between or after them
        # unless it is to come first.
        counters = table.astype(np.uint64)
        facts = counters[_FACT] * np.uint64(len(RENDERED_GROUPS)) + counters[_STREAM]
        draws = mix(mix(facts + self._key) + counters[_ORDINAL])
        rows = np.ascontiguousarray(table[:, np.lexsort((draws, where))].T, dtype=np.int32)
        numbers = np.concatenate([np.arange(block.start, block.stop) for block in blocks]).astype(np.uint64)
        counts = np.bincount(where, minlength=len(numbers))
        text_places = (mix(numbers + ~self._key) % (counts + 1).astype(np.uint64)).astype(np.int32)
        if self._text_first:
            text_places[:] = 0
        ends = np.cumsum(counts)
        built = []
        first = row = 0
        for block in blocks:
            last = first + len(block)
            stop = int(ends[last - 1])
            built.append(Block(rows[row:stop], ends[first:last] - row, text_places[first:last], self.sequence_length))
            first, row = last, stop
        return built

    def _packed(self, blocks: Sequence[range]) -> tuple[IntArray, IntArray | None]:
        """Returns the exposures of blocks, and the sequence of each.

        Returns:
            int64 [5, exposures] of stream, fact, template, ordinal and length; and int64 [exposures] the sequence,
            counted over the blocks one after the other, or None if one of them cannot hold its exposures.
        """
        firsts = np.array([block.start for block in blocks])
        lasts = np.array([block.stop for block in blocks])
        sizes = lasts - firsts
        before = np.cumsum(sizes) - sizes
        parts: list[IntArray] = []
        wheres: list[IntArray] = []
        owners: list[IntArray] = []
        for number, stream in enumerate(self.streams):
            if not stream.exposures:
                continue
            facts, templates, ordinals, ideal, owner = stream.exposures_in(firsts, lasts, self.sequences)
            lengths = stream.lengths[facts, templates]
            parts.append(np.array([np.full(len(facts), number), facts, templates, ordinals, lengths], dtype=np.int64))
            wheres.append(ideal + (before - firsts)[owner])
            owners.append(owner)
        if not parts:
            return np.zeros((5, 0), dtype=np.int64), np.zeros(0, dtype=np.int64)
        table, where = np.concatenate(parts, axis=1), np.concatenate(wheres)
        crowded = self._crowded(table, where, int(sizes.sum()))
        if len(crowded):
            owner = np.concatenate(owners)
            for block in np.unique(np.searchsorted(before, crowded, side="right") - 1):
                mine = owner == block
                packed = self._pack(table[:, mine], where[mine] - before[block], int(sizes[block]))
                if packed is None:
                    return table, None
                where[mine] = packed + before[block]
        return table, where

    def _crowded(self, table: IntArray, where: IntArray, sequences: int) -> IntArray:
        """Returns the sequences that exposures in their ideal places overfill, or in which a fact would come twice."""
        fill = np.bincount(where, weights=table[_LENGTH], minlength=sequences)
        overfull = np.flatnonzero(fill > self.sequence_length)
        pairs = np.sort((table[_FACT] * len(RENDERED_GROUPS) + table[_STREAM]) * sequences + where)
        repeated = pairs[1:][pairs[1:] == pairs[:-1]] % sequences
        return np.concatenate([overfull, repeated]) if len(repeated) else overfull

    def _pack(self, table: IntArray, ideal: IntArray, sequences: int) -> IntArray | None:
        facts = table[_FACT] * len(RENDERED_GROUPS) + table[_STREAM]
        return pack_block(table[_LENGTH], facts, ideal, sequences=sequences, capacity=self.sequence_length)
