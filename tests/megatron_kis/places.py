"""One rank of a layout in this process, among ranks that are not there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron_kis.distributed.determinism import seed_device
from megatron_kis.distributed.device import open_device
from megatron_kis.distributed.groups import ParallelDims, close_groups
from megatron_kis.distributed.megatron_imports import quiet_megatron

with quiet_megatron():
    from megatron.core import parallel_state


@contextmanager
def place(tensor: int, pipeline: int, stage: int, *, tensor_rank: int = 0, virtual: int = 1) -> Iterator[ParallelDims]:
    """The place of a rank; messages to the others are never sent."""
    rank, world = stage * tensor + tensor_rank, tensor * pipeline
    device = open_device("cpu")
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    try:
        parallel_state.initialize_model_parallel(
            tensor, pipeline, virtual if virtual > 1 else None, create_gloo_process_groups=False
        )
        seed_device(device, 0, tensor_rank=tensor_rank, pipeline_rank=stage)
        yield ParallelDims(world, rank, tensor, tensor_rank, pipeline, stage, 1, 0, virtual_size=virtual)
    finally:
        close_groups()
