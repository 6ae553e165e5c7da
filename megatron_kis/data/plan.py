"""The exposure plan: a pure function from a sequence's number to what lies in it.

1. Time runs over the run's S = D / L sequences. A *stream* is a group of K facts shown ``frequency`` times each:
   exposure e in [0, K * frequency) has its ideal place at sequence (e + 1/2) * S / (K * frequency).
2. Round r = e // K shows every fact once, in an order permuted anew for each round. A fact's exposures are therefore
   one in each S / frequency sequences: near-regular, and never twice in the company of the same neighbours.
3. Templates go round: each M exposures of a fact with M templates use every one once, so that shares differ by at most
   1, also among the background exposures that infusion leaves (``stream``).
4. Blocks of ``BLOCK`` sequences own the exposures whose ideal place lies in them and pack these (``packing``): each
   whole, a sequence never overfilled. The last block takes the sequences that are left over. An exposure lies less than
   two blocks from its ideal place, and in it wherever that overfills nothing.
5. What is left of a sequence is general text: the first tokens of the stretch that belongs to this sequence number,
   whatever F is. Runs that differ in F alone read the same general text in the same order (minimal pairs).

A fact therefore sees exactly its frequency of whole exposures, whatever the parallel layout or batch size; a resumed
run needs the number of sequences consumed and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from megatron_kis.data.packing import pack_block
from megatron_kis.data.random import key_of, mix
from megatron_kis.data.stream import IntArray, Stream
from megatron_kis.errors import InputError
from megatron_kis.files import fingerprint

BLOCK = 256
"""Sequences that are packed together: enough to even out lengths (ratios beyond 0.95 can be met), few in any run."""

POLICIES = ("displaced", "protected")
SCHEDULES = ("uniform",)

_CHECKED_BLOCKS = 1 << 12  # up to this many blocks a tight plan is packed whole before the run starts, then a sample
_CACHED_BLOCKS = 8  # ranks and loaders read ahead a little; a block is about 100 kB


class Placed(NamedTuple):
    """One exposure in a sequence."""

    group: str
    """``infused`` or ``background``."""

    fact: int
    """Row of the fact within its group."""

    template: int
    """Train template of the fact's relation."""

    ordinal: int
    """Which of the fact's exposures this is, from 0."""

    offset: int
    """First token's place in the sequence."""

    length: int
    """Tokens, the end-of-document token included."""


class SequenceLayout(NamedTuple):
    """What lies in one sequence: exposures, and one piece of general text."""

    exposures: tuple[Placed, ...]
    """By offset."""

    general_offset: int
    """Where the general text begins."""

    general_tokens: int
    """How much there is of it; sequence_length minus the exposures' lengths."""


