"""From streams to layouts: exposures stay in their ideal sequences unless their block is crowded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_kis.data import ExposurePlan, block_cache
from megatron_kis.data.block_builder import BlockBuilder
from megatron_kis.data.stream import Stream
from tests.megatron_kis.data.counting import unequal_settings

SEARCH = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)


def stream_of(lengths: list[int], frequency: int) -> Stream:
    return Stream("infused", np.array(lengths)[:, None], frequency, key=5)


def test_what_crowds_one_block_moves_nothing_in_another() -> None:
    stream = stream_of([10, 30, 10, 10, 30, 10, 10, 10], 6)
    builder = BlockBuilder([stream], sequences=24, sequence_length=32, key=1)
    firsts = np.arange(0, 24, 4)
    facts, _, ordinals, ideal, owner = stream.exposures_in(firsts, firsts + 4, 24)
    wanted = {
        (int(fact), int(ordinal)): int(place) for fact, ordinal, place in zip(facts, ordinals, ideal, strict=True)
    }
    blocks = builder.build([range(first, first + 4) for first in firsts])
    assert blocks is not None
    kept, moved = 0, 0
    for number, block in enumerate(blocks):
        mine = owner == number
        fill = np.bincount(ideal[mine] - firsts[number], stream.lengths[facts[mine], 0], minlength=4)
        crowded = fill.max() > 32 or len({*zip(facts[mine], ideal[mine], strict=True)}) < mine.sum()
        for place in range(4):
            for exposure in block.layout(place).exposures:
                stays = wanted[exposure.fact, exposure.ordinal] == firsts[number] + place
                assert stays or crowded
                kept, moved = kept + stays, moved + (not stays)
    assert kept and moved


@SEARCH
@given(unequal_settings(), st.randoms(use_true_random=False))
def test_layouts_arranged_together_are_those_arranged_one_by_one(made: dict[str, Any], random: Any) -> None:
    plan, together = ExposurePlan(**made), ExposurePlan(**made)
    order = [*range(len(plan)), *range(len(plan))]
    random.shuffle(order)
    while order:
        asked, order = order[:7], order[7:]
        together.prefetch(asked)
        for sequence in asked:
            assert together[sequence] == plan[sequence]


def test_exposures_of_a_crowded_block_keep_the_order_of_their_ideal_places() -> None:
    one, two = stream_of([33] * 10, 10), Stream("background", np.full((10, 1), 33), 8, key=9)
    ideals: dict[tuple[str, int, int], int] = {}
    for group, stream in (("infused", one), ("background", two)):
        facts, _, ordinals, ideal, _ = stream.exposures_in(np.array([0]), np.array([300]), 300)
        ideals |= {(group, *key): place for *key, place in zip(facts, ordinals, ideal, strict=True)}
    assert len(set(ideals.values())) < len(ideals)  # some would share a sequence, which holds one
    blocks = BlockBuilder([one, two], sequences=300, sequence_length=64, key=1).build(
        [range(first, first + 60) for first in range(0, 300, 60)]
    )
    assert blocks is not None
    found = [
        ideals[exposure[0], exposure.fact, exposure.ordinal]
        for block in blocks
        for place in range(60)
        for exposure in block.layout(place).exposures
    ]
    assert len(found) == 180
    assert found == sorted(found)


def test_more_blocks_than_are_kept_can_be_asked_for_together() -> None:
    plan = ExposurePlan(np.full((40, 2), 9), token_budget=9000 * 64, sequence_length=64, infusion_frequency=500, seed=2)
    wanted = list(range(0, 9000, 7))
    plan.prefetch(wanted)
    again = ExposurePlan(
        np.full((40, 2), 9), token_budget=9000 * 64, sequence_length=64, infusion_frequency=500, seed=2
    )
    assert all(plan[sequence] == again[sequence] for sequence in wanted)


@pytest.mark.parametrize("small", [True, False])
def test_a_run_that_is_read_in_order_arranges_every_block_once(monkeypatch: pytest.MonkeyPatch, small: bool) -> None:
    if not small:
        monkeypatch.setattr(block_cache, "_SMALL", 0)  # as if there were more exposures than memory should hold
    plan = ExposurePlan(np.full((40, 2), 9), token_budget=9000 * 64, sequence_length=64, infusion_frequency=500)
    arranged: list[int] = []
    original = BlockBuilder.build

    def counted(self: BlockBuilder, blocks: Sequence[range]) -> Any:
        arranged.extend(block.start for block in blocks)
        return original(self, blocks)

    monkeypatch.setattr(BlockBuilder, "build", counted)
    for step in range(0, 9000, 8):  # two replicas, each a little behind the other
        for sequence in (*range(step, step + 4), *range(max(0, step - 12), step + 8)):
            plan[sequence]
    assert sorted(arranged) == list(range(0, 9000 - plan.block + 1, plan.block))
    assert small or len(plan._blocks.built) <= 2 * 64  # memory does not grow with what was read


def test_a_block_that_cannot_hold_its_exposures_is_said_so() -> None:
    builder = BlockBuilder([stream_of([33, 33], 3)], sequences=4, sequence_length=64, key=1)
    assert builder.build([range(4)]) is None
    assert not builder.can_pack([range(4)])
    assert BlockBuilder([stream_of([33, 33], 2)], sequences=4, sequence_length=64, key=1).can_pack([range(4)])


def test_a_bad_block_is_found_among_many_good_ones() -> None:
    stream = stream_of([33] * 10, 50)
    builder = BlockBuilder([stream], sequences=500, sequence_length=64, key=1)
    assert builder.can_pack(range(first, first + 1) for first in range(500))
    crowded = BlockBuilder([stream_of([33] * 10, 50), stream_of([33], 1)], sequences=500, sequence_length=64, key=1)
    assert not crowded.can_pack(range(first, first + 1) for first in range(500))
