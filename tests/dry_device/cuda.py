"""The Python side of ``torch.cuda`` as on a node of eight H100, over FakeTensors.

Import this before torch: the shim registers the device's C++ side, then ``install`` replaces the functions that would
ask a driver. A FakeTensor knows its shape, type and device, and has no memory and no numbers.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable
from typing import Any

import tests.dry_device.before_torch  # noqa: F401  the device must be there when torch is imported

# isort: split
import torch
import torch._dynamo  # FakeTensorMode takes it in: before torch.cuda is replaced
import torch.optim.optimizer as optimizers
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_map_only

from tests.dry_device.fake import FakeMode

DEVICES = 8
NAME = "NVIDIA H100 80GB HBM3"
_PROPERTIES = types.SimpleNamespace(
    name=NAME,
    major=9,
    minor=0,
    total_memory=85_000_000_000,
    multi_processor_count=132,
    warp_size=32,
    shared_memory_per_block_optin=232448,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    L2_cache_size=50 << 20,
    gcnArchName="",
)


class _Stream:
    """The one stream; everything on it is done at once."""

    device = torch.device("cuda", 0)
    cuda_stream = stream_id = device_index = 0
    device_type = 1
    said: Callable[[str], None]

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def wait_stream(self, *_: Any) -> None:
        pass

    def wait_event(self, *_: Any) -> None:
        pass

    def synchronize(self) -> None:
        self.said("stream.synchronize")

    def record_event(self, *_: Any) -> _Event:
        return _Event()

    def query(self) -> bool:
        return True


class _Event(_Stream):
    def record(self, *_: Any) -> None:
        pass

    def wait(self, *_: Any) -> None:
        pass

    def synchronize(self) -> None:
        self.said("event.synchronize")

    def elapsed_time(self, *_: Any) -> float:
        return 1.0


def install(said: Callable[[str], None]) -> FakeTensorMode:
    """Replaces what would need a driver, once per process.

    Args:
        said: told the name of each call that lets the host wait for the device.

    Returns:
        The mode to enter: every tensor made inside is fake, on the host too.
    """
    _Stream.said = staticmethod(said)
    _replace_torch_cuda(said)
    torch.nn.Module._apply = _apply
    # FakeTensor would refuse to move; and there is nothing to pin.
    torch.Tensor.cuda = lambda self, device=None, non_blocking=False, **_: self.to("cuda:0", non_blocking=non_blocking)
    FakeTensor.__deepcopy__ = lambda self, _: self.clone()  # the original copies storage
    FakeTensor.__reduce_ex__ = _pickled  # Transformer Engine pickles its scales into a tensor of bytes
    torch.set_rng_state = torch.random.set_rng_state = lambda _: None  # the states of a checkpoint are fake, too
    torch.UntypedStorage.data_ptr = lambda self: self._cdata  # no address, but one of its own
    torch.Tensor.pin_memory = _pinned
    for name in ("tensor", "empty", "zeros", "full"):
        setattr(torch, name, _unpinned(getattr(torch, name)))
    torch.compile = lambda function=None, **_: function or (lambda function: function)  # fake tensors run eagerly
    optimizers._foreach_supported_types.append(FakeTensor)  # as plain CUDA tensors are
    FakeTensorMode.avoid_device_init = property(lambda _: True)  # where is_available() is true, it would start a driver
    return FakeMode(allow_non_fake_inputs=True)


def _replace_torch_cuda(said: Callable[[str], None]) -> None:
    cuda: Any = torch.cuda
    bytes_of_state = torch.zeros(16, dtype=torch.uint8)
    nothing: dict[str, Any] = dict.fromkeys(
        (
            "set_device",
            "_lazy_init",
            "init",
            "empty_cache",
            "set_stream",
            "set_rng_state",
            "manual_seed",
            "manual_seed_all",
            "ipc_collect",
            "_lazy_call",
        ),
        None,
    )
    answers = nothing | {
        "is_available": True,
        "device_count": DEVICES,
        "is_initialized": True,
        "_is_compiled": True,
        "current_device": 0,
        "get_device_name": NAME,
        "get_device_capability": (9, 0),
        "is_bf16_supported": True,
        "get_device_properties": _PROPERTIES,
        "current_stream": _Stream(),
        "default_stream": _Stream(),
        "max_memory_allocated": 0,
        "memory_allocated": 0,
        "memory_reserved": 0,
        "get_rng_state": bytes_of_state,
        "is_current_stream_capturing": False,
    }
    stand_ins: dict[str, Any] = {name: _answering(value) for name, value in answers.items()}
    stand_ins |= {name: lambda *_, **__: contextlib.nullcontext() for name in ("stream", "StreamContext", "device")}
    stand_ins |= {"Stream": _Stream, "Event": _Event, "synchronize": lambda *_: said("cuda.synchronize")}
    for name, value in stand_ins.items():
        for module in (cuda, cuda.random, cuda.memory, cuda.streams, cuda.graphs):
            if module is cuda or hasattr(module, name):
                setattr(module, name, value)
    in_c: Any = torch._C
    in_c._cuda_getDevice = in_c._cuda_getCurrentRawStream = lambda *_: 0
    in_c._cuda_setDevice = lambda *_: None
    in_c._cuda_getDeviceCount = lambda: DEVICES
    torch.version.cuda = "13.0"
    cuda.nvtx = types.SimpleNamespace(
        range_push=lambda *_: None, range_pop=lambda *_: None, range=lambda *_: contextlib.nullcontext()
    )
    generator = types.SimpleNamespace(
        get_state=lambda: bytes_of_state,
        set_state=lambda *_: None,
        manual_seed=lambda *_: None,
        graphsafe_set_state=lambda *_: None,
    )
    generator.clone_state = generator.graphsafe_get_state = lambda: generator
    cuda.default_generators = (generator,) * DEVICES


def _pickled(tensor: Any, _: int) -> Any:
    return _unpickled, (tuple(tensor.shape), tensor.dtype, str(tensor.device))


def _unpickled(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype, device=device)


def _answering(value: Any) -> Callable[..., Any]:
    return lambda *_, **__: value


def _pinned(tensor: Any, *_: Any) -> Any:
    """The same tensor, whose copies the host does not wait for."""
    tensor.pinned = True
    return tensor


def _unpinned(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A factory without pinned memory, which reads the device's numbers one by one as PyTorch's does."""

    def made(*values: Any, pin_memory: bool = False, **named: Any) -> torch.Tensor:
        if values and isinstance(values[0], list):
            values = (tree_map_only(torch.Tensor, torch.Tensor.item, values[0]), *values[1:])
        return make(*values, **named)

    return made


def _apply(self: torch.nn.Module, move: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
    """``Module.to``: PyTorch's own swaps whole tensors, which fake ones refuse."""
    for child in self.children():
        child._apply(move)
    for name, weight in list(self._parameters.items()):
        if weight is None:
            continue
        moved = move(weight.detach())
        if (moved.device, moved.dtype) != (weight.device, weight.dtype):
            fresh = torch.nn.Parameter(moved, weight.requires_grad)
            tags = {key: value for key, value in weight.__dict__.items() if key not in fresh.__dict__}
            fresh.__dict__.update(tags)  # Megatron-Core's: how the weight is split
            self._parameters[name] = fresh
    for name, values in self._buffers.items():
        if values is not None:
            self._buffers[name] = move(values)
    return self
