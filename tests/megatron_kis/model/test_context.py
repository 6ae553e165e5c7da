"""Sequences shared by ranks: every token on one of them, and the same work for each."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from megatron_kis.model import context
from megatron_kis.model.context import positions


@given(size=st.integers(1, 6), pieces=st.integers(1, 5))
def test_ranks_hold_every_place_once_and_attend_to_equally_many(size: int, pieces: int) -> None:
    length = 2 * size * pieces
    held = [positions(length, size=size, rank=rank) for rank in range(size)]
    assert sorted(torch.cat(held).tolist()) == list(range(length))
    assert len({int((places + 1).sum()) for places in held}) == 1  # keys that a causal mask leaves
    assert all(bool((places.diff() > 0).all()) for places in held)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_what_ranks_gather_lies_in_the_sequences_order(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group(0, size)
    joined = torch.cat([positions(24, size=size, rank=rank) for rank in range(size)])
    monkeypatch.setattr(context, "gather_from_sequence_parallel_region", lambda values, group: joined)
    assert context.gather_sequence(positions(24, size=size, rank=0), group).tolist() == list(range(24))


class Group(dist.ProcessGroup):
    """Some ranks; nothing can be sent between them."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__(rank, size)
        self._place = rank, size

    def rank(self) -> int:
        return self._place[0]

    def size(self) -> int:
        return self._place[1]


@pytest.mark.parametrize(("size", "rank"), [(2, 0), (2, 1), (3, 1)])
def test_the_deal_is_that_of_megatrons_rotary_angles(size: int, rank: int) -> None:
    """Angles that Megatron-Core gives a rank must be those of the tokens that we give it."""
    from megatron_kis.distributed.device import open_device

    open_device("cpu")
    from megatron.core.models.common.embeddings.rope_utils import get_pos_emb_on_this_cp_rank

    angles = torch.arange(24.0)[:, None]
    theirs = get_pos_emb_on_this_cp_rank(angles, 0, Group(rank, size))
    assert theirs[:, 0].tolist() == positions(24, size=size, rank=rank).tolist()
