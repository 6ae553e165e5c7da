"""Seconds of a step: products, attention, kernels bound by memory, messages, idle stages, the update.

Each part has its own formula, so that nothing is counted twice: the share of the peak that products reach is that
of the products alone, and what else a step does comes on top. What an end-to-end share of the peak (MFU) would be is a
result, not an input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from megatron_kis.config.ladder import ModelShape
from megatron_kis.planning.communication import Message, Passes, messages
from megatron_kis.planning.hardware import Gpu
from megatron_kis.planning.split import Split, rank_params
from megatron_kis.planning.work import Precision

_MEMORY_SHARE = 0.8
"""Share of the memory's bandwidth that kernels reach which only read and write: an assumption, of the usual order."""

_LINK_SHARE = 0.8
"""Share of a link's bandwidth that NCCL reaches: its protocol costs about 20% on NVLink (an NVIDIA engineer in
github.com/NVIDIA/nccl-tests, issue 212); the network is assumed to be similar."""

_LATENCY = 15e-6
"""Seconds that a message takes however small it is: an assumption, the order of a small all-reduce in a node."""

_LAUNCH = 6e-6
"""Seconds that PyTorch takes to start one kernel: an assumption, of the usual order for eager mode."""

_LAUNCHES = 40
"""Kernels of a layer's forward pass; as many of its backward pass (counted in a step of the engine, with ``sdpa``)."""

_BUCKET = 40e6
"""Weights of a bucket of gradients, at least; Megatron-Core uses a million times the replicas if that is more."""


@dataclass(frozen=True)
class Program:
    """How a step is programmed: what its time depends on apart from model, layout and hardware."""

    fused_accumulation: bool = False
    """Whether the product that computes a weight's gradient adds it to the fp32 sum itself."""

    overlap_gather: bool = True
    """Whether the updated weights are gathered during the next forward pass."""

    ring: bool = False
    """Whether ranks that share a sequence send keys and values around a ring, or gather them all."""

    precision: Precision = "bf16"
    """Precision of the products; FP8's are counted as if they were BF16's."""

    logit_bytes: float = 46.0
    """Bytes that the loss reads and writes for each logit: ``model/loss.py``, pass by pass."""


@dataclass(frozen=True)
class Seconds:
    """Seconds of a step on the slowest rank, by what it does; they add up."""

    compute: float
    """Products, attention, and kernels bound by memory, with those that recomputation repeats."""

    launch: float
    """Starting kernels, as far as it takes longer than computing."""

    tensor: float
    """Messages of the tensor ranks that no product hides."""

    context: float
    """Keys and values of the ranks that share a sequence."""

    pipeline: float
    """Messages between stages, and those of tied embeddings."""

    bubble: float
    """Waiting for other stages."""

    data: float
    """Gradients and weights of the replicas, as far as the passes do not hide them."""

    update: float
    """Update of the weights by the optimizer."""

    @property
    def total(self) -> float:
        """Seconds of the whole step."""
        return math.fsum(asdict(self).values())

    @property
    def limit(self) -> str:
        """The largest part apart from computing, and its share: ``"tensor 18%"``; ``"compute"`` where all are small."""
        others = {name: value for name, value in asdict(self).items() if name != "compute"}
        worst = max(others, key=lambda name: others[name])
        share = others[worst] / self.total
        return f"{worst} {share:.0%}" if share >= 0.05 else "compute"

    def scaled(self, factor: float) -> Seconds:
        """Returns the seconds with every part multiplied by ``factor``."""
        return Seconds(**{field.name: getattr(self, field.name) * factor for field in fields(self)})

    def as_dict(self) -> dict[str, Any]:
        """Returns the parts and their total, seconds."""
        return {**asdict(self), "total": self.total}


