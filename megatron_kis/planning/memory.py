"""Memory a GPU, by part.

The parts are those of Korthikanti et al. 2022 ("Reducing Activation Recomputation in Large Transformer Models",
section 4) and of Rajbhandari et al. 2020 (ZeRO, section 3), with the terms of this model: their layer keeps
``sbh (34 + 5 as/h)`` bytes, with dropout, GELU and the scores of attention; ours has none of these but a gated
feed-forward block and attention that keeps one number a head (Dao et al. 2022). ``s``: tokens a sequence, ``b``:
sequences a micro-batch, ``h``: width, ``t``: tensor ranks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from megatron_kis.model.ladder import ModelShape

Kernels = Literal["fused", "plain"]
Recompute = Literal["none", "selective", "full"]


@dataclass(frozen=True)
class Split:
    """How a run is spread over ranks."""

    tensor: int = 1
    pipeline: int = 1
    virtual: int = 1
    """Chunks of layers a stage (interleaving)."""

    data: int = 1
    context: int = 1
    """Ranks that share each sequence."""

    recompute: Recompute = "none"
    distributed_optimizer: bool = False
    """Main weights and moments divided over the replicas (ZeRO's first stage)."""

    sequence: bool = False
    """Norms and residuals split over the tensor ranks, too."""

    @property
    def gpus(self) -> int:
        """All ranks."""
        return self.tensor * self.pipeline * self.context * self.data

    @property
    def label(self) -> str:
        """Short, for a table."""
        stages = f"PP{self.pipeline}" + (f"x{self.virtual}" if self.virtual > 1 else "")
        shared = f" CP{self.context}" if self.context > 1 else ""
        return f"TP{self.tensor} {stages}{shared} DP{self.data}" + (" SP" if self.sequence else "")


@dataclass(frozen=True)
class Memory:
    """Bytes on the fullest GPU."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    buffers: float

    @property
    def total(self) -> float:
        """All parts."""
        return math.fsum(asdict(self).values())

    def as_dict(self) -> Mapping[str, Any]:
        """The parts and their total, bytes."""
        return {**asdict(self), "total": self.total}


def rank_params(shape: ModelShape, vocabulary: int, split: Split, stage: int) -> int:
    """Parameters that a rank of pipeline ``stage`` holds.

    Matrices are split over the tensor ranks, norms are on each. The first stage has the embedding, the last the final
    norm and the output layer; with tied embeddings and several stages both hold the table.
    """
    head = shape.width // shape.heads
    attention = shape.width * head * (shape.heads + 2 * shape.query_groups) + shape.width**2
    matrices = attention + 3 * shape.width * shape.ffn_width
    layer = matrices // split.tensor + 2 * shape.width
    table = vocabulary * shape.width // split.tensor
    first, last = stage == 0, stage == split.pipeline - 1
    tables = first + (last and not (first and shape.tied_embeddings))
    return shape.layers // split.pipeline * layer + tables * table + last * shape.width


def layer_activations(
    shape: ModelShape, split: Split, *, length: int, batch: int, kernels: Kernels, bytes_each: int
) -> float:
    """Bytes that one layer keeps for its backward pass, for one micro-batch.

    A token keeps, in elements: of each norm its input and its output;
    the queries, keys and values as they left the matrix (values are read from there), the rotated queries and keys,
    and the context, ``3h + 3kv``, over t; of the gated block both inputs and their product, ``3f`` over t (``plain``:
    ``4f``, since the activated gate stays). In fp32: a number a norm, and one a head over
    t. ``plain`` is PyTorch's operators one by one, the host's; ``fused`` is CUDA's.

    With selective recomputation nothing of the gated block is kept; with full recomputation only the layer's input is.
    """
    tokens, t = float(length * batch), split.tensor
    along = t if split.sequence else 1
    head = shape.width // shape.heads
    if split.recompute == "full":
        return tokens * shape.width * bytes_each / along
    gate = 0 if split.recompute == "selective" else 4 if kernels == "plain" else 3
    keys = shape.query_groups * head
    elements = 2 * 2 * shape.width / along + (3 * shape.width + 3 * keys + gate * shape.ffn_width) / t
    numbers = 2.0 / along + shape.heads / t
    rotary = 0.0 if kernels == "plain" else 4.0 * length * head * bytes_each  # cosines, sines; the host's layers share
    return tokens * (elements * bytes_each + numbers * 4) + rotary


def head_activations(shape: ModelShape, split: Split, *, tokens: float, bytes_each: int) -> float:
    """Bytes that the final norm keeps."""
    return tokens * (2 * shape.width * bytes_each + 4) / (split.tensor if split.sequence else 1)


def logits(vocabulary: int, split: Split, *, tokens: float, bytes_each: int) -> float:
    """Bytes of the last stage's logits.

    The cross-entropy turns an fp32 copy in place into the softmax that its backward pass needs: 4 bytes a logit; the
    half-precision logits (forward), then their gradient (backward), are beside it.
    """
    return tokens * vocabulary / split.tensor * (4 + (bytes_each if bytes_each < 4 else 0))


def in_flight(split: Split, stage: int, micro_batches: int) -> float:
    """Micro-batches whose activations a stage keeps at the same time.

    1F1B: ``pipeline - stage``; interleaved: the first stage ``pipeline x (1 + (pipeline - 1) / (pipeline x virtual))``
    (Korthikanti et al. 2022, section 4.2.3; Narayanan et al. 2021, section 2.2); never more than there are.
    """
    p, v = split.pipeline, split.virtual
    if v == 1:
        return min(p - stage, micro_batches)
    return min(p * (1 + (p - 1 - 2 * stage) / (p * v)) if stage <= (p - 1) / 2 else p, micro_batches)


CONTEXT_BYTES = 1.5e9
"""Of the CUDA context, its libraries and NCCL's channels: an assumption, of the usual order on H100."""


def memory(
    shape: ModelShape,
    vocabulary: int,
    split: Split,
    *,
    length: int,
    micro_batch: int,
    micro_batches: int,
    half: bool = True,
    kernels: Kernels = "fused",
) -> Memory:
    """Bytes on the fullest rank.

    Weights 2 bytes (fp32: 4); gradients 4, reduced in fp32; optimizer 12: main weights and two moments (fp32: 8,
    the weights are the main weights), over the replicas with the distributed optimizer. ``buffers``: the context, what
    the backward pass of one layer needs at once, and the layer that is being recomputed.

    Args:
        shape: the model.
        vocabulary: padded rows of the embedding.
        split: the layout.
        length: tokens a sequence.
        micro_batch: sequences a micro-batch.
        micro_batches: of a step, a replica.
        half: bf16, else fp32.
        kernels: ``fused`` (CUDA) or ``plain`` (host).
    """
    each, tokens = (2 if half else 4), float(length * micro_batch)
    stages = []
    for stage in {0, split.pipeline - 1}:
        params = rank_params(shape, vocabulary, split, stage)
        layer = layer_activations(
            shape, split, length=length, batch=micro_batch, kernels=kernels, bytes_each=each
        )  # fmt: skip
        kept = shape.layers // split.pipeline * layer * in_flight(split, stage, micro_batches)
        last = stage == split.pipeline - 1
        working = tokens * each * (2 * shape.width + 3 * shape.ffn_width / split.tensor)
        if split.recompute != "none":
            again = Split(tensor=split.tensor, sequence=split.sequence)
            working += layer_activations(
                shape, again, length=length, batch=micro_batch, kernels=kernels, bytes_each=each
            ) - (layer if split.recompute == "selective" else 0)
        stages.append(
            Memory(
                weights=params * each,
                gradients=params * 4,
                optimizer=params
                * (12 if half else 8)
                / (split.data * split.context if split.distributed_optimizer else 1),
                activations=kept + (head_activations(shape, split, tokens=tokens, bytes_each=each) if last else 0),
                logits=logits(vocabulary, split, tokens=tokens, bytes_each=each) if last else 0,
                buffers=CONTEXT_BYTES + working,
            )
        )
    return max(stages, key=lambda parts: parts.total)
