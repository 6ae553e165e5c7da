"""A stream: a group of facts, and the order, time and template of each of their exposures.

Facts of equal frequency form a *class*. The exposures of a class with K facts come in rounds: round r shows every fact
once, in an order of its own, so that a fact is not learned from its neighbour. To keep a fact's exposures evenly apart
a round has up to 4 parts, and a fact stays in its part: consecutive exposures of a fact are S / F sequences apart, give
or take the part's share of that. Exposure e of n has its ideal place where the schedule has shown (e + phase) / n.
"""

from __future__ import annotations

from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from megatron_kis.common.errors import InputError
from megatron_kis.data.counter_rng import mix, mix_one, permute
from megatron_kis.data.exposure_schedule import UNIFORM, Schedule

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
TemplatePolicy = Literal["round_robin", "random"] | int

_PARTS = 4  # of a round: consecutive exposures of a fact are within a quarter of their mean distance
_PART_FACTS = 16  # at least: fewer would always come in the same company
_TABLED_FACTS = 1 << 16
_CHUNK = 1 << 15  # facts that are counted together, so that memory does not grow with all of them
_GOLDEN_SHARE = 0.6180339887498949  # multiples of it, modulo 1, spread most evenly (the phases of classes)


class Stream:
    """K facts and their exposures."""

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
        shown: IntArray | int = 0,
        kept: int | None = None,
        first_ordinal: int | None = None,
    ) -> None:
        """Describes a stream.

        Args:
            group: ``infused`` or ``background``.
            lengths: [facts, templates] tokens of each exposure; 0 (trailing) where a fact has fewer templates.
            frequencies: exposures of each fact, [facts] or one for all.
            key: of orders, and of templates unless these have a ``template_key``.
            template_key: of templates.
            schedule: when exposures come.
            policy: which template an exposure shows (``templates_at``).
            shown: exposures that each fact had before this stream, [facts] or one for all: templates go on from there.
            kept: of one frequency for all, how many remain of each fact; the others give way to infusion. Templates
                are those of any other number that remains, all of them included; None if none ever gives way.
            first_ordinal: where ordinals begin; None for ``shown``.

        Raises:
            InputError: one template for all, and a fact does not have it.
        """
        self.group, self.lengths, self.key, self.schedule, self.policy = group, lengths, key, schedule, policy
        self._template_key = np.uint64(key if template_key is None else template_key)
        self.frequencies, self._shown = np.asarray(frequencies, dtype=np.int64), np.asarray(shown, dtype=np.int64)
        self._kept = kept
        self._first_ordinal = self._shown if first_ordinal is None else np.asarray(first_ordinal, dtype=np.int64)
        self.facts = len(lengths)
        if isinstance(policy, int):
            missing = np.flatnonzero(lengths[:, policy] == 0) if policy < lengths.shape[1] else np.arange(self.facts)
            if len(missing):
                raise InputError(
                    f"{group} fact {missing[0]} has no template {policy}",
                    where="infusion.templates",
                    remedy="name one that every fact has (the first is 0), round_robin or random",
                )
        self._arrange_classes()

    def _arrange_classes(self) -> None:
        """Facts of equal frequency together; facts that are never shown belong to none."""
        if self.frequencies.ndim == 0 or not self.facts or self.frequencies.min() == self.frequencies.max():
            frequency = int(self.frequencies.max(initial=0)) if self.facts else 0
            self._each = np.array([frequency] if frequency else [], dtype=np.int64)
            self._members: IntArray | None = None  # row i is member i
            counts = np.array([self.facts] if frequency else [], dtype=np.int64)
        else:
            each, which, counts = np.unique(self.frequencies, return_inverse=True, return_counts=True)
            members = np.argsort(which, kind="stable")
            never = int(counts[0]) if each[0] == 0 else 0
            self._members, self._each, counts = members[never:], each[each > 0], counts[each > 0]
        self._counts = counts
        self._firsts = np.cumsum(counts) - counts
        self._sizes = self._each * counts
        self._parts = np.clip(counts // _PART_FACTS, 1, _PARTS)
        self._phases = (np.arange(len(counts)) + 0.5) * _GOLDEN_SHARE % 1.0 if len(counts) > 1 else np.array([0.5])
        self._phases = self._phases[: len(counts)]
        keys = [mix_one(self.key + number) for number in range(min(2, len(counts)))]  # the usual: one class or two
        if len(counts) > 2:
            self._class_keys = mix(np.uint64(self.key) + np.arange(len(counts), dtype=np.uint64))
        else:
            self._class_keys = np.array(keys, dtype=np.uint64)

    @property
    def classes(self) -> int:
        """How many different frequencies there are, 0 aside."""
        return len(self._each)

    @property
    def exposures(self) -> int:
        """Exposures in all, those that give way included."""
        return int(self._sizes.sum())

    @property
    def evenness(self) -> float:
        """How far the distance of a fact's consecutive exposures may be from its mean, as a share of it.

        Under a uniform schedule, before packing.
        """
        return float(1 / self._parts.min(initial=_PARTS))

    def each(self) -> IntArray:
        """[facts] exposures of each fact."""
        each = self.frequencies if self._kept is None else np.int64(self._kept)
        return np.broadcast_to(each, (self.facts,))

    def bounds_at(self, times: FloatArray) -> IntArray:
        """[times, classes] the first exposure of each class that belongs to no time before ``times`` (0 to 1)."""
        wanted = np.ceil(self.schedule.share(times)[:, None] * self._sizes - self._phases)
        return np.minimum(np.maximum(wanted, 0), self._sizes).astype(np.int64)

    def between(
        self, firsts: IntArray, lasts: IntArray, sequences: int
    ) -> tuple[IntArray, IntArray, IntArray, IntArray, IntArray]:
        """The exposures of ranges of sequences, [first, last) of ``sequences``, by their ideal places.

        Returns:
            Five int64 [exposures]: fact, template, ordinal (counted before any gives way), ideal sequence, range.
        """
        low, high = self.bounds_at(firsts / sequences), self.bounds_at(lasts / sequences)
        counts = (high - low).ravel()
        held = np.repeat(np.arange(len(counts)), counts)  # range x class
        exposures = np.arange(len(held)) - (np.cumsum(counts) - counts - low.ravel())[held]
        ranges, at = np.divmod(held, max(1, self.classes))
        facts, ordinals = self._facts_at(exposures, at)
        times = self.schedule.time((exposures + self._phases[at]) / self._sizes[at])
        # Times are rounded: an exposure at the very edge belongs to the sequences that were asked for.
        ideal = np.minimum(np.maximum((times * sequences).astype(np.int64), firsts[ranges]), lasts[ranges] - 1)
        ranks = ordinals
        if self._kept is not None:
            ranks = self._ranks(facts, ordinals)
            stays = ranks < self._kept
            facts, ordinals, ideal, ranges, ranks = (
                values[stays] for values in (facts, ordinals, ideal, ranges, ranks)
            )
        before, first = (of[facts] if of.ndim else of for of in (self._shown, self._first_ordinal))
        return facts, self.templates_at(facts, before + ranks), first + ordinals, ideal, ranges

    def _facts_at(self, exposures: IntArray, at: IntArray) -> tuple[IntArray, IntArray]:
        """The fact of each exposure of the classes ``at``, and the round."""
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
        """The fact in a slot of the round of a class: which part a fact stays in is drawn once."""
        members = permute(slots, self._counts[at], self._class_keys[at])
        return members if self._members is None else self._members[self._firsts[at] + members]

    @cached_property
    def _facts_by_slot(self) -> IntArray:
        """``_facts_of`` every slot, class after class: a small table saves half of the time of a lookup."""
        at = np.repeat(np.arange(self.classes), self._counts)
        return self._facts_of(np.arange(len(at)) - self._firsts[at], at)

    def _ranks(self, facts: IntArray, ordinals: IntArray) -> IntArray:
        """The order in which exposures of a fact are kept: those of a rank below ``kept`` remain.

        A lower count therefore keeps a subset, spread over the whole run.
        """
        base = int(self.frequencies.max())
        turns = mix(facts.astype(np.uint64) + np.uint64(self.key >> 1)) % np.uint64(base)
        return self._rank_of_keeping[(ordinals + turns.astype(np.int64)) % base]

    @cached_property
    def _rank_of_keeping(self) -> IntArray:
        """[frequency] in bit-reversed order, of which any number of first elements lies evenly spread."""
        base = int(self.frequencies.max())
        bits = max(1, (base - 1).bit_length())
        ordinals = np.arange(base, dtype=np.int64)
        mirrored = np.zeros_like(ordinals)
        for bit in range(bits):
            mirrored |= ((ordinals >> bit) & 1) << (bits - 1 - bit)
        rank = np.empty_like(ordinals)
        rank[np.argsort(mirrored)] = ordinals
        return rank

    @cached_property
    def templates(self) -> IntArray:
        """[facts] how many templates each fact has."""
        width = self.lengths.shape[1]
        if width == 1 or not self.facts or self.lengths[:, -1].min() > 0:
            return np.broadcast_to(np.int64(width), (self.facts,))
        return (self.lengths > 0).sum(axis=1)

    def templates_at(self, facts: IntArray, ranks: IntArray) -> IntArray:
        """The templates of exposures: each M successive ranks of a fact with M templates use every one once.

        ``round_robin`` goes round from a beginning of the fact's own, ``random`` draws an order for every M; an integer
        is the one template of all. Templates follow the rank and not the time, so that displacement thins all of a
        fact's templates alike; and where ranks alias with time (every second exposure has a rank in the first half)
        round-robin, too, begins each turn anew, or a fact would be shown through one template for long.
        """
        if isinstance(self.policy, int):
            return np.full(len(facts), self.policy, dtype=np.int64)
        turns, places = np.divmod(ranks, self.templates[facts])
        if self.policy == "random":
            order = self._random_turns(facts, turns)
            return np.take_along_axis(order, places[:, None], axis=1)[:, 0]
        return (places + self._beginnings(facts, turns)) % self.templates[facts]

    def _beginnings(self, facts: IntArray, turns: IntArray) -> IntArray:
        """The template with which round-robin begins."""
        drawn = facts.astype(np.uint64) ^ self._template_key
        if self._kept is not None:
            drawn = np.add(mix(drawn), turns.astype(np.uint64))
        return (mix(drawn) % self.templates[facts].astype(np.uint64)).astype(np.int64)

    def _random_turns(self, facts: IntArray, turns: IntArray) -> IntArray:
        """[exposures, templates] the order of templates in a turn; those that a fact has not come last."""
        width = self.lengths.shape[1]
        seeds = mix(mix(facts.astype(np.uint64) ^ self._template_key) + turns.astype(np.uint64))
        columns = np.arange(width)
        draws = mix(np.add(seeds[:, None], columns.astype(np.uint64))) >> np.uint64(1)
        draws[columns >= self.templates[facts][:, None]] = np.iinfo(np.uint64).max
        return np.argsort(draws, axis=1, kind="stable")

    def template_counts(self, rows: slice = slice(None)) -> IntArray:
        """[facts, templates] how often each is shown, of the facts of some rows."""
        facts = np.arange(self.facts)[rows]
        each = self.each()[rows]
        if isinstance(self.policy, int):
            counts = np.zeros((len(facts), self.lengths.shape[1]), dtype=np.int64)
            counts[:, self.policy] = each
            return counts
        if not self._shown.any():
            return self._shown_by(facts, each)
        before = np.broadcast_to(self._shown, (self.facts,))[rows]
        return self._shown_by(facts, before + each) - self._shown_by(facts, before)

    def _shown_by(self, facts: IntArray, ranks: IntArray) -> IntArray:
        """[facts, templates] how often each is shown by the exposures below a fact's rank."""
        templates, places = self.templates[facts], np.arange(self.lengths.shape[1])
        whole, rest = np.divmod(ranks, templates)
        exists = places < templates[:, None]
        counts = np.multiply(exists, whole[:, None])
        if self.policy == "random":
            order = self._random_turns(facts, whole)
            extra: NDArray[np.bool_] = np.zeros(counts.shape, dtype=bool)
            np.put_along_axis(extra, order, places < rest[:, None], axis=1)
        else:
            extra = (places - self._beginnings(facts, whole)[:, None]) % templates[:, None] < rest[:, None]
        counts += extra & exists
        return counts

    def tokens(self) -> int:
        """Tokens of all exposures that remain."""
        return self._tokens

    @cached_property
    def _tokens(self) -> int:
        each = self.each()
        if not self.facts or not each.any():
            return 0
        if not isinstance(self.policy, int) and not self._shown.any() and not (each % self.templates).any():
            return int((self.lengths.sum(axis=1, dtype=np.int64) * (each // self.templates)).sum())
        chunks = (slice(first, first + _CHUNK) for first in range(0, self.facts, _CHUNK))
        return sum(int((self.template_counts(rows) * self.lengths[rows]).sum()) for rows in chunks)

    def spread_of_lengths(self) -> tuple[int, int]:
        """The shortest and the longest exposure, tokens; zeros if there are none."""
        lengths = self.lengths if not isinstance(self.policy, int) else self.lengths[:, self.policy]
        longest = int(lengths.max(initial=0))
        if not longest or not self.each().any():
            return 0, 0
        shortest = int(lengths.min())
        return shortest or int(lengths[lengths > 0].min()), longest
