"""Transformer Engine's own Python code over a ``transformer_engine_torch`` without kernels.

Its wheel without dependencies has all of its Python and none of its libraries. What its Python checks and keeps is
real: arguments, shapes, states, FP8's scales and the tensors that live for the backward pass. Each function of the
compiled module that a run calls has a stand-in here, which makes outputs of the right shape and type; another raises
NotImplementedError with its name, and wants a stand-in, too.
"""

from __future__ import annotations

import enum
import importlib.machinery
import os
import sys
import types
import warnings
from typing import Any
from unittest.mock import MagicMock

import torch
from torch._subclasses.fake_tensor import FakeTensor

from tests.dry_device import kernels, wheel

_ONLY_NAMED = ("triton", "triton.language", "triton.language.core", "triton.language.standard", "onnxscript", "onnx")
"""Packages that it imports at its top for functions that no run here calls."""

_COUNTED = {
    "DType": "kByte kInt16 kInt32 kInt64 kFloat32 kFloat16 kBFloat16 kFloat8E4M3 kFloat8E5M2 kFloat8E8M0 kFloat4E2M1",
    "FP8FwdTensors": " ".join(f"GEMM{n}_INPUT GEMM{n}_WEIGHT GEMM{n}_OUTPUT" for n in (1, 2, 3)),
    "FP8BwdTensors": " ".join(f"GRAD_OUTPUT{n} GRAD_INPUT{n}" for n in (1, 2, 3)),
}
"""Enumerations whose members are looked up by number, or are places in a list."""


def load() -> None:
    """Makes ``transformer_engine.pytorch`` importable. Before Megatron-Core is imported, which looks for it."""
    problem = wheel.missing()
    assert problem is None, problem
    os.environ["NVTE_PROJECT_BUILDING"] = "1"  # it then looks for no libraries
    sys.path.append(str(wheel.FOLDER))
    for name in _ONLY_NAMED:
        sys.modules[name] = MagicMock(name=name)
        sys.modules[name].__spec__, sys.modules[name].__version__ = importlib.machinery.ModuleSpec(name, None), "3.0"
    sys.modules[_Compiled.NAME] = _Compiled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformer_engine.common

        transformer_engine.common.load_framework_extension = lambda *_: None
        import transformer_engine.pytorch
        from transformer_engine.pytorch.attention.dot_product_attention.utils import AttentionParams
    _take_fakes_for_tensors(AttentionParams)
    for name in _ONLY_NAMED:
        del sys.modules[name]  # for PyTorch, which would take it for installed


def _take_fakes_for_tensors(parameters: Any) -> None:
    """Its choice of a kernel for attention asks for the very type of the queries."""
    start = parameters.__init__

    def init(self: Any, **named: Any) -> None:
        start(self, **named)
        if self.qkv_type is FakeTensor:
            self.qkv_type = torch.Tensor

    parameters.__init__ = init


class _Names(type):
    """An enumeration that has every name."""

    def __getattr__(cls, name: str) -> _Name:
        if name.startswith("__"):
            raise AttributeError(name)
        setattr(cls, name, _Name(name))
        return getattr(cls, name)

    def __iter__(cls) -> Any:
        return iter(())


class _Name(int):
    """A member with a number of its own."""

    _last = 0

    def __new__(cls, name: str) -> _Name:
        _Name._last += 1
        made = super().__new__(cls, _Name._last)
        made.name, made.value = name, _Name._last
        return made


class _Compiled(types.ModuleType):
    """The compiled module."""

    NAME = "transformer_engine_torch"

    def __init__(self) -> None:
        super().__init__(self.NAME)
        for name, members in _COUNTED.items():
            setattr(self, name, enum.IntEnum(name, members, start=0))
        self.__dict__.update(_STAND_INS)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = _Names(name, (), {}) if name[0].isupper() else _without(name)
        setattr(self, name, made)
        return made


def _without(name: str) -> Any:
    def call(*_: Any, **__: Any) -> None:
        raise NotImplementedError(f"transformer_engine_torch.{name} has no stand-in in {__file__}")

    return call


def _plain(tensor: Any) -> tuple[torch.Tensor, bool]:
    """The data of a tensor that may be in FP8, and whether it is the transposed one."""
    data = getattr(tensor, "_data", tensor)
    return (tensor._transpose, True) if data is None else (data, False)


def _matrix(tensor: Any, flip: bool) -> torch.Tensor:
    data, flipped = _plain(tensor)
    # the transpose of [..., K] is kept as [K, ...]
    matrix = data.reshape(data.shape[0], -1) if flipped else data.reshape(-1, data.shape[-1])
    return matrix.t() if flip != flipped else matrix


