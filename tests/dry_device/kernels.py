"""Stand-ins for kernels that only CUDA has, with the memory that they keep: a CPU build takes them apart."""

from __future__ import annotations

import sys
import types
from collections import Counter
from typing import Any

import torch

from tests.dry_device.fake import KERNELS

CHOSEN: Counter[str] = Counter()
"""Calls of attention by kernel, shapes and mask: cuDNN makes a plan for each new one."""

_library = torch.library.Library("dry", "DEF")


def _define(schema: str, fake: Any) -> Any:
    _library.define(schema)
    name = schema.partition("(")[0]
    torch.library.register_fake(f"dry::{name}", fake, lib=_library)
    KERNELS[f"dry::{name}"] = fake
    return getattr(torch.ops.dry, name)


def _laid_out_as(pattern: torch.Tensor) -> torch.Tensor:
    """cuDNN's output has the strides of the queries (alloc_with_matching_layout)."""
    order = sorted(range(4), key=pattern.stride, reverse=True)
    return pattern.new_empty([pattern.shape[dim] for dim in order]).permute([order.index(dim) for dim in range(4)])


_attend = _define(
    "attend(Tensor q, Tensor k, Tensor v, Tensor? mask, bool causal) -> (Tensor, Tensor)",
    lambda q, k, v, mask, causal: (_laid_out_as(q), q.new_empty((*q.shape[:3], 1), dtype=torch.float32)),
)
_attend_back = _define(
    "attend_back(Tensor g, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor? mask, bool causal)"
    " -> (Tensor, Tensor, Tensor)",
    lambda g, q, k, v, out, lse, mask, causal: (torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)),
)
_norm = _define(
    "norm(Tensor x, Tensor w) -> (Tensor, Tensor)",
    lambda x, w: (torch.empty_like(x), x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)),
)
_norm_back = _define(
    "norm_back(Tensor g, Tensor x, Tensor scale, Tensor w) -> (Tensor, Tensor)",
    lambda g, x, scale, w: (torch.empty_like(x), torch.empty_like(w)),
)
_swiglu = _define("swiglu(Tensor y) -> Tensor", lambda y: y.new_empty((*y.shape[:-1], y.shape[-1] // 2)))
_swiglu_back = _define("swiglu_back(Tensor g, Tensor y) -> Tensor", lambda g, y: torch.empty_like(y))

product = _define(
    "product(Tensor left, Tensor right, ScalarType dtype) -> Tensor",
    lambda left, right, dtype: left.new_empty((left.shape[0], right.shape[1]), dtype=dtype),
)
product_into = _define(
    "product_into(Tensor(a!) out, Tensor left, Tensor right, bool add) -> ()", lambda out, left, right, add: None
)
_fused = _define(
    "attend_fused(Tensor q, Tensor k, Tensor v, bool causal) -> (Tensor, Tensor, Tensor)",
    lambda q, k, v, causal: (
        q.new_empty((*q.shape[:3], v.shape[3])),
        q.new_empty((q.shape[1], q.shape[2], q.shape[0], 1), dtype=torch.float32),
        q.new_empty(2, dtype=torch.int64),
    ),
)
_fused_back = _define(
    "attend_fused_back(Tensor g, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, bool causal)"
    " -> (Tensor, Tensor, Tensor)",
    lambda g, q, k, v, out, lse, causal: (torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)),
)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, q: Any, k: Any, v: Any, mask: Any, causal: bool) -> torch.Tensor:
        out, lse = _attend(q, k, v, mask, causal)
        context.save_for_backward(q, k, v, out, lse, mask)
        context.causal = causal
        return out

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> Any:
        return *_attend_back(gradient, *context.saved_tensors, context.causal), None, None


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Any, weight: Any) -> torch.Tensor:
        out, scale = _norm(x, weight)
        context.save_for_backward(x, scale, weight)
        return out

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> Any:
        return _norm_back(gradient, *context.saved_tensors)


def rms_norm(x: Any, shape: Any, weight: Any = None, eps: float | None = None) -> torch.Tensor:
    """``aten::_fused_rms_norm`` of CUDA builds, which does not take mixed types."""
    assert x.dtype == weight.dtype, f"mixed types miss PyTorch's fused norm: {x.dtype}, {weight.dtype}"
    return _Norm.apply(x, weight)


class _CausalBias:
    """``torch.nn.attention.bias.CausalBias``, a subclass of tensors that fake ones cannot have."""


def attention(
    q: Any,
    k: Any,
    v: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """The kernel that torch 2.11+cu130 chooses on an H100 (sdp_utils.cpp), among those that are switched on."""
    half, width = q.dtype in (torch.bfloat16, torch.float16), q.shape[-1]
    lower_right = isinstance(attn_mask, _CausalBias)
    attn_mask = None if lower_right else attn_mask
    grouped, masked = q.shape[1] != k.shape[1], attn_mask is not None
    switches = torch.backends.cuda
    exact = torch.are_deterministic_algorithms_enabled()
    if switches.cudnn_sdp_enabled() and not lower_right and half and width <= 128 and width % 8 == 0 and not exact:
        kernel = "cudnn"
    elif switches.flash_sdp_enabled() and half and not masked and width <= 256:
        kernel = "flash"
    elif switches.mem_efficient_sdp_enabled() and not grouped and width % (8 if half else 4) == 0:
        kernel = "efficient"
    else:
        assert switches.math_sdp_enabled(), "no kernel of attention takes these shapes and types"
        kernel = "math"
    CHOSEN[
        f"{kernel} q={tuple(q.shape)} k={tuple(k.shape)} {q.dtype} mask={masked} causal={is_causal or lower_right}"
    ] += 1
    if kernel == "math":
        return _by_operators(
            q, k, v, attn_mask=attn_mask, dropout_p=dropout_p, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa
        )
    return _Attention.apply(q, k, v, attn_mask, is_causal or lower_right)


def fused_attention(q: Any, k: Any, v: Any, causal: bool) -> list[torch.Tensor]:
    """Transformer Engine's, over q, k and v [sequence, batch, heads, width]: output, statistics, state of dropout."""
    CHOSEN[f"transformer engine q={tuple(q.shape)} k={tuple(k.shape)} {q.dtype} causal={causal}"] += 1
    return list(_fused(q, k, v, causal))


def fused_attention_back(g: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, causal: bool) -> list[torch.Tensor]:
    """The gradients of q, k and v."""
    return list(_fused_back(g, q, k, v, out, lse, causal))


_by_operators = torch.nn.functional.scaled_dot_product_attention


def install() -> None:
    """Puts the stand-ins in place. Before the project is imported: it takes attention by name."""
    sys.modules.setdefault("triton", types.ModuleType("triton"))  # what is compiled has stand-ins, too
    torch.nn.functional.scaled_dot_product_attention = attention
    torch.nn.functional.rms_norm = rms_norm
    bias: Any = types.ModuleType("torch.nn.attention.bias")
    bias.CausalBias, bias.CausalVariant = _CausalBias, types.SimpleNamespace(LOWER_RIGHT=2)
    sys.modules[bias.__name__] = bias
    from megatron.core.fusions import fused_bias_swiglu

    fused_bias_swiglu.swiglu, fused_bias_swiglu.swiglu_back = _swiglu, _swiglu_back
