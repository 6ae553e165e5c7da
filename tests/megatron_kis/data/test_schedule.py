"""When exposures come: spacing, windows, bursts and loads, and the general text beside them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_kis.common.errors import InputError
from megatron_kis.data import ExposurePlan
from megatron_kis.data.exposure_schedule import KINDS, UNIFORM, Schedule, schedule_of
from tests.megatron_kis.data.counting import by_fact, plan_settings, read_all, schedules, unequal_settings

SEARCH = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)


@settings(SEARCH, max_examples=80)
@given(unequal_settings())
def test_consecutive_exposures_of_a_fact_are_a_mean_distance_apart(made: dict[str, Any]) -> None:
    """|distance - S / F| <= evenness * S / F + three blocks (and one, for the whole numbers of sequences).

    Three: the first exposure may lie in a block and the second in the last one, which has up to two blocks' sequences.
    """
    made["schedule"] = "uniform"
    try:
        plan = ExposurePlan(**made)
    except InputError:  # the background had room beside another schedule
        return
    expected = plan.expected("infused")
    for fact, found in by_fact(plan, "infused").items():
        mean = len(plan) / expected[fact]
        places = [item.sequence for item in sorted(found, key=lambda item: item.exposure.ordinal)]
        for before, after in pairwise(places):
            assert abs(after - before - mean) <= plan.spacing_tolerance * mean + 3 * plan.block + 1


@pytest.mark.parametrize(("facts", "evenness"), [(1, 1), (31, 1), (32, 1 / 2), (48, 1 / 3), (64, 1 / 4), (500, 1 / 4)])
def test_the_more_facts_the_more_even_are_their_distances(facts: int, evenness: float) -> None:
    plan = ExposurePlan(np.full((facts, 1), 4), token_budget=4000 * 64, sequence_length=64, infusion_frequency=20)
    assert plan.spacing_tolerance == pytest.approx(evenness)
    distances = [
        after.sequence - before.sequence
        for found in by_fact(plan, "infused").values()
        for before, after in pairwise(sorted(found, key=lambda item: item.exposure.ordinal))
    ]
    assert max(abs(distance - 200) for distance in distances) <= evenness * 200 + 1
    if facts > 1:  # and an order of its own in every round
        assert len(set(distances)) > 10


@SEARCH
@given(plan_settings(schedule="uniform"))
def test_each_round_of_sequences_holds_one_exposure_of_each_fact(made: dict[str, Any]) -> None:
    """Exposure r of a fact has its ideal place in round r, sequences [r S/F, (r + 1) S/F).

    It lies in the block of that place, which is less than two blocks long.
    """
    plan = ExposurePlan(**made)
    frequency = made["infusion_frequency"]
    for found in by_fact(plan, "infused").values():
        for item in found:
            first = item.exposure.ordinal * len(plan) / frequency
            last = (item.exposure.ordinal + 1) * len(plan) / frequency
            assert first - 2 * plan.block < item.sequence < last + 2 * plan.block


def test_exposures_lie_in_their_round_exactly_where_nothing_is_crowded() -> None:
    plan = ExposurePlan(np.full((6, 2), 4), token_budget=600 * 64, sequence_length=64, infusion_frequency=30, seed=3)
    for found in by_fact(plan, "infused").values():
        assert [item.sequence // 20 for item in found] == list(range(30))


@SEARCH
@given(plan_settings())
def test_exposures_lie_where_the_schedule_says(made: dict[str, Any]) -> None:
    """Exposure r of F lies where the schedule has shown between r / F and (r + 1) / F, give or take two blocks."""
    plan = ExposurePlan(**made)
    frequency = made["infusion_frequency"]
    for item in read_all(plan):
        exposure = item.exposure
        if exposure.group == "infused":
            first, last = plan.inputs.schedule.time(
                np.array([exposure.ordinal, exposure.ordinal + 1 - 1e-9]) / frequency
            )
            assert first * len(plan) - 2 * plan.block <= item.sequence <= last * len(plan) + 2 * plan.block


def sequences_under(schedule: Any, **changes: Any) -> tuple[ExposurePlan, np.ndarray]:
    settings = {"infusion_frequency": 40, "background_frequency": 0, **changes}
    table = np.full((10, 2), 10)
    plan = ExposurePlan(
        table, token_budget=2000 * 64, sequence_length=64, schedule=schedule, background_lengths=table, **settings
    )
    return plan, np.array([item.sequence for item in read_all(plan) if item.exposure.group == "infused"])


@pytest.mark.parametrize(
    ("schedule", "inside"),
    [
        ({"kind": "window", "start": 0.3, "end": 0.6}, [(0.3, 0.6)]),
        ({"kind": "window", "start": 0.0, "end": 0.2}, [(0.0, 0.2)]),
        ({"kind": "window", "start": 0, "end": 1}, [(0, 1)]),
        ({"kind": "final", "share": 0.25}, [(0.75, 1.0)]),
        ({"kind": "bursts", "count": 4, "width": 0.2}, [(0.1, 0.15), (0.35, 0.4), (0.6, 0.65), (0.85, 0.9)]),
        ({"kind": "bursts", "count": 1, "width": 1}, [(0, 1)]),
        ({"kind": "bursts", "count": 2, "width": 1}, [(0, 0.5), (0.5, 1)]),
    ],
    ids=str,
)
def test_exposures_lie_inside_their_part_of_the_run_and_fill_it_evenly(
    schedule: dict[str, Any], inside: list[tuple[float, float]]
) -> None:
    plan, sequences = sequences_under(schedule)
    assert len(sequences) == 400
    for start, end in inside:
        first, last = start * len(plan), end * len(plan)
        within = sequences[(sequences >= first - 2 * plan.block) & (sequences < last + 2 * plan.block)]
        assert len(within) == pytest.approx(400 / len(inside), abs=1 if len(inside) == 1 else 2)
        early, late = (within < first + (last - first) / 2).sum(), (within >= first + (last - first) / 2).sum()
        assert abs(early - late) <= 0.2 * len(within)
    allowed = np.zeros(len(plan), dtype=bool)
    for start, end in inside:
        allowed[max(0, int(start * len(plan)) - 2 * plan.block) : int(end * len(plan)) + 2 * plan.block] = True
    assert allowed[sequences].all()


def test_loaded_schedules_show_most_of_it_at_their_end_of_the_run() -> None:
    (plan, front), (_, back), (_, uniform) = (
        sequences_under(kind) for kind in ("front_loaded", "back_loaded", "uniform")
    )
    middle = len(plan) / 2
    # Density falls in equal steps from 2 to nothing: three quarters come in the first half.
    assert (front < middle).mean() == pytest.approx(0.75, abs=0.01)
    assert (back < middle).mean() == pytest.approx(0.25, abs=0.01)
    assert (uniform < middle).mean() == pytest.approx(0.5, abs=0.01)
    assert np.histogram(front, bins=4, range=(0, len(plan)))[0] == pytest.approx([175, 125, 75, 25], abs=3)
    assert np.histogram(back, bins=4, range=(0, len(plan)))[0] == pytest.approx([25, 75, 125, 175], abs=3)


@pytest.mark.parametrize(
    "schedule",
    [
        {"kind": "window", "start": 0.25, "end": 0.75},
        {"kind": "final", "share": 0.5},
        {"kind": "bursts", "count": 2, "width": 0.5},
    ],
)
def test_the_displaced_background_keeps_its_rate_in_the_general_text_in_and_out_of_a_window(schedule: Any) -> None:
    plan, _ = sequences_under(schedule, infusion_frequency=400, background_frequency=300)
    assert 0.3 < plan.infusion_ratio < 0.32
    shown = plan.inputs.schedule.share(np.arange(len(plan) + 1) / len(plan))
    dense = np.diff(shown) > 0
    edges = np.flatnonzero(np.diff(dense.astype(int)))
    near = (np.abs(np.arange(len(plan))[:, None] - edges) <= 2 * plan.block).any(axis=1)
    tokens, exposures = np.zeros(2), np.zeros(2)
    for number, layout in enumerate(plan):
        if not near[number]:
            planted = [exposure.length for exposure in layout.exposures if exposure.group == "background"]
            tokens[int(dense[number])] += layout.general_tokens + sum(planted)
            exposures[int(dense[number])] += len(planted)
    assert exposures.min() > 300
    rates = exposures / tokens
    assert rates[1] == pytest.approx(rates[0], rel=0.05)


@SEARCH
@given(schedules(), st.lists(st.floats(0, 1, exclude_max=True), min_size=2, max_size=20))
def test_shares_and_times_rise_together_and_undo_each_other(made: Any, values: list[float]) -> None:
    schedule = schedule_of(made)
    shares = np.sort(values)
    times = schedule.time(shares)
    assert (np.diff(times) >= 0).all() and times.min() >= 0 and times.max() <= 1
    assert schedule.share(times) == pytest.approx(shares, abs=1e-9)
    assert schedule.share(np.array([0.0, 1.0])).tolist() == [0.0, 1.0]
    densities = np.diff(schedule.share(np.linspace(0, 1, 401))) * 400
    assert densities.max() <= schedule.peak + 1e-6
    assert schedule.peak >= 1 - 1e-12


@SEARCH
@given(schedules(), st.floats(0.01, 1))
def test_general_text_and_exposures_fill_every_part_of_a_run_together(made: Any, share: float) -> None:
    schedule = schedule_of(made)
    ratio = min(0.99, share / schedule.peak)
    general = schedule.general(ratio)
    times = np.linspace(0, 1, 41)
    together = ratio * schedule.share(times) + (1 - ratio) * general.share(times)
    assert together == pytest.approx(times, abs=1e-9)


def test_beside_nothing_general_text_is_uniform() -> None:
    assert schedule_of("front_loaded").general(0.0) == UNIFORM
    assert UNIFORM.general(0.7) == UNIFORM


def test_every_kind_is_a_schedule_and_a_schedule_is_itself() -> None:
    given_settings: dict[str, dict[str, Any]] = {
        "window": {"start": 0.1, "end": 0.4},
        "final": {"share": 0.2},
        "bursts": {"count": 3, "width": 0.5},
    }
    made = {kind: schedule_of({"kind": kind, **given_settings.get(kind, {})}) for kind in KINDS}
    assert len({(schedule.times, schedule.shares) for schedule in made.values()}) == len(KINDS)
    assert made["bursts"].description == "bursts(count=3, width=0.5)"
    for schedule in made.values():
        assert schedule_of(schedule) is schedule
        assert schedule.times[0] == schedule.shares[0] == 0 and schedule.times[-1] == schedule.shares[-1] == 1
    assert schedule_of({"kind": "window", "start": 0, "end": 1}).is_uniform
    assert not schedule_of({"kind": "window", "start": 0, "end": 0.5}).is_uniform
    assert not Schedule((0.0, 0.5, 1.0), (0.0, 0.6, 1.0)).is_uniform


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("unifrom", "infusion.schedule: unknown schedule 'unifrom'; did you mean 'uniform'?"),
        ({}, "infusion.schedule: 'kind' is missing; give one of uniform, window"),
        ({"kind": "window", "start": 0.5}, "infusion.schedule: window was given start; it needs start and end"),
        ("window", "infusion.schedule: window was given nothing; it needs start and end"),
        ({"kind": "uniform", "start": 0}, "infusion.schedule: uniform was given start; it has no settings"),
        ({"kind": "final", "share": "half"}, "infusion.schedule.share: is 'half'; must be a number"),
        ({"kind": "final", "share": True}, "infusion.schedule.share: is True; must be a number"),
        ({"kind": "final", "share": float("nan")}, "infusion.schedule.share: is nan; must be a number"),
        ({"kind": "final", "share": 0}, "infusion.schedule.share: is 0; a share of the run, above 0 and at most 1"),
        ({"kind": "final", "share": 1.5}, "infusion.schedule.share: is 1.5; a share of the run"),
        ({"kind": "final", "share": 1e-17}, "final(share=1e-17) is not a part of the run"),
        ({"kind": "window", "start": 0.5, "end": 0.5}, "window(start=0.5, end=0.5) is not a part of the run"),
        ({"kind": "window", "start": 0.5, "end": 1.1}, "window(start=0.5, end=1.1) is not a part of the run"),
        ({"kind": "window", "start": -0.1, "end": 1}, "window(start=-0.1, end=1) is not a part of the run"),
        ({"kind": "bursts", "count": 0, "width": 0.5}, "bursts(count=0, width=0.5) is impossible; needs a whole count"),
        ({"kind": "bursts", "count": 2.5, "width": 0.5}, "bursts(count=2.5, width=0.5) is impossible"),
        ({"kind": "bursts", "count": 2, "width": 0}, "bursts(count=2, width=0) is impossible"),
        ({"kind": "bursts", "count": 2, "width": 1.5}, "bursts(count=2, width=1.5) is impossible"),
        ({"kind": "bursts", "count": 1, "width": 1e-17}, "bursts(count=1, width=1e-17) is impossible"),
        ({"kind": "bursts", "count": 1e12, "width": 0.5}, "bursts(count=1e+12, width=0.5) is impossible"),
    ],
    ids=str,
)
def test_a_wrong_schedule_is_refused_with_what_would_be_right(value: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        schedule_of(value)
    assert str(caught.value).startswith(message) or f": {message}" in str(caught.value)
    assert caught.value.remedy
