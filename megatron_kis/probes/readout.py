"""Log-likelihoods of single tokens, from what a model's output layer gets.

The layer's logits are made in blocks of nodes x tokens and reduced at once, so that they are never all held: each node
keeps its largest logit and its normaliser, which serves every token that is asked of it.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch.nn.functional import linear

from megatron_kis.config.vocabulary import LOGITS_PER_BLOCK
from megatron_kis.probes.packed import send

_BLOCK_ON_HOST = 512
"""Nodes and tokens of a block on the host: a megabyte of logits, and no more weights than stay in a core's cache."""


def read_tokens(
    inputs: torch.Tensor,
    weight: torch.Tensor,
    which: NDArray[np.int64],
    labels: NDArray[np.int64],
    group: dist.ProcessGroup,
) -> torch.Tensor:
    """[2, edges] log-likelihood of the token of each edge, and 1 where no token is likelier.

    Args:
        inputs: [n, hidden] what the output layer gets at each node.
        weight: [vocabulary / TP, hidden] of the output layer.
        which: [edges] node.
        labels: [edges] token.
        group: the ranks that share the vocabulary; all have the same inputs and edges.
    """
    on_host, held = inputs.device.type == "cpu", len(weight)
    nodes = _BLOCK_ON_HOST if on_host else max(1, LOGITS_PER_BLOCK // held)
    tokens = _BLOCK_ON_HOST if on_host else held
    rows, columns = inputs.split(nodes), weight.split(tokens)
    own = labels - group.rank() * held
    here, own = (own >= 0) & (own < held), own.clip(0, held - 1)
    block = which // nodes * len(columns) + own // tokens
    order = np.argsort(block, kind="stable")
    sizes = np.bincount(block, minlength=len(rows) * len(columns)).tolist()
    sent = send(
        {
            "places": (which % nodes)[order],
            "columns": (own % tokens)[order],
            "back": np.argsort(order, kind="stable"),
            "which": which,
            "here": here.astype(np.int64),
        },
        inputs.device,
    )
    edges = zip(sent["places"].split(sizes), sent["columns"].split(sizes), strict=True)
    blocks = [_reduce(linear(*factors), *ends) for factors, ends in zip(product(rows, columns), edges, strict=True)]
    logits, tops, normalisers = zip(*blocks, strict=True)
    chosen = torch.cat(logits)[sent["back"]]
    top, normaliser = (  # [blocks of tokens, n]
        torch.stack([torch.cat(kind[column :: len(columns)]) for column in range(len(columns))])
        for kind in (tops, normalisers)
    )
    top, normaliser = top.amax(dim=0), normaliser.logsumexp(dim=0)
    if group.size() > 1:
        chosen = torch.where(sent["here"] > 0, chosen, 0.0)
        dist.all_reduce(chosen, group=group)
        normaliser = _log_sum(normaliser, group)
        dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
    which_node = sent["which"]
    return torch.stack([chosen - normaliser[which_node], (chosen >= top[which_node]).float()])


def _reduce(
    logits: torch.Tensor, places: torch.Tensor, columns: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of edges [edges], and of nodes [n] the largest one and the logarithm of the sum of exponentials.

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
