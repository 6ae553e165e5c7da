"""The most memory that validation, a probe, an update, and saving and loading take on a stage.

Each is above weights, gradients and optimizer. None of them runs while another does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from megatron_kis.config.vocabulary import LOGITS_PER_BLOCK
from megatron_kis.planning.activations import unkept_peak
from megatron_kis.planning.passes import batches, last_inputs, left_over
from megatron_kis.planning.work import Work

_BLOCK = 512
"""Bytes of the smallest block of memory that PyTorch allocates."""

_TENSORS_PER_LAYER = 6
"""Weights of a layer: four matrices and two norms; besides there may be a bias, and norms of queries and keys."""

_TREE_WIDTH = 192
"""Tokens of a row with several options (``ROW_WIDTH`` of ``probes/probe.py``)."""

_NODE_BYTES = 200
"""Bytes per token of a probe: tokens, depths, places, nodes, edges and their labels in int64, and scores."""


@dataclass(frozen=True)
class EvaluationLoad:
    """Sizes of a run's validation and probes."""

    validation_tokens: float = 1e6
    """Tokens of the held-out text (``validation.max_tokens``)."""

    probe_rows: int = 512
    """Options of a probe's pass (``probes.batch_size``), each in a row of its own. Rows that share beginnings have
    fewer tokens."""

    probe_width: int = 32
    """Tokens of such a row: an assumption, statements of facts are seldom longer."""

    probe_nodes: int | None = None
    """Number of these tokens after which the next token is scored; all of them if not given."""


def bytes_between_steps(work: Work, stage: int, evaluation: EvaluationLoad) -> float:
    """Returns the bytes that stay allocated between steps."""
    return left_over(work, stage) + probe_growth(work, evaluation) + last_inputs(work, stage)


def probe_growth(work: Work, evaluation: EvaluationLoad) -> float:
    """Returns the bytes by which a probe enlarges the buffer in which Megatron-Core's products gather their input."""
    return 0.0 if work.engine else max(0.0, _probe_work(work, evaluation).gathered - work.gathered)


def _probe_work(work: Work, evaluation: EvaluationLoad) -> Work:
    return replace(work, length=evaluation.probe_width, batch=evaluation.probe_rows)


def peak_of_update(work: Work, stage: int, micro_batches: int, evaluation: EvaluationLoad) -> float:
    """Returns the bytes of an optimizer step: a norm for each weight, and the micro-batches that are still allocated.

    The optimizers are fused and update in place, whichever is installed.
    """
    layers = work.shape.layers // work.split.pipeline
    each = _TENSORS_PER_LAYER + work.shape.qkv_bias + 2 * work.shape.qk_norm
    norms = 2 * _BLOCK * (layers * each + 4)
    return bytes_between_steps(work, stage, evaluation) + batches(work, micro_batches) + norms


def _body(work: Work, stage: int) -> float:
    """Returns the bytes of the layers in a pass that keeps nothing.

    The first stage holds the embedding's output throughout; the first input of other stages is among their last inputs.
    """
    return unkept_peak(work) + (work.shared if stage == 0 else 0.0)


def peak_of_validation(work: Work, stage: int, evaluation: EvaluationLoad) -> float:
    """Returns the bytes of a pass that keeps nothing, over a micro-batch; logits are computed in blocks."""
    inputs = bytes_between_steps(work, stage, evaluation) + work.tokens * 32 + evaluation.validation_tokens * 4
    body = _body(work, stage)
    if stage < work.split.pipeline - 1:
        return inputs + body
    block = min(work.tokens * work.vocabulary / work.split.tensor, LOGITS_PER_BLOCK)
    copy = work.each if work.each < 4 else 0
    return inputs + max(body, 2 * work.shared + work.gathered + block * (4 + copy) + work.tokens * 40)


def peak_of_probe(work: Work, stage: int, evaluation: EvaluationLoad) -> float:
    """Returns the bytes of a probe's pass.

    With ``sdpa`` rows hold trees of options and have a mask, and a fused kernel that takes a mask needs keys for each
    query head. The output layer's input is copied into another order and selected from; a block of logits has an fp32
    copy and its logarithms next to it.
    """
    probe = _probe_work(work, evaluation)
    inputs = bytes_between_steps(work, stage, evaluation) + probe.tokens * _NODE_BYTES
    body = _body(probe, stage)
    if not probe.engine:
        body += probe.tokens * (probe.head * (4 + 4 * probe.each) + _TREE_WIDTH * (probe.each + 2))  # angles, mask
        if probe.shape.query_groups < probe.shape.heads:
            body += 2 * probe.activation(probe.shape.queries) / probe.split.tensor
    if stage < work.split.pipeline - 1:
        return inputs + body
    nodes = evaluation.probe_nodes or probe.tokens
    block = min(nodes * probe.vocabulary / probe.split.tensor, LOGITS_PER_BLOCK)
    copy = probe.each if probe.each < 4 else 0
    return inputs + max(body, probe.shared + probe.gathered + 2 * probe.whole + block * (8 + copy))


def peak_of_saving(work: Work, stage: int, evaluation: EvaluationLoad) -> float:
    """Returns the bytes of saving: each rank copies its tensors to the CPU's memory one by one."""
    return bytes_between_steps(work, stage, evaluation)


def peak_of_loading(work: Work, stage: int, evaluation: EvaluationLoad) -> float:
    """Returns the bytes of loading: the two matrices of each gate, read separately, are joined."""
    return bytes_between_steps(work, stage, evaluation) + work.shape.layers // work.split.pipeline * work.matrix("fc1")


def checkpoint_bytes(work: Work, params: int) -> float:
    """Returns the bytes that a rank copies to the CPU's memory for a checkpoint, and then writes.

    Replicas divide the weights (``share_out`` of ``checkpoint/sharded.py``; each weight has one writer) and the
    optimizer's state.

    Args:
        work: a micro-batch, which has the layout.
        params: number of parameters of the rank.
    """
    replicas = work.split.data * work.split.context
    largest = max(work.vocabulary * work.shape.width / work.split.tensor, work.matrix("fc1") / work.each)
    weights = params if replicas == 1 else max(params / replicas, largest)
    return weights * work.each + params * (12 if work.each < 4 else 8) / replicas
