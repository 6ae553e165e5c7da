"""Messages of a rank in a step, by kind: how many there are, and how large.

The counts are those of Megatron-Core's layers and schedules, and of this project's loss and attention. A layer has two
column-parallel products, whose input's gradient is added up over the tensor ranks, and two row-parallel ones, whose
output is (Shoeybi et al. 2019, section 3). With shared sequences each of these all-reduces is a reduce-scatter and an
all-gather, and the input of a column-parallel product is gathered again for its weights' gradient (Korthikanti et al.
2022, section 4.2.2). A step of the engine on a device without data sends the same (``tests/dry_device``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_kis.config.ladder import ModelShape
from megatron_kis.planning.split import Split, rank_params

Kind = Literal["tensor", "context", "pipeline", "data"]
Collective = Literal["all_reduce", "all_gather", "reduce_scatter", "send"]

_FP32 = 4


@dataclass(frozen=True)
class Message:
    """Equal messages in which a rank takes part."""

    kind: Kind
    """Group of ranks that communicate; the two copies of tied embeddings count as ``pipeline``."""

    operation: Collective
    """Collective operation that the messages carry out."""

    ranks: int
    """Number of ranks of the group."""

    count: int
    """Number of messages in one step."""

    size: float
    """Bytes of the whole tensor: what all ranks together gather or scatter, or what each rank sums or sends."""

    hidden: bool = False
    """Whether the rank can compute while the messages are under way."""

    once: bool = False
    """Whether the messages belong to the step, and not to each micro-batch."""

    @property
    def total(self) -> float:
        """Bytes of all messages."""
        return self.count * self.size


@dataclass(frozen=True)
class Passes:
    """The passes of one step on one rank, as far as its messages depend on them."""

    length: int
    """Tokens of a whole sequence."""

    micro_batch: int
    """Sequences of a micro-batch."""

    micro_batches: int
    """Micro-batches of a step, per replica."""

    bytes_each: int = 2
    """Bytes of a weight or an activation."""

    ring: bool = False
    """Whether ranks that share a sequence send keys and values around a ring (Transformer Engine) or gather them."""


def messages(shape: ModelShape, vocabulary: int, split: Split, stage: int, passes: Passes) -> list[Message]:
    """Returns the messages of a step on a rank of pipeline ``stage`` that grow with the model or its batches.

    Left out are a few numbers per step: counts of tokens, losses, the gradient's norm.
    """
    found = [
        *_tensor(shape, split, stage, passes),
        *_context(shape, split, passes),
        *_pipeline(shape, vocabulary, split, stage, passes),
        *_data(rank_params(shape, vocabulary, split, stage), split, passes),
    ]
    return [message for message in found if message.ranks > 1 and message.count]


def _tensor(shape: ModelShape, split: Split, stage: int, passes: Passes) -> list[Message]:
    t, m = split.tensor, passes.micro_batches
    again = {"none": 0, "selective": 1, "full": 2}[split.recompute]  # of a layer's two blocks, those computed again
    first, last = stage == 0, stage == split.pipeline - 1
    layers = shape.layers // split.pipeline
    tokens = passes.length // split.context * passes.micro_batch
    size = float(tokens * shape.width * passes.bytes_each)
    found = [Message("tensor", "all_reduce", t, 3 * m * last, tokens * _FP32)]  # of the loss, one number per token
    if not split.sequence:
        return [
            *found,
            Message("tensor", "all_reduce", t, m * (layers * (2 + again) + first), size),
            Message("tensor", "all_reduce", t, m * (layers * 2 + last), size, hidden=True),
        ]
    norms = (2 * layers + last) * shape.width  # each rank has seen its part of the tokens
    return [
        *found,
        Message("tensor", "all_reduce", t, 1, norms * _FP32, once=True),
        Message("tensor", "reduce_scatter", t, m * (layers * (2 + again) + first), size),
        Message("tensor", "reduce_scatter", t, m * (layers * 2 + last), size, hidden=True),
        Message("tensor", "all_gather", t, m * (layers * (4 + again) + first + last), size),
        Message("tensor", "all_gather", t, m * (layers * 2 + last), size, hidden=True),
    ]


def _context(shape: ModelShape, split: Split, passes: Passes) -> list[Message]:
    c, layers = split.context, shape.layers // split.pipeline
    keys = shape.keys // split.tensor
    size = 2.0 * passes.length * passes.micro_batch * keys * passes.bytes_each  # both keys and values
    forward = passes.micro_batches * layers * (2 if split.recompute == "full" else 1)
    backward = passes.micro_batches * layers
    if passes.ring:  # forward keys and values, backward also their gradients; one step fewer than there are ranks
        steps = (c - 1) * (forward + 2 * backward)
        return [Message("context", "send", c, steps, size / c, hidden=True)]
    return [
        Message("context", "all_gather", c, forward, size),
        Message("context", "reduce_scatter", c, backward, size),
    ]


def _pipeline(shape: ModelShape, vocabulary: int, split: Split, stage: int, passes: Passes) -> list[Message]:
    p, chunks = split.pipeline, split.virtual
    tokens = passes.length // split.context * passes.micro_batch / (split.tensor if split.sequence else 1)
    ahead = chunks - (stage == p - 1)  # the last chunk of the last stage sends its output nowhere
    back = chunks - (stage == 0)
    found = [
        Message(
            "pipeline",
            "send",
            p,
            passes.micro_batches * (ahead + back),
            tokens * shape.width * passes.bytes_each,
            hidden=chunks > 1,
        )
    ]
    if p > 1 and shape.tied_embeddings and stage in (0, p - 1):
        table = float(vocabulary // split.tensor * shape.width * _FP32)
        found.append(Message("pipeline", "all_reduce", 2, 1, table, once=True))
    return found


def _data(params: int, split: Split, passes: Passes) -> list[Message]:
    ranks = split.data * split.context
    if not split.distributed_optimizer:
        return [Message("data", "all_reduce", ranks, 1, params * _FP32, hidden=True, once=True)]
    return [
        Message("data", "reduce_scatter", ranks, 1, params * _FP32, hidden=True, once=True),
        Message("data", "all_gather", ranks, 1, params * passes.bytes_each, hidden=True, once=True),
    ]
