"""Whether exposures fit: what is promised without trying can be kept in every block."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_kis.common.errors import InputError
from megatron_kis.data import ExposurePlan, block_size
from megatron_kis.data.block_size import BlockLayout
from tests.megatron_kis.data.counting import schedules

SEARCH = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)


@st.composite
def tight_settings(draw: st.DrawFn) -> dict[str, Any]:
    """Long runs, nearly full, of lengths that are hard: a few long facts, seldom ones that are long, one template."""
    length = draw(st.sampled_from([32, 64, 128]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    facts, templates = draw(st.integers(2, 120)), draw(st.integers(1, 4))
    kind = draw(st.sampled_from(["mixed", "few long", "seldom and long"]))
    lengths = rng.integers(2, length // 2, size=(facts, templates))
    popularity = None
    if kind != "mixed":
        long = rng.random(facts) < 0.2
        lengths = np.where(long[:, None], length // 2 - 1, 3) * np.ones((1, templates), dtype=int)
        if kind == "seldom and long":
            popularity = np.where(long, 0.2, 1.0) * (1 + rng.random(facts))
    return {
        "exposure_lengths": lengths,
        "token_budget": draw(st.integers(200, 1500)) * length,
        "sequence_length": length,
        "infusion_ratio": draw(st.sampled_from([0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95])),
        "popularity": popularity,
        "seed": draw(st.integers(0, 2**31)),
        "schedule": draw(st.one_of(st.just("uniform"), schedules())),
        "templates": draw(st.sampled_from(["round_robin", "random", 0])),
        "background_lengths": lengths[:7],
        "background_frequency": draw(st.integers(0, 20)),
    }


@SEARCH
@given(tight_settings())
def test_a_plan_that_is_called_safe_without_trying_can_be_packed_in_every_block(made: dict[str, Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_size, "_TRIED_EXPOSURES", 0)
        patch.setattr(block_size, "_SAMPLED_BLOCKS", 1)  # as if there were so many blocks that samples said nothing
        try:
            plan = ExposurePlan(**made)
        except InputError as error:
            assert "fits" in str(error) or "densest" in str(error), str(error)
            return
    assert (
        sum(len(layout.exposures) for layout in plan)
        == plan.expected("infused").sum() + plan.expected("background").sum()
    )


@SEARCH
@given(tight_settings())
def test_the_bound_holds_for_the_fullest_block(made: dict[str, Any]) -> None:
    try:
        plan = ExposurePlan(**made)
    except InputError:
        return
    streams = list(plan._streams.values())  # the bound is of a block's exposures before they are packed
    for block in (8, 64):
        if block <= len(plan):
            tokens = np.zeros(len(plan))
            for stream in streams:
                if stream.exposures:
                    starts, ends = np.arange(len(plan)), np.arange(1, len(plan) + 1)
                    facts, templates, _, ideal, _ = stream.exposures_in(starts, ends, len(plan))
                    tokens += np.bincount(ideal, stream.lengths[facts, templates], minlength=len(plan))
            fullest = np.convolve(tokens, np.ones(block), mode="valid").max()
            assert fullest <= block_size._fullest(streams, block, len(plan)) + 1e-6


@pytest.mark.parametrize("block", [64, 512])
def test_the_bound_is_not_far_above_what_chance_reaches(block: int) -> None:
    # Half of the facts as long as can be, half as short: the largest variance that the bound reckons with.
    lengths = np.where(np.arange(4000) % 2, 31, 1)[:, None]
    plan = ExposurePlan(lengths, token_budget=20_000 * 128, sequence_length=128, infusion_frequency=20)
    starts = np.arange(len(plan))
    facts, _, _, ideal, _ = plan._streams["infused"].exposures_in(starts, starts + 1, len(plan))
    tokens = np.bincount(ideal, lengths[facts, 0], minlength=len(plan))
    blocks = tokens[: len(plan) // block * block].reshape(-1, block).sum(axis=1)
    bound, mean = block_size._fullest(list(plan._streams.values()), block, len(plan)), blocks.mean()
    deviation = np.sqrt(4 * block * 15**2)  # of 4 exposures a sequence, before they come in rounds
    assert blocks.max() <= bound
    # Bernstein's for a probability of e^-40 is sqrt(2 * 40) = 8.9 deviations, and some for its linear term.
    assert 8.9 * deviation <= bound - mean <= 8.9 * deviation + 2 * 40 * 15


@SEARCH
@given(st.integers(1, 5000), st.integers(1, 600))
def test_blocks_part_a_run_and_the_last_takes_what_is_left(sequences: int, block: int) -> None:
    found = BlockLayout(sequences, block)
    ranges = [found.sequences_of(number) for number in range(found.blocks)]
    assert [sequence for part in ranges for sequence in part] == list(range(sequences))
    assert all(len(part) == block for part in ranges[:-1])
    assert len(ranges[-1]) < 2 * block or sequences < block
    assert list(found.spread(found.blocks)) == ranges
    assert set(found.spread(3)) <= set(ranges)
    assert len(list(found.spread(3))) >= min(3, found.blocks)


def test_what_fits_only_by_tokens_is_refused() -> None:
    # 33 of 64 tokens: one a sequence, whatever is packed together.
    fixed: dict[str, Any] = {"token_budget": 100 * 64, "sequence_length": 64}
    assert ExposurePlan(np.full((10, 1), 33), infusion_frequency=10, **fixed).infusion_ratio == 33 / 64
    with pytest.raises(InputError, match=r"10 infused facts x 11 exposures .* the largest that fits is about 10,"):
        ExposurePlan(np.full((10, 1), 33), infusion_frequency=11, **fixed)
