"""Memory of a GPU: what is always there, and the most that each part of a run adds.

Between steps there are weights, gradients and the optimizer's state (Rajbhandari et al. 2020, ZeRO, section 3). Passes,
update, validation, probe, saving and loading come one after another, so the peak is that of the largest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from megatron_kis.config.ladder import ModelShape
from megatron_kis.planning.parts import (
    Besides,
    between,
    grown,
    peak_of_loading,
    peak_of_probe,
    peak_of_saving,
    peak_of_update,
    peak_of_validation,
    written,
)
from megatron_kis.planning.passes import peak_of_passes
from megatron_kis.planning.split import Split, rank_params
from megatron_kis.planning.steps import Kernels, Layers, Precision, Work

CONTEXT_BYTES = 1.0e9
"""Of the CUDA context and its libraries' workspaces: an assumption. A process on an H100 had 1.06 GB besides PyTorch's
memory before its first collective (github.com/NVIDIA/nccl, issue 1685)."""

COMMUNICATOR_BYTES = 0.7e9
"""Of NCCL, for each group of ranks that talks: 0.54 GB between two A100s and 0.69 GB between more were measured
(github.com/NVIDIA/nccl, issue 964). H100 and networks may differ: an assumption."""


@dataclass(frozen=True)
class Memory:
    """Bytes on a GPU of one stage."""

    stage: int
    """Of the pipeline."""

    layers: Layers
    """Whose."""

    weights: float
    gradients: float
    optimizer: float
    """Main weights and moments."""

    context: float
    """Outside of PyTorch, CUDA's and NCCL's: an assumption."""

    remains: float
    """What else stays between steps; each part has it."""

    parts: Mapping[str, float]
    """The most that each part of a run adds to weights, gradients, optimizer and context: ``passes`` (forward and
    backward), ``update``, ``validation``, ``probe``, ``save``, ``load``."""

    host: float
    """Of the host, for this GPU's copy of a checkpoint while that is written."""

    @property
    def static(self) -> float:
        """Weights, gradients and optimizer."""
        return self.weights + self.gradients + self.optimizer

    @property
    def peak(self) -> str:
        """The part that takes the most."""
        return max(self.parts, key=lambda name: self.parts[name])

    @property
    def total(self) -> float:
        """At the peak."""
        return self.static + self.context + self.parts[self.peak]

    def as_dict(self) -> Mapping[str, Any]:
        """All of it, bytes; the stage; and which part sets the peak."""
        return {
            "weights": self.weights, "gradients": self.gradients, "optimizer": self.optimizer,
            "context": self.context, "remains": self.remains, "parts": dict(self.parts), "peak": self.peak,
            "total": self.total, "stage": self.stage, "layers": self.layers, "host": self.host,
        }  # fmt: skip


def memory(
    shape: ModelShape,
    vocabulary: int,
    split: Split,
    *,
    length: int,
    micro_batch: int,
    micro_batches: int,
    precision: Precision = "bf16",
    layers: Layers | Literal["auto"] = "auto",
    kernels: Kernels = "fused",
    own_mask: bool = False,
    besides: Besides | None = None,
) -> Memory:
    """Memory of the fullest stage, which is the first or the last.

    Args:
        shape: the model.
        vocabulary: padded rows of the embedding.
        split: the layout.
        length: tokens of a sequence.
        micro_batch: sequences of a micro-batch.
        micro_batches: of a step, per replica.
        precision: of weights and products.
        layers: whose; ``auto`` counts those that take more memory of the ones that a run may have.
        kernels: ``fused`` (CUDA) or ``plain`` (host).
        own_mask: documents that do not see each other.
        besides: what the run does besides its steps.
    """
    choices: Sequence[Layers] = ("transformer_engine", "sdpa") if layers == "auto" else (layers,)
    if layers == "auto" and precision == "fp8":
        choices = ("transformer_engine",)
    elif layers == "auto" and (own_mask or precision == "fp32" or kernels == "plain"):
        choices = ("sdpa",)
    stages = [
        stage_memory(
            Work(shape, vocabulary, split, length, micro_batch, precision, choice, kernels, own_mask),
            stage,
            micro_batches,
            besides or Besides(),
        )
        for choice in choices
        for stage in sorted({0, split.pipeline - 1})
    ]
    return max(stages, key=lambda found: found.total)


def stage_memory(work: Work, stage: int, micro_batches: int, besides: Besides) -> Memory:
    """Memory of a rank of a stage.

    Weights 2 bytes (fp32: 4); gradients 4, reduced in fp32; optimizer 12: main weights and two moments (fp32: 8, the
    weights are the main weights), over the replicas and context ranks with the distributed optimizer.
    """
    split, each = work.split, work.each
    params = rank_params(work.shape, work.vocabulary, split, stage)
    shares = split.data * split.context if split.distributed_optimizer else 1
    return Memory(
        stage=stage,
        layers=work.layers,
        weights=params * each,
        gradients=params * 4,
        optimizer=params * (12 if each < 4 else 8) / shares,
        context=CONTEXT_BYTES + COMMUNICATOR_BYTES * len(groups(work)),
        remains=between(work, stage, besides),
        parts={
            "passes": peak_of_passes(work, stage, micro_batches) + grown(work, besides),
            "update": peak_of_update(work, stage, micro_batches, besides),
            "validation": peak_of_validation(work, stage, besides),
            "probe": peak_of_probe(work, stage, besides),
            "save": peak_of_saving(work, stage, besides),
            "load": peak_of_loading(work, stage, besides),
        },
        host=written(work, params),
    )


def groups(work: Work) -> list[str]:
    """Groups of ranks that talk during a run, each of which is a communicator of NCCL.

    Tensor ranks; stages; replicas and context ranks for gradients and weights; context ranks for keys and values; those
    that hold different gradients, for the norm; the two copies of a tied table; all ranks for the loss.
    """
    split = work.split
    stages = split.pipeline > 1
    sizes = {
        "tensor": split.tensor,
        "pipeline": split.pipeline,
        "data": split.data * split.context,
        "context": split.context,
        "norm": split.gpus if split.distributed_optimizer else split.tensor * split.pipeline,
        "embedding": 2 if stages and work.shape.tied_embeddings else 1,
        "all": split.gpus,
    }
    return [name for name, size in sizes.items() if size > 1]
