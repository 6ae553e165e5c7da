"""Attention under a mask of its own, against the definition."""

from __future__ import annotations

import pytest
import torch

from megatron_kis.device import open_device
from megatron_kis.model import attention

LENGTH, ROWS, HEADS, GROUPS, WIDTH = 75, 3, 4, 2, 8


@pytest.fixture
def core() -> attention.SdpaAttention:
    open_device("cpu")
    from megatron.core.transformer.enums import AttnMaskType
    from megatron.core.transformer.transformer_config import TransformerConfig

    config = TransformerConfig(num_layers=1, hidden_size=HEADS * WIDTH, num_attention_heads=HEADS,
                               num_query_groups=GROUPS, attention_dropout=0.0, use_cpu_initialization=True)  # fmt: skip
    return attention.SdpaAttention(config, 1, AttnMaskType.causal, "self")


def drawn() -> tuple[torch.Tensor, ...]:
    """Queries, keys, values, and a mask under which a place sees itself and some of those before."""
    source = torch.Generator().manual_seed(1)
    values = (torch.randn(LENGTH, ROWS, heads, WIDTH, generator=source) for heads in (HEADS, GROUPS, GROUPS))
    hidden = torch.rand(ROWS, 1, LENGTH, LENGTH, generator=source) < 0.7
    hidden |= torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    hidden[..., torch.arange(LENGTH), torch.arange(LENGTH)] = False
    return *values, hidden


def defined(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    key, value = (part.repeat_interleave(HEADS // GROUPS, dim=2) for part in (key, value))
    scores = torch.einsum("qbnd,kbnd->bnqk", query, key) / WIDTH**0.5
    weights = scores.masked_fill(hidden, -torch.inf).softmax(dim=-1)
    return torch.einsum("bnqk,kbnd->qbnd", weights, value).flatten(2)


@pytest.mark.parametrize("numbers", [False, True])
@pytest.mark.parametrize("gradients", [False, True])
def test_a_mask_counts_in_every_slice_of_queries(core: attention.SdpaAttention, numbers: bool, gradients: bool) -> None:
    query, key, value, hidden = drawn()
    mask = torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf) if numbers else hidden
    with torch.set_grad_enabled(gradients):
        found = core(query, key, value, mask)
    torch.testing.assert_close(found, defined(query, key, value, hidden))


def test_a_mask_that_is_not_causal_is_taken_whole(core: attention.SdpaAttention) -> None:
    from megatron.core.transformer.enums import AttnMaskType

    query, key, value, hidden = drawn()
    with torch.no_grad():
        found = core(query, key, value, hidden.mT, attn_mask_type=AttnMaskType.arbitrary)
    torch.testing.assert_close(found, defined(query, key, value, hidden.mT))
