"""A stream: a group of facts, the order and the templates of their exposures, and which of these are kept."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from megatron_kis.data.random import mix, permute

IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Stream:
    """K facts shown ``base_frequency`` times each, of which ``frequency`` are kept.

    Exposure e in [0, K * base_frequency) belongs to round e // K. A round shows every fact once, in its own order.
    """

    group: str
    """``infused`` or ``background``."""

    lengths: IntArray
    """[facts, templates] tokens of each exposure; 0 (trailing) where a fact has fewer templates."""

    base_frequency: int
    """Exposures of each fact before any is displaced."""

    frequency: int
    """Exposures of each fact that remain; fewer than ``base_frequency`` only in a stream that is ``displaced``."""

    key: int
    """Key of the stream's orders and templates."""

    displaced: bool = False
    """Whether exposures give way to infusion. What remains of a stream must be the same whatever gave way."""

    @property
    def facts(self) -> int:
        """K."""
        return len(self.lengths)

    @property
    def size(self) -> int:
        """Exposures before any is displaced."""
        return self.facts * self.base_frequency

    @cached_property
    def templates(self) -> IntArray:
        """[facts] how many templates each fact has."""
        return (self.lengths > 0).sum(axis=1)

    @cached_property
    def mean_lengths(self) -> NDArray[np.float64]:
        """[facts] mean tokens of a fact's exposures over its templates."""
        return self.lengths.sum(axis=1) / np.maximum(self.templates, 1)

    def first_at(self, sequence: int, sequences: int) -> int:
        """The first exposure whose ideal place in a run of ``sequences`` is at or after ``sequence``."""
        # the smallest e with (e + 1/2) * sequences / size >= sequence, in whole numbers of any size
        return min(self.size, max(0, -((sequences - 2 * self.size * sequence) // (2 * sequences))))

    def between(self, first: int, last: int, sequences: int) -> tuple[IntArray, IntArray, IntArray, IntArray]:
        """The kept exposures whose ideal places lie in [first, last).

        Returns:
            Four int64 [exposures]: fact, template, ordinal (before displacement), ideal sequence.
        """
        low, high = self.first_at(first, sequences), self.first_at(last, sequences)
        exposures = np.arange(low, high, dtype=np.int64)
        if not self.frequency or not len(exposures):
            return exposures[:0], exposures[:0], exposures[:0], exposures[:0]
        ordinals, places = np.divmod(exposures, self.facts)
        with np.errstate(over="ignore"):
            round_keys = mix(np.uint64(self.key) + ordinals.astype(np.uint64))
        facts = permute(places, self.facts, round_keys)
        ranks = self.ranks(facts, ordinals)
        kept = ranks < self.frequency
        exposures, facts, ordinals = exposures[kept], facts[kept], ordinals[kept]
        templates = self.templates_at(facts, ranks[kept])
        # Whole numbers of any size: (2 e + 1) * sequences may exceed 63 bits at 1e9 sequences and 1e6 facts.
        offsets = exposures - low
        base = (2 * low + 1) * sequences
        whole, rest = divmod(base, 2 * self.size)
        ideal = whole + (rest + 2 * sequences * offsets) // (2 * self.size)
        return facts, templates, ordinals, ideal

    def ranks(self, facts: IntArray, ordinals: IntArray) -> IntArray:
        """The order in which exposures of a fact are kept: those of a rank below ``frequency`` remain.

        A lower frequency therefore keeps a subset, spread over the whole run.
        """
        if not self.displaced:
            return ordinals
        with np.errstate(over="ignore"):
            turns = mix(facts.astype(np.uint64) + np.uint64(self.key >> 1)) % np.uint64(self.base_frequency)
        return self._rank_of_keeping[(ordinals + turns.astype(np.int64)) % self.base_frequency]

    def templates_at(self, facts: IntArray, ranks: IntArray) -> IntArray:
        """The templates of exposures: each M successive ranks of a fact with M templates use every one once.

        Templates follow the rank and not the time, so that displacement thins all of a fact's templates alike. Every M
        ranks begin at a template of their own: ranks alias with time (every second exposure has a rank in the first
        half), and a fixed beginning would show a fact through one template for long.
        """
        templates = self.templates[facts]
        with np.errstate(over="ignore"):
            drawn = mix(mix(np.uint64(self.key) ^ facts.astype(np.uint64)) + (ranks // templates).astype(np.uint64))
        return (ranks + (drawn % templates.astype(np.uint64)).astype(np.int64)) % templates

    @cached_property
    def _rank_of_keeping(self) -> IntArray:
        """[base_frequency] in bit-reversed order, of which any number of first elements lies evenly spread."""
        bits = max(1, (self.base_frequency - 1).bit_length())
        ordinals = np.arange(self.base_frequency, dtype=np.int64)
        mirrored = np.zeros_like(ordinals)
        for bit in range(bits):
            mirrored |= ((ordinals >> bit) & 1) << (bits - 1 - bit)
        rank = np.empty_like(ordinals)
        rank[np.argsort(mirrored)] = ordinals
        return rank

    def template_counts(self) -> IntArray:
        """[facts, templates] how often each is shown."""
        counts = np.zeros_like(self.lengths)
        if not self.facts or not self.frequency:
            return counts
        whole, rest = np.divmod(self.frequency, self.templates)
        first = self.templates_at(np.arange(self.facts), whole * self.templates)  # of the last, incomplete, turn
        for template in range(self.lengths.shape[1]):
            extra = (template - first) % self.templates < rest
            counts[:, template] = np.where(template < self.templates, whole + extra, 0)
        return counts

    def tokens(self) -> int:
        """Tokens of all kept exposures."""
        return int((self.template_counts() * self.lengths).sum())
