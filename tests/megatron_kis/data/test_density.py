"""Plans as dense, and as long, as a study needs them."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from megatron_kis.data import ExposurePlan
from tests.megatron_kis.data.counting import counts, read_all

# 60 facts under 8 templates of 10 to 24 tokens, as short names and sentences give with 2,048 pieces.
LENGTHS = np.random.default_rng(0).integers(10, 25, size=(60, 8))


@pytest.mark.parametrize("sequences", [512, 513, 767])
def test_nineteen_twentieths_of_a_run_can_be_infusion(sequences: int) -> None:
    plan = ExposurePlan(
        LENGTHS,
        token_budget=sequences * 128,
        sequence_length=128,
        infusion_ratio=0.95,
        background_lengths=LENGTHS,
        background_frequency=20,
    )
    assert plan.infusion_ratio == pytest.approx(0.95, abs=24 / plan.token_budget)
    assert counts(plan, "infused", 60) == plan.expected("infused").tolist()
    assert np.ptp(plan.expected("infused")) <= 1
    assert counts(plan, "background", 60) == [round(20 * (1 - plan.infusion_ratio))] * 60


def test_a_sparse_plan_leaves_every_exposure_in_its_ideal_sequence() -> None:
    plan = ExposurePlan(LENGTHS, token_budget=1207 * 256, sequence_length=256, infusion_frequency=10)
    found = list(read_all(plan))
    assert [item.sequence for item in found] == [(2 * number + 1) * 1207 // (2 * 600) for number in range(600)]


def test_a_sparse_plan_has_small_blocks_and_a_dense_one_larger() -> None:
    fixed: dict[str, Any] = {"token_budget": 6000 * 128, "sequence_length": 128}
    blocks = [ExposurePlan(LENGTHS, infusion_ratio=ratio, **fixed).block for ratio in (0.1, 0.7, 0.99)]
    assert blocks[0] < 10
    assert blocks[0] < blocks[-1]
    assert blocks == sorted(blocks)
    assert blocks[-1] <= 6000


@pytest.mark.parametrize("schedule", ["uniform", "front_loaded"])
@pytest.mark.parametrize("popular", [False, True])
def test_a_run_of_a_billion_sequences_and_a_million_facts_is_laid_out_at_any_place(
    schedule: str, popular: bool
) -> None:
    facts, sequences, frequency = 10**6, 10**9, 5000
    lengths = np.full((facts, 4), [12, 15, 18, 21], dtype=np.int16)
    plan = ExposurePlan(
        lengths,
        token_budget=sequences * 2048,
        sequence_length=2048,
        infusion_frequency=np.where(np.arange(facts) % 2, frequency + 1, frequency - 1) if popular else frequency,
        schedule=schedule,
        background_lengths=lengths[:1000],
        background_frequency=1000,
    )
    assert len(plan) == sequences
    assert plan.infused_tokens == pytest.approx(facts * frequency * 16.5, rel=1e-3)
    for first in (0, sequences // 2, sequences - 40 * plan.block):
        window = [plan[sequence] for sequence in range(first, first + 40 * plan.block)]
        assert all(
            layout.general_tokens + sum(exposure.length for exposure in layout.exposures) == 2048 for layout in window
        )
        found = [exposure for layout in window for exposure in layout.exposures if exposure.group == "infused"]
        shown = plan.inputs.schedule.share(np.array([first, first + len(window)]) / sequences)
        assert len(found) == pytest.approx(np.diff(shown)[0] * facts * frequency, abs=4)
        assert len({exposure[:2] for exposure in found}) == len(found)  # no fact again within 40 blocks
        assert np.ptp([exposure.ordinal for exposure in found]) <= (2 if popular else 1)
        assert {exposure.template for exposure in found} == {0, 1, 2, 3}
    with pytest.raises(IndexError):
        plan[sequences]


def test_what_a_layout_costs_does_not_grow_with_the_run() -> None:
    def seconds(sequences: int) -> float:
        plan = ExposurePlan(
            np.full((1000, 4), [12, 15, 18, 21]),
            token_budget=sequences * 2048,
            sequence_length=2048,
            infusion_frequency=sequences // 10,
        )
        best = np.inf
        for attempt in range(5):
            start = time.perf_counter()
            for sequence in range(attempt * 100 * plan.block, (attempt * 100 + 20) * plan.block, plan.block):
                plan[sequence]
            best = min(best, time.perf_counter() - start)
        return best

    assert seconds(10**9) < 4 * seconds(10**5)
