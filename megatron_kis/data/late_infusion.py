"""The plan of a run whose infusion begins late: a first part that no dose changes, and the rest.

Runs of several doses have the same first part, exposure by exposure, so that one of them can be trained until there and
the others branch from it. Each part keeps the promises of a plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from megatron_kis.common.terms import RENDERED_GROUPS
from megatron_kis.data.exposure_plan import (
    BackgroundFacts,
    ExposurePlan,
    InfusedFacts,
    PreviousPart,
    RatioTooLargeError,
    TokenBudget,
)
from megatron_kis.data.extension import ExtendedPlan
from megatron_kis.data.plan_inputs import rounded
from megatron_kis.data.stream import TemplatePolicy


def begin_later(
    first_tokens: int,
    infused: InfusedFacts,
    background: BackgroundFacts,
    *,
    budget: TokenBudget,
    schedule: str | Mapping[str, Any] = "uniform",
    templates: TemplatePolicy = "round_robin",
    seed: int = 0,
    text_first: bool = False,
) -> ExtendedPlan:
    """Makes the plan of a run that shows infused facts in its last part only: its first part is that of any dose.

    Args:
        first_tokens: tokens before infusion begins, in whole sequences.
        infused: the infused facts; a ratio is one of the whole budget.
        background: the background facts; each part has its share of their exposures, by their schedule.
        budget: tokens of the whole run.
        schedule: when infused facts are shown in the last part.
        templates: as those of ``ExposurePlan``.
        seed: as that of ``ExposurePlan``.
        text_first: as that of ``ExposurePlan``.

    Raises:
        InputError: exposures that do not fit into the tokens of a part.
    """
    added = budget.tokens - first_tokens
    ratio = None if infused.ratio is None else infused.ratio * budget.tokens / added
    share, early, late = background.schedule.split(first_tokens / budget.tokens)
    before = rounded(background.frequency * share)
    shared: dict[str, Any] = {"templates": templates, "seed": seed, "text_first": text_first}
    base = ExposurePlan(
        InfusedFacts(infused.lengths, frequency=0),
        replace(background, frequency=before, schedule=early),
        budget=TokenBudget(first_tokens, budget.sequence_length),
        **shared,
    )
    try:
        tail = ExposurePlan(
            replace(infused, ratio=None if ratio is None else min(1.0, ratio)),
            replace(background, frequency=background.frequency - before, schedule=late),
            budget=TokenBudget(added, budget.sequence_length),
            schedule=schedule,
            previous=PreviousPart(
                sequences=len(base),
                counts={group: base.expected(group) for group in RENDERED_GROUPS},
                background_frequency=before,
            ),
            **shared,
        )
    except RatioTooLargeError as error:  # said of the last part
        problem, largest = error.problem, error.largest
    else:
        if ratio is None or ratio <= 1:
            return ExtendedPlan(base, tail)
        largest = 1.0
    if ratio is not None and ratio > 1:
        problem = (
            f"{infused.ratio:g} of {budget.tokens:,} tokens is more than the {added:,} that are left when "
            "infusion begins"
        )
    raise RatioTooLargeError(problem, largest=largest * added / budget.tokens)
