"""Messages between ranks: sums over groups, and small values that every rank needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist

from megatron_kis.common.errors import JobError, KisError, system_problem

_Value = TypeVar("_Value")


def sum_over_data(values: torch.Tensor, *, context: bool = False) -> torch.Tensor:
    """Sums ``values`` in place over the data-parallel replicas of this rank and returns it.

    Args:
        values: this rank's values.
        context: whether to sum also over the ranks that share this rank's sequences.
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
    """Returns the value of each rank of WORLD, in the order of the ranks; for small, rare messages."""
    values: list[_Value] = [value] * dist.get_world_size()
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


def from_first(value: _Value) -> _Value:
    """Returns the first rank's value on every rank; for small, rare messages."""
    values = [value]
    if dist.get_world_size() > 1:
        dist.broadcast_object_list(values, src=0)
    return values[0]


def largest(values: Sequence[int], device: torch.device) -> Callable[[], list[int]]:
    """Finds the largest of each number over all ranks: one small message, cheap enough for every step.

    Args:
        values: this rank's numbers.
        device: the device of this rank's tensors.

    Returns:
        A function that returns the largest numbers. On CUDA the device sends the message after the work that it was
        given before, and the function waits for that: call ``largest``, start a step, and call the function when the
        step's loss was read.
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
    """Calls a function on every rank and waits for all: if it fails on one rank, it fails on all with that message.

    Args:
        work: this rank's function; a rank that has nothing to do returns at once.

    Returns:
        The results of all ranks, in the order of the ranks.

    Raises:
        KisError: the error of the first rank that failed. An error of the system becomes a JobError that names the
            path.
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
    """Returns whether an error of a collective call only says that another rank has ended."""
    gone = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket closed")
    return isinstance(error, dist.DistError) or any(said in str(error) for said in gone)
