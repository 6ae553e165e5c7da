"""Core attention over PyTorch's ``scaled_dot_product_attention``.

Megatron-Core's local ``DotProductAttention`` writes the whole score matrix to memory. This module computes the same
function through SDPA, which reaches the flash kernels on CUDA without Transformer Engine and is faster on CPU too.
Where ranks share a sequence, each gathers all keys and values and attends from the places it holds.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from megatron_kis.device import quiet_megatron
from megatron_kis.model.context import gather_sequence, positions

with quiet_megatron():
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import random as megatron_random
    from megatron.core.transformer.enums import AttnMaskType
    from megatron.core.transformer.module import MegatronModule
    from megatron.core.transformer.transformer_config import TransformerConfig

_QUERIES_AT_ONCE = 32
"""On the host, under a mask of its own: the kernel takes as many at a time, and goes over every key for them."""


class SdpaAttention(MegatronModule):
    """A drop-in ``core_attention`` for Megatron-Core's self-attention."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: Any = None,
    ) -> None:
        """Takes the keywords that Megatron-Core gives a core attention."""
        super().__init__(config=config)
        self.attn_mask_type = attn_mask_type
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        self.softmax_scale = softmax_scale

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: Any = None,
    ) -> torch.Tensor:
        """Attends.

        Args:
            query: [sequence, batch, heads / TP, head width].
            key: [sequence, batch, groups / TP, head width], not expanded to the heads.
            value: as ``key``.
            attention_mask: [batch or 1, 1, sequence, whole sequence], True where masked (Megatron's sense), or numbers
                to add to the scores; or None. A causal layer's hides all that comes later.
            attn_mask_type: overrides the layer's mask type.
            attention_bias: refused.
            packed_seq_params: refused.

        Returns:
            [sequence, batch, heads / TP * head width].
        """
        if attention_bias is not None or packed_seq_params is not None:
            msg = "SdpaAttention takes neither an attention bias nor packed sequences"
            raise NotImplementedError(msg)
        mask_type = self.attn_mask_type if attn_mask_type is None else attn_mask_type
        causal = attention_mask is None and mask_type == AttnMaskType.causal
        if self.config.context_parallel_size > 1:
            group = parallel_state.get_context_parallel_group()
            key, value = gather_sequence(key, group), gather_sequence(value, group)
            if causal:
                mine = positions(len(key), size=group.size(), rank=group.rank())
                attention_mask, causal = (mine[:, None] < torch.arange(len(key))).to(key.device)[None, None], False
        # [s, b, n, d] -> [b, n, s, d], the order that SDPA expects
        q, k, v = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
        dropout = self.dropout if self.training else 0.0
        arguments: dict[str, Any] = {
            "attn_mask": _taking_part(attention_mask, q.dtype),
            "dropout_p": dropout,
            "is_causal": causal,
            "scale": self.softmax_scale,
            "enable_gqa": k.shape[1] != q.shape[1],
        }
        # A causal layer's mask hides all later places, and places lie in their order unless ranks share the sequence.
        in_order = attention_mask is not None and mask_type == AttnMaskType.causal and len(query) == len(key)
        if dropout:
            with megatron_random.get_cuda_rng_tracker().fork():
                context = scaled_dot_product_attention(q, k, v, **arguments)
        elif in_order and not q.is_cuda and not torch.is_grad_enabled():
            context = _attend_in_slices(q, k, v, **arguments)
        else:
            context = scaled_dot_product_attention(q, k, v, **arguments)
        # [b, n, s, d] -> [s, b, n * d]
        return context.permute(2, 0, 1, 3).reshape(query.shape[0], query.shape[1], -1)


def _attend_in_slices(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, attn_mask: torch.Tensor, **arguments: Any
) -> torch.Tensor:
    """Attention under a mask that hides all later places: some queries at a time, with the keys up to their last."""
    parts = []
    for start in range(0, q.shape[2], _QUERIES_AT_ONCE):
        own, seen = slice(start, start + _QUERIES_AT_ONCE), slice(start + _QUERIES_AT_ONCE)
        arguments["attn_mask"] = attn_mask[..., own, seen]
        parts.append(scaled_dot_product_attention(q[:, :, own], k[:, :, seen], v[:, :, seen], **arguments))
    # joined in the order in which the layer wants them, which saves it a copy
    return torch.cat([part.permute(2, 0, 1, 3) for part in parts]).permute(1, 2, 0, 3)


def _taking_part(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """A mask in SDPA's sense: True takes part; numbers are of the queries' type."""
    if mask is None:
        return None
    return ~mask if mask.dtype == torch.bool else mask.to(dtype)
