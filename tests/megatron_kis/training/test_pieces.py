"""How ranks share what is saved: boxes of whole weights, who writes which weight, and plans that are made once."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_kis.checkpoint import shards
from megatron_kis.checkpoint.pieces import boxes, pieces
from megatron_kis.common.errors import InputError
from megatron_kis.distributed.device import open_device
from megatron_kis.distributed.groups import close_groups, open_groups
from megatron_kis.distributed.megatron_imports import quiet_megatron
from tests.run_files import tensor_shapes

with quiet_megatron():
    from megatron.core.dist_checkpointing.mapping import ShardedTensor


@pytest.mark.parametrize("shape", [(7,), (4, 5), (1, 6), (6, 1), (3, 2, 4)])
def test_every_range_of_a_flattened_tensor_is_a_few_boxes_of_it(shape: tuple[int, ...]) -> None:
    whole = np.arange(math.prod(shape)).reshape(shape)
    for start, stop in itertools.combinations_with_replacement(range(whole.size + 1), 2):
        found = list(boxes(shape, start, stop))
        parts = [whole[tuple(slice(at, at + size) for at, size in zip(*box, strict=True))] for box in found]
        assert [number for part in parts for number in part.ravel()] == list(range(start, stop))
        assert len(found) <= 2 * len(shape) - 1


def test_whole_rows_are_one_box() -> None:
    assert list(boxes((4, 5), 5, 15)) == [((1, 0), (2, 5))]
    assert list(boxes((4, 5), 3, 17)) == [((0, 3), (1, 2)), ((1, 0), (2, 5)), ((3, 0), (1, 2))]


def test_pieces_are_views_at_their_place_in_the_whole_model() -> None:
    weight, moments = torch.zeros(4, 6), torch.arange(10.0)
    of_layer = ShardedTensor.from_rank_offsets(
        "w", weight, (0, 1, 3), (1, 1, 2), replica_id=(0, 1, 5), prepend_axis_num=1
    )
    found = pieces(of_layer, "exp_avg", moments, start=4)
    assert [piece.key for piece in found] == ["exp_avg.w"] * 3
    assert [piece.global_offset for piece in found] == [(1, 4, 4), (1, 5, 0), (1, 6, 0)]
    assert [piece.local_shape for piece in found] == [(1, 1, 2), (1, 1, 6), (1, 1, 2)]
    assert {piece.global_shape for piece in found} == {(3, 8, 6)}
    assert {piece.replica_id for piece in found} == {(0, 1, 0)}
    for piece in found:
        assert piece.data is not None
        piece.data.neg_()
    assert torch.equal(moments, -torch.arange(10.0))


def test_each_weight_has_one_writer_and_no_replica_writes_much_more_than_another() -> None:
    sizes, replicas = [64, 8, 8, 64, 32, 8, 8, 32, 64, 64], 4

    def model(rank: int) -> dict[str, Any]:
        return {
            str(number): ShardedTensor.from_rank_offsets(str(number), torch.zeros(size), replica_id=(0, 0, rank))
            for number, size in enumerate(sizes)
        }

    models = [model(rank) for rank in range(replicas)]
    for rank, one in enumerate(models):
        shards.share_out(one, rank, replicas)
    writers = [[rank for rank in range(replicas) if models[rank][name].replica_id == (0, 0, 0)] for name in models[0]]
    assert all(len(ranks) == 1 for ranks in writers)
    written = [
        sum(size for size, ranks in zip(sizes, writers, strict=True) if rank in ranks) for rank in range(replicas)
    ]
    assert max(written) - min(written) <= max(sizes)
    assert sum(written) == sum(sizes)


@pytest.fixture
def alone() -> Any:
    open_groups(open_device("cpu"))
    yield
    close_groups()


def saved(folder: Path, plans: shards.Plans | None = None, **tensors: torch.Tensor) -> Path:
    sharded = {name: ShardedTensor.from_rank_offsets(name, values) for name, values in tensors.items()}
    folder.mkdir()
    staged = shards.stage(sharded, folder, plans)
    staged.finish([staged.write()])
    return folder


@pytest.mark.slow
def test_later_checkpoints_of_the_same_tensors_are_not_planned_again(
    alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: list[int] = []
    planner = shards.torch_strategy.MCoreSavePlanner
    whole = planner.create_global_plan
    monkeypatch.setattr(planner, "create_global_plan", lambda *all_: planned.append(1) or whole(*all_))
    plans = shards.Plans()
    for number in range(3):
        folder = saved(
            tmp_path / str(number), plans, a=torch.full((4,), float(number)), b=torch.arange(number, number + 3)
        )
        assert len(planned) == 1
        found = shards.read_tensors(folder, ["a", "b"])
        assert found["a"].tolist() == [number] * 4
        assert found["b"].tolist() == list(range(number, number + 3))
    folder = saved(tmp_path / "other", plans, a=torch.ones(5))
    assert len(planned) == 2
    assert tensor_shapes(folder) == {"a": (5,)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "length", "said"),
    [("b", 4, r"holds other tensors \(b .*version"), ("a", 5, r"holds other tensors .*mismatch")],
)
def test_a_checkpoint_of_other_tensors_is_refused(
    alone: None, tmp_path: Path, name: str, length: int, said: str
) -> None:
    folder = saved(tmp_path / "one", a=torch.zeros(4))
    with pytest.raises(InputError, match=said):
        shards.load({"x": ShardedTensor.from_rank_offsets(name, torch.zeros(length))}, folder)
