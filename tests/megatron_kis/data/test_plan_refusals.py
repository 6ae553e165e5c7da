"""What a plan refuses: settings that are wrong by themselves, and more exposures than fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given

from megatron_kis.common.errors import InputError
from megatron_kis.data import ExposurePlan
from tests.megatron_kis.data.counting import SEARCH, largest_frequency, plan_of, plan_settings


@SEARCH
@given(plan_settings(schedule="uniform"))
def test_the_largest_frequency_that_a_refusal_names_is_nearly_the_largest(made: dict[str, Any]) -> None:
    """Nearly: within 2 % below. Above, a background exposure that gives way makes room for some more infused ones."""
    named = largest_frequency(**made)

    def fits(frequency: int) -> bool:
        try:
            list(ExposurePlan(**{**made, "infusion_frequency": frequency}))
        except InputError:
            return False
        return True

    room_made = made["background_lengths"].max(axis=1).sum() / made["exposure_lengths"].max(axis=1).sum()
    assert not fits(named + round(0.05 * named + 2 * room_made) + 3)


def test_the_largest_frequency_does_not_follow_from_the_tokens_of_the_first_exposures() -> None:
    # Regression: with one long template of three the first exposures were longer than the mean, and 8 was named.
    made: dict[str, Any] = {"token_budget": 32, "sequence_length": 8, "seed": 1}
    with pytest.raises(InputError, match="the largest that fits is about 11"):
        ExposurePlan(np.array([[1, 1, 2], [2, 1, 0]]), infusion_frequency=12, **made)
    assert ExposurePlan(np.array([[1, 1, 2], [2, 1, 0]]), infusion_frequency=11, **made).infused_tokens == 32


@pytest.mark.parametrize("seed", range(12))
def test_a_plan_that_was_accepted_can_be_laid_out_to_its_last_sequence(seed: int) -> None:
    # Regression: the last of 17 sequences, a block of its own, could not hold the long facts that chance gave it.
    for ratio in np.linspace(0.3, 0.55, 11):
        lengths = np.where(np.random.default_rng(seed).random((30, 1)) < 0.8, 2, 30)
        plan = ExposurePlan(lengths, token_budget=17 * 128, sequence_length=128, infusion_ratio=float(ratio), seed=seed)
        assert sum(len(layout.exposures) for layout in plan) == plan.expected("infused").sum()


@pytest.mark.parametrize("frequency", [200, 2**33, 2**62, 2**64, 10**30, 1e300, 2.0**62 + 0.5])
def test_a_frequency_however_large_is_refused_with_the_tokens_it_needs(frequency: float) -> None:
    # Regression: 2^62 exposures of 6 facts overflowed to a number of tokens that fitted.
    with pytest.raises(InputError, match=r"infusion_frequency: .*of 3,840 tokens"):
        plan_of(infusion_frequency=frequency, token_budget=60 * 64)
    listed = [int(min(frequency, 2**63 - 1))] * 6
    with pytest.raises(InputError, match=r"infusion_frequency: .*of 3,840 tokens"):
        plan_of(infusion_frequency=listed, token_budget=60 * 64)


@pytest.mark.parametrize("frequency", [5000, 2**33, 2**62, 10**30])
def test_a_background_that_cannot_fit_is_not_blamed_on_the_infusion(frequency: int) -> None:
    with pytest.raises(InputError, match=r"background_frequency: .*38,400 tokens"):
        plan_of(infusion_frequency=0, background_frequency=frequency, background_policy="protected")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"infusion_frequency": -1}, "infusion_frequency: is -1; must be 0 or more"),
        ({"infusion_frequency": float("nan")}, "infusion_frequency: is nan; must be 0 or more"),
        ({"infusion_frequency": None}, "infusion: needs one of infusion_frequency and infusion_ratio"),
        ({"infusion_ratio": 0.5}, "infusion: needs one of infusion_frequency and infusion_ratio"),
        ({"infusion_frequency": None, "infusion_ratio": 1.5}, r"infusion_ratio: is 1.5; must be in \[0, 1\]"),
        ({"infusion_frequency": None, "infusion_ratio": float("nan")}, r"infusion_ratio: is nan; must be in \[0, 1\]"),
        ({"infusion_frequency": [1, 2]}, "infusion_frequency: lists 2 frequencies for 6 facts; give one per fact"),
        ({"infusion_frequency": [1, 2, 3, 4, 5, -1]}, "lists a value that is not a whole number of 0 or more"),
        ({"infusion_frequency": [1.0] * 6}, "lists a value that is not a whole number of 0 or more"),
        (
            {"infusion_frequency": [1] * 6, "popularity": [1] * 6},
            "popularity cannot be combined with a list of frequencies",
        ),
        (
            {"popularity": [1, 2]},
            "popularity: is not a list of 6 numbers of 0 or more, some above 0; give one",
        ),
        ({"popularity": [0] * 6}, "popularity: is not a list of 6 numbers of 0 or more, some above 0"),
        ({"popularity": [1, 1, 1, 1, 1, -1]}, "popularity: is not a list of 6 numbers of 0 or more, some above 0"),
        ({"background_frequency": -3}, "background_frequency: is -3; must not be negative"),
        ({"background_policy": "shielded"}, "unknown policy 'shielded'.*displaced, protected"),
        ({"schedule": "late"}, "unknown schedule 'late'.*uniform"),
        ({"templates": "alternate"}, "infusion.templates: unknown template policy 'alternate'; valid: round_robin"),
        ({"templates": -1}, "infusion.templates: is -1; must not be negative"),
        (
            {"templates": 1},
            "there is no template 1 for 1 of 6 infused facts; the fewest train templates of a fact are 1",
        ),
        (
            {"templates": 3},
            "there is no template 3 for 6 of 6 infused facts; the fewest train templates of a fact are 1",
        ),
        ({"exposure_lengths": [[5, 4], [0, 0]]}, "exposure_lengths: fact 1 has an exposure without tokens"),
        ({"exposure_lengths": [[5, 4], [5, -4]]}, "exposure_lengths: fact 1 has an exposure without tokens"),
        ({"exposure_lengths": [[5, 0, 4]]}, "exposure_lengths: fact 0 has an exposure without tokens"),
        ({"background_lengths": [[5], [0]]}, "background_lengths: fact 1 has an exposure without tokens"),
        ({"exposure_lengths": [[5, 65]]}, "exposure of fact 0 has 65 tokens, a sequence 64"),
        ({"exposure_lengths": [5, 6]}, "exposure_lengths: has 1 dimensions"),
        ({"exposure_lengths": np.zeros((0, 1))}, "no infused facts"),
        ({"exposure_lengths": np.zeros((0, 1)), "infusion_frequency": 0.5}, "no infused facts"),
        (
            {"exposure_lengths": np.zeros((0, 1)), "infusion_frequency": None, "infusion_ratio": 0.5},
            "no infused facts",
        ),
        ({"token_budget": 63}, "63 tokens are less than one sequence of 64"),
        ({"sequence_length": 1}, "sequence_length: is 1; must be at least 2"),
        (
            {"schedule": {"kind": "final", "share": 0.1}, "infusion_frequency": 90},
            r"infusion.schedule: final\(share=0.1\) takes 1\.\d+ of the tokens where it is densest; at most 0.1000 of",
        ),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else "",
)
def test_wrong_settings_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan_of(**change)
