"""A run that is extended: the plan of the run so far, and a plan of what comes after it.

The first sequences are those of the run so far, exposure by exposure; general text continues by its sequence numbers,
and templates in their turns. A fact's exposures are the sum over both parts; each part keeps the promises of a plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol

from megatron_kis.common.errors import InputError
from megatron_kis.common.files import fingerprint
from megatron_kis.common.terms import RENDERED_GROUPS
from megatron_kis.data.exposure_plan import ExposurePlan, PreviousPart, SequenceLayout, TokenBudget
from megatron_kis.data.exposure_schedule import schedule_of
from megatron_kis.data.plan_inputs import rounded, whole_number
from megatron_kis.data.stream import IntArray

_CONTENT = ("infused_facts", "background_facts", "background_policy", "sequence_length", "seed", "templates")
_SETTINGS = (
    "seed",
    "sequence_length",
    "token_budget",
    "infused_facts",
    "infusion_frequency",
    "schedule",
    "templates",
    "background_facts",
    "background_policy",
    "background_base_frequency",
    "background_groups",
    "background_schedule",
)
_SUMS = ("infused_tokens", "background_tokens", "token_budget", "infusion_frequency")


class Plan(Protocol):
    """Interface of a plan for training, ledger and logs, whether it extends another or not."""

    sequence_length: int
    token_budget: int
    infusion_frequency: float
    infusion_ratio: float
    background_frequency: float

    def __len__(self) -> int:
        """Returns the number of sequences of the run."""
        ...

    def __getitem__(self, sequence: int) -> SequenceLayout:
        """Returns the layout of a sequence."""
        ...

    def prefetch(self, sequences: Sequence[int]) -> None:
        """Prepares the layouts of sequences in one pass."""
        ...

    def expected(self, group: str) -> IntArray:
        """Returns [facts], the exposures that each fact of a group receives in the whole run."""
        ...

    def identity(self) -> dict[str, Any]:
        """Returns what determines the plan."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the identity."""
        ...


