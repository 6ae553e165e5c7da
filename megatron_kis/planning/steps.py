"""What the operations of a pass hold: kept until their backward pass, and at once while they run.

A chunk of a model is a list of steps in the order of the forward pass. What a step keeps comes with its forward pass
and goes with its backward pass; ``forward`` and ``backward`` are what is alive besides while it runs. The peak of a
pass is then the largest sum (``forward_peak``, ``backward_peak``), without a guess at which moment that is.

The list of what a layer keeps has the parts of Korthikanti et al. 2022 ("Reducing Activation Recomputation in Large
Transformer Models", section 4) for this model: no dropout, a gated feed-forward block, and attention that keeps one
number per head and token (Dao et al. 2022). What is alive at a moment was read in the code of this project and of
Megatron-Core, and is checked against a run on fake CUDA tensors (``tests/dry_device/test_plan.py``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from megatron_kis.config.ladder import ModelShape
from megatron_kis.planning.split import Split

Kernels = Literal["fused", "plain"]
Layers = Literal["sdpa", "transformer_engine"]
Precision = Literal["bf16", "fp32", "fp8"]

_NUMBER = 4
"""Bytes of a number in fp32: a norm's scale, a head's normaliser."""

_LOSS_NUMBERS = 40
"""Bytes per token beside the logits: largest logit, normaliser, label's logit and loss in fp32, label and its place in
int64, and what transposing labels and losses copies."""


@dataclass(frozen=True)
class Step:
    """One operation of a pass."""

    name: str
    kept: float
    """Bytes that its forward pass keeps for its backward pass, which frees them."""

    forward: float = 0.0
    """Bytes besides, alive at once in its forward pass: its output, and what it needs to make it."""

    backward: float = 0.0
    """The same of its backward pass: gradients that come in and go out, of the weight too."""

    left: float = 0.0
    """Bytes that its backward pass leaves until the whole backward pass is over."""


@dataclass(frozen=True)
class Work:
    """A micro-batch on a rank, and how it is computed."""

    shape: ModelShape
    vocabulary: int
    """Padded rows of the embedding."""

    split: Split
    length: int
    """Tokens of a sequence."""

    batch: int
    """Sequences of a micro-batch."""

    precision: Precision = "bf16"
    layers: Layers = "sdpa"
    kernels: Kernels = "fused"
    """``fused`` is CUDA's; ``plain`` is PyTorch's operators one by one, the host's."""

    own_mask: bool = False
    """Whether attention has a mask for each sequence (documents that do not see each other)."""

    @property
    def each(self) -> int:
        """Bytes of an activation, a weight, or a weight's gradient as the backward pass makes it."""
        return 4 if self.precision == "fp32" else 2

    @property
    def engine(self) -> bool:
        """Whether the layers are Transformer Engine's."""
        return self.layers == "transformer_engine"

    @property
    def tokens(self) -> float:
        """Tokens of a micro-batch on this rank."""
        return self.length * self.batch / self.split.context

    def activation(self, width: float) -> float:
        """Bytes of an activation of ``width`` numbers per token."""
        return self.tokens * width * self.each

    @property
    def head(self) -> int:
        """Width of a head."""
        return self.shape.width // self.shape.heads

    @property
    def whole(self) -> float:
        """Bytes of the residual stream of all tokens."""
        return self.activation(self.shape.width)

    @property
    def along(self) -> int:
        """Ranks over which the residual stream is shared out."""
        return self.split.tensor if self.split.sequence else 1

    @property
    def shared(self) -> float:
        """Bytes of the residual stream as it is between the tensor-parallel regions."""
        return self.whole / self.along

    @property
    def gathered(self) -> float:
        """Bytes of a copy that gathers the residual stream of all tensor ranks; 0 where each has it anyway."""
        return self.whole if self.along > 1 else 0.0

    @property
    def scattered(self) -> float:
        """Bytes of this rank's part of a gathered copy; 0 where nothing is gathered."""
        return self.shared if self.along > 1 else 0.0

    @cached_property
    def products(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of a layer's matrices, whole."""
        width, ffn = self.shape.width, self.shape.ffn_width
        rows = width + 2 * self.shape.query_groups * self.head
        return {"qkv": (rows, width), "projection": (width, width), "fc1": (2 * ffn, width), "fc2": (width, ffn)}

    def matrix(self, name: str) -> float:
        """Bytes of a layer's matrix on this rank, and of its gradient before that is added to the main one."""
        rows, columns = self.products[name]
        return rows * columns / self.split.tensor * self.each

    @property
    def table(self) -> float:
        """The same of the embedding and of the output layer."""
        return self.vocabulary * self.shape.width / self.split.tensor * self.each


def forward_peak(steps: Sequence[Step]) -> float:
    """The most bytes in a forward pass."""
    alive = peak = 0.0
    for step in steps:
        alive += step.kept
        peak = max(peak, alive + step.forward)
    return peak


def backward_peak(steps: Sequence[Step]) -> float:
    """The most bytes in a backward pass."""
    alive, peak = kept(steps), 0.0
    for step in reversed(steps):
        peak = max(peak, alive + step.backward)
        alive += step.left - step.kept
    return peak


def kept(steps: Sequence[Step]) -> float:
    """Bytes between the forward and the backward pass."""
    return math.fsum(step.kept for step in steps)


def layer(work: Work) -> list[Step]:
    """The steps of a layer.

    The gradient of the residual stream is alive all along. A product has the gradients of its output, its input and its
    weight at once. Where tensor ranks share sequences, ``projection`` and ``fc2`` gather the gradient of their output,
    ``qkv`` and ``fc1`` scatter that of their input. ``qkv`` and ``fc1`` also gather their input: Megatron-Core's layers
    into a buffer that stays, Transformer Engine's into a copy. The latter add weight gradients to the main ones as they
    multiply. ``plain`` kernels keep the activated gate as well.

    In FP8 a product keeps its input in one byte per number, beside what other steps keep of it in bf16. While it runs,
    there are that input in bf16, and as it is and transposed in FP8; in the backward pass, the same of its output's
    gradient.
    """
    residual, whole, gathered, scattered = work.shared, work.whole, work.gathered, work.scattered
    hidden = work.activation(work.shape.ffn_width) / work.split.tensor
    numbers = work.tokens * _NUMBER / work.along
    copy = gathered if work.engine else 0.0
    queries, mixed = _queries(work), _queries(work) + 2 * _keys(work)
    fp8 = work.precision == "fp8"
    held = 0.5 if fp8 else 1.0

    def weight(name: str) -> float:
        return 0.0 if work.engine else work.matrix(name)

    def quantised(size: float) -> float:
        return size if fp8 else 0.0

    return [
        Step("norm", residual + numbers, residual, 4 * residual),
        Step("qkv", held * residual, mixed + copy + quantised(residual),
             residual + mixed + quantised(mixed) + whole + scattered + copy + weight("qkv")),
        *_attention(work),
        Step("projection", queries / 2 if fp8 else 0.0, whole + scattered + quantised(queries),
             residual + gathered + quantised(whole) + queries + weight("projection")),
        Step("norm", residual + numbers, residual, 4 * residual),
        Step("fc1", held * residual, 2 * hidden + copy + quantised(residual),
             residual + 2 * hidden + quantised(2 * hidden) + whole + scattered + copy + weight("fc1")),
        Step("gate", (3 if work.kernels == "plain" else 2) * hidden, hidden, residual + 3 * hidden),
        Step("fc2", held * hidden, whole + scattered + quantised(hidden),
             residual + gathered + quantised(whole) + hidden + weight("fc2")),
    ]  # fmt: skip


def _queries(work: Work) -> float:
    return work.activation(work.shape.width) / work.split.tensor


def _keys(work: Work) -> float:
    return work.activation(work.shape.query_groups * work.head) / work.split.tensor


def _repeated(work: Work) -> float:
    """Bytes of keys and values, of all ranks that share sequences, repeated for each query head; 0 where they are not.

    ``model/attention.py`` does so on CUDA for the kernel that takes masks of one's own, and fp32.
    """
    grouped = work.shape.query_groups < work.shape.heads and (work.own_mask or work.precision == "fp32")
    return 2 * _queries(work) * work.split.context if grouped and work.kernels == "fused" and not work.engine else 0.0


def _everyone(work: Work) -> float:
    """Bytes of keys and values that a rank gathers of all that share its sequences; 0 where it gathers none."""
    return 2 * _keys(work) * work.split.context if work.split.context > 1 and not work.engine else 0.0


def _attention(work: Work) -> list[Step]:
    """Rotation and attention.

    Kept are queries, keys and values as they left the matrix (values are read from there), queries and keys rotated,
    the output, and a number per head; the angles' cosines and sines once for the queries and once for the keys where
    the rotation is not fused. Ranks that share sequences gather keys and values (``sdpa``); under the causal mask the
    output is made in two pieces that are then joined.

    Keys and values that are repeated for each query head are kept in place of what they came from.

    Transformer Engine's attention copies the values and leaves the rest of the matrix's output. Where ranks share
    sequences it passes keys and values round, and holds those of every rank and each one's output at once (its
    ``AttnFuncWithCPAndKVP2P``: read, not run here).
    """
    queries, keys, residual = _queries(work), _keys(work), work.shared
    mixed = queries + 2 * keys
    angles = 4.0 * work.length / work.split.context * work.head * work.each
    if work.engine or work.kernels == "plain":  # fused; and the host's layers share them
        angles = 0.0
    numbers = work.tokens * work.shape.heads / work.split.tensor * _NUMBER
    mask = work.tokens * work.length * work.each if work.own_mask else 0.0
    rotary = Step("rotary", angles, mixed + 2 * queries + keys, residual + 2 * mixed + queries)
    if work.split.context > 1 and not work.engine:
        everyone, held = _everyone(work), _repeated(work) or _everyone(work)
        made = everyone if work.own_mask else 2 * everyone  # two pieces' gradients of the keys, and their sum
        return [
            rotary,
            Step("attention", queries + held + queries + numbers + mask, 2 * keys + everyone + queries,
                 residual + 2 * queries + held + made),
            *([] if work.own_mask else [Step("join", queries, 0.0, residual + queries)]),
        ]  # fmt: skip
    values = keys if work.engine else mixed  # a copy, or with what they came with
    ring = work.split.context if work.split.context > 1 else 0
    if repeated := _repeated(work):
        return [
            rotary,
            Step("attention", queries + repeated + queries + numbers + mask, mixed + keys,
                 residual + 2 * queries + repeated + keys),
        ]  # fmt: skip
    return [
        rotary,
        Step("attention", values + queries + keys + queries + numbers + mask, ring * (2 * keys + queries),
             residual + queries + mixed + (queries + 8 * keys if ring else 0.0)),
    ]  # fmt: skip


def recomputed(work: Work, steps: Sequence[Step], forward: float) -> Step:
    """Steps of which only the input is kept: their backward pass first goes through them forward again.

    Beside what they then keep are the gradient that comes in, and the output that was made again.

    Args:
        work: a micro-batch.
        steps: all of a layer's, or the last ones.
        forward: bytes that their forward pass has at once where it keeps nothing.
    """
    return Step("recomputed", work.shared, forward, max(forward_peak(steps), backward_peak(steps)))


def unkept_peak(work: Work) -> float:
    """The most bytes in a layer's forward pass that keeps nothing, its input and output counted.

    The caller holds the layer's input all along, the layer its normed input and the residual stream.
    """
    residual, whole, scattered = work.shared, work.whole, work.scattered
    copy = work.gathered if work.engine else 0.0
    hidden = work.activation(work.shape.ffn_width) / work.split.tensor
    queries, keys = _queries(work), _keys(work)
    others = _repeated(work) + 2 * _everyone(work) + (queries if _everyone(work) else 0.0)
    attention = 2 * residual + (queries + 2 * keys) + queries + keys
    attention += max(copy, queries + others, queries + whole + scattered)
    feed_forward = 3 * residual + max(2 * hidden + max(copy, hidden), hidden + whole + scattered)
    return max(attention, feed_forward)


def layers(work: Work, count: int) -> list[Step]:
    """The steps of ``count`` layers: what all but the last keep, and the last one's, at which each pass is fullest.

    With full recomputation a layer keeps its input, with selective recomputation its feed-forward block does, to which
    Transformer Engine's layers add the norm.
    """
    one, again = layer(work), unkept_peak(work) - work.shared
    if work.split.recompute == "full":
        one = [recomputed(work, one, again)]
    elif work.split.recompute == "selective":
        block = 4 if work.engine else 3
        one = [*one[:-block], recomputed(work, one[-block:], again)]
    return [Step("layers before", (count - 1) * kept(one)), *one]


def embedding(work: Work) -> Step:
    """The look-up: its backward pass makes a gradient of the whole table.

    A rank that has a part of the table keeps the tokens counted from its own first one, and which of them are its own.
    """
    own = work.tokens * 9 if work.split.tensor > 1 else 0.0
    return Step("embedding", own, work.whole + work.scattered, work.shared + work.gathered + work.table)


def head(work: Work, *, tied: bool) -> list[Step]:
    """The final norm, the output layer and the loss.

    The loss turns an fp32 copy of the logits in place into the softmax that its backward pass needs. Beside it are the
    half-precision logits, and then their gradient; in fp32 both are the softmax's own memory.

    Args:
        work: a micro-batch.
        tied: whether the table is the embedding's, on the same rank: its gradient then waits for the other half.
    """
    logits = work.tokens * work.vocabulary / work.split.tensor
    gradient = logits * work.each
    copy = gradient if work.each < 4 else 0.0
    numbers = work.tokens * _LOSS_NUMBERS
    of_output = gradient + work.whole + work.scattered + work.table
    return [
        Step("norm", work.shared + work.tokens * _NUMBER / work.along, work.shared, 4 * work.shared),
        Step("output", work.shared, gradient, of_output, work.table if tied else 0.0),
        Step("loss", logits * 4 + numbers, copy, copy + numbers),
    ]
