"""Process groups: WORLD over gloo or NCCL, and Megatron-Core's tensor, pipeline and data parallel groups."""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass

import torch
import torch.distributed as dist

from megatron_kis.device import Device, quiet_megatron
from megatron_kis.errors import InputError

_TIMEOUT = datetime.timedelta(minutes=30)


@dataclass(frozen=True)
class Layout:
    """This rank's place in the parallel layout."""

    world_size: int
    rank: int
    tensor_size: int
    tensor_rank: int
    pipeline_size: int
    pipeline_rank: int
    data_size: int
    data_rank: int

    @property
    def is_first_stage(self) -> bool:
        """Whether this rank holds the embedding."""
        return self.pipeline_rank == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether this rank computes the loss."""
        return self.pipeline_rank == self.pipeline_size - 1

    @property
    def reports(self) -> bool:
        """Whether this rank is the one that writes losses and scores: the first of the last stage."""
        return self.is_last_stage and self.tensor_rank == 0 and self.data_rank == 0


def open_groups(device: Device, *, tensor: int = 1, pipeline: int = 1) -> Layout:
    """Joins WORLD (from torchrun's environment, or alone) and makes Megatron's groups.

    Raises:
        InputError: the world size is not a multiple of tensor x pipeline.
    """
    with quiet_megatron():
        from megatron.core import parallel_state

    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size % (tensor * pipeline):
        raise InputError(
            f"{world_size} processes cannot hold tensor={tensor} x pipeline={pipeline}",
            where="parallel",
            remedy=f"start a multiple of {tensor * pipeline} processes with torchrun",
        )
    if not dist.is_initialized():
        if world_size == 1:
            dist.init_process_group(device.backend, store=dist.HashStore(), rank=0, world_size=1)
        else:
            dist.init_process_group(device.backend, timeout=_TIMEOUT)
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=tensor, pipeline_model_parallel_size=pipeline)
    return Layout(
        world_size=world_size,
        rank=dist.get_rank(),
        tensor_size=tensor,
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        pipeline_size=pipeline,
        pipeline_rank=parallel_state.get_pipeline_model_parallel_rank(),
        data_size=parallel_state.get_data_parallel_world_size(),
        data_rank=parallel_state.get_data_parallel_rank(),
    )


def close_groups() -> None:
    """Leaves Megatron's groups and WORLD."""
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()


def reporting_rank() -> int:
    """Global rank of the process for which ``Layout.reports`` holds: data rank 0 of the last stage."""
    from megatron.core import parallel_state

    return int(parallel_state.get_pipeline_model_parallel_last_rank())


def sum_over_data(values: torch.Tensor) -> torch.Tensor:
    """Sums ``values`` in place over the data-parallel replicas of this rank and returns it."""
    from megatron.core import parallel_state

    group = parallel_state.get_data_parallel_group()
    if group.size() > 1:
        dist.all_reduce(values, group=group)
    return values
