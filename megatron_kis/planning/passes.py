"""The most memory that the forward and backward passes of a step take on a stage."""

from __future__ import annotations

from megatron_kis.planning.pipeline_order import passes
from megatron_kis.planning.split import Split
from megatron_kis.planning.steps import Step, Work, backward_peak, embedding, forward_peak, head, kept, layers

_BATCH_BYTES = 28
"""Per token of a step: token, label and place in int64, and the loss's mask in fp32. All micro-batches are brought to
the device before the first pass."""

_REPORT_BYTES = 4096
"""Per micro-batch: its sum of losses and its count of tokens, and what they are reported in, each in a block of 512."""

_SMALL_BYTES = 64 * 512
"""Frequencies of the rotary embedding, random states, counters: each in a block of 512."""

_WORKSPACE = 32 * 2**20 + 1024
"""Of cuBLAS, which Transformer Engine gives it on Hopper and later (its ``get_cublas_workspace_size_bytes``)."""

_STATE_BYTES = 64 * 512
"""Of a layer of Transformer Engine: seeds, and FP8's scales and largest values, each in a block of 512."""


def chunk_steps(work: Work, stage: int, chunk: int) -> list[Step]:
    """The steps of one chunk of a stage."""
    split = work.split
    first = stage == 0 and chunk == 0
    last = stage == split.pipeline - 1 and chunk == split.virtual - 1
    steps = layers(work, work.shape.layers // split.pipeline // split.virtual)
    if first:
        steps = [embedding(work), *steps]
    if last:
        steps += head(work, tied=first and work.shape.tied_embeddings)
    return steps


def batches(work: Work, micro_batches: int) -> float:
    """Bytes of what a step is computed from."""
    mask = work.length if work.own_mask else 0
    return work.tokens * micro_batches * (_BATCH_BYTES + mask) + micro_batches * _REPORT_BYTES


def peak_of_passes(work: Work, stage: int, micro_batches: int) -> float:
    """Bytes above weights, gradients and optimizer.

    Args:
        work: a micro-batch.
        stage: of the pipeline.
        micro_batches: of a step, per replica.
    """
    chunks = [chunk_steps(work, stage, chunk) for chunk in range(work.split.virtual)]
    outputs = [_output(work, stage, chunk) for chunk in range(work.split.virtual)]
    own = [kept(steps) + output for steps, output in zip(chunks, outputs, strict=True)]
    most = {
        True: [forward_peak(steps) + output for steps, output in zip(chunks, outputs, strict=True)],
        False: [backward_peak(steps) + output for steps, output in zip(chunks, outputs, strict=True)],
    }
    messages = _messages(work.split, stage)
    alive = peak = 0.0
    begun = False
    for forward, chunk in passes(work.split, stage, _enough(work.split, micro_batches)):
        alive -= 0.0 if forward else own[chunk]
        peak = max(peak, alive + most[forward][chunk] + (messages[forward] * work.shared if begun else 0.0))
        alive += own[chunk] if forward else 0.0
        begun = begun or not forward
    return peak + batches(work, micro_batches) + left_over(work, stage)


def left_over(work: Work, stage: int) -> float:
    """Bytes that stay after the first step: the rotary angles of each chunk, in fp32, and buffers of products.

    Megatron-Core's products gather their input into one buffer. Transformer Engine's have a workspace, add the gradient
    of a weight to the main gradient and give autograd one that nobody reads, kept for each shape; in FP8 they keep each
    weight in one byte as it is and transposed.
    """
    split = work.split
    angles = work.length / split.context * work.head * 4 * split.virtual + _SMALL_BYTES
    if not work.engine:
        return angles + work.gathered
    unread = sum(rows * columns / split.tensor * work.each for rows, columns in set(work.products.values()))
    matrices = sum(work.matrix(name) for name in work.products) * (work.shape.layers // split.pipeline)
    unread += matrices if work.precision == "fp8" else 0.0
    unread += _STATE_BYTES * (work.shape.layers // split.pipeline)
    return angles + unread + _WORKSPACE + (work.gathered if stage == split.pipeline - 1 else 0.0)


def last_inputs(work: Work, stage: int) -> float:
    """Bytes that stay between steps where stages pass on their outputs: each chunk's last input, and its gradient."""
    chunks = work.split.virtual - (stage == 0)
    return 2 * chunks * work.shared if work.split.pipeline > 1 else 0.0


def _output(work: Work, stage: int, chunk: int) -> float:
    """Bytes of what a chunk puts out, which the interleaved schedule keeps until the chunk's backward pass."""
    split = work.split
    last = stage == split.pipeline - 1 and chunk == split.virtual - 1
    return 0.0 if split.virtual == 1 or last else work.shared


def _messages(split: Split, stage: int) -> dict[bool, int]:
    """Messages that are alive besides in a forward (True) and in a backward pass, once there was a backward pass.

    Without interleaving: the last backward pass's input and its gradient, until the next one takes their place. With
    it: as much for each chunk that gets its input from another stage, and on inner stages the next input and the last
    gradient, which are on their way (how many these are was counted on the dry device).
    """
    if split.pipeline == 1:
        return {True: 0, False: 0}
    if split.virtual == 1:
        return {True: 2, False: 1} if stage else {True: 0, False: 0}
    most = 2 * (split.virtual - (stage == 0)) + (2 if 0 < stage < split.pipeline - 1 else 0)
    return {True: most, False: most}


def _enough(split: Split, micro_batches: int) -> int:
    """Micro-batches after which a schedule only repeats itself; a multiple of the stages, as interleaving wants."""
    return min(micro_batches, 4 * split.pipeline) if split.pipeline > 1 else min(micro_batches, 2)
