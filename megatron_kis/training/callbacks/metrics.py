"""Rows of ``metrics.jsonl``: loss, learning rate, and how well the hardware is used."""

from __future__ import annotations

import resource
import sys

import torch

from megatron_kis.common.jsonl_log import JsonLines
from megatron_kis.distributed.device import Device
from megatron_kis.planning.hardware import GPUS
from megatron_kis.training.callbacks.base import LoggingCallback, RunState


class Throughput:
    """Model FLOPs utilisation (MFU: the share of the hardware's peak that the model's own FLOPs take), and memory."""

    def __init__(self, flops_per_token: float, *, device: Device, devices: int, precision: str) -> None:
        """Looks up the peak of the device.

        Args:
            flops_per_token: training FLOPs of a token (``ModelShape.flops_per_token``).
            device: this rank's device.
            devices: number of devices over all ranks.
            precision: precision of the run; in fp32 the peak is not known; FP8 is measured against the peak of BF16.
        """
        known = [gpu.peak_bf16 for gpu in GPUS.values() if gpu.name in device.name] if precision != "fp32" else []
        self._mfu_per_rate = flops_per_token / (known[0] * devices) if known else None
        self._device = device

    def measure(self, tokens_per_second: float) -> dict[str, float]:
        """Returns ``mfu`` where the peak is known, and ``memory_bytes``: the most this rank has held so far."""
        memory = _peak_memory(self._device)
        if self._mfu_per_rate is None:
            return {"memory_bytes": memory}
        return {"mfu": round(tokens_per_second * self._mfu_per_rate, 4), "memory_bytes": memory}


def _peak_memory(device: Device) -> int:
    if not device.is_cpu:
        return torch.cuda.max_memory_allocated(device.torch_device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # in kilobytes, except on macOS


class MetricsCallback(LoggingCallback):
    """Writes the ``train`` rows of ``metrics.jsonl``, and measures tokens per second."""

    kind = "train"

    def __init__(self, log: JsonLines | None, *, every: int, throughput: Throughput) -> None:
        """Writes a row every ``every`` steps and at the end; ``log`` is None on ranks that do not report."""
        self._log = log
        self._every = every
        self._throughput = throughput
        self._seconds = 0.0
        self._tokens = 0

    def before_training(self, state: RunState) -> None:
        """Starts the clock, and writes the row of this step again where the log has lost it."""
        self._restart_clock(state)
        if self.lost and state.is_due(self._every):
            self._write(state)

    def after_step(self, state: RunState) -> None:
        """Writes a row if one is due."""
        if state.is_due(self._every):
            state.tokens_per_second = (state.tokens - self._tokens) / max(state.seconds - self._seconds, 1e-9)
            self._write(state)
            self._restart_clock(state)

    def _restart_clock(self, state: RunState) -> None:
        self._seconds = state.seconds
        self._tokens = state.tokens

    def _write(self, state: RunState) -> None:
        if self._log:
            self._log.write(
                {
                    "kind": "train",
                    "step": state.step,
                    "tokens": state.tokens,
                    "loss": state.loss,
                    "lr": state.learning_rate,
                    "grad_norm": state.gradient_norm,
                    "tokens_per_second": round(state.tokens_per_second, 1),
                    "infusion_ratio": state.infusion_ratio,
                    **self._throughput.measure(state.tokens_per_second),
                }
            )
