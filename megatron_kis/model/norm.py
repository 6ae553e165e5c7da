"""RMSNorm: one module, with a kernel for each place.

On CUDA it is NVIDIA apex's fused kernel, if that is importable, or PyTorch's. On a CPU PyTorch puts the backward
pass together from many small operations; the formulas written down take nine. Megatron-Core's own choice looks for a
package named ``apex``, which on PyPI is a web toolkit, and with either uses a LayerNorm after the last layer.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

from megatron_kis.distributed.megatron_imports import quiet_megatron

with quiet_megatron():
    from megatron.core.transformer.transformer_config import TransformerConfig


def nvidia_fused_norm() -> type[torch.nn.Module] | None:
    """Returns NVIDIA apex's ``FusedRMSNorm``; None without apex, with another package of its name, or no kernels."""
    try:
        importlib.import_module("fused_layer_norm_cuda")
        module = importlib.import_module("apex.normalization")
    except ImportError:
        return None
    found: type[torch.nn.Module] | None = getattr(module, "FusedRMSNorm", None)
    return found


class RmsNorm(torch.nn.RMSNorm):
    """x / sqrt(mean(x^2) + epsilon) * weight over the last dimension (Zhang and Sennrich 2019, equation 4)."""

    def __new__(cls, config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> Any:
        """Makes NVIDIA's module instead of this one if there is one."""
        fused = None if config.use_cpu_initialization else nvidia_fused_norm()
        if fused is None:
            return super().__new__(cls)
        return _marked(fused(hidden_size, eps=eps), config)

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> None:
        """Takes the keywords that Megatron-Core gives a norm."""
        super().__init__(hidden_size, eps=eps)
        _marked(self, config)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Normalises the last axis of ``values``, [..., hidden]."""
        if values.is_cuda:
            return super().forward(values)
        output: torch.Tensor = _Normalise.apply(values, self.weight, self.eps)
        return output


def _marked(norm: torch.nn.Module, config: TransformerConfig) -> torch.nn.Module:
    """Marks the weight if each tensor rank sees a part of the sequence: Megatron-Core then sums its gradients."""
    weight: Any = norm.weight
    weight.sequence_parallel = config.sequence_parallel
    return norm


class _Normalise(torch.autograd.Function):
    """y = w x s with s = (mean(x^2) + epsilon)^(-1/2), and its gradients.

    With n = x s and g = dL/dy: dL/dw = sum(g n) over all places, and dL/dx = s (g w - n mean(g w n)).
    """

    @staticmethod
    def forward(context: Any, values: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        length = torch.linalg.vector_norm(values, dim=-1, keepdim=True, dtype=torch.float32)
        scale = length.square_().div_(values.shape[-1]).add_(epsilon).rsqrt_()
        context.save_for_backward(values, weight, scale)
        return values.mul(scale).mul_(weight).to(values.dtype)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        values, weight, scale = context.saved_tensors
        (gradient,) = gradients
        normal = values.mul(scale)
        product = gradient.mul(normal)
        weight_gradient = product.flatten(0, -2).sum(dim=0)
        mean = product.mul_(weight).mean(dim=-1, keepdim=True)
        value_gradient = gradient.mul(weight).sub_(normal.mul_(mean)).mul_(scale)
        return value_gradient.to(values.dtype), weight_gradient.to(weight.dtype), None
