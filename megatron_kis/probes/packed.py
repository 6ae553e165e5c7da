"""Arrays of the host on their way to a device, without a wait."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray


def send(arrays: Mapping[str, NDArray[np.int64]], device: torch.device) -> dict[str, torch.Tensor]:
    """Tensors of int64 on a device, in a single message.

    To an accelerator it goes from pinned memory: the host does not wait for the device to reach it.

    Args:
        arrays: by name, of any shapes.
        device: where to; on the host nothing is copied.
    """
    if device.type == "cpu":
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
    flat = torch.from_numpy(np.concatenate([array.ravel() for array in arrays.values()])).pin_memory()
    parts = flat.to(device, non_blocking=True).split([array.size for array in arrays.values()])
    return {name: part.view(array.shape) for (name, array), part in zip(arrays.items(), parts, strict=True)}
