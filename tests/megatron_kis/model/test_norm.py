"""The norm and its gradients are PyTorch's."""

from __future__ import annotations

import types
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_kis.model.norm import RmsNorm

HOST = cast("Any", types.SimpleNamespace(use_cpu_initialization=True, sequence_parallel=False))


@given(
    width=st.integers(1, 40), rows=st.integers(1, 5), seed=st.integers(0, 2**16), size=st.sampled_from([1e-3, 1, 1e3])
)
def test_it_is_pytorchs_norm_with_its_gradients(width: int, rows: int, seed: int, size: float) -> None:
    torch.manual_seed(seed)
    ours, theirs = RmsNorm(HOST, width, eps=1e-5), torch.nn.RMSNorm(width, eps=1e-5)
    with torch.no_grad():
        theirs.weight.copy_(ours.weight.normal_())
    values = size * torch.randn(rows, 2, width)
    towards = torch.randn(rows, 2, width)
    found = []
    for norm in (ours, theirs):
        given_values = values.clone().requires_grad_()
        output = norm(given_values)
        output.backward(towards)
        assert given_values.grad is not None
        found.append((output.detach(), given_values.grad, norm.weight.grad))
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5 * max(1.0, float(other.abs().max())))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_keeps_the_type_of_its_input(dtype: torch.dtype) -> None:
    norm = RmsNorm(HOST, 8).to(dtype)
    values = torch.randn(3, 8, dtype=dtype, requires_grad=True)
    output = norm(values)
    output.sum().backward()
    assert output.dtype == values.dtype == dtype
    assert values.grad is not None and norm.weight.grad is not None
    assert values.grad.dtype == norm.weight.grad.dtype == dtype
