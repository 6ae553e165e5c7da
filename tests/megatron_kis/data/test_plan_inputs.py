"""The two forms of the call that makes a plan, and the values that each part refuses by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given

from megatron_kis.common.errors import InputError
from megatron_kis.data import BackgroundFacts, ExposurePlan, InfusedFacts, TokenBudget
from tests.megatron_kis.data.counting import unequal_settings
from tests.megatron_kis.data.test_exposure_plan import SEARCH, SIX_FACTS


def in_parts(made: dict[str, Any]) -> ExposurePlan:
    """The plan that the older call makes from ``made``, which names each value."""
    shared = {name: made[name] for name in ("schedule", "templates", "seed") if name in made}
    return ExposurePlan(
        InfusedFacts(
            made["exposure_lengths"],
            frequency=made.get("infusion_frequency"),
            ratio=made.get("infusion_ratio"),
            popularity=made.get("popularity"),
        ),
        BackgroundFacts(
            made["background_lengths"],
            frequency=made.get("background_frequency", 0),
            policy=made.get("background_policy", "displaced"),
        ),
        budget=TokenBudget(made["token_budget"], made["sequence_length"]),
        **shared,
    )


@SEARCH
@given(unequal_settings())
def test_the_older_call_makes_the_same_plan(made: dict[str, Any]) -> None:
    old, new = ExposurePlan(**made), in_parts(made)
    assert old.fingerprint == new.fingerprint
    assert list(old) == list(new)


def test_the_older_call_takes_the_lengths_by_place_and_no_background() -> None:
    old = ExposurePlan(SIX_FACTS, token_budget=6000, sequence_length=64, infusion_frequency=3)
    new = ExposurePlan(InfusedFacts(SIX_FACTS, frequency=3), budget=TokenBudget(6000, 64))
    assert old.fingerprint == new.fingerprint
    assert list(old) == list(new)


@pytest.mark.parametrize(
    ("arguments", "keywords"),
    [
        ((InfusedFacts(SIX_FACTS, frequency=3),), {"budget": TokenBudget(6000, 64), "infusion_ratio": 0.5}),
        ((InfusedFacts(SIX_FACTS, frequency=3),), {}),
        ((SIX_FACTS,), {"token_budget": 6000, "sequence_length": 64, "frequency": 3}),
        ((), {"token_budget": 6000, "sequence_length": 64}),
    ],
)
def test_arguments_of_neither_form_are_refused(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="argument"):
        ExposurePlan(*arguments, **keywords)


def test_a_budget_has_whole_sequences() -> None:
    budget = TokenBudget(1000, 64)
    assert (budget.sequences, budget.tokens) == (15, 960)
    with pytest.raises(InputError, match="token_budget: 63 tokens are less than one sequence of 64"):
        TokenBudget(63, 64)


def test_facts_are_checked_before_there_is_a_plan() -> None:
    with pytest.raises(InputError, match="exposure_lengths: fact 0 has an exposure without tokens"):
        InfusedFacts(np.array([[5, 0, 4]]))
    with pytest.raises(InputError, match="unknown policy 'shielded'"):
        BackgroundFacts(SIX_FACTS, policy="shielded")
