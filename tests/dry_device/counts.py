"""What happens on the fake device: bytes alive, FLOPs, messages, waits of the host, copies, launches.

``Counts`` sees every operator below autograd, of the backward pass too. Do not let it hold a tensor: no closure that
refers to itself, no list that outlives a call. What it holds stays alive, and is then counted as alive.
"""

from __future__ import annotations

import functools
import sys
import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch._C._distributed_c10d import FakeWork
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakTensorKeyDictionary

from tests.dry_device import world

_ALIGNED = 512
"""Bytes to which PyTorch's allocator on CUDA rounds."""

_KNOWN = 1 << 16
"""Elements of a host tensor whose numbers are kept at most (``_host_numbers``)."""

_MAKES_NUMBERS = ("aten.arange.", "aten.lift_fresh.", "aten.scalar_tensor.", "aten.zeros.", "aten.ones.", "aten.full.")
_SHAPE_IS_DATA = ("aten.unique_consecutive.", "aten.nonzero.", "aten.bincount.", "aten.masked_select.")
_NO_KERNEL = (
    "aten.detach.",
    "aten.empty.",
    "aten.empty_strided.",
    "aten.lift_fresh.",
    "aten.new_empty.",
    "aten.empty_like.",
    "aten.new_empty_strided.",
)

_DEVICE = torch.ops.prim.device.default

_numbers: Any = WeakTensorKeyDictionary()


