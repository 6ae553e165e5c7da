"""The exposure plan: a pure function from a sequence's number to what lies in it.

1. Time runs over the run's S = D / L sequences. A *stream* (``stream``) says when the exposures of a group of facts
   come: by the schedule, each fact in every round, evenly apart.
2. Blocks of a few sequences own the exposures whose ideal place lies in them and pack these (``packing``): each whole,
   a sequence never overfilled. The last block takes the sequences that are left over. An exposure lies less than two
   blocks from its ideal place, and in it wherever that overfills nothing. Blocks are as small as the plan allows:
   fuller sequences need larger blocks.
3. What is left of a sequence is general text: the first tokens of the stretch that belongs to this sequence number,
   whatever F is. Runs that differ in F alone read the same general text in the same order (minimal pairs).

A fact therefore sees exactly its frequency of whole exposures, whatever the parallel layout or batch size; a resumed
run needs the number of sequences consumed and nothing else.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from megatron_kis.common.errors import InputError
from megatron_kis.common.files import fingerprint
from megatron_kis.data.block_builder import Arranger, Block, Placed, SequenceLayout
from megatron_kis.data.block_size import Fit, find_fit
from megatron_kis.data.counter_rng import key_of
from megatron_kis.data.exposure_schedule import UNIFORM, Schedule, schedule_of
from megatron_kis.data.frequency import check_count, equal_frequencies, frequencies_for
from megatron_kis.data.lengths import fingerprint_of, length_table
from megatron_kis.data.stream import IntArray, Stream, TemplatePolicy

__all__ = ["ExposurePlan", "Placed", "SequenceLayout"]

POLICIES = ("displaced", "protected")
TEMPLATE_POLICIES = ("round_robin", "random")
LAYOUT_VERSION = 2
"""Of the rules by which a plan lays out exposures: other rules lay out other sequences from equal settings."""

_KEPT_BLOCKS = 128  # of a long run: what is arranged in one pass, and the pass before, as replicas are not in step
_AHEAD = 256  # sequences that are arranged in one pass
_SMALL = 1 << 20  # exposures of a run whose layouts all stay in memory: 100 MB, at 93 bytes each


class ExposurePlan:
    """Which exposures lie in which sequence. See the module for how."""

    def __init__(
        self,
        exposure_lengths: ArrayLike,
        *,
        token_budget: int,
        sequence_length: int,
        infusion_frequency: float | ArrayLike | None = None,
        infusion_ratio: float | None = None,
        popularity: ArrayLike | None = None,
        seed: int = 0,
        schedule: str | Mapping[str, Any] | Schedule = "uniform",
        templates: TemplatePolicy = "round_robin",
        background_lengths: ArrayLike | None = None,
        background_frequency: int = 0,
        background_policy: str = "displaced",
        first_sequence: int = 0,
        shown: Mapping[str, IntArray] | None = None,
        background_before: int = 0,
    ) -> None:
        """Makes a plan, and checks that it can be met before anything long starts.

        Args:
            exposure_lengths: int [infused facts, templates], tokens with the end-of-document token; 0 where a fact has
                fewer templates than others (trailing).
            token_budget: D, tokens of the run; whole sequences of it are used.
            sequence_length: L, tokens.
            infusion_frequency: F, exposures of each infused fact, or [infused facts] of each one. If it is no whole
                number, or ``popularity`` is given, it is their mean. Either this or ``infusion_ratio``.
            infusion_ratio: share of D for exposures of infused facts, met to within one exposure: facts of equal
                popularity get F or F + 1 exposures.
            popularity: float [infused facts], how much more often than others each fact is shown
                (``zipf_popularity``); equal if not given.
            seed: of orders and templates.
            schedule: when infused facts are shown (``schedule_of`` says which there are).
            templates: ``round_robin`` or ``random``, which show each template of a fact equally often, or the number of
                the one that is used.
            background_lengths: as ``exposure_lengths``, for the background facts.
            background_frequency: exposures of each background fact at F = 0.
            background_policy: ``protected`` (that many whatever F) or ``displaced`` (a fixed rate in the general text:
                ``background_frequency`` times the share that infusion leaves, rounded; under a uniform schedule those
                that remain keep their ideal places).
            first_sequence: of the run that this plan is a part of (``extension``).
            shown: by group, [facts] exposures before that part; templates go on from there.
            background_before: exposures of each background fact before that part, those that gave way to infusion
                included; ordinals go on from there.

        Raises:
            InputError: a value out of range, or exposures that do not fit into the budget.
        """
        if background_policy not in POLICIES:
            raise _unknown("policy", background_policy, "infusion.background.policy", POLICIES)
        if not isinstance(templates, int) and templates not in TEMPLATE_POLICIES:
            raise _unknown("template policy", templates, "infusion.templates", (*TEMPLATE_POLICIES, "a number"))
        if isinstance(templates, int) and templates < 0:
            raise InputError(f"is {templates}", where="infusion.templates", remedy="must not be negative")
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
        self.seed, self.schedule, self.templates = seed, schedule_of(schedule), templates
        self.background_policy, self.background_base_frequency = background_policy, background_frequency
        self.exposure_lengths = length_table(exposure_lengths, sequence_length, "exposure_lengths")
        empty = np.zeros((0, 1), dtype=np.int64)
        self.background_lengths = length_table(
            empty if background_lengths is None else background_lengths, sequence_length, "background_lengths"
        )
        check_count(
            len(self.background_lengths) * background_frequency, budget=self.token_budget, where="background_frequency"
        )
        self.first_sequence, self._shown, self._background_before = first_sequence, dict(shown or {}), background_before
        self._frequencies = frequencies_for(
            lambda each: self._infused_at(each).tokens(),
            facts=len(self.exposure_lengths),
            budget=self.token_budget,
            frequency=infusion_frequency,
            ratio=infusion_ratio,
            popularity=popularity,
            key=self._key_of("frequencies"),
        )
        self._streams = self._streams_at(self._frequencies)
        infused, background = self._streams
        self.infused_tokens, self.background_tokens = infused.tokens(), background.tokens()
        self.infusion_frequency: float = _whole(float(infused.each().mean())) if infused.facts else 0
        self.infusion_ratio = self.infused_tokens / self.token_budget
        self.background_frequency = int(background.each().max(initial=0))
        fit = self._fit(self._streams)
        if fit is None:
            raise self._too_much()
        self._blocks = fit
        self._arrangement = self._arranger(self._streams)
        self._arranged: dict[int, Block] = {}
        self._last_block = -1
        self._is_small = infused.exposures + background.exposures <= _SMALL

    def _key_of(self, *what: str) -> int:
        """A key of this part of the run."""
        return key_of(self.seed, *([self.first_sequence] if self.first_sequence else []), *what)

    def _infused_at(self, frequencies: IntArray | int) -> Stream:
        return Stream(
            "infused",
            self.exposure_lengths,
            frequencies,
            key=self._key_of("stream", "infused"),
            template_key=key_of(self.seed, "templates", "infused"),
            schedule=self.schedule,
            policy=self.templates,
            shown=self._shown.get("infused", 0),
        )

    def _streams_at(self, frequencies: IntArray | int) -> tuple[Stream, Stream]:
        """The infused and the background stream at frequencies of the infused facts."""
        infused = self._infused_at(frequencies)
        base, kept, schedule = self.background_base_frequency, None, UNIFORM
        if self.background_policy == "displaced":
            ratio = min(1.0, infused.tokens() / self.token_budget)
            kept = round(base * (1.0 - ratio))
            if not self.schedule.is_uniform and kept and len(self.background_lengths):
                base, schedule = kept, self.schedule.general(ratio)
        background = Stream(
            "background",
            self.background_lengths,
            base,
            key=self._key_of("stream", "background"),
            template_key=key_of(self.seed, "templates", "background"),
            schedule=schedule,
            policy=self.templates if self.templates in TEMPLATE_POLICIES else "round_robin",
            shown=self._shown.get("background", 0),
            kept=kept,
            first_ordinal=self._background_before,
        )
        return infused, background

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
        block = min(sequence // self.block, self._blocks.blocks - 1)
        found = self._arranged.get(block)
        if found is None:
            self._arrange(self._worth_arranging(block))
            found = self._arranged[block]
        self._last_block = block
        return found.layout(sequence - block * self.block)

    def prefetch(self, sequences: Sequence[int]) -> None:
        """Arranges what ``sequences`` need in one pass, which takes much less time than one by one."""
        last = self._blocks.blocks - 1
        self._arrange(dict.fromkeys(min(sequence // self.block, last) for sequence in sequences))

    def _worth_arranging(self, block: int) -> range:
        """A block that is asked for, with others: of a small run its part of it, of a long one what comes next."""
        few = max(1, _AHEAD // self.block)
        if self._is_small:
            first = block - block % few
            return range(first, min(first + few, self._blocks.blocks))
        in_order = block == self._last_block + 1
        return range(block, min(block + (few if in_order else 1), self._blocks.blocks))

    def _arrange(self, wanted: Collection[int]) -> None:
        missing = [block for block in wanted if block not in self._arranged]
        if not missing:
            return
        ranges = [self._blocks.sequences_of(block) for block in missing]
        blocks = self._arrangement.arrange(ranges)
        if blocks is None:
            raise InputError(
                f"sequences {ranges[0].start} to {ranges[-1].stop - 1} cannot hold their exposures whole",
                where="infusion_frequency",
                remedy="use a smaller infusion frequency",
            )
        if not self._is_small:
            surplus = len(self._arranged) + len(blocks) - max(_KEPT_BLOCKS, len(wanted))
            for block in list(self._arranged)[: max(0, surplus)]:
                if block not in wanted:
                    del self._arranged[block]
        self._arranged.update(zip(missing, blocks, strict=True))

    @property
    def block(self) -> int:
        """Sequences that are packed together."""
        return self._blocks.block

    def __iter__(self) -> Iterator[SequenceLayout]:
        """Every layout in the order of training."""
        return (self[sequence] for sequence in range(self.sequences))

    def expected(self, group: str) -> IntArray:
        """[facts] exposures that each fact of a group receives in the whole run."""
        return self._streams[0 if group == "infused" else 1].each()

    @property
    def evenness(self) -> float:
        """How far consecutive exposures of a fact may be from S / F sequences apart, as a share of S / F.

        Of infused facts under the uniform schedule; add three blocks for the packing (the last one may have two blocks'
        sequences).
        """
        return self._streams[0].evenness

    def identity(self) -> dict[str, Any]:
        """What makes this plan what it is: equal identities give equal layouts."""
        return {
            "layout_version": LAYOUT_VERSION,
            "infusion_frequency": self.infusion_frequency,
            "infusion_ratio": self.infusion_ratio,
            "infused_facts": self._streams[0].facts,
            "infused_tokens": self.infused_tokens,
            "frequencies_fingerprint": self._frequencies_fingerprint(),
            "background_facts": self._streams[1].facts,
            "background_policy": self.background_policy,
            "background_base_frequency": self.background_base_frequency,
            "background_frequency": self.background_frequency,
            "background_tokens": self.background_tokens,
            "token_budget": self.token_budget,
            "sequence_length": self.sequence_length,
            "seed": self.seed,
            "schedule": self.schedule.description,
            "schedule_fingerprint": None if self.schedule.is_uniform else self.schedule.fingerprint,
            "templates": self.templates,
            "block": self.block,
            "first_sequence": self.first_sequence,
            "background_before": self._background_before,
            "lengths_fingerprint": fingerprint_of(self.exposure_lengths, self.background_lengths),
            "shown_fingerprint": fingerprint_of(*self._shown.values()) if self._shown else None,
        }

    def _frequencies_fingerprint(self) -> str | None:
        equal = equal_frequencies(self._frequencies)
        return None if equal else fingerprint_of(np.asarray(self._frequencies))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the identity."""
        return fingerprint(self.identity())

    def _fit(self, streams: tuple[Stream, Stream], *, thorough: bool = True) -> Fit | None:
        return find_fit(
            streams,
            self._arranger(streams).packs,
            sequences=self.sequences,
            capacity=self.sequence_length,
            thorough=thorough,
        )

    def _arranger(self, streams: tuple[Stream, Stream]) -> Arranger:
        return Arranger(
            streams,
            sequences=self.sequences,
            sequence_length=self.sequence_length,
            key=self._key_of("arrange"),
        )

    def _too_much(self) -> InputError:
        """What to say of exposures that do not fit."""
        whole = f"of {self.token_budget} tokens, each exposure whole in a sequence of {self.sequence_length}"
        without = self._streams_at(0)
        background = without[1]
        if self._fit(without) is None:
            return InputError(
                f"{background.facts} background facts x {self.background_base_frequency} exposures need "
                f"{background.tokens()} {whole}",
                where="background_frequency",
                remedy="use a smaller one, or raise the token budget",
            )
        return InputError(
            f"{self._streams[0].facts} infused facts x {self.infusion_frequency:g} exposures and the background need "
            f"{self.infused_tokens + self.background_tokens} {whole}",
            where="infusion_frequency",
            remedy=f"the largest that fits is about {self._largest_frequency()}, or raise the token budget",
        )

    def _largest_frequency(self) -> int:
        """Nearly the largest F that fits, by bisection; of unequal frequencies their mean, in the same proportions."""
        share = np.asarray(self._frequencies / np.mean(self._frequencies))
        fits, fails = 0, int(min(self.infusion_frequency, 1 + self.token_budget // self._streams[0].facts))
        while fails - fits > 1:
            middle = (fits + fails) // 2
            each = np.floor(share * middle + 0.5).astype(np.int64)
            try:
                fit = self._fit(self._streams_at(each), thorough=False)
            except InputError:  # a schedule too dense for this much
                fit = None
            fits, fails = (middle, fails) if fit else (fits, middle)
        return fits

    def infused_tokens_at(self, frequency: int) -> int:
        """Tokens of the infused facts at another frequency, the same for all."""
        return self._infused_at(frequency).tokens()


def _unknown(what: str, value: object, where: str, valid: tuple[str, ...]) -> InputError:
    return InputError(f"unknown {what} {value!r}", where=where, remedy="valid: " + ", ".join(valid))


def _whole(number: float) -> float | int:
    return int(number) if number == int(number) else number
