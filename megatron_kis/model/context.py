"""Context parallelism: several ranks share each sequence.

A sequence is cut into twice as many pieces as there are ranks, and rank r holds pieces r and 2 size - 1 - r: under a
causal mask a late piece costs more than an early one, and so each rank has the same work. This is the deal of
Megatron-LM's ``get_batch_on_this_cp_rank`` and of Transformer Engine's attention, which passes keys and values round.
PyTorch's attention has them all gathered (Llama 3, section 3.3.2).
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from megatron_kis.distributed.megatron_imports import quiet_megatron

with quiet_megatron():
    from megatron.core.tensor_parallel import gather_from_sequence_parallel_region


def positions(length: int, *, size: int, rank: int) -> torch.Tensor:
    """Returns the places of a sequence's tokens that a rank holds.

    Args:
        length: tokens of the sequence, a multiple of 2 size if size is more than 1.
        size: number of ranks that share the sequence.
        rank: number of the rank among them.

    Returns:
        int64 [length / size], ascending.
    """
    places = torch.arange(length)
    if size == 1:
        return places
    pieces = places.view(2 * size, -1)
    return torch.cat([pieces[piece] for piece in pieces_of(size=size, rank=rank)])


def pieces_of(*, size: int, rank: int) -> tuple[int, int]:
    """Returns which two of a sequence's 2 size pieces a rank holds, ascending."""
    return rank, 2 * size - 1 - rank


def gather_sequence(values: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """Returns the whole sequence, of which each rank of ``group`` has its places.

    Args:
        values: [length / size, ...] at this rank's ``positions``.
        group: the ranks that share the sequence.

    Returns:
        [length, ...] in the sequence's order; gradients are summed over the ranks.
    """
    pieces = gather_from_sequence_parallel_region(values, group=group).chunk(2 * group.size())
    # Each rank gives an early and a late piece; in the sequence the late ones are in the order of falling ranks.
    return torch.cat([*pieces[::2], *pieces[::-2]])
