"""A run that goes on: what was laid out stays, and each part keeps the promises of a plan."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_kis.common.errors import InputError
from megatron_kis.data import ExposurePlan
from megatron_kis.data.extension import ExtendedPlan, check_continuation, extend
from tests.megatron_kis.data.counting import by_fact, counts, schedules, unequal_settings

SEARCH = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
FACTS = np.array([[9, 7, 11], [5, 6, 0], [12, 0, 0], [8, 8, 8], [3, 4, 5], [10, 9, 0]])


def base_of(**changes: Any) -> ExposurePlan:
    return ExposurePlan(
        **{
            "exposure_lengths": FACTS,
            "token_budget": 300 * 64,
            "sequence_length": 64,
            "infusion_frequency": 20,
            "seed": 3,
            "background_lengths": FACTS[::-1],
            "background_frequency": 12,
            **changes,
        }
    )


@SEARCH
@given(unequal_settings(), st.floats(0.1, 2), st.floats(0, 2), schedules(), st.booleans())
def test_every_part_of_an_extended_run_keeps_its_promises(
    made: dict[str, Any], longer: float, more: float, schedule: Any, by_ratio: bool
) -> None:
    base = ExposurePlan(**made)
    length = base.sequence_length
    sizes = [len(base) + 1 + int(longer * len(base))]
    sizes.append(sizes[0] + 1 + int(more * len(base)))
    plans: list[ExposurePlan | ExtendedPlan] = [base]
    for size in sizes:
        asked: dict[str, Any] = {"infusion_ratio": 0.5 * base.infusion_ratio} if by_ratio else {}
        try:
            plans.append(extend(plans[-1], size * length, schedule=schedule, **asked))
        except InputError as error:  # what was dense may not fit into the shape of the rest
            assert "fit" in str(error) or "densest" in str(error), str(error)
            break
    for before, plan in pairwise(plans):
        assert isinstance(plan, ExtendedPlan)
        assert [plan[sequence] for sequence in range(len(before))] == list(before)
        assert plan.token_budget == len(plan) * length
        for group, lengths in (("infused", made["exposure_lengths"]), ("background", made["background_lengths"])):
            expected = plan.expected(group)
            assert counts(plan, group, len(lengths)) == expected.tolist()
            assert (expected - before.expected(group) == plan.tail.expected(group)).all()
            for fact, found in by_fact(plan, group).items():
                ordinals = [item.exposure.ordinal for item in found]
                assert len(set(ordinals)) == len(ordinals)
                shown = Counter(item.exposure.template for item in found)
                if group == "infused" and isinstance(made["templates"], int):
                    assert set(shown) == {made["templates"]}
                    continue
                shares = [shown[template] for template in range(int((lengths[fact] > 0).sum()))]
                assert max(shares) - min(shares) <= 1, f"{group} fact {fact}: {shares}"
        infused = sum(
            exposure.length for layout in plan for exposure in layout.exposures if exposure.group == "infused"
        )
        assert (plan.infused_tokens, plan.infusion_ratio) == (infused, infused / plan.token_budget)
        if by_ratio:
            wanted = 0.5 * base.infusion_ratio * plan.tail.token_budget
            assert abs(plan.tail.infused_tokens - wanted) <= made["exposure_lengths"].max()


def test_an_extension_goes_on_at_the_rate_of_the_run() -> None:
    plan = extend(base_of(), 900 * 64)
    assert counts(plan, "infused", 6) == [60] * 6
    assert plan.infusion_frequency == 60
    kept = round(24 * (1 - plan.tail.infusion_ratio))
    assert counts(plan, "background", 6) == [base_of().background_frequency + kept] * 6
    mean = len(plan.tail) / 40
    for found in by_fact(plan, "infused").values():
        places = [item.sequence for item in found if item.sequence >= 300]
        assert all(
            abs(after - before - mean) <= plan.tail.spacing_tolerance * mean + 3 * plan.tail.block + 1
            for before, after in pairwise(places)
        )


def test_ordinals_go_on_after_those_that_gave_way() -> None:
    # Regression: the second part counted from what the first had left, and so counted some ordinals twice.
    plan = extend(base_of(infusion_ratio=0.5, infusion_frequency=None), 900 * 64)
    for group in ("infused", "background"):
        for found in by_fact(plan, group).values():
            ordinals = [item.exposure.ordinal for item in found]
            assert len(set(ordinals)) == len(ordinals)
            first, second = (
                [item.exposure.ordinal for item in found if (item.sequence < 300) == early] for early in (True, False)
            )
            assert max(first) < min(second)


def test_popular_facts_stay_popular() -> None:
    listed = [40, 4, 0, 12, 8, 4]
    plan = extend(base_of(infusion_frequency=listed), 450 * 64)
    assert counts(plan.tail, "infused", 6) == [20, 2, 0, 6, 4, 2]


def test_what_is_added_may_be_infused_otherwise() -> None:
    plan = extend(base_of(), 400 * 64, infusion_frequency=3, schedule={"kind": "final", "share": 0.5})
    assert counts(plan, "infused", 6) == [23] * 6
    late = [item.sequence for found in by_fact(plan, "infused").values() for item in found if item.sequence >= 300]
    assert min(late) >= 350 - 2 * plan.tail.block
    assert extend(base_of(), 400 * 64, infusion_frequency=0).tail.infused_tokens == 0
    assert extend(base_of(), 400 * 64, infusion_ratio=0.25).tail.infusion_ratio == pytest.approx(0.25, abs=12 / 6400)


def test_many_small_extensions_plant_as_much_background_as_a_long_run() -> None:
    # Regression: each rounded its own share of the background, so that short ones planted none for ever.
    plan: ExposurePlan | ExtendedPlan = base_of(infusion_frequency=0, background_frequency=4)
    for sequences in range(330, 601, 30):  # 0.4 exposures each
        plan = extend(plan, sequences * 64)
    assert counts(plan, "background", 6) == [8] * 6


def test_a_part_of_a_sequence_beyond_the_budget_is_not_used() -> None:
    assert len(extend(base_of(), 350 * 64 + 63)) == 350


@pytest.mark.parametrize("sequence", [-1, 400])
def test_sequences_outside_the_extended_run_do_not_exist(sequence: int) -> None:
    with pytest.raises(IndexError):
        extend(base_of(), 400 * 64)[sequence]


def test_layouts_asked_for_together_are_those_asked_for_one_by_one() -> None:
    plan, together = (extend(base_of(), 400 * 64) for _ in range(2))
    order = np.random.default_rng(0).permutation(400).tolist()
    for first in range(0, 400, 50):
        together.prefetch(order[first : first + 50])
        for sequence in order[first : first + 50]:
            assert together[sequence] == plan[sequence]


@pytest.mark.parametrize("budget", [0, 299 * 64, 300 * 64, 301 * 64 - 1])
def test_an_extension_by_nothing_is_refused(budget: int) -> None:
    with pytest.raises(
        InputError,
        match=rf"token_budget: {budget} tokens are less than one sequence more than the run so far \(19200\)",
    ):
        extend(base_of(), budget)


def test_an_extension_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match=r"infusion_frequency: 6 infused facts x 100 exposures .* about \d+"):
        extend(base_of(), 310 * 64, infusion_frequency=100)


def test_a_run_may_go_on_under_its_plan_and_under_what_extends_it() -> None:
    base = base_of()
    once = extend(base, 400 * 64)
    twice = extend(once, 500 * 64, infusion_frequency=2)
    for before, now in [(base, base), (base, once), (base, twice), (once, twice), (once, once), (twice, twice)]:
        recorded = json.loads(json.dumps(before.identity()))
        check_continuation(recorded, now.identity())
    assert len({plan.fingerprint for plan in (base, once, twice)}) == 3


@pytest.mark.parametrize(
    ("before", "now", "named"),
    [
        (base_of(), base_of(seed=4), r"seed was 3, is 4$"),
        (
            base_of(),
            base_of(infusion_frequency=21),
            r"\): infusion_frequency was 20, is 21$",
        ),
        (base_of(), extend(base_of(seed=4), 400 * 64), r"seed was 3, is 4$"),
        (extend(base_of(), 400 * 64), base_of(), r"the run so far was extended to 25600 tokens, this is 19200$"),
        (extend(base_of(), 400 * 64), extend(base_of(), 500 * 64), r"token_budget was 6400, is 12800"),
        (
            extend(base_of(), 400 * 64),
            extend(base_of(), 400 * 64, infusion_frequency=2),
            r"infusion_frequency was \S+, is 2",
        ),
        (extend(base_of(), 400 * 64), extend(base_of(seed=4), 400 * 64), r"seed was 3, is 4$"),
        (base_of(), base_of(exposure_lengths=FACTS[::-1]), r"lengths_fingerprint was '[0-9a-f]+', is '[0-9a-f]+'"),
        (base_of(), base_of(schedule="back_loaded"), r"\): schedule was 'uniform', is 'back_loaded'$"),
    ],
    ids=[
        "seed",
        "frequency",
        "extends another",
        "shortened",
        "other size",
        "other infusion",
        "other base",
        "lengths",
        "schedule",
    ],
)
def test_another_plan_is_refused_by_what_differs_and_by_both_fingerprints(
    before: ExposurePlan | ExtendedPlan, now: ExposurePlan | ExtendedPlan, named: str
) -> None:
    with pytest.raises(InputError) as caught:
        check_continuation(json.loads(json.dumps(before.identity())), now.identity())
    message = str(caught.value.problem)
    assert before.fingerprint[:12] in message and now.fingerprint[:12] in message
    assert re.search(named, message), message
    assert len(message) < 500  # a reader sees what differs, not all that is the same
    assert caught.value.where == "infusion"
    assert "extend" in str(caught.value.remedy)
