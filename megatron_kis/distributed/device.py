"""The host backend: Megatron-Core on CPU over gloo, and the one place that knows it.

Megatron-Core 0.16 names CUDA in its code: ``torch.cuda.current_device()`` as the device of every buffer,
``device="cuda"`` in its schedules, pinned memory, a random-state tracker over CUDA generators. ``open_device("cpu")``
puts the host's counterpart in each of these places, once, before any model is built; on CUDA it changes nothing. The
rest of the project asks the returned ``Device`` and never looks.
"""

from __future__ import annotations

import contextlib
import functools
import os
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from megatron_kis.common.errors import InputError
from megatron_kis.distributed.allocator import keep_freed_memory


@dataclass(frozen=True)
class Device:
    """Where tensors live and how ranks talk."""

    kind: str
    """``cpu`` or ``cuda``."""

    torch_device: torch.device
    """The device of this rank's tensors."""

    backend: str
    """The process-group backend of WORLD: ``gloo`` or ``nccl``."""

    name: str
    """What the log calls it, such as ``NVIDIA H200`` or ``cpu``."""

    @property
    def is_host(self) -> bool:
        """Whether the host backend is in place."""
        return self.kind == "cpu"


def open_device(preference: str = "auto", *, local_rank: int | None = None, in_order: bool = False) -> Device:
    """Chooses the device of this rank and, on the host, puts the host backend in place.

    Args:
        preference: ``auto`` (CUDA if there is one), ``cpu`` or ``cuda``.
        local_rank: rank within the node; the environment's LOCAL_RANK, or 0, if not given.
        in_order: whether a layer's messages are to overlap with its products, as under tensor and context parallelism.

    Raises:
        InputError: an unknown name, ``cuda`` where there is none, or more ranks than devices.
    """
    if preference not in ("auto", "cpu", "cuda"):
        raise InputError(f"unknown device {preference!r}", where="device", remedy="valid: auto, cpu, cuda")
    available = torch.cuda.is_available()
    if preference == "cuda" and not available:
        raise InputError("no CUDA device is available", where="device", remedy="use device=cpu or device=auto")
    if preference == "cpu" or not available:
        _install_host_backend()
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
        os.environ[_CONNECTIONS] = "1"  # before the first use of the device, to ask what it is as well
        if torch.cuda.get_device_capability(number) >= _NO_ORDER_NEEDED:
            del os.environ[_CONNECTIONS]
    torch.cuda.set_device(number)
    device = torch.device("cuda", number)
    return Device(kind="cuda", torch_device=device, backend="nccl", name=torch.cuda.get_device_name(device))


_CONNECTIONS = "CUDA_DEVICE_MAX_CONNECTIONS"
_NO_ORDER_NEEDED = (10, 0)
"""Blackwell. Older devices start kernels in the order they are given only through a single queue, and Megatron-Core
counts on that order to overlap messages with products (Megatron-LM asks for it in its ``validate_args``)."""


class HostRngTracker:
    """Named random streams over the CPU generator, with the interface of Megatron's ``CudaRNGStatesTracker``.

    Tensor-parallel ranks draw different dropout masks from the ``model-parallel-rng`` stream and equal ones from
    the default stream, as they do on CUDA; states can be saved and restored for an exact resume.
    """

    def __init__(self) -> None:
        self.states_: dict[str, torch.Tensor] = {}

    def is_initialized(self) -> bool:
        """Whether any stream exists."""
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


