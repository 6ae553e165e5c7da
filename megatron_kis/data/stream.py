"""A stream: a group of facts, and the order, time and template of each of their exposures.

Facts of equal frequency form a *class*. The exposures of a class with K facts come in rounds: round r shows every fact
once, in an order of its own, so that a fact is not learned from its neighbour. To keep a fact's exposures evenly apart
a round has up to 4 parts, and a fact stays in its part: consecutive exposures of a fact are S / F sequences apart, plus
or minus the part's share of that. Exposure e of n has its ideal place where the schedule has shown (e + phase) / n.
"""

from __future__ import annotations

from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megatron_kis.common.errors import InputError
from megatron_kis.data.counter_rng import mix, mix_one, permute
from megatron_kis.data.exposure_schedule import UNIFORM, Schedule

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
TemplatePolicy = Literal["round_robin", "random"] | int

_PARTS = 4  # parts of a round: consecutive exposures of a fact are within a quarter of their mean distance
_PART_FACTS = 16  # facts of a part, at least: fewer would always come in the same company
_TABLED_FACTS = 1 << 16  # up to this many facts, the fact of each slot is kept in a table
_CHUNK = 1 << 15  # facts that are counted together, so that memory does not grow with all of them
_GOLDEN_SHARE = 0.6180339887498949  # multiples of it, modulo 1, spread most evenly (the phases of classes)


class Exposures(NamedTuple):
    """Exposures of a stream, each an int64 [exposures]."""

    facts: IntArray
    """Rows of the facts within their group."""

    templates: IntArray
    """Train templates of the facts' relations."""

    ordinals: IntArray
    """Place of each exposure among the fact's exposures, counted before any gives way."""

    ideal: IntArray
    """Sequences that the schedule asks for."""

    ranges: IntArray
    """Numbers of the ranges of sequences that were requested."""


