"""How a run is spread over ranks, as the planner knows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Recompute = Literal["none", "selective", "full"]


@dataclass(frozen=True)
class Split:
    """How a run is spread over ranks."""

    tensor: int = 1
    pipeline: int = 1
    virtual: int = 1
    """Chunks of layers per stage (interleaving)."""

    data: int = 1
    context: int = 1
    """Ranks that share each sequence."""

    recompute: Recompute = "none"
    distributed_optimizer: bool = False
    """Main weights and moments divided over the replicas and the context ranks (ZeRO's first stage)."""

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
        context = f" CP{self.context}" if self.context > 1 else ""
        return f"TP{self.tensor} {stages}{context} DP{self.data}" + (" SP" if self.sequence else "")
