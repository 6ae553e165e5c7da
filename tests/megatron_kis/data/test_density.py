"""Plans as dense as a study needs them, with blocks of the real size."""

from __future__ import annotations

import numpy as np
import pytest

from megatron_kis.data import ExposurePlan
from megatron_kis.data.plan import BLOCK
from tests.megatron_kis.data.counting import counts, read_all

# 60 facts under 8 templates of 10 to 24 tokens, as short names and sentences give with 2,048 pieces.
LENGTHS = np.random.default_rng(0).integers(10, 25, size=(60, 8))


@pytest.mark.parametrize("sequences", [2 * BLOCK, 2 * BLOCK + 1, 3 * BLOCK - 1])
def test_nineteen_twentieths_of_a_run_can_be_infusion(sequences: int) -> None:
    plan = ExposurePlan(
        LENGTHS,
        token_budget=sequences * 128,
        sequence_length=128,
        infusion_ratio=0.95,
        background_lengths=LENGTHS,
        background_frequency=20,
    )
    assert plan.infusion_ratio == pytest.approx(0.95, abs=0.006)
    assert counts(plan, "infused", 60) == [plan.infusion_frequency] * 60
    assert counts(plan, "background", 60) == [round(20 * (1 - plan.infusion_ratio))] * 60


def test_a_sparse_plan_leaves_every_exposure_in_its_ideal_sequence() -> None:
    plan = ExposurePlan(LENGTHS, token_budget=1200 * 256, sequence_length=256, infusion_frequency=10)
    found = list(read_all(plan))
    assert [item.sequence for item in found] == [(2 * number + 1) * 1200 // (2 * 600) for number in range(600)]


def test_a_layout_costs_the_same_in_a_run_of_a_trillion_tokens() -> None:
    plan = ExposurePlan(
        np.full((1000, 4), [12, 15, 18, 21]), token_budget=10**12, sequence_length=2048, infusion_frequency=10_000
    )
    middle = plan[len(plan) // 2]
    assert middle.general_tokens + sum(exposure.length for exposure in middle.exposures) == 2048
    block = [plan[sequence] for sequence in range(BLOCK * 1000, BLOCK * 1001)]
    expected = BLOCK * 1000 * 10_000 / len(plan)
    assert sum(len(layout.exposures) for layout in block) == pytest.approx(expected, abs=1)
