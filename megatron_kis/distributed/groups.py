"""Process groups: WORLD over gloo or NCCL, and Megatron-Core's tensor, pipeline, context and data parallel groups."""

from __future__ import annotations

import datetime
import os
import warnings
from dataclasses import dataclass

import torch.distributed as dist

from megatron_kis.common.errors import InputError
from megatron_kis.config.layout import replicas_of
from megatron_kis.distributed.device import Device
from megatron_kis.distributed.megatron_imports import quiet_megatron

_TIMEOUT = datetime.timedelta(minutes=30)


@dataclass(frozen=True)
class ParallelDims:
    """Sizes of the parallel layout, and this rank's place in each of its dimensions."""

    world_size: int
    """Number of ranks of the run."""

    rank: int
    """This rank in WORLD."""

    tensor_size: int
    """Number of ranks that share each layer."""

    tensor_rank: int
    """This rank's place among the ranks that share its layers."""

    pipeline_size: int
    """Number of pipeline stages."""

    pipeline_rank: int
    """Number of this rank's pipeline stage, from 0."""

    data_size: int
    """Number of data-parallel replicas."""

    data_rank: int
    """Number of this rank's data-parallel replica, from 0."""

    virtual_size: int = 1
    """Chunks of layers per stage."""

    context_size: int = 1
    """Number of ranks that share each sequence."""

    context_rank: int = 0
    """This rank's place among the ranks that share its sequences."""

    @property
    def is_first_stage(self) -> bool:
        """Whether this rank holds the embedding, in its first chunk of layers."""
        return self.pipeline_rank == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether this rank computes the loss, with its last chunk of layers."""
        return self.pipeline_rank == self.pipeline_size - 1

    @property
    def sequence_multiple(self) -> int:
        """Number of which a sequence's tokens must be a multiple, so that ranks can share the sequence."""
        return self.tensor_size * (2 * self.context_size if self.context_size > 1 else 1)

    @property
    def is_logging_rank(self) -> bool:
        """Whether this rank writes losses and scores: the first rank of the last stage."""
        return self.is_last_stage and self.tensor_rank == self.data_rank == self.context_rank == 0


def open_groups(
    device: Device, *, tensor: int = 1, pipeline: int = 1, virtual: int = 1, context: int = 1
) -> ParallelDims:
    """Joins WORLD (from torchrun's environment, or alone) and makes Megatron's groups.

    Args:
        device: this rank's device, which has the backend.
        tensor: number of ranks that share each layer.
        pipeline: number of stages.
        virtual: chunks of layers per stage.
        context: number of ranks that share each sequence.

    Raises:
        InputError: the world size is not a multiple of tensor x pipeline x context, or one of them is below one.
    """
    for key, size in (("tensor", tensor), ("pipeline", pipeline), ("virtual", virtual), ("context", context)):
        if size < 1:
            raise InputError(f"is {size}", where=f"parallel.{key}", remedy="1 or more")
    with quiet_megatron():
        from megatron.core import parallel_state

    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    replicas_of(world_size, tensor=tensor, pipeline=pipeline, context=context)
    if not dist.is_initialized():
        if world_size == 1:
            dist.init_process_group(device.backend, store=dist.HashStore(), rank=0, world_size=1)
        else:
            dist.init_process_group(device.backend, timeout=_TIMEOUT)
    # Megatron-Core gathers and scatters by names of functions that PyTorch 2.13 deprecates.
    warnings.filterwarnings("ignore", message=".* is deprecated. Please use .torch.distributed", category=FutureWarning)
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=tensor,
        pipeline_model_parallel_size=pipeline,
        virtual_pipeline_model_parallel_size=virtual if virtual > 1 else None,
        context_parallel_size=context,
        create_gloo_process_groups=False,  # nothing uses them, and on CUDA they need a network between the CPUs
    )
    return ParallelDims(
        world_size=world_size,
        rank=dist.get_rank(),
        tensor_size=tensor,
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        pipeline_size=pipeline,
        pipeline_rank=parallel_state.get_pipeline_model_parallel_rank(),
        data_size=parallel_state.get_data_parallel_world_size(),
        data_rank=parallel_state.get_data_parallel_rank(),
        virtual_size=virtual,
        context_size=context,
        context_rank=parallel_state.get_context_parallel_rank(),
    )


def close_groups() -> None:
    """Destroys Megatron's groups and WORLD."""
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()
