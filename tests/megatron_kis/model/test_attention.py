"""Attention under a mask of its own, against the definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_kis.distributed.device import open_device
from megatron_kis.model import attention
from megatron_kis.model.context import pieces_of, positions

LENGTH, ROWS, HEADS, GROUPS, WIDTH = 75, 3, 4, 2, 8


@pytest.fixture
def core() -> attention.SdpaAttention:
    open_device("cpu")
    from megatron.core.transformer.enums import AttnMaskType
    from megatron.core.transformer.transformer_config import TransformerConfig

    config = TransformerConfig(
        num_layers=1,
        hidden_size=HEADS * WIDTH,
        num_attention_heads=HEADS,
        num_query_groups=GROUPS,
        attention_dropout=0.0,
        use_cpu_initialization=True,
    )
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


@pytest.mark.parametrize(("size", "rank"), [(2, 0), (2, 1), (3, 0), (3, 2), (5, 3)])
def test_pieces_of_a_sequence_attend_to_no_more_keys_than_they_see(
    size: int, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    query, key, value, _ = drawn()
    places = positions(60, size=size, rank=rank)
    query, key, value = query[:60].requires_grad_(), key[:60].requires_grad_(), value[:60].requires_grad_()
    products, kernel = [], attention.scaled_dot_product_attention

    def counted(q: torch.Tensor, k: torch.Tensor, *rest: torch.Tensor, **settings: object) -> torch.Tensor:
        products.append(q.shape[2] * k.shape[2])
        return kernel(q, k, *rest, **settings)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", counted)
    q, k, v = (tensor.permute(1, 2, 0, 3) for tensor in (query[places], key, value))
    found = attention._attend_from_pieces(q, k, v, pieces_of(size=size, rank=rank), enable_gqa=True)
    later = torch.ones(60, 60, dtype=torch.bool).triu(1)
    expected = defined(query, key, value, later)[places]
    torch.testing.assert_close(found.permute(2, 0, 1, 3).flatten(2), expected)
    back = torch.randn(expected.shape)
    ours = torch.autograd.grad(found.permute(2, 0, 1, 3).flatten(2), (query, key, value), back)
    torch.testing.assert_close(ours, torch.autograd.grad(expected, (query, key, value), back))
    # half of what each piece has with itself is masked, and nothing else
    piece = 30 // size
    assert sum(products) == (2 * size + 1) * piece**2


def test_flash_takes_the_keys_up_to_a_piece_without_a_stored_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's own way to its kernel, up to the kernel: its shapes, for both passes, with shared keys."""
    from torch.nn.attention import bias

    attention._lower_right.cache_clear()
    mask = attention._lower_right(8, 24, on_cpu=False)
    assert mask.untyped_storage().nbytes() == 0
    q = torch.randn(2, HEADS, 8, WIDTH)
    k, v = torch.randn(2, 2, GROUPS, 24, WIDTH)
    settings: dict[str, Any] = {"enable_gqa": True}
    stored = attention._lower_right(8, 24, on_cpu=True)
    here, there = (attention.scaled_dot_product_attention(q, k, v, attn_mask=one, **settings) for one in (mask, stored))
    torch.testing.assert_close(here, there)
    monkeypatch.setattr(bias, "can_use_flash_attention", lambda _: True)
    q, k, v = (tensor.to("meta", torch.bfloat16).requires_grad_() for tensor in (q, k, v))
    found = attention.scaled_dot_product_attention(q, k, v, attn_mask=mask, **settings)
    assert "FlashAttention" in str(found.grad_fn) + str(found.grad_fn.next_functions)
    assert found.shape == q.shape
    gradients = torch.autograd.grad(found.sum(), (q, k, v))
    assert [gradient.shape for gradient in gradients] == [q.shape, k.shape, v.shape]
