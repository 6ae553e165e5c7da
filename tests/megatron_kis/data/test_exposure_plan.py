"""The promises of a plan, counted in every sequence of plans of many shapes."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_kis.common.errors import InputError
from megatron_kis.data import ExposurePlan
from megatron_kis.data.exposure_schedule import Schedule
from tests.megatron_kis.data.counting import (
    by_fact,
    counts,
    plan_settings,
    read_all,
    unequal_settings,
)

SEARCH = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
SIX_FACTS = np.array([[9, 7, 11], [5, 6, 0], [12, 0, 0], [8, 8, 8], [3, 4, 5], [10, 9, 0]])
ROOMY: dict[str, Any] = {
    "exposure_lengths": SIX_FACTS,
    "token_budget": 600 * 64,
    "sequence_length": 64,
    "infusion_frequency": 30,
    "seed": 3,
    "background_lengths": SIX_FACTS[::-1],
    "background_frequency": 48,
}


def plan_of(**changes: Any) -> ExposurePlan:
    return ExposurePlan(**{**ROOMY, **changes})


@settings(SEARCH, max_examples=80)
@given(unequal_settings())
def test_every_fact_gets_exactly_its_exposures_each_whole_in_one_sequence(made: dict[str, Any]) -> None:
    plan = ExposurePlan(**made)
    infused, background = made["exposure_lengths"], made["background_lengths"]
    tokens: Counter[str] = Counter()
    for found in read_all(plan):
        exposure = found.exposure
        table = infused if exposure.group == "infused" else background
        assert exposure.length == table[exposure.fact, exposure.template] > 0
        tokens[exposure.group] += exposure.length
    received = counts(plan, "infused", len(infused))
    assert received == plan.expected("infused").tolist()
    asked = made["infusion_frequency"]
    if np.ndim(asked) or isinstance(asked, int):
        assert received == np.broadcast_to(asked, len(infused)).tolist()
    elif asked is not None:
        assert sum(received) == pytest.approx(asked * len(infused), abs=0.5)
    kept = made["background_frequency"]
    if made["background_policy"] == "displaced":
        kept = round(kept * (1 - tokens["infused"] / plan.token_budget))
    assert counts(plan, "background", len(background)) == [kept] * len(background)
    assert plan.expected("background").tolist() == [kept] * len(background)
    assert (plan.infused_tokens, plan.background_tokens) == (tokens["infused"], tokens["background"])
    assert plan.infusion_ratio == tokens["infused"] / plan.token_budget
    assert plan.infusion_frequency == pytest.approx(np.mean(received))


@SEARCH
@given(unequal_settings())
def test_ordinals_count_a_facts_exposures_from_zero(made: dict[str, Any]) -> None:
    plan = ExposurePlan(**made)
    for fact, found in by_fact(plan, "infused").items():
        ordinals = sorted(item.exposure.ordinal for item in found)
        assert ordinals == list(range(int(plan.expected("infused")[fact])))
    for found in by_fact(plan, "background").values():
        ordinals = sorted(item.exposure.ordinal for item in found)
        assert len(set(ordinals)) == len(ordinals)
        assert ordinals[0] >= 0 and ordinals[-1] < made["background_frequency"]


@SEARCH
@given(unequal_settings())
def test_templates_of_a_fact_are_shown_equally_often_whatever_was_displaced(made: dict[str, Any]) -> None:
    plan = ExposurePlan(**made)
    for group, lengths in (("infused", made["exposure_lengths"]), ("background", made["background_lengths"])):
        for fact, found in by_fact(plan, group).items():
            shown = Counter(item.exposure.template for item in found)
            if group == "infused" and isinstance(made["templates"], int):
                assert set(shown) == {made["templates"]}
                continue
            shares = [shown[template] for template in range(int((lengths[fact] > 0).sum()))]
            assert max(shares) - min(shares) <= 1, f"{group} fact {fact}: {shares}"


def test_round_robin_goes_round_and_random_turns_have_every_template_once() -> None:
    table = np.full((40, 5), 6)
    fixed = {"exposure_lengths": table, "infusion_frequency": 30, "background_frequency": 0}
    orders: dict[str, set[tuple[int, ...]]] = {"round_robin": set(), "random": set()}
    begins: dict[str, set[int]] = {"round_robin": set(), "random": set()}
    for policy in orders:
        for found in by_fact(plan_of(templates=policy, **fixed), "infused").values():
            shown = [item.exposure.template for item in sorted(found, key=lambda item: item.exposure.ordinal)]
            turns = [tuple(shown[first : first + 5]) for first in range(0, 30, 5)]
            assert all(sorted(turn) == list(range(5)) for turn in turns)
            begins[policy].add(turns[0][0])
            orders[policy] |= set(turns)
            if policy == "round_robin":
                assert len(set(turns)) == 1
                assert {(after - before) % 5 for before, after in pairwise(shown)} == {1}
            else:
                assert len(set(turns)) > 1
    assert len(orders["round_robin"]) == 5  # facts begin with templates of their own
    assert len(orders["random"]) > 90  # of 120
    assert all(len(found) == 5 for found in begins.values())


@pytest.mark.parametrize("policy", ["displaced", "protected"])
def test_background_facts_have_the_template_policy_of_infused_ones_but_no_fixed_template(policy: str) -> None:
    table = np.full((12, 4), 6)
    fixed: dict[str, Any] = {"background_lengths": table, "exposure_lengths": table, "background_policy": policy}

    def turns(templates: Any) -> set[tuple[int, ...]]:
        plan = plan_of(templates=templates, infusion_frequency=0, background_frequency=8, **fixed)
        found = by_fact(plan, "background").values()
        assert all(Counter(item.exposure.template for item in items) == dict.fromkeys(range(4), 2) for items in found)
        return {tuple(item.exposure.template for item in items) for items in found}

    assert turns("round_robin") == turns(0) == turns(3)
    assert turns("random") != turns("round_robin")


@pytest.mark.parametrize("ratio", [0.0, 0.013, 0.25, 0.5, 0.7, 0.95])
@pytest.mark.parametrize("schedule", ["uniform", {"kind": "window", "start": 0.02, "end": 0.99}])
def test_infusion_displaces_its_share_of_every_background_fact(ratio: float, schedule: Any) -> None:
    plan = plan_of(infusion_frequency=None, infusion_ratio=ratio, schedule=schedule, background_frequency=37)
    kept = round(37 * (1 - plan.infused_tokens / plan.token_budget))
    assert counts(plan, "background", 6) == [kept] * 6
    assert plan.background_frequency == kept
    assert (kept < 37) == (ratio > 0.1)
    protected = plan_of(infusion_frequency=100, background_frequency=37, background_policy="protected")
    assert counts(protected, "background", 6) == [37] * 6


@pytest.mark.parametrize("templates", [2, 4, 8])
def test_displacement_leaves_a_background_fact_all_its_templates(templates: int) -> None:
    # Regression: half of the exposures were once all of half of the templates, and a tenth all of one template.
    plan = ExposurePlan(
        np.full((10, 1), 12),
        token_budget=1200 * 64,
        sequence_length=64,
        infusion_ratio=0.85,
        background_lengths=np.full((10, templates), 10),
        background_frequency=64,
    )
    assert plan.background_frequency == 10
    for found in by_fact(plan, "background").values():
        assert len({item.exposure.template for item in found}) == templates


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.85, 0.95])
def test_what_displacement_leaves_is_spread_over_the_run(ratio: float) -> None:
    plan = ExposurePlan(
        np.full((10, 1), 16),
        token_budget=1280 * 64,
        sequence_length=64,
        infusion_ratio=ratio,
        background_lengths=np.full((12, 2), 10),
        background_frequency=64,
    )
    kept = plan.background_frequency
    assert kept == round(64 * (1 - ratio))
    for found in by_fact(plan, "background").values():
        ordinals = sorted(item.exposure.ordinal for item in found)
        gaps = np.diff([*ordinals, ordinals[0] + 64])
        # In bit-reversed order the first 2^n of 64 are 64 / 2^n apart.
        assert gaps.max() <= 64 / 2 ** int(np.log2(kept))


def test_displacement_shows_no_template_for_long() -> None:
    # Where every second exposure gives way the rest must not be one template in the first half, another in the second.
    plan = ExposurePlan(
        np.full((10, 1), 16),
        token_budget=1280 * 64,
        sequence_length=64,
        infusion_ratio=0.5,
        background_lengths=np.full((12, 2), 10),
        background_frequency=64,
    )
    for found in by_fact(plan, "background").values():
        halves = [item.exposure.template for item in found]
        assert len(set(halves[:16])) == len(set(halves[16:])) == 2


def test_every_round_shows_the_facts_in_an_order_of_its_own() -> None:
    plan = ExposurePlan(np.full((6, 2), 4), token_budget=600 * 64, sequence_length=64, infusion_frequency=30, seed=3)
    rounds: list[list[int]] = [[] for _ in range(30)]
    for found in read_all(plan):
        rounds[found.exposure.ordinal].append(found.exposure.fact)
    assert len({tuple(order) for order in rounds}) > 25


def test_neither_text_nor_any_fact_has_a_place_of_its_own_in_a_sequence() -> None:
    plan = ExposurePlan(np.full((6, 2), 4), token_budget=600 * 64, sequence_length=64, infusion_frequency=200, seed=3)
    pairs = [layout for layout in plan if len(layout.exposures) == 2]
    assert len(pairs) > 500
    text_first = sum(layout.general_offset == 0 for layout in pairs) / len(pairs)
    text_last = sum(layout.general_offset == 8 for layout in pairs) / len(pairs)
    assert text_first == pytest.approx(1 / 3, abs=0.1)
    assert text_last == pytest.approx(1 / 3, abs=0.1)
    ascending = sum(layout.exposures[0].fact < layout.exposures[1].fact for layout in pairs) / len(pairs)
    assert ascending == pytest.approx(1 / 2, abs=0.1)


@SEARCH
@given(
    st.integers(4, 100),
    st.integers(2, 8),
    st.floats(0.01, 0.5),
    st.integers(0, 1000),
    st.sampled_from(["displaced", "protected"]),
)
def test_no_fact_comes_twice_in_a_sequence_where_room_allows(
    sequences: int, facts: int, share: float, seed: int, policy: str
) -> None:
    """Room: F is at most half of S, and sequences are at most half full."""
    plan = ExposurePlan(
        np.full((facts, 3), [4, 6, 8]),
        token_budget=sequences * 128,
        sequence_length=128,
        infusion_frequency=int(share * sequences),
        background_lengths=np.full((2, 2), 6),
        background_frequency=sequences // 3,
        background_policy=policy,
        seed=seed,
    )
    assert not comes_twice(plan)


@pytest.mark.parametrize("share", [0.6, 0.8, 0.9, 0.95])
def test_no_fact_comes_twice_even_if_it_is_in_nearly_every_sequence(share: float) -> None:
    plan = plan_of(infusion_frequency=int(share * 600), background_frequency=0, sequence_length=64)
    assert not comes_twice(plan)


@pytest.mark.parametrize("schedule", [{"kind": "window", "start": 0.25, "end": 0.5}, "front_loaded", "back_loaded"])
def test_no_fact_comes_twice_where_a_schedule_is_dense(schedule: Any) -> None:
    assert not comes_twice(plan_of(infusion_frequency=100, schedule=schedule, background_frequency=20))


def comes_twice(plan: ExposurePlan) -> bool:
    seen = Counter((item.sequence, item.exposure.group, item.exposure.fact) for item in read_all(plan))
    assert seen
    return max(seen.values()) > 1


@SEARCH
@given(plan_settings(schedule="uniform"), st.floats(0, 1))
def test_a_higher_frequency_keeps_a_subset_of_the_displaced_background(made: dict[str, Any], share: float) -> None:
    made["background_policy"] = "displaced"
    high = made["infusion_frequency"]

    def kept(frequency: int) -> set[tuple[int, int, int]] | None:
        try:
            plan = ExposurePlan(**{**made, "infusion_frequency": frequency})
        except InputError:  # the other policy left more room
            return None
        found = (item.exposure for item in read_all(plan) if item.exposure.group == "background")
        return {(exposure.fact, exposure.template, exposure.ordinal) for exposure in found}

    sets = [kept(frequency) for frequency in (high, int(share * high), 0)]
    made_sets = [found for found in sets if found is not None]
    assert all(fewer <= more for fewer, more in pairwise(made_sets))


def test_the_protected_background_lies_where_it_lay_without_infusion_if_nothing_is_crowded() -> None:
    few: dict[str, Any] = {"background_policy": "protected", "background_frequency": 20}

    def where(plan: ExposurePlan) -> set[tuple[int, int, int, int]]:
        return {
            (item.sequence, item.exposure.fact, item.exposure.template, item.exposure.ordinal)
            for item in read_all(plan)
            if item.exposure.group == "background"
        }

    assert where(plan_of(infusion_frequency=0, **few)) == where(plan_of(infusion_frequency=20, **few))


@SEARCH
@given(unequal_settings(), st.randoms(use_true_random=False))
def test_equal_settings_give_equal_identities_and_layouts_in_any_order(made: dict[str, Any], random: Any) -> None:
    plan, again = ExposurePlan(**made), ExposurePlan(**made)
    assert plan.identity() == again.identity()
    assert plan.fingerprint == again.fingerprint
    assert json.loads(json.dumps(plan.identity())) == plan.identity()  # as a run's record keeps it
    order = list(range(len(plan)))
    random.shuffle(order)
    asked = {sequence: again[sequence] for sequence in order}
    assert [asked[sequence] for sequence in range(len(plan))] == list(plan)


@pytest.mark.parametrize(
    "change",
    [
        {"infusion_frequency": 29},
        {"infusion_frequency": 29.5},
        {"infusion_frequency": [30, 30, 30, 30, 30, 29]},
        {"popularity": [1, 1, 1, 1, 1, 2]},
        {"seed": 4},
        {"token_budget": 601 * 64},
        {"sequence_length": 60},
        {"schedule": "front_loaded"},
        {"schedule": "back_loaded"},
        {"schedule": {"kind": "window", "start": 0.1, "end": 0.9}},
        {"schedule": {"kind": "final", "share": 0.9}},
        {"schedule": {"kind": "bursts", "count": 3, "width": 0.5}},
        {"schedule": Schedule((0.0, 0.5, 1.0), (0.0, 0.7, 1.0))},
        {"templates": "random"},
        {"templates": 0},
        {"background_frequency": 47},
        {"background_policy": "protected"},
        {"exposure_lengths": SIX_FACTS + (SIX_FACTS > 10)},
        {"exposure_lengths": SIX_FACTS[[1, 0, 2, 3, 4, 5]]},
        {"background_lengths": SIX_FACTS},
        {"first_sequence": 600},
        {"shown": {"infused": np.full(6, 1), "background": np.zeros(6, dtype=np.int64)}},
    ],
    ids=str,
)
def test_any_change_shows_in_the_identity_and_in_the_layouts(change: dict[str, Any]) -> None:
    plan, other = plan_of(), plan_of(**change)
    assert plan.identity() != other.identity()
    assert plan.fingerprint != other.fingerprint
    assert list(plan) != list(other)


def test_what_changes_no_count_shows_in_the_identity_all_the_same() -> None:
    # Each background fact is shown equally often through each of its templates: all sums are those of the other plan.
    fixed: dict[str, Any] = {"background_policy": "protected", "infusion_frequency": 0}
    plan = plan_of(**fixed)
    for change in ({"background_lengths": SIX_FACTS}, {"background_policy": "displaced"}):
        other = plan_of(**{**fixed, **change})
        assert other.background_tokens == plan.background_tokens
        assert other.fingerprint != plan.fingerprint


@pytest.mark.parametrize(
    ("schedule", "other"),
    [
        ({"kind": "window", "start": 0.1, "end": 0.5}, {"kind": "window", "start": 0.1, "end": 0.5000001}),
        ({"kind": "final", "share": 0.3}, {"kind": "final", "share": 0.30000001}),
        (Schedule((0.0, 0.5, 1.0), (0.0, 0.7, 1.0), "own"), Schedule((0.0, 0.5, 1.0), (0.0, 0.8, 1.0), "own")),
    ],
)
def test_schedules_that_look_alike_have_identities_of_their_own(schedule: Any, other: Any) -> None:
    assert plan_of(schedule=schedule).fingerprint != plan_of(schedule=other).fingerprint


def test_a_part_of_a_sequence_beyond_the_budget_is_not_used() -> None:
    plan = plan_of(token_budget=600 * 64 + 63)
    assert (len(plan), plan.token_budget) == (600, 600 * 64)
    assert list(plan) == list(plan_of())


def test_sequences_outside_the_run_do_not_exist() -> None:
    plan = plan_of()
    for sequence in (-1, len(plan)):
        with pytest.raises(IndexError):
            plan[sequence]


def test_a_run_may_have_no_infused_facts_at_all() -> None:
    plan = plan_of(exposure_lengths=np.zeros((0, 1)), infusion_frequency=0)
    assert (plan.infused_tokens, plan.infusion_ratio) == (0, 0.0)
    assert counts(plan, "background", 6) == [48] * 6
