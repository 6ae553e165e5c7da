"""How a run is divided over ranks, as the planner sees it, and which part of the model a rank holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_kis.config.ladder import ModelShape

Recompute = Literal["none", "selective", "full"]


@dataclass(frozen=True)
class Split:
    """How a run is divided over ranks."""

    tensor: int = 1
    """Ranks that share each layer."""

    pipeline: int = 1
    """Number of pipeline stages."""

    virtual: int = 1
    """Chunks of layers per stage (interleaving)."""

    data: int = 1
    """Number of data-parallel replicas."""

    context: int = 1
    """Ranks that share each sequence."""

    recompute: Recompute = "none"
    """Activations that the backward pass computes again."""

    distributed_optimizer: bool = False
    """Whether main weights and moments are divided over the replicas and the context ranks (ZeRO's first stage)."""

    sequence: bool = False
    """Whether norms and residuals, too, are split over the tensor ranks."""

    @property
    def gpus(self) -> int:
        """Number of all ranks."""
        return self.tensor * self.pipeline * self.context * self.data

    @property
    def label(self) -> str:
        """Short name for a table."""
        stages = f"PP{self.pipeline}" + (f"x{self.virtual}" if self.virtual > 1 else "")
        context = f" CP{self.context}" if self.context > 1 else ""
        return f"TP{self.tensor} {stages}{context} DP{self.data}" + (" SP" if self.sequence else "")


def rank_params(shape: ModelShape, vocabulary: int, split: Split, stage: int) -> int:
    """Returns the number of parameters that a rank of pipeline ``stage`` holds.

    Matrices and biases are split over the tensor ranks, norms are on each. The first stage has the embedding, the last
    the final norm and the output layer; with tied embeddings and several stages both hold the table.
    """
    layer = shape.layer_matrices // split.tensor + shape.layer_vectors(split.tensor)
    table = vocabulary * shape.width // split.tensor
    first, last = stage == 0, stage == split.pipeline - 1
    tables = first + (last and not (first and shape.tied_embeddings))
    return shape.layers // split.pipeline * layer + tables * table + last * shape.width
