"""Log-likelihoods of single tokens, from what a model's output layer gets.

The layer's logits are made in blocks of nodes x tokens and reduced at once, so that they are never all held: each node
keeps its largest logit and its normaliser (the logarithm of the sum of exponentials), which all its tokens share.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch.nn.functional import linear

from megatron_kis.config.vocabulary import LOGITS_PER_BLOCK

_CPU_BLOCK = 512
"""Nodes and tokens of a block on a CPU: a megabyte of logits, and no more weights than stay in a core's cache."""


def read_tokens(
    inputs: torch.Tensor,
    weight: torch.Tensor,
    which: NDArray[np.int64],
    labels: NDArray[np.int64],
    group: dist.ProcessGroup | None = None,
) -> torch.Tensor:
    """Returns the log-likelihood of the token of each edge, and 1 where no token is more likely: [2, edges].

    Args:
        inputs: [n, hidden] input of the output layer at each node.
        weight: [vocabulary / TP, hidden] weight of the output layer.
        which: [edges] node.
        labels: [edges] token.
        group: the ranks that share the vocabulary; all have the same inputs and edges. None: this rank has all of it.
    """
    on_cpu = inputs.device.type == "cpu"
    held = len(weight)  # this rank's part of the vocabulary
    nodes = _CPU_BLOCK if on_cpu else max(1, LOGITS_PER_BLOCK // held)
    tokens = _CPU_BLOCK if on_cpu else held
    rows = inputs.split(nodes)
    columns = weight.split(tokens)
    own = labels - (group.rank() if group else 0) * held
    here = (own >= 0) & (own < held)
    own = own.clip(0, held - 1)
    block = which // nodes * len(columns) + own // tokens
    order = np.argsort(block, kind="stable")
    sizes = np.bincount(block, minlength=len(rows) * len(columns)).tolist()
    sent = to_device(
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
    top = _by_node(tops, len(columns)).amax(dim=0)
    normaliser = _by_node(normalisers, len(columns)).logsumexp(dim=0)
    if group and group.size() > 1:
        chosen = torch.where(sent["here"] > 0, chosen, 0.0)
        dist.all_reduce(chosen, group=group)
        normaliser = _log_sum(normaliser, group)
        dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
    which_node = sent["which"]
    return torch.stack([chosen - normaliser[which_node], (chosen >= top[which_node]).float()])


def read_logits(logits: torch.Tensor, which: NDArray[np.int64], labels: NDArray[np.int64]) -> torch.Tensor:
    """Returns what ``read_tokens`` returns, from logits that are there already.

    Args:
        logits: [n, vocabulary].
        which: [edges] node.
        labels: [edges] token.
    """
    sent = to_device({"which": which, "labels": labels}, logits.device)
    chosen, top, normaliser = _reduce(logits, sent["which"], sent["labels"])
    return torch.stack([chosen - normaliser[sent["which"]], (chosen >= top[sent["which"]]).float()])


def _by_node(blocks: tuple[torch.Tensor, ...], columns: int) -> torch.Tensor:
    """Joins the values of nodes in all blocks, [blocks of tokens, n]; blocks are ordered by nodes, then by tokens."""
    return torch.stack([torch.cat(blocks[column::columns]) for column in range(columns)])


def _reduce(
    logits: torch.Tensor, places: torch.Tensor, columns: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns logits of edges [edges], and of nodes [n] the largest one and the logarithm of the sum of exponentials.

    Args:
        logits: [n, tokens].
        places: [edges] node of each edge.
        columns: [edges] token of each edge.
    """
    values = logits.float()
    # PyTorch's log_softmax goes over the values once less than its logsumexp does.
    normaliser = values[:, 0] - values.log_softmax(dim=-1)[:, 0]
    return values[places, columns], values.amax(dim=-1), normaliser


def _log_sum(values: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """Returns log(sum(exp(values))) over the ranks of a group."""
    top = values.clone()
    dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
    total = (values - top).exp()
    dist.all_reduce(total, group=group)
    return top + total.log()


def to_device(arrays: Mapping[str, NDArray[np.int64]], device: torch.device) -> dict[str, torch.Tensor]:
    """Copies int64 arrays to a device in a single message, without a wait.

    To an accelerator it goes from pinned memory: the CPU does not wait for the device to reach it.

    Args:
        arrays: by name, of any shapes.
        device: the device; on a CPU nothing is copied.
    """
    if device.type == "cpu":
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
    flat = torch.from_numpy(np.concatenate([array.ravel() for array in arrays.values()])).pin_memory()
    parts = flat.to(device, non_blocking=True).split([array.size for array in arrays.values()])
    return {name: part.view(array.shape) for (name, array), part in zip(arrays.items(), parts, strict=True)}
