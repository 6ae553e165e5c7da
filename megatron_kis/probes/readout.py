"""Log-likelihoods of single tokens, from what a model's output layer gets.

The layer's logits are made in blocks of nodes x tokens and reduced at once, so that they are never all held: each node
keeps its largest logit and its normaliser, which serves every token that is asked of it.
"""

from __future__ import annotations

from itertools import product

import torch
import torch.distributed as dist
from torch.nn.functional import linear

from megatron_kis.model.vocabulary import LOGITS_PER_BLOCK

_BLOCK_ON_HOST = 512
"""Nodes and tokens of a block on the host: a megabyte of logits, and no more weights than stay in a core's cache."""


def read_tokens(
    inputs: torch.Tensor, weight: torch.Tensor, which: torch.Tensor, labels: torch.Tensor, group: dist.ProcessGroup
) -> torch.Tensor:
    """[2, edges] log-likelihood of the token of each edge, and 1 where no token is likelier.

    Args:
        inputs: [n, hidden] what the output layer gets at each node.
        weight: [vocabulary / TP, hidden] of the output layer.
        which: [edges] node.
        labels: [edges] token.
        group: the ranks that share the vocabulary; all have the same inputs and edges.
    """
    own = labels - group.rank() * len(weight)
    chosen, top, normaliser = _reduced(inputs, weight, which, own.clamp(0, len(weight) - 1))
    if group.size() > 1:
        chosen = torch.where((own >= 0) & (own < len(weight)), chosen, 0.0)
        dist.all_reduce(chosen, group=group)
        normaliser = _log_sum(normaliser, group)
        dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
    return torch.stack([chosen - normaliser[which], (chosen >= top[which]).float()])


def _reduced(
    inputs: torch.Tensor, weight: torch.Tensor, which: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of edges [edges], and of nodes [n] the largest one and the logarithm of the sum of exponentials."""
    on_host = inputs.device.type == "cpu"
    nodes = _BLOCK_ON_HOST if on_host else max(1, LOGITS_PER_BLOCK // len(weight))
    tokens = _BLOCK_ON_HOST if on_host else len(weight)
    rows, columns = inputs.split(nodes), weight.split(tokens)
    block = which // nodes * len(columns) + labels // tokens
    order = block.argsort(stable=True)
    sizes = torch.bincount(block, minlength=len(rows) * len(columns)).tolist()
    edges = zip((which % nodes)[order].split(sizes), (labels % tokens)[order].split(sizes), strict=True)
    blocks = [_reduce(linear(*factors), *ends) for factors, ends in zip(product(rows, columns), edges, strict=True)]
    logits, tops, normalisers = zip(*blocks, strict=True)
    sorted_logits = torch.cat(logits)
    chosen = torch.empty_like(sorted_logits)
    chosen[order] = sorted_logits
    top, normaliser = (  # [blocks of tokens, n]
        torch.stack([torch.cat(kind[column :: len(columns)]) for column in range(len(columns))])
        for kind in (tops, normalisers)
    )
    return chosen, top.amax(dim=0), normaliser.logsumexp(dim=0)


def _reduce(
    logits: torch.Tensor, places: torch.Tensor, columns: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same of one block.

    Args:
        logits: [n, tokens].
        places: [edges] which node.
        columns: [edges] which token.
    """
    values = logits.float()
    # PyTorch's log_softmax goes over the values once less than its logsumexp does.
    normaliser = values[:, 0] - values.log_softmax(dim=-1)[:, 0]
    return values[places, columns], values.amax(dim=-1), normaliser


def _log_sum(values: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """log(sum(exp(values))) over the ranks of a group."""
    top = values.clone()
    dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
    total = (values - top).exp()
    dist.all_reduce(total, group=group)
    return top + total.log()