class Stream:
    """The exposures of a group of K facts."""

    def __init__(
        self,
        group: str,
        lengths: IntArray,
        frequencies: IntArray | int,
        *,
        key: int,
        template_key: int | None = None,
        schedule: Schedule = UNIFORM,
        policy: TemplatePolicy = "round_robin",
        previous_counts: IntArray | int = 0,
        kept_per_fact: IntArray | int | None = None,
        first_ordinal: IntArray | int | None = None,
    ) -> None:
        """Describes a stream.

        Args:
            group: ``infused`` or ``background``.
            lengths: [facts, templates] tokens of each exposure; 0 (trailing) where a fact has fewer templates.
            frequencies: exposures of each fact, [facts] or one for all.
            key: random key of orders, and of templates unless these have a ``template_key``.
            template_key: random key of templates.
            schedule: when exposures come.
            policy: which template an exposure shows (``templates_at``).
            previous_counts: exposures that each fact had before this stream, [facts] or one for all: templates continue
                after them.
            kept_per_fact: how many exposures remain of each fact, [facts] or one for all; the others give way to
                infusion. An exposure that remains has the same template whatever this number is. None if no exposure
                can give way.
            first_ordinal: where ordinals begin, [facts] or one for all; None for ``previous_counts``.

        Raises:
            InputError: one template for all, and a fact does not have it.
        """
        self.group = group
        self.lengths = lengths
        self.key = key
        self.schedule = schedule
        self.policy = policy
        self.frequencies = np.asarray(frequencies, dtype=np.int64)
        self.facts = len(lengths)
        self._template_key = np.uint64(key if template_key is None else template_key)
        self._previous_counts = np.asarray(previous_counts, dtype=np.int64)
        self._kept_per_fact = None if kept_per_fact is None else np.asarray(kept_per_fact, dtype=np.int64)
        ordinals = self._previous_counts if first_ordinal is None else first_ordinal
        self._first_ordinal = np.asarray(ordinals, dtype=np.int64)
        if isinstance(policy, int):
            missing = np.flatnonzero(lengths[:, policy] == 0) if policy < lengths.shape[1] else np.arange(self.facts)
            if len(missing):
                fewest = int((lengths > 0).sum(axis=1).min())
                raise InputError(
                    f"there is no template {policy} for {len(missing)} of {self.facts} {group} facts; the fewest train "
                    f"templates of a fact are {fewest}",
                    where="infusion.templates",
                    remedy=f"use a number from 0 to {fewest - 1}, round_robin or random",
                )
        self._group_by_frequency()

    def _group_by_frequency(self) -> None:
        """Puts facts of equal frequency into classes; facts that are never shown belong to none.

        Per class it keeps the frequency, the number of facts, where these begin in ``_members``, the number of
        exposures, and the parts, the phase and the random key of its rounds.
        """
        if self.frequencies.ndim == 0 or not self.facts or self.frequencies.min() == self.frequencies.max():
            frequency = int(self.frequencies.max(initial=0)) if self.facts else 0
            self._class_frequencies = np.array([frequency] if frequency else [], dtype=np.int64)
            self._members: IntArray | None = None  # row i is member i
            counts = np.array([self.facts] if frequency else [], dtype=np.int64)
        else:
            values, which, counts = np.unique(self.frequencies, return_inverse=True, return_counts=True)
            never = int(counts[0]) if values[0] == 0 else 0
            self._members = np.argsort(which, kind="stable")[never:]
            self._class_frequencies = values[values > 0]
            counts = counts[values > 0]
        self._counts = counts
        self._firsts = np.cumsum(counts) - counts
        self._sizes = self._class_frequencies * counts
        self._parts = np.clip(counts // _PART_FACTS, 1, _PARTS)
        if len(counts) > 1:
            self._phases = (np.arange(len(counts)) + 0.5) * _GOLDEN_SHARE % 1.0
        else:
            self._phases = np.full(len(counts), 0.5)
        if len(counts) > 2:
            self._class_keys = mix(np.uint64(self.key) + np.arange(len(counts), dtype=np.uint64))
        else:  # the usual case, in which numbers are faster than arrays
            keys = [mix_one(self.key + number) for number in range(len(counts))]
            self._class_keys = np.array(keys, dtype=np.uint64)

    @property
    def classes(self) -> int:
        """Number of different frequencies, not counting 0."""
        return len(self._class_frequencies)

    @property
    def exposures(self) -> int:
        """Number of all exposures, including those that give way."""
        return int(self._sizes.sum())

    @property
    def spacing_tolerance(self) -> float:
        """How far the distance of a fact's consecutive exposures may be from its mean, as a share of the mean.

        It holds under a uniform schedule, before packing.
        """
        return float(1 / self._parts.min(initial=_PARTS))

    def counts_per_fact(self) -> IntArray:
        """Returns [facts], the exposures of each fact that remain."""
        counts = self.frequencies if self._kept_per_fact is None else self._kept_per_fact
        return np.broadcast_to(counts, (self.facts,))

    def bounds_at(self, times: FloatArray) -> IntArray:
        """Returns [times, classes], the first exposure of each class that does not come before ``times`` (0 to 1)."""
        wanted = np.ceil(self.schedule.share(times)[:, None] * self._sizes - self._phases)
        bounds: IntArray = np.minimum(np.maximum(wanted, 0), self._sizes).astype(np.int64)
        return bounds

    def exposures_in(self, firsts: IntArray, lasts: IntArray, sequences: int) -> Exposures:
        """Returns the exposures whose ideal places are in ranges of sequences, [first, last) of ``sequences``."""
        low, high = self.bounds_at(firsts / sequences), self.bounds_at(lasts / sequences)
        counts = (high - low).ravel()
        held = np.repeat(np.arange(len(counts)), counts)  # number of range x class
        exposures = np.arange(len(held)) - (np.cumsum(counts) - counts - low.ravel())[held]
        ranges, at = np.divmod(held, max(1, self.classes))
        facts, ordinals = self._facts_at(exposures, at)
        times = self.schedule.time((exposures + self._phases[at]) / self._sizes[at])
        # Times are rounded: an exposure at the very edge belongs to the sequences that were requested.
        ideal = np.minimum(np.maximum((times * sequences).astype(np.int64), firsts[ranges]), lasts[ranges] - 1)
        ranks = ordinals
        if self._kept_per_fact is not None:
            ranks = self._ranks(facts, ordinals, at)
            kept = np.flatnonzero(ranks < np.broadcast_to(self._kept_per_fact, (self.facts,))[facts])
            facts, ordinals, ideal = facts[kept], ordinals[kept], ideal[kept]
            ranges, ranks = ranges[kept], ranks[kept]
        previous = np.broadcast_to(self._previous_counts, (self.facts,))[facts]
        first = np.broadcast_to(self._first_ordinal, (self.facts,))[facts]
        return Exposures(facts, self.templates_at(facts, previous + ranks), first + ordinals, ideal, ranges)

    def _facts_at(self, exposures: IntArray, at: IntArray) -> tuple[IntArray, IntArray]:
        """Returns the fact of each exposure of the classes ``at``, and the round.

        Exposure e of a class of K facts is place e mod K of round e // K. Part p of a round takes the places from
        ceil(p K / parts) on, and permutes them under a key of the round and the part.
        """
        count, parts, keys = self._counts[at], self._parts[at], self._class_keys[at]
        rounds, places = np.divmod(exposures, count)
        part = places * parts // count
        start = -(-part * count // parts)
        size = -(-(part + 1) * count // parts) - start
        round_keys = mix(keys + (rounds * _PARTS + part).astype(np.uint64))
        slots = start + permute(places - start, size, round_keys)
        if len(self.lengths) <= _TABLED_FACTS:
            return self._facts_by_slot[self._firsts[at] + slots], rounds
        return self._facts_of(slots, at), rounds

    def _facts_of(self, slots: IntArray, at: IntArray) -> IntArray:
        """Returns the fact in a slot of a class's rounds: the part in which a fact stays is drawn once."""
        members = permute(slots, self._counts[at], self._class_keys[at])
        return members if self._members is None else self._members[self._firsts[at] + members]

    @cached_property
    def _facts_by_slot(self) -> IntArray:
        """The fact of every slot, class after class: a small table saves half of the time of a lookup."""
        at = np.repeat(np.arange(self.classes), self._counts)
        return self._facts_of(np.arange(len(at)) - self._firsts[at], at)

    def _ranks(self, facts: IntArray, ordinals: IntArray, at: IntArray) -> IntArray:
        """Returns the order in which exposures of facts of the classes ``at`` are kept.

        Those of a rank below ``kept_per_fact`` remain. A lower count therefore keeps a subset, spread over the run.
        """
        base = self._class_frequencies[at]
        turns = mix(facts.astype(np.uint64) + np.uint64(self.key >> 1)) % base.astype(np.uint64)
        starts = np.cumsum(self._class_frequencies) - self._class_frequencies
        return self._rank_of_keeping[starts[at] + (ordinals + turns.astype(np.int64)) % base]

    @cached_property
    def _rank_of_keeping(self) -> IntArray:
        """Ranks of the ordinals of each class, one class after the other: int64 [sum of the classes' frequencies]."""
        ranks = [_evenly_ranked(frequency) for frequency in self._class_frequencies.tolist()]
        return np.concatenate([np.zeros(0, dtype=np.int64), *ranks])

    @cached_property
    def templates(self) -> IntArray:
        """int64 [facts], number of templates of each fact."""
        width = self.lengths.shape[1]
        if width == 1 or not self.facts or self.lengths[:, -1].min() > 0:
            return np.broadcast_to(np.int64(width), (self.facts,))
        templates: IntArray = (self.lengths > 0).sum(axis=1)
        return templates

    def templates_at(self, facts: IntArray, ranks: IntArray) -> IntArray:
        """Returns the templates of exposures: M successive ranks of a fact with M templates use each template once.

        ``round_robin`` starts at a template drawn for the fact, ``random`` draws an order for every M ranks; an integer
        is the only template. Templates follow the rank and not the time, so that displacement thins all of a fact's
        templates equally. Where ranks alias with time (every second exposure has a rank in the first half), round-robin
        also draws its start for every M ranks, because otherwise a fact would be shown through one template for long.
        """
        if isinstance(self.policy, int):
            return np.full(len(facts), self.policy, dtype=np.int64)
        turns, places = np.divmod(ranks, self.templates[facts])
        if self.policy == "random":
            order = self._random_turns(facts, turns)
            return np.take_along_axis(order, places[:, None], axis=1)[:, 0]
        return (places + self._first_templates(facts, turns)) % self.templates[facts]

    def _first_templates(self, facts: IntArray, turns: IntArray) -> IntArray:
        """Returns the template with which each turn of round-robin starts."""
        drawn = facts.astype(np.uint64) ^ self._template_key
        if self._kept_per_fact is not None:
            drawn = np.add(mix(drawn), turns.astype(np.uint64))
        return (mix(drawn) % self.templates[facts].astype(np.uint64)).astype(np.int64)

    def _random_turns(self, facts: IntArray, turns: IntArray) -> IntArray:
        """Returns [exposures, templates], the order of templates in a turn; templates that a fact lacks come last."""
        width = self.lengths.shape[1]
        seeds = mix(mix(facts.astype(np.uint64) ^ self._template_key) + turns.astype(np.uint64))
        columns = np.arange(width)
        draws = mix(np.add(seeds[:, None], columns.astype(np.uint64))) >> np.uint64(1)
        draws[columns >= self.templates[facts][:, None]] = np.iinfo(np.uint64).max
        return np.argsort(draws, axis=1, kind="stable")

    def template_counts(self, rows: slice = slice(None)) -> IntArray:
        """Returns [facts, templates], how often each template is shown, for the facts of some rows."""
        facts = np.arange(self.facts)[rows]
        exposures = self.counts_per_fact()[rows]
        if isinstance(self.policy, int):
            counts = np.zeros((len(facts), self.lengths.shape[1]), dtype=np.int64)
            counts[:, self.policy] = exposures
            return counts
        if not self._previous_counts.any():
            return self._template_counts_below(facts, exposures)
        before = np.broadcast_to(self._previous_counts, (self.facts,))[rows]
        return self._template_counts_below(facts, before + exposures) - self._template_counts_below(facts, before)

    def _template_counts_below(self, facts: IntArray, ranks: IntArray) -> IntArray:
        """Returns [facts, templates], how often each template is shown by the exposures below a fact's rank."""
        templates, places = self.templates[facts], np.arange(self.lengths.shape[1])
        whole, rest = np.divmod(ranks, templates)
        exists = places < templates[:, None]
        counts = np.multiply(exists, whole[:, None])
        if self.policy == "random":
            order = self._random_turns(facts, whole)
            extra: NDArray[np.bool_] = np.zeros(counts.shape, dtype=bool)
            np.put_along_axis(extra, order, places < rest[:, None], axis=1)
        else:
            extra = (places - self._first_templates(facts, whole)[:, None]) % templates[:, None] < rest[:, None]
        counts += extra & exists
        return counts

    @cached_property
    def total_tokens(self) -> int:
        """Tokens of all exposures that remain."""
        counts = self.counts_per_fact()
        if not self.facts or not counts.any():
            return 0
        if not isinstance(self.policy, int) and not self._previous_counts.any() and not (counts % self.templates).any():
            return int((self.lengths.sum(axis=1, dtype=np.int64) * (counts // self.templates)).sum())
        chunks = (slice(first, first + _CHUNK) for first in range(0, self.facts, _CHUNK))
        return sum(int((self.template_counts(rows) * self.lengths[rows]).sum()) for rows in chunks)

    def length_range(self) -> tuple[int, int]:
        """Returns the lengths of the shortest and the longest exposure, tokens; zeros if there are none."""
        lengths = self.lengths if not isinstance(self.policy, int) else self.lengths[:, self.policy]
        longest = int(lengths.max(initial=0))
        if not longest or not self.counts_per_fact().any():
            return 0, 0
        shortest = int(lengths.min())
        return shortest or int(lengths[lengths > 0].min()), longest


def _evenly_ranked(count: int) -> IntArray:
    """Returns int64 [count], ranks in bit-reversed order, whose first elements are evenly spread however many."""
    bits = max(1, (count - 1).bit_length())
    ordinals = np.arange(count, dtype=np.int64)
    mirrored = np.zeros_like(ordinals)
    for bit in range(bits):
        mirrored |= ((ordinals >> bit) & 1) << (bits - 1 - bit)
    rank = np.empty_like(ordinals)
    rank[np.argsort(mirrored)] = ordinals
    return rank
