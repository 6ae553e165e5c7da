"""Checks that what a run's plan feeds is the dose that its study asks for."""

from __future__ import annotations

import math

from megatron_kis.common.errors import InputError
from megatron_kis.config.run import RunConfig
from megatron_kis.data.extension import Plan


def facts_shown(plan: Plan) -> int:
    """Returns the number K of infused facts that a plan shows; 0 without infusion."""
    if not plan.infusion_frequency:
        return 0
    identity = plan.identity()
    return int(identity.get("shown_facts", identity["infused_facts"]))


def check_ratio(run: RunConfig, plan: Plan) -> None:
    """Refuses a ratio that is too small to show each fact: fewer facts would be infused than the run's name says.

    Raises:
        InputError: how often each would be shown on average.
    """
    ratio = run.infusion.ratio
    if ratio is None or plan.infusion_frequency >= 1:
        return
    identity = plan.identity()
    facts = identity.get("shown_facts", identity["infused_facts"])
    least = "ratio "
    if plan.infusion_frequency:
        least = f"ratio, of about {math.ceil(1000 * plan.infusion_ratio / plan.infusion_frequency) / 1000:g}, "
    raise InputError(
        f"{ratio:g} of {plan.token_budget:,} tokens shows each of {facts:,} facts {plan.infusion_frequency:.2g} times",
        where="infusion.ratio",
        remedy=f"use a larger {least}or budget, or fewer facts, so that each is shown",
    )
