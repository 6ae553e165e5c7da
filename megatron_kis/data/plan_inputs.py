"""Inputs of an exposure plan: two groups of facts, a token budget, a schedule, and the run so far.

Each part checks its own values when it is made. ``PlanInputs`` holds the parts of one plan and turns the frequencies of
the infused facts into the two streams of exposures that are packed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from megatron_kis.common.errors import InputError
from megatron_kis.data.counter_rng import key_of
from megatron_kis.data.exposure_schedule import UNIFORM, Schedule
from megatron_kis.data.frequency import check_count, equal_frequencies
from megatron_kis.data.stream import IntArray, Stream, TemplatePolicy

POLICIES = ("displaced", "protected")
TEMPLATE_POLICIES = ("round_robin", "random")

_ROWS = 1 << 16  # of a table, hashed together, so that no second table is held


@dataclass(frozen=True, eq=False)
class InfusedFacts:
    """The facts under study, and how often each is shown: by ``frequency`` or by ``ratio``."""

    lengths: ArrayLike
    """int [facts, templates], tokens of each exposure with the end-of-document token; 0 (trailing) where a fact has
    fewer templates than others."""

    frequency: float | ArrayLike | None = None
    """F, exposures of each fact, or [facts] of each one. If it is not a whole number, or ``popularity`` is given, it is
    their mean."""

    ratio: float | None = None
    """Share of D for exposures of these facts, met to within one exposure: facts of equal popularity get F or F + 1
    exposures."""

    popularity: ArrayLike | None = None
    """float [facts], how much more often than others each fact is shown (``zipf_popularity``); equal if not given."""

    shown: NDArray[np.bool_] | None = None
    """bool [facts], whether a fact is shown at all; F is the mean over those that are. All if not given."""

    table: IntArray = field(init=False)
    """``lengths`` as an array."""

    def __post_init__(self) -> None:
        """Checks the lengths; how often the facts are shown is checked where frequencies are computed."""
        object.__setattr__(self, "table", length_table(self.lengths, "exposure_lengths"))
        if self.shown is not None and self.shown.shape != (len(self.table),):
            raise InputError(
                f"has shape {self.shown.shape}",
                where="shown",
                remedy=f"one truth value for each of {len(self.table)} facts",
            )
        if self.shown is not None and not self.shown.any():
            raise InputError("holds no fact", where="shown", remedy="show some, or use a frequency of 0")

    @property
    def count(self) -> int:
        """K, number of facts that are shown at some frequency."""
        return len(self.table) if self.shown is None else int(self.shown.sum())

    def mean(self, counts: IntArray) -> float:
        """Returns the mean of [facts] exposures over the facts that are shown."""
        return float(counts.mean() if self.shown is None else counts[self.shown].mean()) if len(counts) else 0.0


@dataclass(frozen=True, eq=False)
class BackgroundFacts:
    """The facts whose retention is observed, and how often each is shown."""

    lengths: ArrayLike = field(default_factory=lambda: np.zeros((0, 1), dtype=np.int64))
    """int [facts, templates], as those of ``InfusedFacts``."""

    frequency: int | IntArray = 0
    """Exposures of each fact at F = 0, of all or [facts] of each one; one number once they are known to be equal."""

    policy: str = "displaced"
    """``protected``: ``frequency`` exposures whatever F. ``displaced``: a fixed rate in the general text, which is
    ``frequency`` times the share that infusion leaves, rounded; under a uniform schedule the exposures that remain keep
    their ideal places."""

    schedule: Schedule = UNIFORM
    """When they are shown, if they are ``protected``; others keep to the general text."""

    table: IntArray = field(init=False)
    """``lengths`` as an array."""

    def __post_init__(self) -> None:
        """Checks policy, frequency, schedule and lengths."""
        if self.policy not in POLICIES:
            raise _unknown("policy", self.policy, "infusion.background.policy", POLICIES)
        if self.policy == "displaced" and not self.schedule.is_uniform:
            raise InputError(
                f"is {self.schedule.description}, and displaced background facts are shown where the general text is",
                where="infusion.background.schedule",
                remedy="use the policy protected",
            )
        least = int(np.min(self.frequency, initial=0))
        if least < 0:
            raise InputError(f"is {least}", where="background_frequency", remedy="must not be negative")
        object.__setattr__(self, "table", length_table(self.lengths, "background_lengths"))
        if isinstance(self.frequency, int):
            return
        if self.frequency.shape != (len(self.table),):
            raise InputError(
                f"lists {self.frequency.size} frequencies for {len(self.table)} facts",
                where="background_frequency",
                remedy="give one per fact",
            )
        if equal_frequencies(self.frequency):
            object.__setattr__(self, "frequency", int(self.frequency.max(initial=0)))

    @property
    def count(self) -> int:
        """Number of facts that are shown."""
        return len(self.table) if isinstance(self.frequency, int) else int((self.frequency > 0).sum())

    @property
    def exposures(self) -> int:
        """Number of exposures of all facts at F = 0."""
        return len(self.table) * self.frequency if isinstance(self.frequency, int) else int(self.frequency.sum())

    @property
    def groups(self) -> list[dict[str, int]]:
        """How many facts are shown how often at F = 0: ``facts`` and ``frequency``, by rising frequency."""
        values, counts = np.unique(np.broadcast_to(self.frequency, (len(self.table),)), return_counts=True)
        pairs = zip(counts.tolist(), values.tolist(), strict=True)
        return [{"facts": facts, "frequency": frequency} for facts, frequency in pairs if frequency]

    def mean(self, counts: IntArray | int) -> float:
        """Returns the mean of exposures, one number or [facts], over the facts that are shown."""
        return counts if isinstance(counts, int) else float(counts.sum() / max(1, self.count))


@dataclass(frozen=True)
class TokenBudget:
    """The tokens of a run, in whole sequences."""

    requested: int
    """Number of tokens; what does not fill a sequence is left out."""

    sequence_length: int
    """L, tokens of a sequence."""

    def __post_init__(self) -> None:
        """Checks that there is at least one sequence, of two tokens or more."""
        if self.sequence_length < 2:
            raise InputError(f"is {self.sequence_length}", where="sequence_length", remedy="must be at least 2")
        if self.sequences < 1:
            raise InputError(
                f"{self.requested} tokens are less than one sequence of {self.sequence_length}",
                where="token_budget",
                remedy="use a larger budget",
            )

    @property
    def sequences(self) -> int:
        """S, number of sequences."""
        return self.requested // self.sequence_length

    @property
    def tokens(self) -> int:
        """D, tokens of all sequences."""
        return self.sequences * self.sequence_length


@dataclass(frozen=True, eq=False)
class PreviousPart:
    """The part of a run before the part that a plan describes (``extension``)."""

    sequences: int = 0
    """Number of sequences of the previous part."""

    counts: Mapping[str, IntArray] = field(default_factory=dict)
    """By group, [facts] exposures; templates continue after them."""

    background_frequency: int | IntArray = 0
    """Exposures of each background fact, of all or [facts] of each one, including those that gave way to infusion;
    ordinals continue after them."""


@dataclass(frozen=True, eq=False)
class PlanInputs:
    """Everything that determines a plan."""

    infused: InfusedFacts
    background: BackgroundFacts
    budget: TokenBudget
    schedule: Schedule
    """When infused facts are shown."""

    templates: TemplatePolicy
    """``round_robin`` or ``random``, which show each template of a fact equally often, or the number of the only
    template that is used."""

    seed: int
    """Seed of orders and templates."""

    previous: PreviousPart

    text_first: bool = False
    """Whether general text comes before the exposures of its sequence, and not at a random place."""

    def __post_init__(self) -> None:
        """Checks what concerns several parts."""
        templates, budget = self.templates, self.budget
        if not isinstance(templates, int) and templates not in TEMPLATE_POLICIES:
            raise _unknown("template policy", templates, "infusion.templates", (*TEMPLATE_POLICIES, "a number"))
        if isinstance(templates, int) and templates < 0:
            raise InputError(f"is {templates}", where="infusion.templates", remedy="must not be negative")
        _check_capacity(self.infused.table, budget.sequence_length, "exposure_lengths")
        _check_capacity(self.background.table, budget.sequence_length, "background_lengths")
        check_count(self.background.exposures, budget=budget.tokens, where="background_frequency")

    def key_of(self, *purpose: str) -> int:
        """Returns a random key of this part of the run."""
        part = [self.previous.sequences] if self.previous.sequences else []
        return key_of(self.seed, *part, *purpose)

    def infused_stream(self, frequencies: IntArray | int) -> Stream:
        """Returns the exposures of the infused facts at some frequencies."""
        return Stream(
            "infused",
            self.infused.table,
            frequencies,
            key=self.key_of("stream", "infused"),
            template_key=key_of(self.seed, "templates", "infused"),
            schedule=self.schedule,
            policy=self.templates,
            previous_counts=self.previous.counts.get("infused", 0),
        )

    def streams(self, frequencies: IntArray | int) -> tuple[Stream, Stream]:
        """Returns the infused and the background stream at some frequencies of the infused facts."""
        infused = self.infused_stream(frequencies)
        frequency, schedule = self.background.frequency, self.background.schedule
        kept: IntArray | int | None = None
        if self.background.policy == "displaced":
            ratio = min(1.0, infused.total_tokens / self.budget.tokens)
            kept = rounded(frequency * (1.0 - ratio))
            if not self.schedule.is_uniform and np.any(kept) and len(self.background.table):
                frequency, schedule = kept, self.schedule.general(ratio)
        background = Stream(
            "background",
            self.background.table,
            frequency,
            key=self.key_of("stream", "background"),
            template_key=key_of(self.seed, "templates", "background"),
            schedule=schedule,
            policy=self.templates if self.templates in TEMPLATE_POLICIES else "round_robin",
            previous_counts=self.previous.counts.get("background", 0),
            kept_per_fact=kept,
            first_ordinal=self.previous.background_frequency,
        )
        if not self.background.schedule.is_uniform:
            self._check_density(infused, background)
        return infused, background

    def _check_density(self, infused: Stream, background: Stream) -> None:
        """Refuses a schedule of the background that leaves no room for it at some time: it would be shown at others."""
        times = np.union1d(infused.schedule.times, background.schedule.times)
        taken = [stream.total_tokens * np.diff(stream.schedule.share(times)) for stream in (infused, background)]
        densest = float(((taken[0] + taken[1]) / np.diff(times)).max()) / self.budget.tokens
        if densest > 1.0:
            raise InputError(
                f"{background.schedule.description} and the infused facts take {densest:.3f} of the tokens where they"
                " are densest",
                where="infusion.background.schedule",
                remedy="use a wider schedule, smaller frequencies or a larger token budget",
            )


def rounded(values: float | NDArray[np.floating[Any]]) -> int | IntArray:
    """Returns the nearest whole numbers, of halves the even one."""
    return round(values) if isinstance(values, int | float) else np.rint(values).astype(np.int64)


def whole_number(mean: float) -> float:
    """Returns a mean as an integer if it is one."""
    return int(mean) if mean == int(mean) else mean


def length_table(lengths: ArrayLike, name: str) -> IntArray:
    """Checks lengths of exposures.

    Args:
        lengths: int [facts, templates] tokens; 0 (trailing) where a fact has fewer templates than others.
        name: name of the argument, for messages.

    Returns:
        The table. An array of integers keeps its type, because a copy of it could take most of the memory.

    Raises:
        InputError: another shape, or a length of 0 before another.
    """
    table = np.asarray(lengths)
    if table.dtype.kind not in "iu":
        table = table.astype(np.int64)
    if table.ndim != 2:
        raise InputError(f"has {table.ndim} dimensions", where=name, remedy="must be [facts, templates]")
    if not table.size:
        return table.reshape(0, max(1, table.shape[1]))
    if table.min() <= 0:
        inner = (table[:, :-1] == 0) & (table[:, 1:] > 0)  # only trailing templates may be absent
        bad = (table < 0).any(axis=1) | (table[:, 0] == 0) | inner.any(axis=1)
        if bad.any():
            raise InputError(
                f"fact {int(bad.argmax())} has an exposure without tokens", where=name, remedy="give positive lengths"
            )
    return table


def _check_capacity(table: IntArray, sequence_length: int, name: str) -> None:
    if table.size and table.max() > sequence_length:
        fact = int(table.max(axis=1).argmax())
        raise InputError(
            f"an exposure of fact {fact} has {table.max()} tokens, a sequence {sequence_length}",
            where=name,
            remedy="use longer sequences or shorter templates",
        )


def fingerprint_of(*tables: IntArray) -> str:
    """Returns the hexadecimal SHA-256 of integer arrays, by shape and values whatever their types."""
    digest = hashlib.sha256()
    for table in tables:
        digest.update(f"{table.shape};".encode())
        for first in range(0, len(table), _ROWS):
            digest.update(np.ascontiguousarray(table[first : first + _ROWS], dtype="<i8").tobytes())
    return digest.hexdigest()


def _unknown(what: str, value: object, where: str, valid: tuple[str, ...]) -> InputError:
    return InputError(f"unknown {what} {value!r}", where=where, remedy="valid: " + ", ".join(valid))
