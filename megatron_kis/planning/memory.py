"""Memory of a GPU: what is always allocated, and the most that each part of a run adds.

Between steps there are weights, gradients and the optimizer's state (Rajbhandari et al. 2020, ZeRO, section 3). Passes,
update, validation, probe, saving and loading come one after another, so the peak is that of the largest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from megatron_kis.config.ladder import ModelShape
from megatron_kis.planning.parts import (
    EvaluationLoad,
    bytes_between_steps,
    checkpoint_bytes,
    peak_of_loading,
    peak_of_probe,
    peak_of_saving,
    peak_of_update,
    peak_of_validation,
    probe_growth,
)
from megatron_kis.planning.passes import peak_of_passes
from megatron_kis.planning.split import Split, rank_params
from megatron_kis.planning.work import Kernels, Layers, Precision, Work

CONTEXT_BYTES = 1.0e9
"""Bytes of the CUDA context and its libraries' workspaces: an assumption. A process on an H100 had 1.06 GB in addition
to PyTorch's memory before its first collective (github.com/NVIDIA/nccl, issue 1685)."""

COMMUNICATOR_BYTES = 0.7e9
"""Bytes of NCCL, for each group of ranks that communicates: 0.54 GB between two A100s and 0.69 GB between more were
measured (github.com/NVIDIA/nccl, issue 964). H100 and networks may differ: an assumption."""


@dataclass(frozen=True)
class Memory:
    """Bytes on a GPU of one stage."""

    stage: int
    """Number of the pipeline stage."""

    layers: Layers
    """Implementation of the layers."""

    weights: float
    """Bytes of the weights."""

    gradients: float
    """Bytes of the gradients."""

    optimizer: float
    """Bytes of the optimizer's main weights and moments."""

    context: float
    """Bytes of CUDA and NCCL outside of PyTorch: an assumption."""

    remains: float
    """Other bytes that stay between steps; they are in each part."""

    parts: Mapping[str, float]
    """Most bytes that each part of a run adds to weights, gradients, optimizer and context: ``passes`` (forward and
    backward), ``update``, ``validation``, ``probe``, ``save``, ``load``."""

    host: float
    """Bytes of the CPU's memory for this GPU's copy of a checkpoint while that is written."""

    @property
    def static(self) -> float:
        """Bytes of weights, gradients and optimizer."""
        return self.weights + self.gradients + self.optimizer

    @property
    def peak(self) -> str:
        """Name of the part that takes the most memory."""
        return max(self.parts, key=lambda name: self.parts[name])

    @property
    def total(self) -> float:
        """Bytes at the peak."""
        return self.static + self.context + self.parts[self.peak]

    def as_dict(self) -> Mapping[str, Any]:
        """Returns all bytes, the stage, and which part sets the peak."""
        return {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "context": self.context,
            "remains": self.remains,
            "parts": dict(self.parts),
            "peak": self.peak,
            "total": self.total,
            "stage": self.stage,
            "layers": self.layers,
            "host": self.host,
        }


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
    evaluation: EvaluationLoad | None = None,
) -> Memory:
    """Returns the memory of the fullest stage, which is the first or the last.

    Args:
        shape: the model's shape.
        vocabulary: padded rows of the embedding.
        split: the layout.
        length: tokens of a sequence.
        micro_batch: sequences of a micro-batch.
        micro_batches: micro-batches of a step, per replica.
        precision: precision of weights and products.
        layers: implementation of the layers; of those that ``auto`` may mean, the one that takes more memory counts.
        kernels: ``fused`` (CUDA) or ``plain`` (CPU).
        own_mask: whether documents do not see each other.
        evaluation: sizes of validation and probes.
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
            evaluation or EvaluationLoad(),
        )
        for choice in choices
        for stage in sorted({0, split.pipeline - 1})
    ]
    return max(stages, key=lambda found: found.total)


def stage_memory(work: Work, stage: int, micro_batches: int, evaluation: EvaluationLoad) -> Memory:
    """Returns the memory of a rank of a stage.

    Bytes per parameter: weights 2 (fp32: 4); gradients 4, as they are summed in fp32; optimizer 12 for main weights and
    two moments (fp32: 8, the weights are the main weights), divided by the replicas and context ranks with the
    distributed optimizer.
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
        remains=bytes_between_steps(work, stage, evaluation),
        parts={
            "passes": peak_of_passes(work, stage, micro_batches) + probe_growth(work, evaluation),
            "update": peak_of_update(work, stage, micro_batches, evaluation),
            "validation": peak_of_validation(work, stage, evaluation),
            "probe": peak_of_probe(work, stage, evaluation),
            "save": peak_of_saving(work, stage, evaluation),
            "load": peak_of_loading(work, stage, evaluation),
        },
        host=checkpoint_bytes(work, params),
    )


def groups(work: Work) -> list[str]:
    """Returns the groups of ranks that communicate during a run, each of which is a communicator of NCCL.

    These are tensor ranks; stages; replicas and context ranks for gradients and weights; context ranks for keys and
    values; ranks with different gradients, for the norm; the two copies of a tied table; all ranks for the loss.
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
