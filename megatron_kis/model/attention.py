"""Core attention over PyTorch's ``scaled_dot_product_attention`` (SDPA).

Megatron-Core's local ``DotProductAttention`` writes the whole score matrix to memory. SDPA does not, where one of its
fused kernels takes the call. What PyTorch 2.6 to 2.13 choose on CUDA (``sdp_utils.cpp``):

====================================  =================================================================================
call                                  kernel
====================================  =================================================================================
bf16, causal                          cuDNN's on Hopper where PyTorch prefers it (2.11 with CUDA 13), otherwise flash
bf16, causal, ranks share a sequence  flash, which can align the causal mask to the last key
bf16, own mask, training              cuDNN's as above, otherwise the memory-efficient one
own mask, evaluation                  the memory-efficient one: cuDNN's plans each new shape, for about half a second
fp32                                  the memory-efficient one
====================================  =================================================================================

The memory-efficient kernel does not share keys between heads, so they are repeated for it. It takes head widths that
are a multiple of 8 (of 4 in fp32), cuDNN's a multiple of 8 up to 128, flash any up to 256. What none of them takes
writes its scores to memory. Where ranks share a sequence, each gathers all keys and values and attends from the places
that it holds.
"""

from __future__ import annotations

import functools
from contextlib import nullcontext
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from megatron_kis.distributed.megatron_imports import quiet_megatron
from megatron_kis.model.context import gather_sequence, pieces_of

with quiet_megatron():
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import random as megatron_random
    from megatron.core.transformer.enums import AttnMaskType
    from megatron.core.transformer.module import MegatronModule
    from megatron.core.transformer.transformer_config import TransformerConfig

_UNPLANNED = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Kernels that take an explicit mask and need no plan for a new shape."""

_QUERIES_PER_SLICE = 32
"""Queries per call on a CPU under an explicit mask: the kernel goes over so many at a time, and over every key for
them."""


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
        """Computes softmax(scale q k^T + mask) v for each head.

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
        # A causal layer's mask hides all later places, and places are in order unless ranks share the sequence.
        in_order = mask_type == AttnMaskType.causal
        held = None
        if self.config.context_parallel_size > 1:
            group = parallel_state.get_context_parallel_group()
            key, value = gather_sequence(torch.stack((key, value), dim=1), group).unbind(1)
            in_order = False
            held = pieces_of(size=group.size(), rank=group.rank())
        # [s, b, n, d] -> [b, n, s, d], the order that SDPA expects
        q = query.permute(1, 2, 0, 3)
        k = key.permute(1, 2, 0, 3)
        v = value.permute(1, 2, 0, 3)
        mask = _sdpa_mask(attention_mask, q.dtype)
        if q.is_cuda and (mask is not None or q.dtype == torch.float32):
            times = q.shape[1] // k.shape[1]
            k = _repeated(k, times)
            v = _repeated(v, times)
        dropout = self.dropout if self.training else 0.0
        settings: dict[str, Any] = {
            "dropout_p": dropout,
            "scale": self.softmax_scale,
            "enable_gqa": k.shape[1] != q.shape[1],
        }
        # Decided by the mode, not by whether gradients are on: recomputed activations are first computed without them.
        unplanned = q.is_cuda and mask is not None and not self.training
        with (
            megatron_random.get_cuda_rng_tracker().fork() if dropout else nullcontext(),
            sdpa_kernel(_UNPLANNED) if unplanned else nullcontext(),
        ):
            if causal and held is not None:
                context = _attend_from_pieces(q, k, v, held, **settings)
            elif mask is not None and in_order and not (q.is_cuda or dropout or torch.is_grad_enabled()):
                context = _attend_in_slices(q, k, v, mask, **settings)
            else:
                context = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, **settings)
        # [b, n, s, d] -> [s, b, n * d]
        return context.permute(2, 0, 1, 3).reshape(query.shape[0], query.shape[1], -1)


def _repeated(values: torch.Tensor, times: int) -> torch.Tensor:
    """Repeats each group for its heads: [b, g, s, d] -> [b, g * times, s, d]."""
    return values if times == 1 else values.unsqueeze(2).expand(-1, -1, times, -1, -1).flatten(1, 2)


def _attend_from_pieces(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, held: tuple[int, int], **settings: Any
) -> torch.Tensor:
    """Computes causal attention of two pieces of a sequence, each with the keys up to its end and no others."""
    length = q.shape[2] // 2
    parts = []
    for piece, own in zip(held, q.split(length, dim=2), strict=True):
        seen = (piece + 1) * length
        mask = None if seen == length else _lower_right(length, seen, on_cpu=not q.is_cuda)
        settings |= {"attn_mask": mask, "is_causal": mask is None}
        parts.append(scaled_dot_product_attention(own, k[:, :, :seen], v[:, :, :seen], **settings))
    return _joined(parts)


@functools.lru_cache(maxsize=8)
def _lower_right(queries: int, keys: int, *, on_cpu: bool) -> torch.Tensor:
    """Returns a causal mask under which the last query sees the last key; on CUDA in a form that stores nothing.

    PyTorch's ``causal_lower_right`` gives the same and allocates [2, queries, keys] floats that nothing reads.
    """
    if on_cpu:
        return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    from torch.nn.attention.bias import CausalBias, CausalVariant  # imports PyTorch's compiler

    mask = CausalBias.__new__(CausalBias)
    mask.variant, mask.seq_len_q, mask.seq_len_kv = CausalVariant.LOWER_RIGHT, queries, keys
    return mask


def _attend_in_slices(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, **settings: Any
) -> torch.Tensor:
    """Computes attention under a mask that hides later places: some queries at a time, with keys up to the last one."""
    parts = []
    for start in range(0, q.shape[2], _QUERIES_PER_SLICE):
        own = slice(start, start + _QUERIES_PER_SLICE)
        seen = slice(start + _QUERIES_PER_SLICE)
        settings["attn_mask"] = mask[..., own, seen]
        parts.append(scaled_dot_product_attention(q[:, :, own], k[:, :, seen], v[:, :, seen], **settings))
    return _joined(parts)


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    """Joins parts of a sequence in the memory order that the layer needs, which saves it a copy: [b, n, s, d]."""
    return torch.cat([part.permute(2, 0, 1, 3) for part in parts]).permute(1, 2, 0, 3)


def _sdpa_mask(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """Returns a mask in SDPA's sense: True takes part; numbers have the queries' type."""
    if mask is None:
        return None
    return ~mask if mask.dtype == torch.bool else mask.to(dtype)
