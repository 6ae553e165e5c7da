"""``FakeTensorMode`` with fewer steps per operator: its own spends most of a rank's time on looks at its cache.

What is replaced are the key of that cache and the making of a tensor out of it. Here, tensors are strided and of known
sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

_DIRECT = {*fake_tensor._DISPATCH_META_HANDLERS, *fake_tensor._DISPATCH_HANDLE_DIRECTLY}
_VIEW, _UNSAFE_VIEW = torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default

KERNELS: dict[str, Callable[..., Any]] = {}
"""What makes the outputs of this folder's own operators, by their names."""


class FakeMode(FakeTensorMode):
    """Makes every tensor fake."""

    _nothing: dict[str, None]
    """Attributes of a new tensor that are None."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _DIRECT:
            return self.dispatch(func, types, args, kwargs or {})
        if func.namespace == "dry":
            with self:
                return KERNELS[func._schema.name](*args, **(kwargs or {}))
        if func is _UNSAFE_VIEW:  # the same here, and the cache has only this one
            func = _VIEW
        return self._cached_dispatch_impl(func, types, args, kwargs or {})

    def _prep_args_for_hash(self, result: Any, args: Any, state: Any, id_hashed_objects: Any) -> None:
        """What an output can depend on, of all arguments."""
        if isinstance(args, dict):
            result.append(tuple(args))
            args = args.values()
        else:
            result.append((type(args), len(args)))
        for argument in args:
            kind = type(argument)
            if kind is FakeTensor and argument.constant is None and argument.fake_mode is self:
                result += (
                    argument.dtype,
                    argument.shape,
                    argument.stride(),
                    argument._fake_device,
                    argument.storage_offset(),
                    argument.untyped_storage().nbytes(),
                    argument.requires_grad,
                    argument.is_conj(),
                    argument.is_neg(),
                    argument.is_inference(),
                )
            elif kind in _PLAIN:
                result += (kind, argument)
            elif kind in (list, tuple):
                self._prep_args_for_hash(result, argument, state, id_hashed_objects)
            else:
                super()._prep_args_for_hash(result, [argument], state, id_hashed_objects)

    def _get_output_tensor_from_cache_entry(self, state: Any, entry: Any, key: Any, func: Any, args: Any) -> Any:
        about = entry.metadata
        if about is None or entry.inplace_idx is not None or about.is_conj or about.is_neg:
            return super()._get_output_tensor_from_cache_entry(state, entry, key, func, args)
        empty = torch.empty_strided(
            about.shape, about.stride, dtype=about.dtype, device="meta", requires_grad=about.requires_grad
        )
        if func.is_view:
            empty.set_(args[entry.view_idx].untyped_storage(), about.storage_offset, about.shape, about.stride)
        made: Any = torch.Tensor._make_subclass(
            FakeTensor, empty, about.requires_grad, dispatch_device=True, device_for_backend_keys=about.device
        )
        torch._C._set_throw_on_mutable_data_ptr(made)
        if not hasattr(self, "_nothing"):
            self._nothing = {name: value for name, value in vars(FakeTensor(self, empty, "cpu")).items() if not value}
        vars(made).update(self._nothing, fake_mode=self, _fake_device=about.device)
        return made


_PLAIN = frozenset((int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format))
