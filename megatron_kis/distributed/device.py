"""The device of a rank: which one it is, and how its ranks talk."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import get_args

import torch

from megatron_kis.common.errors import InputError
from megatron_kis.common.terms import DeviceName
from megatron_kis.distributed.cpu_backend import install_cpu_backend


@dataclass(frozen=True)
class Device:
    """Where tensors live and how ranks talk."""

    kind: str
    """Kind of device: ``cpu`` or ``cuda``."""

    torch_device: torch.device
    """The device of this rank's tensors."""

    backend: str
    """The process-group backend of WORLD: ``gloo`` or ``nccl``."""

    name: str
    """Name in the log, such as ``NVIDIA H200`` or ``cpu``."""

    @property
    def is_cpu(self) -> bool:
        """Whether the rank computes on a CPU, with the CPU backend in place."""
        return self.kind == "cpu"


def check_device(preference: str) -> None:
    """Refuses an unknown name, and ``cuda`` where there is none.

    Args:
        preference: as for ``open_device``.

    Raises:
        InputError: says which.
    """
    if preference not in get_args(DeviceName):
        raise InputError(
            f"unknown device {preference!r}", where="device", remedy=f"valid: {', '.join(get_args(DeviceName))}"
        )
    if preference == "cuda" and not torch.cuda.is_available():
        raise InputError("no CUDA device is available", where="device", remedy="use cpu or auto")


def open_device(preference: str = "auto", *, local_rank: int | None = None, in_order: bool = False) -> Device:
    """Chooses the device of this rank and, on a CPU, puts the CPU backend in place.

    Args:
        preference: ``auto`` (CUDA if there is one), ``cpu`` or ``cuda``.
        local_rank: rank within the node; the environment's LOCAL_RANK, or 0, if not given.
        in_order: whether a layer's messages overlap with its products, as under tensor and context parallelism.

    Raises:
        InputError: an unknown name, ``cuda`` where there is none, or more ranks than devices.
    """
    check_device(preference)
    if preference == "cpu" or not torch.cuda.is_available():
        install_cpu_backend()
        return Device(kind="cpu", torch_device=torch.device("cpu"), backend="gloo", name="cpu")
    rank = int(os.environ.get("LOCAL_RANK", "0")) if local_rank is None else local_rank
    visible = torch.cuda.device_count()
    own = visible == 1 and os.environ.get("LOCAL_WORLD_SIZE", "1") == "1"  # as with srun --gpus-per-task=1
    number = 0 if own else rank
    if number >= visible:
        raise InputError(
            f"rank {rank} of this node finds {visible} CUDA devices",
            where="device",
            remedy=f"start at most {visible} ranks per node, or give each rank a device of its own",
        )
    if in_order and _CONNECTIONS not in os.environ:
        os.environ[_CONNECTIONS] = "1"  # must be set before the first use of the device, and the next line is one
        if torch.cuda.get_device_capability(number) >= _NO_ORDER_NEEDED:
            del os.environ[_CONNECTIONS]
    torch.cuda.set_device(number)
    device = torch.device("cuda", number)
    return Device(kind="cuda", torch_device=device, backend="nccl", name=torch.cuda.get_device_name(device))


_CONNECTIONS = "CUDA_DEVICE_MAX_CONNECTIONS"
_NO_ORDER_NEEDED = (10, 0)
"""Blackwell. Older devices start kernels in the order they are given only through a single queue, and Megatron-Core
counts on that order to overlap messages with products (Megatron-LM asks for it in its ``validate_args``)."""
