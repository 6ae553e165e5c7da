from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from megatron_kis.config.run import OptimizerConfig
from megatron_kis.engine.lr_schedule import learning_rate

SEARCH = settings(max_examples=60, deadline=None)


def rates(steps: int, **changes: Any) -> list[float]:
    config = OptimizerConfig(**{"learning_rate": 2.0, "warmup_share": 0.1, "minimum_share": 0.1, **changes})
    return [learning_rate(step, steps, config) for step in range(steps)]


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_the_rate_rises_in_a_line_to_the_peak(schedule: str) -> None:
    found = rates(100, schedule=schedule)
    assert found[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_the_last_step_has_the_minimum(schedule: str) -> None:
    for steps in (2, 3, 50, 200):
        for minimum in (0.0, 0.1, 1.0):
            assert rates(steps, schedule=schedule, minimum_share=minimum)[-1] == pytest.approx(2.0 * minimum, abs=1e-12)


def test_phases_that_overlap_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"warmup_share 0\.6 and decay_share 0\.5 are more than 1 together"):
        OptimizerConfig(schedule="wsd", warmup_share=0.6, decay_share=0.5)
    OptimizerConfig(schedule="cosine", warmup_share=0.6, decay_share=0.5)  # which has no decay of its own


def test_a_cosine_is_a_cosine() -> None:
    found = rates(110, warmup_share=10 / 110)
    assert found[9:110:20] == pytest.approx(
        [0.2 + 1.8 * 0.5 * (1 + math.cos(math.pi * share)) for share in (0, 0.2, 0.4, 0.6, 0.8, 1)], abs=0.03
    )
    assert found[59] == pytest.approx(1.1, abs=0.03)  # half-way between the peak and the minimum


def test_wsd_is_stable_until_its_decay_and_then_falls_in_a_line() -> None:
    found = rates(100, schedule="wsd", decay_share=0.2)
    assert found[9:80] == [2.0] * 71
    falls = [before - after for before, after in pairwise(found[80:])]
    assert found[80] >= 2.0 - 1.8 / 20
    assert falls == pytest.approx([1.8 / 20] * 19)


@SEARCH
@given(
    st.integers(1, 300),
    st.sampled_from(["cosine", "wsd"]),
    st.floats(0, 0.5),
    st.floats(0.01, 0.5),
    st.floats(0, 1),
)
def test_the_rate_rises_then_never_rises_again_within_its_bounds(
    steps: int, schedule: str, warmup: float, decay: float, minimum: float
) -> None:
    found = rates(steps, schedule=schedule, warmup_share=warmup, decay_share=decay, minimum_share=minimum)
    top = max(1, round(steps * warmup))
    assert all(before <= after for before, after in pairwise(found[:top]))
    assert all(before >= after - 1e-12 for before, after in pairwise(found[top:]))
    assert all(0 <= rate <= 2.0 + 1e-12 for rate in found)
    assert all(2.0 * minimum - 1e-12 <= rate <= 2.0 + 1e-12 for rate in found[top:])


def test_without_warm_up_the_first_rate_is_the_peak() -> None:
    assert rates(50, warmup_share=0.0)[0] == pytest.approx(2.0, rel=0.01)