class _HostTorch(types.ModuleType):
    """``torch`` as a module of Megatron sees it, with ``device="cuda"`` meaning the host."""

    _FACTORIES = ("zeros", "ones", "empty", "full", "tensor", "arange", "autocast")

    def __init__(self) -> None:
        super().__init__("torch")
        for name in self._FACTORIES:
            setattr(self, name, _on_host(getattr(torch, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _on_host(factory: Any) -> Any:
    def make(*args: Any, **keywords: Any) -> Any:
        keywords.pop("pin_memory", None)  # for a faster way to a device that there is not
        if str(keywords.get("device", "")).startswith("cuda"):
            keywords["device"] = "cpu"
        return factory(*args, **keywords)

    return make


def _with_whole_heads(rotate: Any) -> Any:
    """Megatron-Core's rotary positions, without its copies for the part of a head that is not rotated where all is."""

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
    """Scaled cosines, and sines of which the first half is negated.

    Megatron-Core gives all layers of all steps the same tensor of angles.
    """
    first, second = angles.sin().chunk(2, dim=-1)
    cosines, sines = ((part * scale).to(dtype) for part in (angles.cos(), torch.cat((-first, second), dim=-1)))
    return cosines, sines


def _with_plain_products(linear: Any) -> Any:
    """Megatron-Core's matrix product, whose backward pass sends gradients; PyTorch's where there is nothing to send."""

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
"""Arguments of Megatron-Core's product that ask for more than the product."""


@functools.cache
def _install_host_backend() -> None:
    """Replaces Megatron's uses of CUDA by the host's, once a process."""
    keep_freed_memory()
    warnings.filterwarnings("ignore", message=".*CUDA_DEVICE_MAX_CONNECTIONS")  # of a device that is not there
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

    tracker = HostRngTracker()

    def host_tracker(*_: Any, **__: Any) -> HostRngTracker:
        return tracker

    for module in (schedules, transformer_utils, rope_utils):
        module.torch = _HostTorch()
    for module in (tensor_parallel, layers, random):
        module.get_cuda_rng_tracker = host_tracker
    rope_utils._apply_rotary_pos_emb_bshd = _with_whole_heads(rope_utils._apply_rotary_pos_emb_bshd)
    layers.linear_with_grad_accumulation_and_async_allreduce = _with_plain_products(
        layers.linear_with_grad_accumulation_and_async_allreduce
    )
    # recomputed activations draw what they drew first; the host has one generator, which Megatron restores as well
    random._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)


def seed_device(device: Device, seed: int, *, tensor_rank: int, pipeline_rank: int) -> None:
    """Seeds the default stream alike on the ranks of a tensor group, and one stream apart for each rank.

    Megatron's ``model_parallel_cuda_manual_seed`` does this on CUDA; the offsets are its own.
    """
    from megatron.core.tensor_parallel import random

    stage_seed = seed + 100 * pipeline_rank
    torch.manual_seed(stage_seed)
    if not device.is_host:
        random.model_parallel_cuda_manual_seed(stage_seed)
        return
    tracker = random.get_cuda_rng_tracker()
    tracker.reset()
    tracker.add("model-parallel-rng", stage_seed + 2718 + tensor_rank)


def random_states(device: Device) -> dict[str, torch.Tensor]:
    """The states of this rank's random streams, uint8 [bytes] each: what a resumed run draws next."""
    from megatron.core.tensor_parallel import random

    states = {"default": torch.get_rng_state()}
    if not device.is_host:
        states["device"] = torch.cuda.get_rng_state(device.torch_device)
    for name, state in random.get_cuda_rng_tracker().get_states().items():
        states[f"tracker.{name}"] = state.get_state() if isinstance(state, torch.Generator) else state
    return states


def restore_random_states(device: Device, states: dict[str, torch.Tensor]) -> None:
    """Takes over what ``random_states`` returned."""
    from megatron.core.tensor_parallel import random

    torch.set_rng_state(states["default"])
    if not device.is_host:
        torch.cuda.set_rng_state(states["device"], device.torch_device)
    tracker = random.get_cuda_rng_tracker()
    named = {name.removeprefix("tracker."): state for name, state in states.items() if name.startswith("tracker.")}
    tracker.set_states({**tracker.get_states(), **named})


@contextlib.contextmanager
def quiet_megatron(*begin: str) -> Iterator[None]:
    """For imports of Megatron-Core: without its warnings of what is not installed, and without PyTorch's compiler.

    Megatron-Core decorates functions with ``torch.compile``, which imports the compiler: 2.4 of the 6 seconds that a
    process takes to start, on the host for functions that it never calls. They are compiled when they are first called.

    Args:
        begin: how the warnings begin that are left out; all if not given.
    """
    compiler = torch.compile
    torch.compile = _compiled_when_called  # type: ignore[assignment]
    try:
        with warnings.catch_warnings():
            for beginning in begin or ("",):
                warnings.filterwarnings("ignore", message=beginning)
            yield
    finally:
        torch.compile = compiler


def _compiled_when_called(function: Callable[..., Any] | None = None, **settings: Any) -> Callable[..., Any]:
    """``torch.compile`` as a decorator, put off until the function is called."""
    if function is None:
        return functools.partial(_compiled_when_called, **settings)

    @functools.cache
    def compiled() -> Callable[..., Any]:
        made: Callable[..., Any] = torch.compile(function, **settings)
        return made

    @functools.wraps(function)
    def call(*values: Any, **named: Any) -> Any:
        return compiled()(*values, **named)

    return call
