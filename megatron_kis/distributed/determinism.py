"""What makes a run repeat its bits: on the host always, on CUDA where it is asked for, because it costs speed."""

from __future__ import annotations

import os

import torch

from megatron_kis.common.errors import InputError
from megatron_kis.distributed.device import Device

_VARIABLES = {
    "CUBLAS_WORKSPACE_CONFIG": (":4096:8", ":16:8"),
    "NVTE_ALLOW_NONDETERMINISTIC_ALGO": ("0",),
    "NCCL_ALGO": ("Ring", "Tree", "CollnetDirect", "CollnetChain", "^NVLS"),
}
"""Variables of cuBLAS, Transformer Engine and NCCL, with what keeps the order of sums; the first is set where none is.

Those of PyTorch's documentation, and those that Megatron-LM demands for its ``--deterministic-mode``.
"""


def set_determinism(device: Device, *, asked: bool) -> None:
    """Lets PyTorch and what it calls use only algorithms that give the same bits for the same input, or not.

    Before process groups are opened and before the first product: the libraries read their variables then. With it
    PyTorch's attention leaves out cuDNN, and flash and memory-efficient attention sum in a fixed order.

    Args:
        device: of this rank.
        asked: ``training.deterministic``; the host's kernels are deterministic anyhow.

    Raises:
        InputError: a variable of the environment asks for something else.
    """
    if asked and not device.is_host:
        for name, good in _VARIABLES.items():
            found = os.environ.setdefault(name, good[0])
            if found not in good:
                raise InputError(
                    f"is true, and {name} is {found} in the environment",
                    where="training.deterministic",
                    remedy=f"unset it, or set it to {' or '.join(good)}",
                )
    torch.use_deterministic_algorithms(asked or device.is_host)
    # it looks for bugs, at a price, and changes no result; PyTorch has no type for it
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010
