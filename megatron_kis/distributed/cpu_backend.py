"""The CPU backend: Megatron-Core on CPU over gloo, and the one place that knows it.

Megatron-Core 0.16 names CUDA in its code: ``torch.cuda.current_device()`` as the device of every buffer,
``device="cuda"`` in its schedules, pinned memory, a random-state tracker over CUDA generators.
``install_cpu_backend`` puts the CPU's counterpart in each of these places, once, before any model is built. The
rest of the project asks ``Device`` and never looks.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
import types
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from megatron_kis.distributed.megatron_imports import quiet_megatron

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc, malloc.h
_KEPT = 2**31 - 1  # bytes free at the top of the heap before any go back; mallopt takes an int
_LARGEST_IN_HEAP = 2**25  # bytes; glibc allows no more (HEAP_MAX_SIZE / 2). Larger blocks are pages of their own


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Raises glibc's thresholds for giving memory back, for the whole process.

    Probes, validation and steps on a CPU free tens of megabytes of logits again and again. glibc returns free memory
    at the top of its heap to the system, and the next logits need every page again: half of a small run's page faults
    and an eighth of its processor time (docs/PERFORMANCE.md). The most that a process holds is the same either way.

    Args:
        environment: the process's variables; if one of them configures glibc's allocator, nothing is changed.

    Returns:
        Whether the thresholds were raised: not if the environment sets them or the C library is not glibc.
    """
    chosen = any(name.startswith("MALLOC_") for name in environment)
    if chosen or "glibc.malloc." in environment.get("GLIBC_TUNABLES", "") or not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    raised = [library.mallopt(_M_TRIM_THRESHOLD, _KEPT), library.mallopt(_M_MMAP_THRESHOLD, _LARGEST_IN_HEAP)]
    return all(raised)


class CpuRngTracker:
    """Named random streams over the CPU generator, with the interface of Megatron's ``CudaRNGStatesTracker``.

    Tensor-parallel ranks draw different dropout masks from the ``model-parallel-rng`` stream and equal ones from
    the default stream, as they do on CUDA; states can be saved and restored for an exact resume.
    """

    def __init__(self) -> None:
        self.states_: dict[str, torch.Tensor] = {}

    def is_initialized(self) -> bool:
        """Returns whether any stream exists."""
        return bool(self.states_)

    def reset(self) -> None:
        """Forgets every stream."""
        self.states_ = {}

    def get_states(self) -> dict[str, torch.Tensor]:
        """A copy of the streams' states by name."""
        return dict(self.states_)

    def set_states(self, states: dict[str, torch.Tensor]) -> None:
        """Restores what ``get_states`` returned."""
        self.states_ = dict(states)

    def add(self, name: str, seed: int) -> None:
        """Adds a stream. A name can be added once."""
        if name in self.states_:
            msg = f"the random stream {name!r} exists already"
            raise ValueError(msg)
        outer = torch.get_rng_state()
        torch.manual_seed(seed)
        self.states_[name] = torch.get_rng_state()
        torch.set_rng_state(outer)

    @contextlib.contextmanager
    def fork(self, name: str = "model-parallel-rng") -> Iterator[None]:
        """Draws from stream ``name`` inside the block, and leaves the default stream untouched."""
        outer = torch.get_rng_state()
        torch.set_rng_state(self.states_[name])
        try:
            yield
        finally:
            self.states_[name] = torch.get_rng_state()
            torch.set_rng_state(outer)


class _CpuTorch(types.ModuleType):
    """``torch`` for a module of Megatron-Core, in which ``device="cuda"`` means the CPU."""

    _FACTORIES = ("zeros", "ones", "empty", "full", "tensor", "arange", "autocast")

    def __init__(self) -> None:
        super().__init__("torch")
        for name in self._FACTORIES:
            setattr(self, name, _on_cpu(getattr(torch, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _on_cpu(factory: Any) -> Any:
    def make(*args: Any, **keywords: Any) -> Any:
        keywords.pop("pin_memory", None)  # speeds up copies to a device that there is not
        if str(keywords.get("device", "")).startswith("cuda"):
            keywords["device"] = "cpu"
        return factory(*args, **keywords)

    return make


def _with_whole_heads(rotate: Any) -> Any:
    """Wraps Megatron-Core's rotary embedding so that nothing is copied for a rest of the head that is empty."""

    def rotate_whole(values: torch.Tensor, angles: torch.Tensor, **settings: Any) -> torch.Tensor:
        if values.shape[-1] != angles.shape[-1] or any(settings[name] for name in settings if name != "mscale"):
            rotated: torch.Tensor = rotate(values, angles, **settings)
            return rotated
        cosines, sines = _turns(angles, settings.get("mscale", 1.0), values.dtype)
        first, second = values.chunk(2, dim=-1)
        return torch.cat((second, first), dim=-1).mul_(sines).addcmul_(values, cosines)

    return rotate_whole


@functools.lru_cache(maxsize=4)
def _turns(angles: torch.Tensor, scale: float, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns scaled cosines, and sines of which the first half is negated.

    They are cached because Megatron-Core gives all layers of all steps the same tensor of angles.
    """
    first, second = angles.sin().chunk(2, dim=-1)
    cosines = angles.cos() * scale
    sines = torch.cat((-first, second), dim=-1) * scale
    return cosines.to(dtype), sines.to(dtype)


def _with_plain_products(linear: Any) -> Any:
    """Wraps Megatron-Core's matrix product: PyTorch's is used if the backward pass has nothing to send."""

    @functools.wraps(linear)  # its attributes too, which it looks up by its name
    def multiply(
        values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *rest: Any, **settings: Any
    ) -> torch.Tensor:
        if rest or any(settings.get(name) for name in _SENDS):
            sent: torch.Tensor = linear(values, weight, bias, *rest, **settings)
            return sent
        return torch.nn.functional.linear(values, weight, bias)

    return multiply


_SENDS = ("gradient_accumulation_fusion", "allreduce_dgrad", "sequence_parallel", "grad_output_buffer")
"""Arguments of Megatron-Core's product that request messages or fused sums."""


@functools.cache
def install_cpu_backend() -> None:
    """Replaces Megatron-Core's uses of CUDA by the CPU's, once per process."""
    keep_freed_memory()
    warnings.filterwarnings("ignore", message=".*CUDA_DEVICE_MAX_CONNECTIONS")  # concerns CUDA only
    cpu = torch.device("cpu")
    cuda: Any = torch.cuda
    cuda.current_device = lambda: cpu
    cuda.synchronize = lambda *_, **__: None
    cuda.set_device = lambda *_: None
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
    torch.nn.Module.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]

    with quiet_megatron():
        from megatron.core import tensor_parallel
        from megatron.core.models.common.embeddings import rope_utils
        from megatron.core.pipeline_parallel import schedules
        from megatron.core.tensor_parallel import layers, random
        from megatron.core.transformer import utils as transformer_utils

    tracker = CpuRngTracker()

    def cpu_tracker(*_: Any, **__: Any) -> CpuRngTracker:
        return tracker

    for module in (schedules, transformer_utils, rope_utils):
        module.torch = _CpuTorch()
    for module in (tensor_parallel, layers, random):
        module.get_cuda_rng_tracker = cpu_tracker
    rope_utils._apply_rotary_pos_emb_bshd = _with_whole_heads(rope_utils._apply_rotary_pos_emb_bshd)
    layers.linear_with_grad_accumulation_and_async_allreduce = _with_plain_products(
        layers.linear_with_grad_accumulation_and_async_allreduce
    )
    # Recomputed activations draw what they drew first; a CPU has one generator, which Megatron restores as well.
    random._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
