"""Activations of a pass: what each operation keeps until its backward pass, and what is alive while it runs.

A chunk of a model is a list of operations in the order of the forward pass. What an operation keeps is allocated in its
forward pass and freed in its backward pass; ``forward`` and ``backward`` are what is alive in addition while it runs.
The peak of a pass is then the largest sum (``forward_peak``, ``backward_peak``), wherever in the pass that is.

The list of what a layer keeps has the parts of Korthikanti et al. 2022 ("Reducing Activation Recomputation in Large
Transformer Models", section 4) for this model: no dropout, a gated feed-forward block, and attention that keeps one
number per head and token (Dao et al. 2022). What is alive at a moment was read in the code of this project and of
Megatron-Core, and is checked against a run on fake CUDA tensors (``tests/dry_device/test_plan.py``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_kis.planning.work import Work

_NUMBER = 4
"""Bytes of a number in fp32: a norm's scale, a head's normaliser."""

_LOSS_NUMBERS = 40
"""Bytes per token in addition to the logits: largest logit, normaliser, label's logit and loss in fp32, label and its
place in int64, and what transposing labels and losses copies."""


@dataclass(frozen=True)
class Operation:
    """One operation of a pass."""

    name: str
    """Name of the operation."""

    kept: float
    """Bytes that its forward pass keeps for its backward pass, which frees them."""

    forward: float = 0.0
    """Additional bytes that are alive at once in its forward pass: its output, and what computing it needs."""

    backward: float = 0.0
    """Additional bytes in its backward pass: gradients of its output, its input and its weight."""

    left: float = 0.0
    """Bytes that its backward pass leaves until the whole backward pass is over."""


def forward_peak(operations: Sequence[Operation]) -> float:
    """Returns the most bytes in a forward pass: max over i of (kept_1 + ... + kept_i + forward_i)."""
    alive = peak = 0.0
    for operation in operations:
        alive += operation.kept
        peak = max(peak, alive + operation.forward)
    return peak


def backward_peak(operations: Sequence[Operation]) -> float:
    """Returns the most bytes in a backward pass, where later operations have freed what they kept, except ``left``."""
    alive = kept(operations)
    peak = 0.0
    for operation in reversed(operations):
        peak = max(peak, alive + operation.backward)
        alive += operation.left - operation.kept
    return peak


def kept(operations: Sequence[Operation]) -> float:
    """Returns the bytes between the forward and the backward pass."""
    return math.fsum(operation.kept for operation in operations)


def layer(work: Work) -> list[Operation]:
    """Returns the operations of a layer.

    The gradient of the residual stream is alive throughout. A product has the gradients of its output, its input and
    its weight at once. If tensor ranks share sequences, ``projection`` and ``fc2`` gather the gradient of their output,
    ``qkv`` and ``fc1`` scatter that of their input. ``qkv`` and ``fc1`` also gather their input: Megatron-Core's layers
    into a buffer that stays, Transformer Engine's into a copy. The latter add weight gradients to the main ones as they
    multiply. ``plain`` kernels keep the activated gate as well.

    In FP8 a product keeps its input in one byte per number, in addition to what other operations keep of it in bf16.
    While it runs, that input is in memory in bf16, and in FP8 both as it is and transposed; in the backward pass, so is
    its output's gradient.
    """
    residual, whole, gathered, scattered = work.shared, work.whole, work.gathered, work.scattered
    hidden = work.activation(work.shape.ffn_width) / work.split.tensor
    numbers = work.tokens * _NUMBER / work.along
    copy = gathered if work.engine else 0.0
    queries = _queries(work)
    mixed = queries + 2 * _keys(work)
    fp8 = work.precision == "fp8"
    held = 0.5 if fp8 else 1.0

    def weight(name: str) -> float:
        return 0.0 if work.engine else work.matrix(name)

    def quantised(size: float) -> float:
        return size if fp8 else 0.0

    norm = Operation("norm", kept=residual + numbers, forward=residual, backward=4 * residual)
    return [
        norm,
        Operation(
            "qkv",
            kept=held * residual,
            forward=mixed + copy + quantised(residual),
            backward=residual + mixed + quantised(mixed) + whole + scattered + copy + weight("qkv"),
        ),
        *_query_norms(work),
        *_attention(work),
        Operation(
            "projection",
            kept=queries / 2 if fp8 else 0.0,
            forward=whole + scattered + quantised(queries),
            backward=residual + gathered + quantised(whole) + queries + weight("projection"),
        ),
        norm,
        Operation(
            "fc1",
            kept=held * residual,
            forward=2 * hidden + copy + quantised(residual),
            backward=residual + 2 * hidden + quantised(2 * hidden) + whole + scattered + copy + weight("fc1"),
        ),
        Operation(
            "gate",
            kept=(3 if work.kernels == "plain" else 2) * hidden,
            forward=hidden,
            backward=residual + 3 * hidden,
        ),
        Operation(
            "fc2",
            kept=held * hidden,
            forward=whole + scattered + quantised(hidden),
            backward=residual + gathered + quantised(whole) + hidden + weight("fc2"),
        ),
    ]


def _queries(work: Work) -> float:
    return work.activation(work.shape.queries) / work.split.tensor


def _keys(work: Work) -> float:
    return work.activation(work.shape.keys) / work.split.tensor


def _repeated(work: Work) -> float:
    """Returns the bytes of keys and values, of all ranks that share sequences, repeated for each query head.

    0 if they are not repeated: ``model/attention.py`` does so on CUDA for the kernel that takes an explicit mask and
    for fp32.
    """
    grouped = work.shape.query_groups < work.shape.heads and (work.own_mask or work.precision == "fp32")
    return 2 * _queries(work) * work.split.context if grouped and work.kernels == "fused" and not work.engine else 0.0


def _everyone(work: Work) -> float:
    """Returns the bytes of keys and values gathered from all ranks that share sequences; 0 if none are gathered."""
    return 2 * _keys(work) * work.split.context if work.split.context > 1 and not work.engine else 0.0


def _query_norms(work: Work) -> list[Operation]:
    """Returns the operation of the norms of queries and keys, if there are any.

    PyTorch's operators keep the input, of which a copy is made only if a rank has several groups of several heads; it
    is otherwise a part of what the matrix gave. Fused kernels are assumed to keep copies of both.
    """
    if not work.shape.qk_norm:
        return []
    queries, keys, shape = _queries(work), _keys(work), work.shape
    copied = queries + keys
    if work.kernels == "plain":
        copied = queries if work.split.tensor < shape.query_groups < shape.heads else 0.0
    numbers = work.tokens * (shape.heads + shape.query_groups) / work.split.tensor * _NUMBER
    rest = work.shared + 2 * (queries + 2 * keys)
    return [Operation("query norms", copied + numbers, 2 * (queries + keys), rest + 2 * (queries + keys))]


def _attention(work: Work) -> list[Operation]:
    """Returns the operations of the rotary embedding and of attention.

    Kept are queries, keys and values as the matrix gave them (values are read from there), queries and keys rotated,
    the output, and a number per head; the angles' cosines and sines once for the queries and once for the keys if the
    rotation is not fused. Ranks that share sequences gather keys and values (``sdpa``); under the causal mask the
    output is made in two pieces that are then joined.

    Keys and values that are repeated for each query head are kept in place of what they came from.

    Transformer Engine's attention copies the values and leaves the rest of the matrix's output. Where ranks share
    sequences it passes keys and values round, and holds those of every rank and each one's output at once (its
    ``AttnFuncWithCPAndKVP2P``: read, not run here).
    """
    queries = _queries(work)
    keys = _keys(work)
    residual = work.shared
    mixed = queries + 2 * keys
    angles = 4.0 * work.length / work.split.context * work.head * work.each
    if work.engine or work.kernels == "plain":  # fused; and on a CPU the layers share them
        angles = 0.0
    numbers = work.tokens * work.shape.heads / work.split.tensor * _NUMBER
    mask = work.tokens * work.length * work.each if work.own_mask else 0.0
    rotary = Operation(
        "rotary",
        kept=angles,
        forward=mixed + 2 * queries + keys,
        backward=residual + 2 * mixed + queries,
    )
    repeated = _repeated(work)
    if work.split.context > 1 and not work.engine:
        everyone = _everyone(work)
        held = repeated or everyone
        made = everyone if work.own_mask else 2 * everyone  # two pieces' gradients of the keys, and their sum
        attention = Operation(
            "attention",
            kept=queries + held + queries + numbers + mask,
            forward=2 * keys + everyone + queries,
            backward=residual + 2 * queries + held + made,
        )
        if work.own_mask:
            return [rotary, attention]
        return [rotary, attention, Operation("join", kept=queries, backward=residual + queries)]
    if repeated:
        attention = Operation(
            "attention",
            kept=queries + repeated + queries + numbers + mask,
            forward=mixed + keys,
            backward=residual + 2 * queries + repeated + keys,
        )
        return [rotary, attention]
    values = keys if work.engine else mixed  # copied, or kept with the rest of the matrix's output
    ring = work.split.context if work.split.context > 1 else 0
    attention = Operation(
        "attention",
        kept=values + queries + keys + queries + numbers + mask,
        forward=ring * (2 * keys + queries),
        backward=residual + queries + mixed + (queries + 8 * keys if ring else 0.0),
    )
    return [rotary, attention]


def recomputed(work: Work, operations: Sequence[Operation], forward: float) -> Operation:
    """Joins operations of which only the input is kept: their backward pass first computes them forward again.

    In addition to what they then keep are the gradient of the output, and the output that was computed again.

    Args:
        work: a micro-batch.
        operations: all of a layer's, or the last ones.
        forward: bytes that their forward pass has at once where it keeps nothing.
    """
    return Operation("recomputed", work.shared, forward, max(forward_peak(operations), backward_peak(operations)))


def unkept_peak(work: Work) -> float:
    """Returns the most bytes in a layer's forward pass that keeps nothing, including its input and output.

    The caller holds the layer's input throughout, the layer its normed input and the residual stream.
    """
    residual, whole, scattered = work.shared, work.whole, work.scattered
    copy = work.gathered if work.engine else 0.0
    hidden = work.activation(work.shape.ffn_width) / work.split.tensor
    queries = _queries(work)
    keys = _keys(work)
    others = _repeated(work) + 2 * _everyone(work) + (queries if _everyone(work) else 0.0)
    attention = 2 * residual + (queries + 2 * keys) + queries + keys
    attention += max(copy, queries + others, queries + whole + scattered)
    feed_forward = 3 * residual + max(2 * hidden + max(copy, hidden), hidden + whole + scattered)
    return max(attention, feed_forward)


def layers(work: Work, count: int) -> list[Operation]:
    """Returns the operations of ``count`` layers: what all but the last keep, and those of the last, the fullest one.

    With full recomputation a layer keeps its input, with selective recomputation its feed-forward block does, to which
    Transformer Engine's layers add the norm.
    """
    one = layer(work)
    again = unkept_peak(work) - work.shared
    if work.split.recompute == "full":
        one = [recomputed(work, one, again)]
    elif work.split.recompute == "selective":
        block = 4 if work.engine else 3
        one = [*one[:-block], recomputed(work, one[-block:], again)]
    return [Operation("layers before", (count - 1) * kept(one)), *one]


def embedding(work: Work) -> Operation:
    """Returns the look-up, whose backward pass makes a gradient of the whole table.

    A rank that has a part of the table keeps the tokens counted from its own first one, and which of them are its own.
    """
    own = work.tokens * 9 if work.split.tensor > 1 else 0.0
    return Operation("embedding", own, work.whole + work.scattered, work.shared + work.gathered + work.table)


def head(work: Work, *, tied: bool) -> list[Operation]:
    """Returns the final norm, the output layer and the loss.

    The loss turns an fp32 copy of the logits in place into the softmax that its backward pass needs. Next to it are the
    half-precision logits, and then their gradient; in fp32 both are the softmax's own memory.

    Args:
        work: a micro-batch.
        tied: whether the table is the embedding's, on the same rank: its gradient then waits for the other half.
    """
    logits = work.tokens * work.vocabulary / work.split.tensor
    gradient = logits * work.each
    copy = gradient if work.each < 4 else 0.0
    numbers = work.tokens * _LOSS_NUMBERS
    output_backward = gradient + work.whole + work.scattered + work.table
    return [
        Operation("norm", work.shared + work.tokens * _NUMBER / work.along, work.shared, 4 * work.shared),
        Operation("output", work.shared, gradient, output_backward, work.table if tied else 0.0),
        Operation("loss", logits * 4 + numbers, copy, copy + numbers),
    ]
