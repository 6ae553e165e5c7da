"""Megatron-LM's model in the form that the probe scores with, and its description for the record."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from megatron_kis.common.errors import InputError
from megatron_kis.distributed.device import Device
from megatron_kis.distributed.groups import ParallelDims
from megatron_kis.distributed.megatron_imports import quiet_megatron
from megatron_kis.engine.forward_pass import ForwardPass

with quiet_megatron():
    from megatron.core import parallel_state
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.utils import unwrap_model

_TABLES = ("embedding.", "output_layer.")
"""Beginnings of the names of weights that are no part of the layers."""


def layout_here() -> ParallelDims:
    """Returns the layout that Megatron-LM has made, and this rank's place in it."""
    state = parallel_state
    return ParallelDims(
        world_size=torch.distributed.get_world_size(),
        rank=torch.distributed.get_rank(),
        tensor_size=state.get_tensor_model_parallel_world_size(),
        tensor_rank=state.get_tensor_model_parallel_rank(),
        pipeline_size=state.get_pipeline_model_parallel_world_size(),
        pipeline_rank=state.get_pipeline_model_parallel_rank(),
        data_size=state.get_data_parallel_world_size(),
        data_rank=state.get_data_parallel_rank(),
        virtual_size=state.get_virtual_pipeline_model_parallel_world_size() or 1,
        context_size=state.get_context_parallel_world_size(),
        context_rank=state.get_context_parallel_rank(),
    )


def device_of(parameter: torch.Tensor) -> Device:
    """Returns the device that holds a model's weights."""
    device = parameter.device
    if device.type == "cpu":
        return Device("cpu", device, "gloo", "cpu")
    return Device(device.type, device, "nccl", torch.cuda.get_device_name(device))


class _Chunk:
    """A chunk without the wrappers that train it."""

    def __init__(self, module: Any) -> None:
        self.module, self.config = module, module.config
        self.modules, self.eval, self.train = module.modules, module.eval, module.train

    def __call__(self, *inputs: Any, **named: Any) -> torch.Tensor:
        output: torch.Tensor = self.module(*inputs, **named)
        return output


class MegatronModel(ForwardPass):
    """This rank's chunks of the model that ``pretrain()`` trains."""

    def __init__(self, model: Sequence[Any], *, layout: ParallelDims) -> None:
        """Takes the wrapped chunks.

        Raises:
            InputError: the model is no GPTModel.
        """
        modules = [unwrap_model(chunk) for chunk in model]
        for module in modules:
            if not isinstance(module, GPTModel):
                raise InputError(
                    f"is a {type(module).__name__}, which the probe cannot read",
                    where="the model",
                    remedy="train Megatron-Core's GPTModel",
                )
        device = device_of(next(modules[0].parameters()))
        super().__init__([_Chunk(module) for module in modules], layout=layout, device=device)

    def gather(self) -> None:
        """Does nothing: ``whole_weights`` has gathered them."""

    def sizes(self) -> tuple[int, int]:
        """Returns the number of all parameters, and of those that are not in the embedding or output layer."""
        return self.parameters(), self.parameters(without=_TABLES)


@contextmanager
def whole_weights(training: Any, args: Any, model: Sequence[Any], optimizer: Any, *, sync: bool) -> Iterator[None]:
    """Gathers weights that a distributed optimizer gathers during forward passes, as Megatron-LM's evaluation does.

    Args:
        training: ``megatron.training.training``.
        args: Megatron-LM's arguments.
        model: the wrapped chunks.
        optimizer: Megatron-LM's.
        sync: whether there are weights of a step to gather.
    """
    overlapped: Callable[[Any], bool] = training.should_disable_forward_pre_hook
    if not overlapped(args):
        yield
        return
    disable = training.disable_forward_pre_hook
    named = {"optimizer": optimizer} if "optimizer" in inspect.signature(disable).parameters else {}  # before 0.19 not
    disable(model, param_sync=sync, **named)
    try:
        yield
    finally:
        training.enable_forward_pre_hook(model)