def link(kind: str, ranks: int, split: Split, gpu: Gpu) -> float:
    """Returns the bytes per second that a rank of a group sends, in one direction.

    Ranks are numbered tensor first, then context, replicas, stages (Megatron-Core's order), and fill node after node. A
    group within one node communicates over NVLink, any other over the network, with the shares of all its members in a
    node, as NCCL's rings leave a node over each of them.
    """
    stride = {"tensor": 1, "context": split.tensor, "data": split.tensor}.get(kind, split.gpus // split.pipeline)
    span = split.gpus if kind == "pipeline" else stride * ranks
    if span <= gpu.node:
        return gpu.nvlink * _LINK_SHARE
    together = 1 if kind == "pipeline" else max(1, gpu.node // stride)
    return min(gpu.nvlink, together * gpu.network) * _LINK_SHARE


def message_seconds(message: Message, split: Split, gpu: Gpu) -> float:
    """Returns the seconds of all of a rank's messages of one kind.

    A ring moves ``(n - 1) / n`` of the tensor through each rank to gather or scatter it, twice that to sum it.
    """
    around = (message.ranks - 1) / message.ranks
    moved = {"all_reduce": 2 * around, "all_gather": around, "reduce_scatter": around, "send": 1.0}[message.operation]
    return message.count * (_LATENCY + moved * message.size / link(message.kind, message.ranks, split, gpu))


@dataclass(frozen=True)
class _Stage:
    """Seconds of one micro-batch on a stage."""

    forward: float
    backward: float
    launch: float
    tensor: float
    context: float
    pipeline: float

    @property
    def total(self) -> float:
        return math.fsum(asdict(self).values())


def step_time(
    shape: ModelShape,
    vocabulary: int,
    split: Split,
    *,
    length: int,
    micro_batch: int,
    micro_batches: int,
    gpu: Gpu,
    program: Program,
) -> Seconds:
    """Returns the seconds of a step.

    The slowest stage computes all m micro-batches, and waits for one micro-batch on each other stage: with t_s seconds
    of one micro-batch on stage s and v chunks per stage, m max(t) + (sum(t) - max(t)) / v (1F1B and its interleaved
    form; Narayanan et al. 2021, section 2.2). Gradients are summed over replicas during the backward pass of the last
    micro-batch, from the first bucket on.

    Args:
        shape: the model's shape.
        vocabulary: padded rows of the embedding.
        split: the layout.
        length: tokens of a sequence.
        micro_batch: sequences of a micro-batch.
        micro_batches: micro-batches of a step, per replica.
        gpu: its speed and its links.
        program: how the step is programmed.
    """
    passes = Passes(
        length, micro_batch, micro_batches, bytes_each=4 if program.precision == "fp32" else 2, ring=program.ring
    )
    last = split.pipeline - 1
    found = {  # those between the first and the last are alike
        stage: _stage(shape, vocabulary, split, stage, passes, gpu=gpu, program=program)
        for stage in sorted({0, min(1, last), last})
    }
    slowest = max(found.values(), key=lambda stage: stage.total)
    between = found[min(1, last)].total
    everywhere = math.fsum(stage.total for stage in found.values()) + (split.pipeline - len(found)) * between
    sent = messages(shape, vocabulary, split, 0, passes)
    params = rank_params(shape, vocabulary, split, 0)
    shards = split.data * split.context if split.distributed_optimizer else 1
    once = {
        kind: math.fsum(message_seconds(one, split, gpu) for one in sent if one.once and one.kind == kind)
        for kind in ("tensor", "pipeline")
    }
    return Seconds(
        compute=micro_batches * (slowest.forward + slowest.backward),
        launch=micro_batches * slowest.launch,
        tensor=micro_batches * slowest.tensor + once["tensor"],
        context=micro_batches * slowest.context,
        pipeline=micro_batches * slowest.pipeline + once["pipeline"],
        bubble=(everywhere - slowest.total) / split.virtual,
        data=_data(sent, split, params, found[0], passes, gpu=gpu, program=program),
        update=params * (8 + 30 / shards) / (gpu.bandwidth * _MEMORY_SHARE),
    )


def _stage(
    shape: ModelShape, vocabulary: int, split: Split, stage: int, passes: Passes, *, gpu: Gpu, program: Program
) -> _Stage:
    """Computes the seconds of one micro-batch on a stage.

    A product of W weights takes 2 W operations per token forward and 4 W backward; attention of a sequence of L tokens
    under a causal mask 2 L q per token and layer forward and twice that backward, q being the width of all heads.
    """
    layers, last = shape.layers // split.pipeline, stage == split.pipeline - 1
    tokens = passes.length // split.context * passes.micro_batch
    queries, keys = shape.queries, shape.keys
    weights = shape.layer_matrices
    columns = shape.width * (queries + 2 * keys) + 2 * shape.width * shape.ffn_width  # of column-parallel layers
    peak, each = gpu.peak(program.precision), passes.bytes_each
    product = tokens / split.tensor / (peak * gpu.products)  # seconds of a weight, per operation and token
    attention = 2 * tokens * passes.length * queries / split.tensor / (peak * gpu.attention)
    stream = tokens / (gpu.bandwidth * _MEMORY_SHARE)  # seconds of a byte per token
    operands = each * (4 * shape.width + (2 * queries + 2 * keys + 3 * shape.ffn_width) / split.tensor) * stream
    forward = 2 * weights * product + operands + attention + each * _streamed(shape, split, backward=False) * stream
    backward = (
        4 * weights * product + 2 * operands + 2 * attention + each * _streamed(shape, split, backward=True) * stream
    )
    if split.recompute == "full":
        backward += forward
    elif split.recompute == "selective":  # the feed-forward block: its products, what they and the gate read and write
        backward += 6 * shape.width * shape.ffn_width * product
        backward += each * (2 * shape.width + 6 * shape.ffn_width / split.tensor) * stream
    started = _LAUNCHES * _LAUNCH
    again = 2 if split.recompute == "full" else 1
    waits = layers * (max(0.0, started - forward) + max(0.0, again * started - backward))
    logits = vocabulary * shape.width * product * last
    loss = vocabulary / split.tensor * program.logit_bytes * stream * last
    params = rank_params(shape, vocabulary, split, stage)
    added = params * (12 if program.fused_accumulation else 12 + 2 * each) / (gpu.bandwidth * _MEMORY_SHARE)
    forward, backward = layers * forward + 2 * logits + loss / 2, layers * backward + 4 * logits + loss / 2 + added
    seconds: dict[str, float] = {}
    behind = {  # what a rank computes while such a message is under way
        "tensor": (4 if split.sequence else 2) * layers * columns * product,  # the backward products of such a layer
        "context": layers * 3 * attention,
        "pipeline": forward + backward,
    }
    for message in messages(shape, vocabulary, split, stage, passes):
        if message.once:
            continue
        spent = message_seconds(message, split, gpu) / passes.micro_batches
        if message.hidden:
            spent = max(0.0, spent - behind[message.kind])
        seconds[message.kind] = seconds.get(message.kind, 0.0) + spent
    return _Stage(forward, backward, waits, *(seconds.get(kind, 0.0) for kind in ("tensor", "context", "pipeline")))


def _streamed(shape: ModelShape, split: Split, *, backward: bool) -> float:
    """Returns the numbers per token that a layer's kernels other than products and attention read and write.

    Forward: two norms (``4h``), two residuals (``6h``), rotated queries and keys, the gate (``3f``);
    backward: ``6h``, ``6h``, the same again, ``5f``. Norms of queries and keys read and write these once more, and once
    more again backward. Biases add nothing: products write them.
    """
    along = split.tensor if split.sequence else 1
    whole = (12 if backward else 10) * shape.width / along
    rotated = 2 + (3 if backward else 2) * shape.qk_norm
    gate = (5 if backward else 3) * shape.ffn_width
    return whole + (rotated * (shape.queries + shape.keys) + gate) / split.tensor


def _data(
    sent: Sequence[Message], split: Split, params: int, first: _Stage, passes: Passes, *, gpu: Gpu, program: Program
) -> float:
    """Returns the seconds of the replicas' messages that passes do not hide.

    These are the first bucket, and what exceeds the passes: those of one micro-batch, or with interleaved chunks of as
    many micro-batches as there are stages, which take turns on the first chunk before the next one is needed.
    """
    buckets = max(1.0, params / max(_BUCKET, 1e6 * split.data * split.context))
    turns = min(split.pipeline, passes.micro_batches) if split.virtual > 1 else 1
    total = 0.0
    for message in (one for one in sent if one.kind == "data"):
        spent = message_seconds(message, split, gpu)
        if message.operation == "all_gather":
            hiding = turns * first.forward if program.overlap_gather else 0.0
        else:
            hiding = turns * first.backward
        total += max(spent / buckets, spent - hiding)
    return total
