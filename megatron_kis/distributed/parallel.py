"""Process groups: WORLD over gloo or NCCL, and Megatron-Core's tensor, pipeline and data parallel groups."""

from __future__ import annotations

import datetime
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from megatron_kis.common.errors import InputError, JobError, KisError, system_problem
from megatron_kis.config.layout import replicas_of
from megatron_kis.distributed.device import Device, quiet_megatron

_TIMEOUT = datetime.timedelta(minutes=30)
_Value = TypeVar("_Value")


def environment_of_srun(environment: Mapping[str, str]) -> dict[str, str]:
    """What torchrun would have set, for a process that srun started directly.

    Args:
        environment: of the process.

    Returns:
        RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR (the first node of the step) and MASTER_PORT (the same for all tasks
        of a step, another for the next); nothing under torchrun or outside a job step, where a batch script runs too.

    Raises:
        InputError: a list of nodes that cannot be understood.
    """
    if "RANK" in environment or "SLURM_STEP_ID" not in environment or "SLURM_PROCID" not in environment:
        return {}
    size = environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS", "1")
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "localhost")
    step = int(environment.get("SLURM_JOB_ID", "0")) * 100 + int(environment["SLURM_STEP_ID"])
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": size,
        "LOCAL_RANK": environment.get("SLURM_LOCALID", "0"),
        "MASTER_ADDR": environment.get("MASTER_ADDR", first_node(nodes)),
        "MASTER_PORT": environment.get("MASTER_PORT", str(20000 + step % 10000)),
    }


def first_node(nodes: str) -> str:
    """The first of SLURM's compressed list of nodes: ``gpu[007-012,020],login1`` -> ``gpu007``.

    Raises:
        InputError: it is no such list.
    """
    match = re.match(r"([\w.-]+)(?:\[(\d+)[^\]]*\]([\w.-]*))?(?:,|$)", nodes)
    if match is None:
        raise InputError(f"is {nodes!r}", where="SLURM_JOB_NODELIST", remedy="set MASTER_ADDR")
    stem, number, rest = match.groups(default="")
    return stem + number + rest


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
    virtual_size: int = 1
    context_size: int = 1
    context_rank: int = 0

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
        """What the tokens of a sequence must be a multiple of, for ranks to share it."""
        return self.tensor_size * (2 * self.context_size if self.context_size > 1 else 1)

    @property
    def reports(self) -> bool:
        """Whether this rank is the one that writes losses and scores: the first of the last stage."""
        return self.is_last_stage and self.tensor_rank == self.data_rank == self.context_rank == 0


def open_groups(device: Device, *, tensor: int = 1, pipeline: int = 1, virtual: int = 1, context: int = 1) -> Layout:
    """Joins WORLD (from torchrun's environment, or alone) and makes Megatron's groups.

    Args:
        device: what the ranks talk over.
        tensor: ranks that share each layer.
        pipeline: stages.
        virtual: chunks of layers a stage.
        context: ranks that share each sequence.

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
    # of the names by which Megatron-Core gathers and scatters; PyTorch 2.13 has others
    warnings.filterwarnings("ignore", message=".* is deprecated. Please use .torch.distributed", category=FutureWarning)
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=tensor,
        pipeline_model_parallel_size=pipeline,
        virtual_pipeline_model_parallel_size=virtual if virtual > 1 else None,
        context_parallel_size=context,
        create_gloo_process_groups=False,  # nothing sends by them, and on CUDA they need a network of the hosts
    )
    return Layout(
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
    """Leaves Megatron's groups and WORLD."""
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()


def sum_over_data(values: torch.Tensor, *, context: bool = False) -> torch.Tensor:
    """Sums ``values`` in place over the data-parallel replicas of this rank and returns it.

    Args:
        values: of this rank.
        context: also over the ranks that share this rank's sequences.
    """
    from megatron.core import parallel_state

    group = parallel_state.get_data_parallel_group(with_context_parallel=context)
    if group.size() > 1:
        dist.all_reduce(values, group=group)
    return values


def sum_over_all(values: torch.Tensor) -> torch.Tensor:
    """Sums ``values`` in place over all ranks and returns it."""
    if dist.get_world_size() > 1:
        dist.all_reduce(values)
    return values


def gather(value: _Value) -> list[_Value]:
    """What each rank of WORLD has to say, in the order of the ranks; for small, rare messages."""
    values: list[_Value] = [value] * dist.get_world_size()
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


def from_first(value: _Value) -> _Value:
    """The first rank's value, on every rank; for small, rare messages."""
    values = [value]
    if dist.get_world_size() > 1:
        dist.broadcast_object_list(values, src=0)
    return values[0]


def largest(values: Sequence[int], device: torch.device) -> Callable[[], list[int]]:
    """Asks all ranks for the largest of each number: one small message, cheap enough for every step.

    Args:
        values: of this rank.
        device: of this rank's tensors.

    Returns:
        What gives the answer. On CUDA the device sends the message when it has done what it was given before, and the
        answer waits for that: ask, give it a step, and read the answer when the step's loss was read.
    """
    if dist.get_world_size() == 1:
        return lambda: list(values)
    numbers = torch.tensor(values, dtype=torch.int64)
    on_device = device.type == "cuda"
    numbers = numbers.pin_memory().to(device, non_blocking=True) if on_device else numbers
    dist.all_reduce(numbers, op=dist.ReduceOp.MAX)
    if not on_device:
        return lambda: [int(number) for number in numbers.tolist()]
    arrived = torch.empty(len(values), dtype=torch.int64, pin_memory=True)
    arrived.copy_(numbers, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def answer() -> list[int]:
        if not copied.query():
            copied.synchronize()
        return [int(number) for number in arrived.tolist()]

    return answer


def barrier() -> None:
    """Waits for all ranks.

    NCCL is told the device here, not when WORLD is made: with a device WORLD would split a communicator off for every
    group that Megatron-Core makes, and most of them are never used.
    """
    if dist.get_world_size() > 1:
        dist.barrier(device_ids=[torch.cuda.current_device()] if dist.get_backend() == "nccl" else None)


def together(work: Callable[[], _Value]) -> list[_Value]:
    """Does something on every rank and waits for all: what fails on one rank fails on all, with its message.

    Args:
        work: of this rank; a rank that has nothing to do returns at once.

    Returns:
        What each rank's work returned, in the order of the ranks.

    Raises:
        KisError: that of the first rank that failed. An error of the system is a JobError that names the path.
    """
    outcome: _Value | KisError
    try:
        outcome = work()
    except KisError as error:
        outcome = error
    except OSError as error:
        outcome = JobError(system_problem(error))
    values: list[_Value] = []
    for said in gather(outcome):
        if isinstance(said, KisError):
            raise said
        values.append(said)
    return values


def is_loss_of_a_rank(error: RuntimeError) -> bool:
    """Whether an error of a collective call only says that another rank has ended."""
    gone = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket closed")
    return isinstance(error, dist.DistError) or any(said in str(error) for said in gone)
