"""Cross-entropy over a vocabulary that tensor ranks share, in the memory of the logits.

The same function as Megatron-Core's ``vocab_parallel_cross_entropy``, in fewer passes over the logits (the largest one
without its index, the sum as a factor of the gradient) and without messages if one rank has the whole vocabulary. With
a small model on a CPU the logits are a large part of a step.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """Returns negative log-likelihoods.

    Args:
        logits: [..., vocabulary / ranks], this rank's; fp32 ones are overwritten.
        labels: int64 [...], tokens of the whole vocabulary.
        group: the tensor ranks.

    Returns:
        fp32 [...] nats, the same on every rank.
    """
    losses: torch.Tensor = _CrossEntropy.apply(logits, labels, group)
    return losses


class _CrossEntropy(torch.autograd.Function):
    """-log softmax(z)_y = log(sum(exp(z - max z))) - (z_y - max z); its gradient is softmax(z) minus one-hot(y)."""

    @staticmethod
    def forward(context: Any, logits: torch.Tensor, labels: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        values = logits.float()
        top = values.amax(dim=-1, keepdim=True)
        if group.size() > 1:
            dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
        values.sub_(top)
        rows = values.shape[-1]
        places = labels.unsqueeze(-1) - group.rank() * rows
        if group.size() > 1:
            here = (places >= 0) & (places < rows)
            places = places.clamp_(0, rows - 1)
            chosen = values.gather(-1, places).mul_(here)
            total = values.exp_().sum(dim=-1, keepdim=True)
            dist.all_reduce(chosen, group=group)
            dist.all_reduce(total, group=group)
        else:
            here = None
            chosen = values.gather(-1, places)
            total = values.exp_().sum(dim=-1, keepdim=True)
        context.save_for_backward(values, total, places, here)
        context.dtype = logits.dtype
        return total.log().sub_(chosen).squeeze(-1)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        values, total, places, here = context.saved_tensors
        gradient = gradients[0].unsqueeze(-1)
        at_label = -gradient if here is None else gradient.mul(here).neg_()
        logit_gradient = values.mul_(gradient / total).scatter_add_(-1, places, at_label)  # softmax minus one-hot
        return logit_gradient.to(context.dtype), None, None
