"""The most memory that validation, a probe, an update, and saving and loading take on a stage.

Each is above weights, gradients and optimizer. None of them runs while another does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from megatron_kis.config.vocabulary import LOGITS_PER_BLOCK
from megatron_kis.planning.passes import batches, last_inputs, left_over
from megatron_kis.planning.steps import Work, unkept_peak

_BLOCK = 512
"""Bytes of the smallest piece of memory that PyTorch gives."""

_TENSORS_PER_LAYER = 6
_TREE_WIDTH = 192
"""Tokens of a row with several options (``ROW_WIDTH`` of ``probes/probe.py``)."""

_NODE_BYTES = 200
"""Per token of a probe: tokens, depths, places, nodes, edges and their labels in int64, and scores."""


@dataclass(frozen=True)
class Besides:
    """What a run does besides its steps."""

    validation_tokens: float = 1e6
    """Of the held-out text (``validation.max_tokens``)."""

    probe_rows: int = 512
    """Options of a probe's pass (``probes.batch_size``), each in a row of its own. Rows that share beginnings have
    fewer tokens."""

    probe_width: int = 32
    """Tokens of such a row: an assumption, statements of facts are seldom longer."""

    probe_nodes: int | None = None
    """Of these tokens, the ones after which another is asked; all of them if not given."""


def between(work: Work, stage: int, besides: Besides) -> float:
    """Bytes that stay between steps."""
    return left_over(work, stage) + grown(work, besides) + last_inputs(work, stage)


def grown(work: Work, besides: Besides) -> float:
    """Bytes by which a probe enlarges the buffer in which Megatron-Core's products gather their input."""
    return 0.0 if work.engine else max(0.0, _asked(work, besides).gathered - work.gathered)


def _asked(work: Work, besides: Besides) -> Work:
    return replace(work, length=besides.probe_width, batch=besides.probe_rows)


def peak_of_update(work: Work, stage: int, micro_batches: int, besides: Besides) -> float:
    """Bytes of an optimizer step: a norm for each weight, and the micro-batches that are still there.

    The optimizers are fused and update in place, whichever is installed.
    """
    layers = work.shape.layers // work.split.pipeline
    return between(work, stage, besides) + batches(work, micro_batches) + 2 * _BLOCK * (layers * _TENSORS_PER_LAYER + 4)


def _body(work: Work, stage: int) -> float:
    """Bytes of the layers where nothing is kept.

    The first stage holds what the embedding gave all along; the others' first input is among their last inputs.
    """
    return unkept_peak(work) + (work.shared if stage == 0 else 0.0)


def peak_of_validation(work: Work, stage: int, besides: Besides) -> float:
    """Bytes of a pass that keeps nothing, over a micro-batch; logits are made in blocks."""
    inputs = between(work, stage, besides) + work.tokens * 32 + besides.validation_tokens * 4
    body = _body(work, stage)
    if stage < work.split.pipeline - 1:
        return inputs + body
    block = min(work.tokens * work.vocabulary / work.split.tensor, LOGITS_PER_BLOCK)
    copy = work.each if work.each < 4 else 0
    return inputs + max(body, 2 * work.shared + work.gathered + block * (4 + copy) + work.tokens * 40)


def peak_of_probe(work: Work, stage: int, besides: Besides) -> float:
    """Bytes of a probe's pass.

    With ``sdpa`` rows hold trees of options and have a mask, and a fused kernel that takes a mask wants keys for each
    query head. What the output layer gets is laid out again and picked from; a block of logits has an fp32 copy and its
    logarithms beside it.
    """
    asked = _asked(work, besides)
    inputs = between(work, stage, besides) + asked.tokens * _NODE_BYTES
    body = _body(asked, stage)
    if not asked.engine:
        body += asked.tokens * (asked.head * (4 + 4 * asked.each) + _TREE_WIDTH * (asked.each + 2))  # angles, mask
        if asked.shape.query_groups < asked.shape.heads:
            body += 2 * asked.activation(asked.shape.width) / asked.split.tensor
    if stage < work.split.pipeline - 1:
        return inputs + body
    nodes = besides.probe_nodes or asked.tokens
    block = min(nodes * asked.vocabulary / asked.split.tensor, LOGITS_PER_BLOCK)
    copy = asked.each if asked.each < 4 else 0
    return inputs + max(body, asked.shared + asked.gathered + 2 * asked.whole + block * (8 + copy))


def peak_of_saving(work: Work, stage: int, besides: Besides) -> float:
    """Bytes of a checkpoint: each rank copies what it holds to the host, tensor by tensor."""
    return between(work, stage, besides)


def peak_of_loading(work: Work, stage: int, besides: Besides) -> float:
    """Bytes of taking over a checkpoint: the two matrices of each gate, read apart, are joined."""
    return between(work, stage, besides) + work.shape.layers // work.split.pipeline * work.matrix("fc1")


def written(work: Work, params: int) -> float:
    """Bytes that a rank copies to the host's memory for a checkpoint, and then writes.

    Replicas share out weights (``share_out`` of ``training/shards.py``; each has one writer) and the optimizer's state.

    Args:
        work: with the layout.
        params: parameters of the rank.
    """
    replicas = work.split.data * work.split.context
    largest = max(work.vocabulary * work.shape.width / work.split.tensor, work.matrix("fc1") / work.each)
    weights = params if replicas == 1 else max(params / replicas, largest)
    return weights * work.each + params * (12 if work.each < 4 else 8) / replicas
