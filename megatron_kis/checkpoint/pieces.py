"""A rank's part of the optimizer's state as boxes of whole weights: saved without a gather, read by any layout.

Megatron-Core's distributed optimizer gives each data-parallel rank a range of the flattened weights. Its own format
that loads under every layout (``fully_reshardable``) gathers the whole state on every rank before it is saved; the one
that gathers nothing (``dp_reshardable``) follows its buckets, and loads only where tensor and pipeline sizes are the
same; the one with flattened ranges (``fully_sharded_model_space``) is refused by its own ``ShardedTensor``.

A range of a flattened matrix is the end of a row, whole rows and the beginning of a row: three boxes of the matrix, of
which each is contiguous in the range. So every rank writes what it holds, as parts of a tensor of the whole weight's
shape, and reads the parts of what it will hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from megatron_kis.distributed.megatron_imports import quiet_megatron

with quiet_megatron():
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
    from megatron.core.optimizer import DistributedOptimizer

Box = tuple[tuple[int, ...], tuple[int, ...]]
"""A rectangular part of a tensor: its offsets and its sizes, by axis."""


@dataclass(frozen=True)
class Held:
    """The range of a weight that a rank updates."""

    weight: torch.nn.Parameter
    """The model's weight, of any shape."""

    start: int
    """Start of the range in the flattened weight."""

    values: torch.Tensor
    """The optimizer's own parameter: the main weights of the range, of any shape."""


def held_by(optimizer: Any) -> Iterator[Held]:
    """Yields what one of Megatron-Core's optimizers updates on this rank, always in the same order."""
    if isinstance(optimizer, DistributedOptimizer):
        groups = optimizer.optimizer.param_groups
        buckets = (bucket for buffer in optimizer.gbuf_ranges for found in buffer.values() for bucket in found)
        for weight, ranges in (item for bucket in buckets for item in bucket["param_map"].items()):
            group, number = optimizer.model_param_group_index_map[weight]
            yield Held(weight, ranges["param"].start, groups[group]["params"][number])
        return
    mains = _flat(getattr(optimizer, "fp32_from_float16_groups", []))  # none where all weights are fp32
    weights = _flat(getattr(optimizer, "float16_groups", []))
    of_main = {id(main): weight for main, weight in zip(mains, weights, strict=True)}
    for group in optimizer.optimizer.param_groups:
        for main in group["params"]:
            yield Held(of_main.get(id(main), main), 0, main)


def _flat(groups: Iterable[Iterable[torch.nn.Parameter]]) -> list[torch.nn.Parameter]:
    return [weight for group in groups for weight in group]


def pieces(
    entry: ShardedTensor | ShardedTensorFactory, name: str, values: torch.Tensor, start: int
) -> list[ShardedTensor]:
    """Returns a range of a weight's state as parts of whole tensors.

    Args:
        entry: the weight's place in the model, its data the weight itself.
        name: name of the state; tensors are called ``name.KEY`` with the weight's key.
        values: the state of the range, contiguous; the parts are views of it.
        start: start of the range in this rank's flattened weight.
    """
    flat = values.detach().view(-1)
    found = []
    parts = nested_values(entry.build()) if isinstance(entry, ShardedTensorFactory) else [entry]
    for part in parts:  # several where a layer has two matrices in one, such as those of SwiGLU
        assert part.data.is_contiguous()
        first = part.data.storage_offset() - entry.data.storage_offset()
        lower = max(start, first)
        upper = min(start + flat.numel(), first + part.data.numel())
        for offsets, sizes in boxes(tuple(part.local_shape), lower - first, upper - first):
            size = math.prod(sizes)
            shape = (1,) * part.prepend_axis_num + sizes
            local = (0,) * part.prepend_axis_num + offsets
            data = flat[lower - start : lower - start + size].view(shape)
            found.append(
                replace(
                    part,
                    key=f"{name}.{part.key}",
                    data=data,
                    dtype=data.dtype,
                    local_shape=shape,
                    global_offset=tuple(at + more for at, more in zip(part.global_offset, local, strict=True)),
                    axis_fragmentations=None,
                    prepend_axis_num=0,
                    replica_id=(*part.replica_id[:-1], 0),  # each range has one data-parallel rank
                )
            )
            lower += size
    return found


def boxes(shape: tuple[int, ...], start: int, stop: int) -> Iterator[Box]:
    """Yields the fewest boxes that together are a range of a flattened tensor, in the order of the range.

    Args:
        shape: shape of the tensor, one axis or more.
        start: start of the range.
        stop: end of the range; there are no boxes where it is not above ``start``.
    """
    if start >= stop:
        return
    if len(shape) == 1:
        yield (start,), (stop - start,)
        return
    row = math.prod(shape[1:])
    first, last = -(-start // row), stop // row  # whole rows
    if start < first * row:
        yield from _in_row(shape, first - 1, start, min(stop, first * row))
    if first < last:
        yield (first, *(0 for _ in shape[1:])), (last - first, *shape[1:])
    if first <= last:
        yield from _in_row(shape, last, last * row, stop)


def _in_row(shape: tuple[int, ...], number: int, start: int, stop: int) -> Iterator[Box]:
    before = number * math.prod(shape[1:])
    for offsets, sizes in boxes(shape[1:], start - before, stop - before):
        yield (number, *offsets), (1, *sizes)
