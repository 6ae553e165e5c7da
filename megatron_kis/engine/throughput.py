"""How well the hardware is used: the share of its peak (MFU), and the memory taken."""

from __future__ import annotations

import resource
import sys

import torch

from megatron_kis.distributed.device import Device
from megatron_kis.planning.hardware import GPUS


class Speed:
    """What a row of metrics says of the hardware."""

    def __init__(self, flops_per_token: float, *, device: Device, devices: int, precision: str) -> None:
        """Prepares.

        Args:
            flops_per_token: of training (``ModelShape.flops_per_token``).
            device: of this rank.
            devices: over all ranks.
            precision: in fp32 the peak is not known; FP8 is measured against the peak of BF16.
        """
        known = [gpu.peak_bf16 for gpu in GPUS.values() if gpu.name in device.name] if precision != "fp32" else []
        self._share = flops_per_token / (known[0] * devices) if known else None
        self._device = device

    def measure(self, tokens_per_second: float) -> dict[str, float]:
        """``mfu`` where the peak is known, and ``memory_bytes``: the most this rank has held so far."""
        memory = _most_memory(self._device)
        if self._share is None:
            return {"memory_bytes": memory}
        return {"mfu": round(tokens_per_second * self._share, 4), "memory_bytes": memory}


def _most_memory(device: Device) -> int:
    if not device.is_cpu:
        return torch.cuda.max_memory_allocated(device.torch_device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024  # kilobytes but on macOS
