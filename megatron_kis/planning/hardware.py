"""GPUs by name: peak, memory, links, and the shares of the peak that a model's kernels reach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron_kis.common.errors import InputError, nearest


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU, and how it is linked to others; NVIDIA's data sheets."""

    name: str
    """Part of the name that the driver gives it."""

    peak_bf16: float
    """Dense BF16 operations per second (half of what the data sheets print with sparsity)."""

    peak_fp32: float
    """FP32 operations per second outside the tensor cores: PyTorch rounds no operands to TF32 unless it is told to."""

    memory: float
    """Memory of the GPU, bytes."""

    bandwidth: float
    """Bytes per second between the GPU and its memory."""

    nvlink: float
    """Bytes per second to the other GPUs of the node, in one direction."""

    network: float
    """Bytes per second of this GPU's share of the node's network, in one direction."""

    products: float = 0.64
    """Share of ``peak_bf16`` that the matrix products of a training step reach, apart from reading their operands.

    The best single product reaches 80.1% on H100 and 85.9% on A100 (table of achievable matrix products in
    github.com/stas00/ml-engineering, compute/accelerator). A step reaches about 0.8 of that on H100, whose clock falls
    under such load, and 0.9 on A100: two numbers, chosen so that the published step times of ``benchmarks/step_times``
    are met on average. Other kinds use the share of the H100."""

    attention: float = 0.45
    """Share of ``peak_bf16`` that attention reaches in both passes, counting the scores that a causal mask leaves.

    Of the usual order for fused kernels: 62% forward without a mask on H100 (cuDNN in the FlashAttention-3 paper, head
    width 128), less backward and with a mask."""

    node: int = 8
    """GPUs of a node joined by NVLink; tensor parallelism stays within."""

    def peak(self, precision: str) -> float:
        """Operations per second in a precision; FP8's are counted as BF16's, as what it saves was not measured."""
        return self.peak_fp32 if precision == "fp32" else self.peak_bf16


_AMPERE: dict[str, Any] = {"products": 0.77, "attention": 0.55}

GPUS = {
    "h100-pcie": Gpu("H100 PCIe", 756e12, 51e12, 80e9, 2.0e12, 300e9, 25e9, node=2),
    "h100-nvl": Gpu("H100 NVL", 835e12, 60e12, 94e9, 3.9e12, 300e9, 25e9, node=2),
    "h100": Gpu("H100", 989e12, 67e12, 80e9, 3.35e12, 450e9, 50e9),
    "gh200": Gpu("GH200", 989e12, 67e12, 96e9, 4.0e12, 450e9, 50e9, node=1),
    "h200": Gpu("H200", 989e12, 67e12, 141e9, 4.8e12, 450e9, 50e9),
    "a100": Gpu("A100", 312e12, 19.5e12, 80e9, 2.04e12, 300e9, 25e9, **_AMPERE),
    "a100-40": Gpu("A100", 312e12, 19.5e12, 40e9, 1.555e12, 300e9, 25e9, **_AMPERE),
    "l40s": Gpu("L40S", 362e12, 91.6e12, 48e9, 0.864e12, 32e9, 25e9, node=1),
    "b200": Gpu("B200", 2250e12, 75e12, 180e9, 7.7e12, 900e9, 50e9),
}
"""By the name that ``kis plan --gpu`` takes; the more special names come first."""


def gpu(name: str) -> Gpu:
    """Returns the GPU of a name.

    Raises:
        InputError: there is no GPU of that name.
    """
    if name.lower() not in GPUS:
        raise InputError(f"no GPU {name!r}", where="--gpu", remedy=nearest(name, GPUS))
    return GPUS[name.lower()]
