"""The first row of a call: what the rows after it were measured on."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from benchmarks.gpu.commands import ROOT

PACKAGES = ("torch", "triton", "transformer-engine", "megatron-core", "transformers", "lm-pub-quiz", "lm-eval")


def describe(device: str) -> dict[str, Any]:
    """Device, driver, versions and the state of the code.

    Args:
        device: ``cuda`` or ``cpu``.

    Raises:
        InputError: there is no such device.
    """
    import torch

    from megatron_kis.distributed.device import open_device
    from megatron_kis.model.support import why_no_compiler, why_no_transformer_engine
    from megatron_kis.training.record import code_fingerprint

    opened = open_device(device)
    found: dict[str, Any] = {
        "device": opened.name,
        "devices": 1 if opened.is_cpu else torch.cuda.device_count(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: installed for name in PACKAGES if (installed := _version(name))},
        "no_transformer_engine": why_no_transformer_engine(opened),
        "no_compiler": why_no_compiler(),
        "commit": _said("git", "rev-parse", "HEAD"),
        "changed": bool(_said("git", "status", "--porcelain", "--untracked-files=no")),
        "code": code_fingerprint()[:16],
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    if not opened.is_cpu:
        properties = torch.cuda.get_device_properties(opened.torch_device)
        found |= {
            "memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "driver": (_said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") or "").split("\n")[0],
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        }
    return found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _said(*command: str) -> str | None:
    """A command's output; None where it cannot be had."""
    try:
        ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return ended.stdout.strip()
