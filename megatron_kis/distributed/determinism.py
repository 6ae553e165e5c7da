"""Means by which a run repeats its bits: deterministic kernels, and random states that are seeded, saved and restored.

On a CPU kernels are always deterministic; on CUDA only if the run is configured so, because it costs speed.
"""

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
"""Variables of cuBLAS, Transformer Engine and NCCL, each with the values that keep the order of sums.

If a variable is not set, it gets the first value. The variables are those of PyTorch's documentation, and those that
Megatron-LM demands for its ``--deterministic-mode``.
"""


def set_determinism(device: Device, *, asked: bool) -> None:
    """Lets PyTorch and its libraries use only algorithms that give the same bits for the same input, or any.

    Must be called before process groups are opened and before the first product, because the libraries read their
    variables then. With deterministic algorithms PyTorch's attention leaves out cuDNN, and flash and memory-efficient
    attention sum in a fixed order.

    Args:
        device: this rank's device.
        asked: ``training.deterministic``; a CPU's kernels are deterministic in any case.

    Raises:
        InputError: a variable of the environment has a value that does not keep the order of sums.
    """
    if asked and not device.is_cpu:
        for name, good in _VARIABLES.items():
            found = os.environ.setdefault(name, good[0])
            if found not in good:
                raise InputError(
                    f"is true, and {name} is {found} in the environment",
                    where="training.deterministic",
                    remedy=f"unset it, or set it to {' or '.join(good)}",
                )
    if device.is_cpu:  # the same switch, but the other call imports PyTorch's compiler, which a CPU does not use
        torch.set_deterministic_debug_mode("error")
    else:
        torch.use_deterministic_algorithms(asked)
    # Filling new memory helps to find bugs, costs time and changes no result; PyTorch has no type for the setting.
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010


def seed_device(device: Device, seed: int, *, tensor_rank: int, pipeline_rank: int) -> None:
    """Seeds the default stream equally on the ranks of a tensor group, and a separate stream for each rank.

    Megatron's ``model_parallel_cuda_manual_seed`` does this on CUDA; the offsets are its own.
    """
    from megatron.core.tensor_parallel import random

    stage_seed = seed + 100 * pipeline_rank
    torch.manual_seed(stage_seed)
    if not device.is_cpu:
        random.model_parallel_cuda_manual_seed(stage_seed)
        return
    tracker = random.get_cuda_rng_tracker()
    tracker.reset()
    tracker.add("model-parallel-rng", stage_seed + 2718 + tensor_rank)


def random_states(device: Device) -> dict[str, torch.Tensor]:
    """Returns the states of this rank's random streams, uint8 [bytes] each, from which a resumed run draws next."""
    from megatron.core.tensor_parallel import random

    states = {"default": torch.get_rng_state()}
    if not device.is_cpu:
        states["device"] = torch.cuda.get_rng_state(device.torch_device)
    for name, state in random.get_cuda_rng_tracker().get_states().items():
        states[f"tracker.{name}"] = state.get_state() if isinstance(state, torch.Generator) else state
    return states


def restore_random_states(device: Device, states: dict[str, torch.Tensor]) -> None:
    """Restores the states that ``random_states`` returned."""
    from megatron.core.tensor_parallel import random

    torch.set_rng_state(states["default"])
    if not device.is_cpu:
        torch.cuda.set_rng_state(states["device"], device.torch_device)
    tracker = random.get_cuda_rng_tracker()
    named = {name.removeprefix("tracker."): state for name, state in states.items() if name.startswith("tracker.")}
    tracker.set_states({**tracker.get_states(), **named})