class ExposurePlan:
    """Which exposures lie in which sequence. See the module for how."""

    def __init__(
        self,
        exposure_lengths: ArrayLike,
        *,
        token_budget: int,
        sequence_length: int,
        infusion_frequency: int | None = None,
        infusion_ratio: float | None = None,
        seed: int = 0,
        schedule: str = "uniform",
        background_lengths: ArrayLike | None = None,
        background_frequency: int = 0,
        background_policy: str = "displaced",
    ) -> None:
        """Makes a plan, and checks that it can be met before anything long starts.

        Args:
            exposure_lengths: int [infused facts, templates], tokens with the end-of-document token; 0 where a fact has
                fewer templates than others (trailing).
            token_budget: D, tokens of the run; whole sequences of it are used.
            sequence_length: L, tokens.
            infusion_frequency: F, exposures of each infused fact. Either this or ``infusion_ratio``.
            infusion_ratio: share of D for exposures of infused facts; the nearest F is taken.
            seed: of orders and templates.
            schedule: ``uniform``.
            background_lengths: as ``exposure_lengths``, for the background facts.
            background_frequency: exposures of each background fact at F = 0.
            background_policy: ``protected`` (that many whatever F) or ``displaced`` (a fixed rate in the general text:
                ``background_frequency`` times the share that infusion leaves, rounded; those that remain keep their
                ideal places).

        Raises:
            InputError: a value out of range, or exposures that do not fit into the budget.
        """
        if schedule not in SCHEDULES:
            raise InputError(
                f"unknown schedule {schedule!r}", where="infusion.schedule", remedy="valid: " + ", ".join(SCHEDULES)
            )
        if background_policy not in POLICIES:
            raise InputError(
                f"unknown policy {background_policy!r}",
                where="infusion.background_policy",
                remedy="valid: " + ", ".join(POLICIES),
            )
        if background_frequency < 0:
            raise InputError(f"is {background_frequency}", where="background_frequency", remedy="must not be negative")
        if sequence_length < 2:
            raise InputError(f"is {sequence_length}", where="sequence_length", remedy="must be at least 2")
        self.sequence_length = sequence_length
        self.sequences = token_budget // sequence_length
        self.token_budget = self.sequences * sequence_length
        if self.sequences < 1:
            raise InputError(
                f"{token_budget} tokens are less than one sequence of {sequence_length}",
                where="token_budget",
                remedy="use a larger budget",
            )
        self.seed, self.schedule = seed, schedule
        self.background_policy, self.background_base_frequency = background_policy, background_frequency
        self._infused_lengths = _length_table(exposure_lengths, sequence_length, "exposure_lengths")
        empty = np.zeros((0, 1), dtype=np.int64)
        self._background_lengths = _length_table(
            empty if background_lengths is None else background_lengths, sequence_length, "background_lengths"
        )
        self.infusion_frequency = self._resolve_frequency(infusion_frequency, infusion_ratio)
        self._infused, self._background = self._streams_at(self.infusion_frequency)
        self.infused_tokens, self.background_tokens = self._infused.tokens(), self._background.tokens()
        self.infusion_ratio = self.infused_tokens / self.token_budget
        self.background_frequency = self._background.frequency
        self._streams = (self._infused, self._background)
        if not self._fits(self._streams):
            raise self._too_much()
        self._key = np.uint64(key_of(seed, "arrange"))
        self._block = lru_cache(maxsize=_CACHED_BLOCKS)(self._arrange_block)

    def _resolve_frequency(self, frequency: int | None, ratio: float | None) -> int:
        if (frequency is None) == (ratio is None):
            raise InputError(
                "needs one of infusion_frequency and infusion_ratio", where="infusion", remedy="the other is derived"
            )
        if ratio is not None:
            if not 0.0 <= ratio <= 1.0:
                raise InputError(f"is {ratio}", where="infusion_ratio", remedy="must lie in [0, 1]")
            one_round = self._stream("infused", self._infused_lengths, 1, 1).mean_lengths.sum()
            frequency = round(ratio * self.token_budget / one_round) if one_round else 0
        assert frequency is not None
        if frequency < 0:
            raise InputError(f"is {frequency}", where="infusion_frequency", remedy="must be 0 or more")
        if frequency and not len(self._infused_lengths):
            raise InputError("there are no infused facts", where="infusion_frequency", remedy="add facts or use 0")
        return frequency

    def _stream(self, group: str, lengths: IntArray, base: int, kept: int, *, displaced: bool = False) -> Stream:
        return Stream(group, lengths, base, kept, key_of(self.seed, "stream", group), displaced)

    def _streams_at(self, frequency: int) -> tuple[Stream, Stream]:
        """The infused and the background stream at an infusion frequency."""
        infused = self._stream("infused", self._infused_lengths, frequency, frequency)
        base = kept = self.background_base_frequency
        displaced = self.background_policy == "displaced"
        if displaced:
            kept = round(base * max(0.0, 1.0 - infused.tokens() / self.token_budget))
        return infused, self._stream("background", self._background_lengths, base, kept, displaced=displaced)

    def __len__(self) -> int:
        """Sequences of the run."""
        return self.sequences

    def __getitem__(self, sequence: int) -> SequenceLayout:
        """The layout of a sequence, in time and memory that depend on neither the run's length nor its facts.

        Raises:
            IndexError: not in [0, len(plan)).
        """
        if not 0 <= sequence < self.sequences:
            raise IndexError(sequence)
        block = min(sequence // BLOCK, self._blocks - 1)
        return self._block(block)[sequence - block * BLOCK]

    @property
    def _blocks(self) -> int:
        return max(1, self.sequences // BLOCK)

    def _sequences_of(self, block: int) -> range:
        """The sequences of a block; the last one's also those that would not fill another."""
        return range(block * BLOCK, self.sequences if block == self._blocks - 1 else (block + 1) * BLOCK)

    def __iter__(self) -> Iterator[SequenceLayout]:
        """Every layout in the order of training."""
        return (self[sequence] for sequence in range(self.sequences))

    def expected(self, group: str) -> IntArray:
        """[facts] exposures that each fact of a group receives in the whole run."""
        stream = self._infused if group == "infused" else self._background
        return np.full(stream.facts, stream.frequency, dtype=np.int64)

    def identity(self) -> dict[str, Any]:
        """What makes this plan what it is: equal identities give equal layouts."""
        return {
            "infusion_frequency": self.infusion_frequency,
            "infusion_ratio": self.infusion_ratio,
            "infused_facts": self._infused.facts,
            "infused_tokens": self.infused_tokens,
            "background_facts": self._background.facts,
            "background_policy": self.background_policy,
            "background_base_frequency": self.background_base_frequency,
            "background_frequency": self.background_frequency,
            "background_tokens": self.background_tokens,
            "token_budget": self.token_budget,
            "sequence_length": self.sequence_length,
            "seed": self.seed,
            "schedule": self.schedule,
            "block": BLOCK,
            "lengths_fingerprint": fingerprint([self._infused_lengths.tolist(), self._background_lengths.tolist()]),
        }

    def _pack(self, block: int, streams: tuple[Stream, ...]) -> tuple[IntArray, IntArray | None]:
        """Packs a block.

        Returns:
            int64 [exposures, 5] of stream, fact, template, ordinal and length; and int64 [exposures] the sequence of
            each within the block, or None if they do not fit.
        """
        sequences = self._sequences_of(block)
        parts, ideals = [], []
        for number, stream in enumerate(streams):
            facts, templates, ordinals, ideal = stream.between(sequences.start, sequences.stop, self.sequences)
            lengths = stream.lengths[facts, templates]
            parts.append(np.stack([np.full_like(facts, number), facts, templates, ordinals, lengths], axis=1))
            ideals.append(ideal - sequences.start)
        table = np.concatenate(parts)
        where = pack_block(
            table[:, 4],
            table[:, 1] * len(streams) + table[:, 0],
            np.concatenate(ideals),
            sequences=len(sequences),
            capacity=self.sequence_length,
        )
        return table, where

    def _arrange_block(self, block: int) -> list[SequenceLayout]:
        """The layouts of a block: in each sequence the exposures in a random order, the text at a random place."""
        table, where = self._pack(block, self._streams)
        sequences = self._sequences_of(block)
        if where is None:
            raise InputError(
                f"sequences {sequences.start} to {sequences.stop - 1} cannot hold their exposures whole",
                where="infusion_frequency",
                remedy="use a smaller infusion frequency",
            )
        numbers = np.arange(sequences.start, sequences.stop, dtype=np.uint64)
        with np.errstate(over="ignore"):
            occasions = (len(self._streams) * table[:, 3] + table[:, 0]).astype(np.uint64)
            draws = mix(mix(self._key + table[:, 1].astype(np.uint64)) + occasions)
            text_draws = mix(~self._key + numbers)
        rows = table[np.lexsort((draws, where))].tolist()
        counts = np.bincount(where, minlength=len(numbers))
        text_places = (text_draws % (counts + 1).astype(np.uint64)).astype(np.int64)
        layouts, first = [], 0
        for count, text_place in zip(counts.tolist(), text_places.tolist(), strict=True):
            layouts.append(self._arrange(rows[first : first + count], text_place))
            first += count
        return layouts

    def _arrange(self, rows: list[list[int]], text_place: int) -> SequenceLayout:
        general = self.sequence_length - sum(row[4] for row in rows)
        offset, general_offset, placed = 0, 0, []
        for position, (stream, fact, template, ordinal, length) in enumerate(rows):
            if position == text_place:
                general_offset = offset
                offset += general
            placed.append(Placed(self._streams[stream].group, fact, template, ordinal, offset, length))
            offset += length
        if text_place == len(rows):
            general_offset = offset
        return SequenceLayout(tuple(placed), general_offset, general)

    def _fits(self, streams: tuple[Stream, ...], most_blocks: int = _CHECKED_BLOCKS) -> bool:
        """Whether every block can hold its exposures; of more than ``most_blocks``, a sample is tried."""
        tokens = sum(stream.tokens() for stream in streams)
        if tokens > self.token_budget:
            return False
        # Dealt to the emptiest sequence, an exposure fits if the block's mean fill leaves room for it. A block of n
        # sequences owns at most n * size / S + 1 exposures of a stream, none longer than the stream's longest.
        longest = [int(stream.lengths.max(initial=0)) for stream in streams]
        shortest_block = min(BLOCK, self.sequences)
        fill = sum(
            (stream.size / self.sequences + 1 / shortest_block) * length
            for stream, length in zip(streams, longest, strict=True)
        )
        if fill + max(longest) <= self.sequence_length:
            return True
        checked = range(0, self._blocks, max(1, self._blocks // most_blocks))
        return all(self._pack(block, streams)[1] is not None for block in checked)

    def _too_much(self) -> InputError:
        """What to say of exposures that do not fit."""
        whole = f"of {self.token_budget} tokens, each exposure whole in a sequence of {self.sequence_length}"
        background = self._streams_at(0)[1]
        if not self._fits(self._streams_at(0)):
            return InputError(
                f"{background.facts} background facts x {background.frequency} exposures need {background.tokens()} "
                + whole,
                where="background_frequency",
                remedy="use a smaller one, or raise the token budget",
            )
        return InputError(
            f"{self._infused.facts} infused facts x {self.infusion_frequency} exposures and the background need "
            f"{self.infused_tokens + self.background_tokens} {whole}",
            where="infusion_frequency",
            remedy=f"the largest that fits is about {self._largest_frequency()}, or raise the token budget",
        )

    def _largest_frequency(self) -> int:
        """Nearly the largest F that fits, by bisection over a few blocks (the message must not take long)."""
        fits, fails = 0, self.infusion_frequency
        one_round = self._infused.mean_lengths.sum()
        fails = min(fails, int(self.token_budget / one_round) + 2) if one_round else fails
        while fails - fits > 1:
            middle = (fits + fails) // 2
            if self._fits(self._streams_at(middle), most_blocks=8):
                fits = middle
            else:
                fails = middle
        return fits


def _length_table(lengths: ArrayLike, sequence_length: int, name: str) -> IntArray:
    table = np.asarray(lengths, dtype=np.int64)
    if table.ndim != 2:
        raise InputError(f"has {table.ndim} dimensions", where=name, remedy="must be [facts, templates]")
    if not table.size:
        return table.reshape(0, max(1, table.shape[1]))
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
