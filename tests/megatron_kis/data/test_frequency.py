"""How often each fact is shown: by one frequency, a list, popularity, or a ratio."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_kis.common.errors import InputError
from megatron_kis.data import ExposurePlan
from megatron_kis.data.frequency import zipf_popularity
from tests.megatron_kis.data.counting import counts, plan_settings

SEARCH = settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)


@SEARCH
@given(plan_settings(), st.floats(0, 1), st.sampled_from([None, 0.0, 0.7, 1.5]))
def test_a_ratio_is_met_to_within_one_exposure(made: dict[str, Any], share: float, exponent: float | None) -> None:
    facts, made["background_frequency"] = len(made["exposure_lengths"]), 0
    fitting = ExposurePlan(**made).infusion_ratio
    made["infusion_frequency"], made["infusion_ratio"] = None, share * fitting
    if exponent is not None:
        made["popularity"] = zipf_popularity(facts, exponent, seed=made["seed"])
    try:
        plan = ExposurePlan(**made)
    except InputError as error:
        assert "fits" in str(error), str(error)
        return
    longest = made["exposure_lengths"].max()
    assert abs(plan.infused_tokens - made["infusion_ratio"] * plan.token_budget) <= longest
    assert plan.infusion_ratio == plan.infused_tokens / plan.token_budget
    received = counts(plan, "infused", facts)
    assert received == plan.expected("infused").tolist()
    if not exponent:
        assert max(received) - min(received) <= 1
    assert sum(received) / facts == pytest.approx(plan.infusion_frequency)


@SEARCH
@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 40), st.integers(1, 20), st.integers(0, 99))
def test_a_run_can_be_nothing_but_infusion_where_lengths_divide_a_sequence(
    length: int, times: int, sequences: int, facts: int, seed: int
) -> None:
    plan = (
        ExposurePlan(
            np.full((facts, 2), length),
            token_budget=sequences * length * times,
            sequence_length=max(2, length * times),
            infusion_ratio=1.0,
            seed=seed,
        )
        if length * times > 1
        else None
    )
    if plan is None:
        return
    assert plan.infusion_ratio == 1.0
    assert all(layout.general_tokens == 0 for layout in plan)
    assert sum(counts(plan, "infused", facts)) == sequences * times


@pytest.mark.parametrize("background", ["displaced", "protected"])
@pytest.mark.parametrize("sequences", [300, 301, 640])
def test_nearly_all_of_a_run_can_be_infusion_of_mixed_lengths(sequences: int, background: str) -> None:
    lengths = np.random.default_rng(sequences).integers(9, 31, size=(100, 6))
    plan = ExposurePlan(
        lengths,
        token_budget=sequences * 256,
        sequence_length=256,
        infusion_ratio=0.99,
        background_lengths=lengths[:4],
        background_frequency=3,
        background_policy=background,
    )
    assert plan.infusion_ratio == pytest.approx(0.99, abs=31 / plan.token_budget)
    received = counts(plan, "infused", 100)
    assert sum(received) == plan.expected("infused").sum()
    assert max(received) - min(received) <= 1
    assert counts(plan, "background", 4) == [0 if background == "displaced" else 3] * 4


@pytest.mark.parametrize("seed", range(6))
def test_a_ratio_is_never_met_with_more_tokens_than_there_are(seed: int) -> None:
    # 10 tokens would be nearer to 9 than 7, or 3, but there are only 9.
    plan = ExposurePlan([[7, 3]], token_budget=9, sequence_length=9, infusion_ratio=1.0, seed=seed)
    assert plan.infused_tokens in (3, 7)


def test_a_frequency_with_a_fraction_is_a_mean_of_its_neighbours() -> None:
    plan = ExposurePlan(np.full((40, 2), 6), token_budget=900 * 64, sequence_length=64, infusion_frequency=2.25)
    received = counts(plan, "infused", 40)
    assert sorted(received) == [2] * 30 + [3] * 10
    assert received != sorted(received)  # which facts get one more is drawn
    assert plan.infusion_frequency == 2.25


def test_popular_facts_are_shown_in_proportion() -> None:
    popularity = np.array([4.0, 0.0, 1.0, 2.0, 1.0])
    plan = ExposurePlan(
        np.full((5, 2), 6),
        token_budget=900 * 64,
        sequence_length=64,
        infusion_frequency=16,
        popularity=popularity,
    )
    assert counts(plan, "infused", 5) == [40, 0, 10, 20, 10]
    assert plan.infusion_frequency == 16


@SEARCH
@given(st.integers(0, 300), st.floats(0, 3), st.integers(0, 99))
def test_zipf_popularity_falls_as_a_power_of_a_rank_that_is_drawn(facts: int, exponent: float, seed: int) -> None:
    drawn = zipf_popularity(facts, exponent, seed=seed)
    assert drawn.shape == (facts,)
    assert drawn.tolist() == zipf_popularity(facts, exponent, seed=seed).tolist()
    if facts:
        assert drawn.mean() == pytest.approx(1)
        falling = np.sort(drawn)[::-1]
        assert falling / falling[0] == pytest.approx(np.arange(1, facts + 1) ** -exponent)
    if facts > 100 and exponent > 0.1:
        assert drawn.tolist() != zipf_popularity(facts, exponent, seed=seed + 1).tolist()
        assert abs(np.corrcoef(np.arange(facts), np.argsort(drawn))[0, 1]) < 0.5


@pytest.mark.parametrize("exponent", [-0.5, float("nan"), float("inf")])
def test_an_impossible_exponent_is_refused(exponent: float) -> None:
    with pytest.raises(InputError, match=r"infusion\.zipf_exponent: is .*; must be 0 or more"):
        zipf_popularity(5, exponent)


def test_a_list_of_frequencies_is_taken_as_it_is() -> None:
    wanted = [3, 0, 17, 1, 3]
    for given_list in (wanted, np.array(wanted, dtype=np.uint8), tuple(wanted)):
        plan = ExposurePlan(np.full((5, 2), 6), token_budget=90 * 64, sequence_length=64, infusion_frequency=given_list)
        assert counts(plan, "infused", 5) == wanted
        assert plan.infusion_frequency == 4.8


def test_a_list_of_one_number_is_that_number() -> None:
    settings = {"token_budget": 90 * 64, "sequence_length": 64, "seed": 4}
    one = ExposurePlan(np.full((5, 2), 6), infusion_frequency=7, **settings)
    listed = ExposurePlan(np.full((5, 2), 6), infusion_frequency=[7] * 5, **settings)
    assert one.identity() == listed.identity()
    assert list(one) == list(listed)


def test_nothing_is_shown_of_a_ratio_or_a_frequency_of_nothing() -> None:
    settings = {"token_budget": 90 * 64, "sequence_length": 64}
    for asked in ({"infusion_ratio": 0.0}, {"infusion_frequency": 0}, {"infusion_frequency": [0, 0]}):
        plan = ExposurePlan(np.full((2, 2), 6), **settings, **asked)
        assert (plan.infused_tokens, plan.infusion_ratio, plan.infusion_frequency) == (0, 0.0, 0)
        assert not any(layout.exposures for layout in plan)


def test_facts_that_reach_their_next_whole_number_together_get_it_one_by_one() -> None:
    # Regression: weights of 1 / rank let two facts step at the same level, and the sum was 307 of 306.
    plan = ExposurePlan(
        np.full((12, 1), 5),
        token_budget=3450,
        sequence_length=50,
        seed=87950211,
        infusion_frequency=25.5,
        popularity=zipf_popularity(12, 1.0, seed=87950211),
    )
    assert plan.expected("infused").sum() == 306
