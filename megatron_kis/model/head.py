"""The end of the model: its output layer apart from its body, so that the logits of a batch are never all held.

A training step needs its logits for the backward pass. A pass that only scores tokens uses the output layer's input,
computes logits block by block, and keeps one number per token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.functional import linear

from megatron_kis.config.vocabulary import LOGITS_PER_BLOCK
from megatron_kis.distributed.megatron_imports import quiet_megatron
from megatron_kis.model.loss import cross_entropy

with quiet_megatron():
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.tensor_parallel import gather_from_sequence_parallel_region


@contextmanager
def headless(model: GPTModel) -> Iterator[None]:
    """Takes off the model's output layer inside the block: its last chunk returns that layer's input."""
    post_process = model.post_process
    model.post_process = False
    try:
        yield
    finally:
        model.post_process = post_process


def head_inputs(model: GPTModel, hidden: torch.Tensor) -> torch.Tensor:
    """Returns [W, rows, hidden], the output layer's input, on every tensor rank.

    Args:
        model: the last chunk.
        hidden: its output without the output layer; under sequence parallelism [W / TP, rows, hidden].
    """
    if not model.config.sequence_parallel:
        return hidden
    gathered: torch.Tensor = gather_from_sequence_parallel_region(
        hidden, tensor_parallel_output_grad=False, group=model.pg_collection.tp
    )
    return gathered


def head_weight(model: GPTModel) -> torch.Tensor:
    """Returns the output layer's weight, [vocabulary / TP, hidden]."""
    tied = model.share_embeddings_and_output_weights
    weight: torch.Tensor = model.shared_embedding_or_output_weight() if tied else model.output_layer.weight
    return weight


@torch.no_grad()
def head_losses(model: GPTModel, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns negative log-likelihoods, from blocks of at most ``LOGITS_PER_BLOCK`` logits.

    Args:
        model: the last chunk.
        hidden: as for ``head_inputs``.
        labels: int64 [rows, W], tokens.

    Returns:
        fp32 [rows, W] nats.
    """
    inputs = head_inputs(model, hidden).flatten(0, 1)
    weight = head_weight(model)
    rows = max(1, LOGITS_PER_BLOCK // len(weight))
    pairs = zip(inputs.split(rows), labels.t().flatten().split(rows), strict=True)
    losses = [cross_entropy(linear(block, weight), tokens, model.pg_collection.tp) for block, tokens in pairs]
    return torch.cat(losses).view(labels.T.shape).t()
