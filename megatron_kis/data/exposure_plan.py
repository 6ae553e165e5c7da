"""The exposure plan: a pure function from a sequence's number to the sequence's content.

1. Time runs over the run's S = D / L sequences. A *stream* (``stream``) says when the exposures of a group of facts
   come: by the schedule, each fact in every round, evenly apart.
2. Blocks of a few sequences own the exposures whose ideal place is in them and pack these (``packing``): each whole,
   a sequence never overfilled. The last block takes the sequences that are left over. An exposure is less than two
   blocks from its ideal place, and in it wherever that overfills nothing. Blocks are as small as the plan allows:
   fuller sequences need larger blocks.
3. What is left of a sequence is general text: the first tokens of the window that belongs to this sequence number,
   whatever F is. Runs that differ in F alone read the same general text in the same order (minimal pairs).

A fact therefore sees exactly its frequency of whole exposures, whatever the parallel layout or batch size; a resumed
run needs the number of sequences consumed and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from operator import index
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from megatron_kis.common.errors import InputError
from megatron_kis.common.files import fingerprint
from megatron_kis.common.units import plural
from megatron_kis.data.block_builder import BlockBuilder, PlacedExposure, SequenceLayout
from megatron_kis.data.block_cache import BlockCache
from megatron_kis.data.block_size import choose_block_size
from megatron_kis.data.exposure_schedule import Schedule, schedule_of
from megatron_kis.data.frequency import equal_frequencies, frequencies_for
from megatron_kis.data.plan_inputs import (
    BackgroundFacts,
    InfusedFacts,
    PlanInputs,
    PreviousPart,
    TokenBudget,
    fingerprint_of,
    whole_number,
)
from megatron_kis.data.stream import IntArray, Stream, TemplatePolicy

__all__ = [
    "BackgroundFacts",
    "ExposurePlan",
    "InfusedFacts",
    "PlacedExposure",
    "PreviousPart",
    "SequenceLayout",
    "TokenBudget",
]

LAYOUT_VERSION = 2
"""Version of the rules by which a plan lays out exposures: other rules give other sequences for equal settings."""


class ExposurePlan:
    """The plan of which exposures are in which sequence; the module's docstring says how it is made."""

    def __init__(
        self,
        infused: InfusedFacts | ArrayLike | None = None,
        background: BackgroundFacts | None = None,
        *,
        budget: TokenBudget | None = None,
        schedule: str | Mapping[str, Any] | Schedule = "uniform",
        templates: TemplatePolicy = "round_robin",
        seed: int = 0,
        previous: PreviousPart | None = None,
        text_first: bool = False,
        **keywords: Any,
    ) -> None:
        """Makes a plan, and checks that its exposures fit before anything long starts.

        Args:
            infused: the facts under study, and how often each is shown.
            background: the facts whose retention is observed; none if not given.
            budget: tokens of the run.
            schedule: when infused facts are shown (``schedule_of`` lists the schedules).
            templates: ``round_robin`` or ``random``, which show each template of a fact equally often, or the number of
                the only template that is used.
            seed: seed of orders and templates.
            previous: the run so far, if the plan continues one (``extension``).
            text_first: whether general text comes before the exposures of its sequence, and not at a random place.
            keywords: the older form of the call, which names each value (``_from_keywords``).

        Raises:
            InputError: a value out of range, or exposures that do not fit into the budget.
        """
        if not isinstance(infused, InfusedFacts) or budget is None:
            lengths: dict[str, Any] = {} if infused is None else {"exposure_lengths": infused}
            infused, background, budget, previous = _from_keywords(**lengths, **keywords)
        elif keywords:
            msg = f"ExposurePlan got unexpected arguments: {', '.join(sorted(keywords))}"
            raise TypeError(msg)
        self.inputs = inputs = PlanInputs(
            infused,
            background or BackgroundFacts(),
            budget,
            schedule_of(schedule),
            templates,
            seed,
            previous or PreviousPart(),
            text_first,
        )
        self._frequencies = frequencies_for(
            lambda frequencies: inputs.infused_stream(frequencies).total_tokens,
            facts=len(infused.table),
            budget=budget.tokens,
            frequency=infused.frequency,
            ratio=infused.ratio,
            popularity=infused.popularity,
            key=inputs.key_of("frequencies"),
            shown=infused.shown,
        )
        streams = inputs.streams(self._frequencies)
        builder = _builder(inputs, streams)
        size = choose_block_size(builder)
        if size is None:
            raise _does_not_fit(inputs, self._frequencies)
        self._streams = dict(zip(("infused", "background"), streams, strict=True))
        self._blocks = BlockCache(builder, size)
        self.sequence_length, self.token_budget = budget.sequence_length, budget.tokens
        self.infused_tokens = streams[0].total_tokens
        self.background_tokens = streams[1].total_tokens
        self.infusion_frequency = whole_number(infused.mean(streams[0].counts_per_fact()))
        self.infusion_ratio = self.infused_tokens / self.token_budget
        background = inputs.background
        self.background_frequencies = background.frequency  # before any exposure gives way
        self.background_base_frequency = whole_number(background.mean(background.frequency))
        self.background_frequency = whole_number(background.mean(streams[1].counts_per_fact()))

    def __len__(self) -> int:
        """Returns the number of sequences of the run."""
        return self.inputs.budget.sequences

    def __getitem__(self, sequence: int) -> SequenceLayout:
        """Returns the layout of a sequence, in time and memory that depend on neither the run's length nor its facts.

        Raises:
            IndexError: the number is not in [0, len(plan)).
        """
        if not 0 <= sequence < len(self):
            raise IndexError(sequence)
        return self._blocks.layout_of(index(sequence))

    def prefetch(self, sequences: Sequence[int]) -> None:
        """Builds what ``sequences`` need in one pass, which takes much less time than one by one."""
        self._blocks.prefetch(sequences)

    def __iter__(self) -> Iterator[SequenceLayout]:
        """Yields every layout in the order of training."""
        return (self[sequence] for sequence in range(len(self)))

    @property
    def block(self) -> int:
        """Number of sequences that are packed together."""
        return self._blocks.size.block

    def expected(self, group: str) -> IntArray:
        """Returns [facts], the exposures that each fact of a group receives in the whole run."""
        return self._streams[group].counts_per_fact()

    @property
    def spacing_tolerance(self) -> float:
        """How far consecutive exposures of a fact may be from S / F sequences apart, as a share of S / F.

        It holds for infused facts under the uniform schedule; packing adds up to three blocks (the last block may have
        two blocks' sequences).
        """
        return self._streams["infused"].spacing_tolerance

    def identity(self) -> dict[str, Any]:
        """Returns what determines this plan: equal identities give equal layouts."""
        inputs = self.inputs
        equal = equal_frequencies(self._frequencies)
        counts, before = inputs.previous.counts, inputs.previous.background_frequency
        background = inputs.background
        return {
            "layout_version": LAYOUT_VERSION,
            "infusion_frequency": self.infusion_frequency,
            "infusion_ratio": self.infusion_ratio,
            "infused_facts": len(inputs.infused.table),
            "infused_tokens": self.infused_tokens,
            "frequencies_fingerprint": None if equal else fingerprint_of(np.asarray(self._frequencies)),
            "background_facts": len(inputs.background.table),
            "background_policy": inputs.background.policy,
            "background_base_frequency": self.background_base_frequency,
            "background_frequency": self.background_frequency,
            "background_tokens": self.background_tokens,
            "token_budget": self.token_budget,
            "sequence_length": self.sequence_length,
            "seed": inputs.seed,
            "schedule": inputs.schedule.description,
            "schedule_fingerprint": None if inputs.schedule.is_uniform else inputs.schedule.fingerprint,
            "templates": inputs.templates,
            "block": self.block,
            "first_sequence": inputs.previous.sequences,
            "background_before": before if isinstance(before, int) else fingerprint_of(before),
            "lengths_fingerprint": fingerprint_of(inputs.infused.table, inputs.background.table),
            "shown_fingerprint": fingerprint_of(*counts.values()) if counts else None,
            **({"text_first": True} if inputs.text_first else {}),
            **({} if inputs.infused.shown is None else {"shown_facts": inputs.infused.count}),
            **({} if background.schedule.is_uniform else _of_schedule(background.schedule)),
            **({} if isinstance(background.frequency, int) else _of_strengths(background.groups, background.frequency)),
        }

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the identity."""
        return fingerprint(self.identity())


def _from_keywords(
    exposure_lengths: ArrayLike,
    *,
    token_budget: int,
    sequence_length: int,
    infusion_frequency: float | ArrayLike | None = None,
    infusion_ratio: float | None = None,
    popularity: ArrayLike | None = None,
    background_lengths: ArrayLike | None = None,
    background_frequency: int = 0,
    background_policy: str = "displaced",
    first_sequence: int = 0,
    shown: Mapping[str, IntArray] | None = None,
    background_before: int = 0,
) -> tuple[InfusedFacts, BackgroundFacts, TokenBudget, PreviousPart]:
    """Makes the parts of a plan from the older form of the call, which names each of their values."""
    lengths: dict[str, Any] = {} if background_lengths is None else {"lengths": background_lengths}
    return (
        InfusedFacts(exposure_lengths, infusion_frequency, infusion_ratio, popularity),
        BackgroundFacts(**lengths, frequency=background_frequency, policy=background_policy),
        TokenBudget(token_budget, sequence_length),
        PreviousPart(first_sequence, dict(shown or {}), background_before),
    )


def _builder(inputs: PlanInputs, streams: Sequence[Stream]) -> BlockBuilder:
    budget = inputs.budget
    return BlockBuilder(
        streams,
        sequences=budget.sequences,
        sequence_length=budget.sequence_length,
        key=inputs.key_of("arrange"),
        text_first=inputs.text_first,
    )


def _of_strengths(groups: list[dict[str, int]], frequencies: IntArray) -> dict[str, Any]:
    return {"background_groups": groups, "background_fingerprint": fingerprint_of(frequencies)}


def _of_schedule(schedule: Schedule) -> dict[str, Any]:
    return {"background_schedule": schedule.description, "background_schedule_fingerprint": schedule.fingerprint}


class RatioTooLargeError(InputError):
    """The exposures of a ratio do not fit."""

    def __init__(self, problem: str, *, largest: float) -> None:
        """Builds the message.

        Args:
            problem: what does not fit.
            largest: nearly the largest ratio that fits.
        """
        shown = math.floor(1000 * largest) / 1000 or largest
        super().__init__(
            problem,
            where="infusion_ratio",
            remedy=f"the largest that fits is about {shown:.3g}, or raise the token budget",
        )
        self.largest = largest


def _does_not_fit(inputs: PlanInputs, frequencies: IntArray | int) -> InputError:
    """Returns the error that says which exposures do not fit, and what would."""
    budget, background = inputs.budget, inputs.background
    whole = f"of {budget.tokens:,} tokens, each exposure whole in a sequence of {budget.sequence_length}"
    without = inputs.streams(0)
    if choose_block_size(_builder(inputs, without)) is None:
        return InputError(
            f"{plural(background.count, 'background fact')} x {background.mean(background.frequency):g} exposures need "
            f"{without[1].total_tokens:,} {whole}",
            where="background_frequency",
            remedy="use a smaller one, or raise the token budget",
        )
    infused, beside = inputs.streams(frequencies)
    largest = _largest_frequency(inputs, frequencies)
    each = inputs.infused.mean(infused.counts_per_fact())
    problem = (
        f"{plural(inputs.infused.count, 'infused fact')} x {each:g} exposures and the background need "
        f"{infused.total_tokens + beside.total_tokens:,} {whole}"
    )
    if inputs.infused.ratio is not None:
        return RatioTooLargeError(problem, largest=infused.total_tokens / budget.tokens * largest / each)
    return InputError(
        problem,
        where="infusion_frequency",
        remedy=f"the largest that fits is about {largest}, or raise the token budget",
    )


def _largest_frequency(inputs: PlanInputs, frequencies: IntArray | int) -> int:
    """Returns nearly the largest F that fits, by bisection; of unequal frequencies their mean, in equal proportions."""
    mean = inputs.infused.mean(inputs.infused_stream(frequencies).counts_per_fact())
    share = np.asarray(frequencies / mean)
    fits, fails = 0, int(min(mean, 1 + inputs.budget.tokens // inputs.infused.count))
    while fails - fits > 1:
        middle = (fits + fails) // 2
        tried = np.floor(share * middle + 0.5).astype(np.int64)
        try:
            size = choose_block_size(_builder(inputs, inputs.streams(tried)), thorough=False)
        except InputError:  # a schedule too dense for this much
            size = None
        if size is None:
            fails = middle
        else:
            fits = middle
    return fits
