"""The gate of the feed-forward block where nothing is fused: Megatron-Core's copies one input to add an offset of 0."""

from __future__ import annotations

import torch
from torch.nn.functional import silu

from megatron_kis.distributed.megatron_imports import quiet_megatron

with quiet_megatron():
    from megatron.core.transformer.module import MegatronModule
    from megatron.core.transformer.transformer_config import TransformerConfig


class SwiGlu(MegatronModule):
    """``silu(gate) * up`` (Shazeer 2020)."""

    def __init__(self, config: TransformerConfig) -> None:
        """Takes the keyword that Megatron-Core gives an activation."""
        super().__init__(config=config)

    def forward(self, both: torch.Tensor) -> torch.Tensor:
        """[..., 2 F], gate and up side by side, to [..., F]."""
        gate, up = both.chunk(2, dim=-1)
        return silu(gate) * up
