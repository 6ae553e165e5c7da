"""The most memory that the forward and backward passes of a step take on a stage."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_kis.planning.activations import Operation, backward_peak, embedding, forward_peak, head, kept, layers
from megatron_kis.planning.split import Split
from megatron_kis.planning.work import Work

_BATCH_BYTES = 28
"""Bytes per token of a step: token, label and place in int64, and the loss's mask in fp32. All micro-batches are copied
to the device before the first pass."""

_REPORT_BYTES = 4096
"""Bytes per micro-batch: its sum of losses, its count of tokens and their reports, each in a block of 512."""

_SMALL_BYTES = 64 * 512
"""Bytes of the rotary embedding's frequencies, random states and counters, each in a block of 512."""

_WORKSPACE = 32 * 2**20 + 1024
"""Bytes of cuBLAS's workspace, which Transformer Engine allocates on Hopper and later (its
``get_cublas_workspace_size_bytes``)."""

_STATE_BYTES = 64 * 512
"""Bytes per layer of Transformer Engine: seeds, and FP8's scales and largest values, each in a block of 512."""


def pass_order(split: Split, stage: int, micro_batches: int) -> Iterator[tuple[bool, int]]:
    """Yields the passes of a stage in the order of Megatron-Core's schedules: whether forward, and which chunk.

    One forward, one backward (Narayanan et al. 2021, section 2.2), after as many forward passes as are needed to keep
    the later stages busy: p - s - 1 on stage s of p, and with v chunks 2 (p - s - 1) + (v - 1) p. With several chunks,
    as many micro-batches as there are stages take turns on each.

    Args:
        split: the layout.
        stage: number of the stage.
        micro_batches: number of micro-batches of a step.
    """
    stages, chunks = split.pipeline, split.virtual
    order = [
        chunk
        for start in range(0, micro_batches, stages)
        for chunk in range(chunks)
        for _ in range(start, min(start + stages, micro_batches))
    ]
    ahead = stages - stage - 1
    if chunks > 1:
        ahead = 2 * ahead + (chunks - 1) * stages
    ahead = min(ahead, len(order))
    for number in range(len(order) + ahead):
        if number < len(order):
            yield True, order[number]
        if number >= ahead:
            yield False, chunks - 1 - order[number - ahead]


def chunk_operations(work: Work, stage: int, chunk: int) -> list[Operation]:
    """Returns the operations of one chunk of a stage."""
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
    """Returns the bytes of a step's batches."""
    mask = work.length if work.own_mask else 0
    return work.tokens * micro_batches * (_BATCH_BYTES + mask) + micro_batches * _REPORT_BYTES


def peak_of_passes(work: Work, stage: int, micro_batches: int) -> float:
    """Returns the bytes that passes take in addition to weights, gradients and optimizer.

    Args:
        work: a micro-batch.
        stage: number of the pipeline stage.
        micro_batches: micro-batches of a step, per replica.
    """
    chunks = [chunk_operations(work, stage, chunk) for chunk in range(work.split.virtual)]
    outputs = [_output(work, stage, chunk) for chunk in range(work.split.virtual)]
    own = [kept(steps) + output for steps, output in zip(chunks, outputs, strict=True)]
    most = {
        True: [forward_peak(steps) + output for steps, output in zip(chunks, outputs, strict=True)],
        False: [backward_peak(steps) + output for steps, output in zip(chunks, outputs, strict=True)],
    }
    messages = _messages(work.split, stage)
    alive = peak = 0.0
    begun = False
    for forward, chunk in pass_order(work.split, stage, _enough(work.split, micro_batches)):
        alive -= 0.0 if forward else own[chunk]
        peak = max(peak, alive + most[forward][chunk] + (messages[forward] * work.shared if begun else 0.0))
        alive += own[chunk] if forward else 0.0
        begun = begun or not forward
    return peak + batches(work, micro_batches) + left_over(work, stage)


def left_over(work: Work, stage: int) -> float:
    """Returns the bytes that stay after the first step: the rotary angles of each chunk, in fp32, and buffers.

    Megatron-Core's products gather their input into one buffer. Transformer Engine's have a workspace, add the gradient
    of a weight to the main gradient and give autograd a gradient that is not used, kept for each shape; in FP8 they
    keep each weight in one byte as it is and transposed.
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
    """Returns the bytes that stay between steps of a pipeline: each chunk's last input, and its gradient."""
    chunks = work.split.virtual - (stage == 0)
    return 2 * chunks * work.shared if work.split.pipeline > 1 else 0.0


def _output(work: Work, stage: int, chunk: int) -> float:
    """Returns the bytes of a chunk's output, which the interleaved schedule keeps until the chunk's backward pass."""
    split = work.split
    last = stage == split.pipeline - 1 and chunk == split.virtual - 1
    return 0.0 if split.virtual == 1 or last else work.shared


def _messages(split: Split, stage: int) -> dict[bool, int]:
    """Returns how many messages are alive in a forward (True) and in a backward pass, after the first backward pass.

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
    """Returns micro-batches after which a schedule repeats itself: a multiple of the stages, as interleaving needs."""
    return min(micro_batches, 4 * split.pipeline) if split.pipeline > 1 else min(micro_batches, 2)