class Counts(TorchDispatchMode):
    """Counts since ``restart``; bytes alive since it was entered."""

    def __init__(self) -> None:
        super().__init__()
        self.alive, self.by_kind = 0, Counter[str]()
        self._storages: dict[int, tuple[int, str, weakref.ref[Any]]] = {}
        self.peaks: dict[str, tuple[int, dict[str, int]]] = {}
        """By part: the most bytes alive, and how many of each kind these were."""

        self.flops, self.launches = Counter[str](), Counter[str]()
        self.syncs, self.copies = Counter[str](), Counter[str]()
        self.copied_to_host = 0
        """Bytes."""

        self.messages: list[dict[str, Any]] = []
        """In their order: operator, group, its ranks, bytes, and for a message between two ranks the other one."""

        self.begin("start")

    def begin(self, part: str) -> None:
        """Says what goes on from here: the key of the peaks, and the kind of what is allocated."""
        self.part = part
        self._peak()

    def _peak(self) -> None:
        if self.alive >= self.peaks.get(self.part, (0,))[0]:
            self.peaks[self.part] = (self.alive, dict(self.by_kind))

    def restart(self) -> None:
        """Forgets everything but what is alive."""
        for counter in (self.flops, self.launches, self.syncs, self.copies, self.messages, self.peaks):
            counter.clear()
        self.copied_to_host = 0

    def label(self, kind: str, tensors: Iterable[Any]) -> None:
        """Says what alive tensors are for."""
        for tensor in tensors:
            key = tensor.untyped_storage()._cdata
            if key in self._storages:
                size, before, storage = self._storages[key]
                self.by_kind[before] -= size
                self.by_kind[kind] += size
                self._storages[key] = (size, kind, storage)

    def sync(self, what: str) -> None:
        """The host waits for the device."""
        self.syncs[f"{what} @ {_place()}"] += 1

    def say(self, operator: str, group: Any) -> None:
        """A message of Python's objects."""
        self._message(operator, group, 0, "object", None)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _DEVICE:  # half of all calls
            return args[0].fake_device
        kwargs = kwargs or {}
        name = _name(func)
        if name == "aten._local_scalar_dense.default":
            return self._number(args[0])
        if name.startswith("c10d."):
            return self._send(name, func, args, kwargs)
        if name.startswith(_SHAPE_IS_DATA) or (name == "aten.index.Tensor" and _is_masked(args[1])):
            self.sync(name)
        if name.startswith("aten.unique_consecutive."):  # all differ
            return args[0].new_empty(args[0].shape), torch.empty_like(args[0]), args[0].new_empty(0)
        if name.startswith("aten.bincount."):  # all in the first bin
            bins = max(1, *(value for value in [*args[1:], *kwargs.values()] if isinstance(value, int)))
            made = args[0].new_empty(bins, dtype=torch.int64)
            with no_dispatch():
                _numbers[made] = torch.tensor([args[0].numel()] + [0] * (bins - 1))
            return made
        result = func(*args, **kwargs)
        outputs = [
            one for one in (result if isinstance(result, list | tuple) else [result]) if isinstance(one, torch.Tensor)
        ]
        for output in outputs:
            self._allocated(output)
        if name in ("aten._to_copy.default", "aten.copy_.default"):
            waits = not (kwargs.get("non_blocking") or args[2:3] == (True,))
            self._copied(*((args[0], result) if "_to_copy" in name else (args[1], args[0])), waits=waits)
        self._count(name, func, args, kwargs, result, outputs)
        if len(outputs) == 1 and isinstance(outputs[0], FakeTensor) and outputs[0].device.type == "cpu":
            _keep_numbers(name, func, args, kwargs, outputs[0])
        return result

    def _allocated(self, tensor: torch.Tensor) -> None:
        if not isinstance(tensor, FakeTensor) or tensor.device.type != "cuda":
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._storages:
            return
        size = -(-storage.nbytes() // _ALIGNED) * _ALIGNED
        self._storages[key] = (size, self.part, weakref.ref(storage, lambda _: self._freed(key)))
        self.alive += size
        self.by_kind[self.part] += size
        self._peak()

    def _freed(self, key: int) -> None:
        size, kind, _ = self._storages.pop(key)
        self.alive -= size
        self.by_kind[kind] -= size

    def _number(self, tensor: Any) -> Any:
        """What the host reads of one element: 1, or False, where the number is not known."""
        if tensor.device.type == "cuda":
            self.sync("item")
        numbers = numbers_of(tensor)
        if numbers is not None:
            with no_dispatch():
                return numbers.item()
        return False if tensor.dtype == torch.bool else 1.0 if tensor.dtype.is_floating_point else 1

    def _send(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        tensors = [one for one in tree_leaves(args) if isinstance(one, torch.Tensor)]
        largest = max(tensors, key=lambda one: one.nbytes, default=None)
        group = world.group_in(args)
        peer = args[2] if name.startswith(("c10d.send", "c10d.recv_")) else None
        if name != "c10d.monitored_barrier_.default":
            size, dtype = (0, "none") if largest is None else (sum(one.nbytes for one in tensors), str(largest.dtype))
            self._message(name.removeprefix("c10d.").removesuffix(".default").strip("_"), group, size, dtype, peer)
        if "coalesced" in name:  # PyTorch's fake backend has none of these
            work = FakeWork().boxed()
            return ([list(args[0])], work) if "allgather_coalesced_" in name else work
        return func(*args, **kwargs)

    def _message(self, operator: str, group: Any, size: int, dtype: str, peer: int | None) -> None:
        ranks = torch.distributed.get_process_group_ranks(group)
        said = {
            "operator": operator,
            "group": world.name_of(group),
            "ranks": ranks,
            "bytes": size,
            "dtype": dtype,
            "part": self.part,
        }
        self.messages.append(said if peer is None else said | {"peer": ranks[peer]})

    def _copied(self, source: torch.Tensor, target: torch.Tensor, *, waits: bool) -> None:
        if source.device.type == "cuda" and target.device.type == "cpu":
            self.copied_to_host += target.nbytes
            if waits:
                self.sync("copy to the host")
        pageable = not getattr(source, "pinned", False)
        if source.device.type == "cpu" and target.device.type == "cuda" and source.numel() > 1 and pageable:
            self.copies[f"pageable, to the device @ {_place()}"] += 1

    def _count(self, name: str, func: Any, args: Any, kwargs: Any, result: Any, outputs: list[torch.Tensor]) -> None:
        backward = torch._C._current_graph_task_id() != -1
        way = "backward" if backward else "forward"
        if name.startswith("dry.attend"):
            back, fused = "back" in name, "fused" in name
            q, k = args[1:3] if back else args[:2]
            asked, there = (tensor.shape[0 if fused else 2] for tensor in (q, k))
            keys = there - asked / 2 if args[-1] else there  # causal: half of those of the same places
            count = 4 * q.numel() * keys
            self.flops[f"attention.{'backward' if back else way}"] += int(count * (2 if back else 1))
        elif name.startswith("dry.product"):
            left, right = args[1:3] if "into" in name else args[:2]
            self.flops[f"matmul.{way}"] += 2 * left.numel() * right.shape[1]
        elif func._overloadpacket in flop_registry:
            self.flops[f"matmul.{way}"] += flop_registry[func._overloadpacket](*args, **kwargs, out_val=result)
        if outputs and outputs[0].device.type == "cuda" and not _is_view(func) and not name.startswith(_NO_KERNEL):
            self.launches[self.part] += 1


_name = functools.cache(str)


@functools.cache
def _is_view(func: Any) -> bool:
    return any(one.alias_info is not None and not one.alias_info.is_write for one in func._schema.returns)


def _is_masked(indices: Any) -> bool:
    return any(isinstance(one, torch.Tensor) and one.dtype == torch.bool for one in indices if one is not None)


def numbers_of(tensor: Any) -> Any:
    """A host tensor with its numbers, or None where they are not known; see ``_keep_numbers``."""
    if isinstance(tensor, FakeTensor):
        return tensor.constant if tensor.constant is not None else _numbers.get(tensor)
    return tensor if tensor.device.type == "cpu" and tensor.numel() <= _KNOWN else None


def _keep_numbers(name: str, func: Any, args: Any, kwargs: Any, output: Any) -> None:
    """Computes small host tensors for real, next to the fake ones: places of tokens, sizes and masks decide shapes."""
    inputs = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
    known = [numbers_of(one) for one in inputs]
    if output.numel() > _KNOWN or any(one is None for one in known) or not (inputs or name.startswith(_MAKES_NUMBERS)):
        _numbers.pop(output, None)
        return
    with no_dispatch():
        remaining = iter(known)
        real_args, real_kwargs = tree_map_only(torch.Tensor, lambda _: next(remaining), (args, kwargs))
        _numbers[output] = func(*real_args, **real_kwargs)


def read_from_the_host(counts: Counts) -> None:
    """Lets the host read fake tensors: ones in lists and zeros in arrays, where the numbers are not known."""

    def read(self: Any, unknown: Any) -> Any:
        if self.device.type == "cuda":
            counts.sync("tolist")
        known = numbers_of(self)
        if known is None:
            return unknown(tuple(self.shape), dtype=_NUMPY.get(self.dtype, np.float32))
        with no_dispatch():
            return np.array(known.tolist(), dtype=_NUMPY.get(self.dtype, np.float32))

    FakeTensor.tolist = lambda self: read(self, np.ones).tolist()
    FakeTensor.numpy = lambda self, *_, **__: read(self, np.zeros)


_NUMPY = {torch.int64: np.int64, torch.int32: np.int32, torch.float64: np.float64, torch.bool: np.bool_}


def _place() -> str:
    """The nearest file and line of this project or Megatron-Core, and the two before it."""
    frame, places = sys._getframe(1), []
    while frame is not None and len(places) < 3:
        file = frame.f_code.co_filename
        if not any(part in file for part in ("tests/dry_device", "/torch/", "contextlib.py", "functools.py")):
            places.append(f"{file.split('site-packages/')[-1].split('/megatron_kis/')[-1]}:{frame.f_lineno}")
        frame = frame.f_back
    return " < ".join(places)
