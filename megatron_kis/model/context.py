"""Context parallelism: several ranks share each sequence.

A sequence is cut into twice as many pieces as there are ranks, and rank r holds pieces r and 2 size - 1 - r: under a
causal mask a late piece costs more than an early one, and so each rank has the same work. This is the deal of
Megatron-LM's ``get_batch_on_this_cp_rank`` and of Transformer Engine's attention, which passes keys and values round.
PyTorch's attention has them all gathered (Llama 3, section 3.3.2).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


def positions(length: int, *, size: int, rank: int) -> torch.Tensor:
    """Places of the tokens of a sequence that a rank holds.

    Args:
        length: tokens of the sequence, a multiple of 2 size where size is more than 1.
        size: ranks that share it.
        rank: one of them.

    Returns:
        int64 [length / size], ascending.
    """
    places = torch.arange(length)
    if size == 1:
        return places
    pieces = places.view(2 * size, -1)
    return torch.cat([pieces[rank], pieces[2 * size - 1 - rank]])


def gather_sequence(values: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """The whole sequence, of which each rank of ``group`` gives its places.

    Args:
        values: [length / size, ...] at this rank's ``positions``.
        group: the ranks that share the sequence.

    Returns:
        [length, ...] in the sequence's order; what flows back is summed over the ranks.
    """
    if group.size() == 1:
        return values
    gathered: torch.Tensor = _Gather.apply(values, group)
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, values: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        size, length = group.size(), len(values) * group.size()
        parts = [torch.empty_like(values, memory_format=torch.contiguous_format) for _ in range(size)]
        dist.all_gather(parts, values.contiguous(), group=group)
        places = [positions(length, size=size, rank=rank).to(values.device) for rank in range(size)]
        context.group, context.mine = group, places[group.rank()]
        whole = values.new_empty((length, *values.shape[1:]))
        whole[torch.cat(places)] = torch.cat(parts)
        return whole

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = gradients
        total = gradient.contiguous().clone()
        dist.all_reduce(total, group=context.group)
        return total[context.mine], None