class ExtendedPlan:
    """Two plans one after the other. Made by ``extend``."""

    def __init__(self, base: ExposurePlan | ExtendedPlan, tail: ExposurePlan) -> None:
        """Joins them; ``tail`` begins where ``base`` ends."""
        self.base, self.tail = base, tail
        self.sequence_length = tail.sequence_length
        self.token_budget: int = base.token_budget + tail.token_budget
        self.infused_tokens: int = base.infused_tokens + tail.infused_tokens
        self.infusion_frequency: float = base.infusion_frequency + tail.infusion_frequency
        self.infusion_ratio: float = self.infused_tokens / self.token_budget
        self.background_frequencies: int | IntArray = base.background_frequencies + tail.background_frequencies
        # Facts of a low frequency may be shown in one part alone: the parts' means are not of the same facts.
        shown = replace(tail.inputs.background, frequency=self.background_frequencies)
        self.background_frequency: float = whole_number(shown.mean(self.expected("background")))

    def __len__(self) -> int:
        """Returns the number of sequences of the whole run."""
        return len(self.base) + len(self.tail)

    def __getitem__(self, sequence: int) -> SequenceLayout:
        """Returns the layout of a sequence.

        Raises:
            IndexError: not in [0, len(plan)).
        """
        if 0 <= sequence < len(self.base):
            return self.base[sequence]
        if sequence >= len(self):
            raise IndexError(sequence)
        return self.tail[sequence - len(self.base)]

    def prefetch(self, sequences: Sequence[int]) -> None:
        """Prepares the layouts of sequences in one pass."""
        border = len(self.base)
        self.base.prefetch([sequence for sequence in sequences if sequence < border])
        self.tail.prefetch([sequence - border for sequence in sequences if sequence >= border])

    def __iter__(self) -> Iterator[SequenceLayout]:
        """Yields every layout in the order of training."""
        return (self[sequence] for sequence in range(len(self)))

    def expected(self, group: str) -> IntArray:
        """Returns [facts], the exposures that each fact of a group receives in the whole run."""
        return self.base.expected(group) + self.tail.expected(group)

    def identity(self) -> dict[str, Any]:
        """Returns what determines this plan; frequencies, tokens and ratio are those of the whole run."""
        base, tail = self.base.identity(), self.tail.identity()
        whole = {name: base[name] + tail[name] for name in _SUMS}
        return {
            **{name: tail[name] for name in _CONTENT},
            **whole,
            "background_frequency": self.background_frequency,
            **({"shown_facts": tail["shown_facts"]} if "shown_facts" in tail else {}),
            "infusion_ratio": self.infusion_ratio,
            "extends": base,
            "extension": tail,
        }

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the identity."""
        return fingerprint(self.identity())


def extend(
    base: ExposurePlan | ExtendedPlan,
    token_budget: int,
    *,
    infusion_frequency: float | None = None,
    infusion_ratio: float | None = None,
    schedule: str | Mapping[str, Any] = "uniform",
    background_schedule: str | Mapping[str, Any] = "uniform",
) -> ExtendedPlan:
    """Extends a plan to a larger budget.

    Args:
        base: the plan of the run so far.
        token_budget: tokens of the whole run.
        infusion_frequency: exposures of each infused fact in the added tokens. If neither this nor a ratio is given,
            exposures continue at the rate of the last part: each fact's exposures grow in proportion to the budget.
        infusion_ratio: share of the added tokens.
        schedule: when infused facts are shown in the added tokens.
        background_schedule: when protected background facts are, whose exposures grow in proportion to the budget.

    Raises:
        InputError: less than one sequence more, or exposures that do not fit into the added tokens.
    """
    last = base.tail if isinstance(base, ExtendedPlan) else base
    added = token_budget - base.token_budget
    if added < base.sequence_length:
        raise InputError(
            f"{token_budget} tokens are less than one sequence more than the run so far ({base.token_budget})",
            where="token_budget",
            remedy="use a larger budget",
        )
    added -= added % base.sequence_length
    counts = last.expected("infused")
    if infusion_frequency is None and infusion_ratio is None:
        infusion_frequency = last.inputs.infused.mean(counts) * added / last.token_budget
    inputs = last.inputs
    shown = counts if inputs.infused.shown is None else counts[inputs.infused.shown]
    equal = not len(shown) or shown.max() - shown.min() <= 1
    tail = ExposurePlan(
        replace(
            inputs.infused,
            frequency=infusion_frequency,
            ratio=infusion_ratio,
            popularity=None if equal else counts,
        ),
        replace(
            inputs.background,
            schedule=schedule_of(background_schedule),
            frequency=_background_so_far(base, base.token_budget + added) - base.background_frequencies,
        ),
        budget=TokenBudget(added, base.sequence_length),
        schedule=schedule,
        templates=inputs.templates,
        seed=inputs.seed,
        previous=PreviousPart(
            sequences=len(base),
            counts={group: base.expected(group) for group in RENDERED_GROUPS},
            background_frequency=base.background_frequencies,
        ),
        text_first=inputs.text_first,
    )
    return ExtendedPlan(base, tail)


def _background_so_far(base: ExposurePlan | ExtendedPlan, tokens: int) -> int | IntArray:
    """Returns the background frequencies of so many tokens at the rate of the first part: roundings do not add up."""
    first = base
    while isinstance(first, ExtendedPlan):
        first = first.base
    return rounded(first.background_frequencies * tokens / first.token_budget)


def check_continuation(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Checks that a run may continue under a plan: the plan it had, or one that extends it.

    Args:
        before: identity of the plan under which the run was trained so far.
        now: identity of the plan under which it is to continue.

    Raises:
        InputError: another plan; the message names what differs, and both fingerprints.
    """
    had, has = _parts(before), _parts(now)
    if has[: len(had)] == had:
        return
    fingerprints = f"{fingerprint(now)[:12]}; the run so far had {fingerprint(before)[:12]}"
    if had[: len(has)] == has:
        differs = f"the run so far was extended to {before['token_budget']} tokens, this is {now['token_budget']}"
    else:
        differs = next(_difference(was, is_) for was, is_ in zip(had, has, strict=False) if was != is_)
    raise InputError(
        f"another exposure plan ({fingerprints}): {differs}",
        where="infusion",
        remedy="continue with the settings of the run so far, extend its plan, or choose another output",
    )


def same_until(sequences: int, before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Returns whether two plans have the same first sequences because the parts that they come from are equal.

    Args:
        sequences: number of sequences to compare.
        before: identity of a plan.
        now: identity of another.
    """
    had, has = ([part for part in _parts(identity) if part["first_sequence"] < sequences] for identity in (before, now))
    return had == has


def _parts(identity: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the identities of the plans one after the other."""
    if "extends" in identity:
        return [*_parts(identity["extends"]), identity["extension"]]
    return [identity]


def _difference(was: dict[str, Any], now: dict[str, Any]) -> str:
    """Describes the settings in which two plans differ; what follows from settings only if these are equal."""
    names = [name for name in (*now, *was) if was.get(name) != now.get(name)]
    settings = [name for name in _SETTINGS if name in names]
    return "; ".join(f"{name} was {was.get(name)!r}, is {now.get(name)!r}" for name in (settings or names)[:5])
