"""A micro-batch on a rank: the sizes of its activations and matrices, from which memory is planned."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from megatron_kis.config.ladder import ModelShape
from megatron_kis.planning.split import Split

Kernels = Literal["fused", "plain"]
Layers = Literal["sdpa", "transformer_engine"]
Precision = Literal["bf16", "fp32", "fp8"]


@dataclass(frozen=True)
class Work:
    """A micro-batch on a rank, and how it is computed."""

    shape: ModelShape
    """Shape of the model."""

    vocabulary: int
    """Padded rows of the embedding."""

    split: Split
    """How the run is divided over ranks."""

    length: int
    """Tokens of a sequence."""

    batch: int
    """Sequences of a micro-batch."""

    precision: Precision = "bf16"
    """Precision of weights and products."""

    layers: Layers = "sdpa"
    """Implementation of the layers."""

    kernels: Kernels = "fused"
    """``fused`` on CUDA; ``plain`` on a CPU, PyTorch's operators one by one."""

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
        """Returns the bytes of an activation of ``width`` numbers per token."""
        return self.tokens * width * self.each

    @property
    def head(self) -> int:
        """Width of a head."""
        return self.shape.head

    @property
    def whole(self) -> float:
        """Bytes of the residual stream of all tokens."""
        return self.activation(self.shape.width)

    @property
    def along(self) -> int:
        """Number of ranks over which the residual stream is divided."""
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
        queries = self.shape.queries
        rows = queries + 2 * self.shape.keys
        return {"qkv": (rows, width), "projection": (width, queries), "fc1": (2 * ffn, width), "fc2": (width, ffn)}

    def matrix(self, name: str) -> float:
        """Returns the bytes of a layer's matrix on this rank, or of its gradient before it joins the main gradient."""
        rows, columns = self.products[name]
        return rows * columns / self.split.tensor * self.each

    @property
    def table(self) -> float:
        """Bytes of the embedding or of the output layer on this rank."""
        return self.vocabulary * self.shape.width / self.split.tensor * self.each