def generic_gemm(
    a: Any,
    flip_a: bool,
    b: Any,
    flip_b: bool,
    out: Any,
    quantizer: Any,
    out_dtype: Any,
    bias: Any,
    *rest: Any,
    **_: Any,
) -> tuple[Any, None, None, None]:
    """``op(B) op(A)``, in the order of rows: TN is ``B A'``."""
    accumulate, dtype = rest[6], torch.bfloat16
    if out_dtype is not None:
        from transformer_engine.pytorch.constants import TE_DType

        dtype = next(one for one, number in TE_DType.items() if number == out_dtype)
    left, right = _matrix(b, flip_b), _matrix(a, flip_a)
    assert left.shape[1] == right.shape[0], f"product of {tuple(left.shape)} and {tuple(right.shape)}"
    if out is not None:
        assert (out.numel(), out.shape[-1]) == (left.shape[0] * right.shape[1], right.shape[1])
        kernels.product_into(out, left, right, accumulate)
        return out, None, None, None
    made = kernels.product(left, right, dtype)
    if not flip_b:  # the rows are tokens, in the shape in which they came
        data, flipped = _plain(b)
        tokens = data.shape[1:] if flipped else data.shape[:-1]
        made = made.view(*tokens, made.shape[-1])
    return made if quantizer is None else quantize(made, quantizer), None, None, None


def quantize(tensor: Any, quantizer: Any, out: Any = None, noop: Any = None) -> Any:
    """A tensor in FP8, with the transpose if the quantizer keeps one."""
    return quantizer.make_empty(tensor.shape, dtype=tensor.dtype, device=tensor.device) if out is None else out


def fp8_transpose(data: torch.Tensor, _: Any, out: torch.Tensor | None = None) -> torch.Tensor:
    """Of a tensor [..., K] that was gathered in FP8: [K, ...]."""
    return data.new_empty((data.shape[-1], *data.shape[:-1])) if out is None else out


def rmsnorm_fwd(
    x: Any, weight: Any, eps: float, out: Any, quantizer: Any, dtype: Any, margin: int, centered: bool
) -> Any:
    """The norm, and one number per token."""
    made = torch.empty_like(x) if quantizer is None else quantize(x, quantizer)
    return made if out is None else out, None, x.new_empty(x.shape[:-1].numel(), dtype=torch.float32)


def rmsnorm_bwd(gradient: Any, x: Any, scale: Any, weight: Any, margin: int, centered: bool) -> Any:
    """The gradients of the input and of the weight."""
    return torch.empty_like(x), torch.empty_like(weight)


def fused_attn_fwd(*arguments: Any) -> list[torch.Tensor]:
    """cuDNN's attention: the output, the statistics of the softmax and the state of dropout."""
    mask, (q, k, v) = arguments[8], arguments[13:16]
    return kernels.fused_attention(q, k, v, mask.name == "NVTE_CAUSAL_MASK")


def fused_attn_bwd(*arguments: Any) -> list[Any]:
    """The gradients of queries, keys and values; none of a bias."""
    mask, (q, k, v, out, gradient) = arguments[7], arguments[13:18]
    made = kernels.fused_attention_back(gradient, q, k, v, out, arguments[20][0], mask.name == "NVTE_CAUSAL_MASK")
    return [*made, None, None]


_STAND_INS: dict[str, Any] = {
    "generic_gemm": generic_gemm,
    "quantize": quantize,
    "fp8_transpose": fp8_transpose,
    "rmsnorm_fwd": rmsnorm_fwd,
    "rmsnorm_bwd": rmsnorm_bwd,
    "fused_attn_fwd": fused_attn_fwd,
    "fused_attn_bwd": fused_attn_bwd,
    "get_fused_attn_backend": lambda *_: sys.modules[_Compiled.NAME].NVTE_Fused_Attn_Backend.NVTE_F16_arbitrary_seqlen,
    "get_cublasLt_version": lambda: 130000,
    "get_cudnn_version": lambda: 91900,
    "get_num_cublas_streams": lambda: 4,
    "fused_rope_forward": lambda values, *_: torch.empty_like(values),
    "fused_rope_backward": lambda gradient, *_: torch.empty_like(gradient),
    "multi_tensor_l2norm": lambda *_: (torch.zeros(1, device="cuda"), None),
    **{
        name: lambda *_: None
        for name in (
            "multi_tensor_scale",
            "multi_tensor_adam",
            "multi_tensor_adam_fp8",
            "multi_tensor_adam_param_remainder",
            "multi_tensor_adam_capturable",
            "multi_tensor_adam_capturable_master",
            "fused_amax_and_scale_update_after_reduction",
        )
    },
    **{name: _without(name) for name in ("layernorm_fwd", "layernorm_bwd")},  # looked up, and not called
}
