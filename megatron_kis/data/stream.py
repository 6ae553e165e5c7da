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
    """Exposures of each fact that remain."""

    key: int
    """Key of the stream's orders and templates."""

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
    def template_starts(self) -> IntArray:
        """[facts] the template of each fact's first exposure; the next ones follow in turn."""
        drawn = mix(np.arange(self.facts, dtype=np.uint64) ^ np.uint64(self.key))
        return (drawn % np.maximum(self.templates, 1).astype(np.uint64)).astype(np.int64)

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
        kept = self.keeps(facts, ordinals)
        exposures, facts, ordinals = exposures[kept], facts[kept], ordinals[kept]
        templates = (ordinals + self.template_starts[facts]) % self.templates[facts]
        # Whole numbers of any size: (2 e + 1) * sequences may exceed 63 bits at 1e9 sequences and 1e6 facts.
        offsets = exposures - low
        base = (2 * low + 1) * sequences
        whole, rest = divmod(base, 2 * self.size)
        ideal = whole + (rest + 2 * sequences * offsets) // (2 * self.size)
        return facts, templates, ordinals, ideal

    def keeps(self, facts: IntArray, ordinals: IntArray) -> NDArray[np.bool_]:
        """Which exposures remain: nested (a lower frequency keeps a subset) and spread over each fact's run."""
        if self.frequency == self.base_frequency:
            return np.ones(len(facts), dtype=bool)
        base = self.base_frequency
        with np.errstate(over="ignore"):
            turns = mix(facts.astype(np.uint64) + np.uint64(self.key >> 1)) % np.uint64(base)
        return self._rank_of_keeping[(ordinals + turns.astype(np.int64)) % base] < self.frequency

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
        rows = np.arange(self.facts)
        if not self.facts or not self.frequency:
            return counts
        if self.frequency == self.base_frequency:
            whole, rest = np.divmod(self.frequency, self.templates)
            for template in range(self.lengths.shape[1]):
                turn = (template - self.template_starts) % self.templates
                counts[:, template] = np.where(template < self.templates, whole + (turn < rest), 0)
            return counts
        for ordinal in range(self.base_frequency):
            kept = self.keeps(rows, np.full(self.facts, ordinal))
            template_of = (ordinal + self.template_starts) % self.templates
            counts[rows[kept], template_of[kept]] += 1
        return counts

    def tokens(self) -> int:
        """Tokens of all kept exposures."""
        return int((self.template_counts() * self.lengths).sum())
