"""Data-parallel replicas of a model, and how the gradients of a step are summed over all ranks.

On CUDA they are Megatron-Core's (``DeviceReplica``). Its buffers are on CUDA, so a CPU has ``CpuReplica``, which sums
gradients through gloo and has the part of the interface that the schedules and ``finalize_model_grads`` call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from megatron_kis.distributed.device import Device
from megatron_kis.distributed.megatron_imports import quiet_megatron

with quiet_megatron():
    from megatron.core import parallel_state
    from megatron.core.distributed import (
        DistributedDataParallel,
        DistributedDataParallelConfig,
        finalize_model_grads,
    )
    from megatron.core.distributed.data_parallel_base import _BaseDataParallel
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.transformer.transformer_config import TransformerConfig


class CpuReplica(_BaseDataParallel):
    """A model whose gradients, if there are any, are summed over replicas after each step's backward passes."""

    def __init__(self, config: TransformerConfig, module: torch.nn.Module, group: dist.ProcessGroup) -> None:
        """Wraps ``module``; its replicas are the ranks of ``group``."""
        super().__init__(config=config, module=module)
        self.ddp_config = DistributedDataParallelConfig()
        self._group = group
        self._trained = [parameter for parameter in module.parameters() if parameter.requires_grad]

    def finish_grad_sync(self, *_: Any, **__: Any) -> None:
        """Sums the gradients of all replicas, in one message; missing ones count as zero."""
        if self._group.size() == 1:
            return
        for parameter in self._trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([parameter.grad.reshape(-1) for parameter in self._trained if parameter.grad is not None])
        dist.all_reduce(flat, group=self._group)
        sizes = [parameter.numel() for parameter in self._trained]
        for parameter, part in zip(self._trained, flat.split(sizes), strict=True):
            assert parameter.grad is not None
            parameter.grad.copy_(part.view_as(parameter))

    def gather(self) -> None:
        """Does nothing: every replica has all weights of the last step."""

    def scale_gradients(self, scaling_factor: float | torch.Tensor) -> None:
        """Multiplies every gradient by ``scaling_factor`` (one over the step's tokens)."""
        gradients = [parameter.grad for parameter in self._trained if parameter.grad is not None]
        torch._foreach_mul_(gradients, scaling_factor)

    def zero_grad_buffer(self) -> None:
        """Forgets the gradients before a step."""
        for parameter in self._trained:
            parameter.grad = None


class DeviceReplica(DistributedDataParallel):
    """Megatron-Core's replica, which gathers the weights of a step during the next step's forward pass."""

    def gather(self) -> None:
        """Gathers the weights of the last step now, where no forward pass has; before anything but a training step.

        Forward passes then gather nothing until the next step's gradients are summed.
        """
        for group in self.bucket_groups if self.use_forward_hook else ():
            if not group.param_gather_dispatched or group.param_gather_handle is not None:
                group.start_param_sync(force_sync=True)


def wrap_model(model: GPTModel, device: Device, *, trains: bool = True) -> Any:
    """Wraps a model as a data-parallel replica: Megatron-Core's on CUDA; ``CpuReplica``, without buffers, elsewhere.

    Args:
        model: a rank's chunk.
        device: its device.
        trains: whether gradients will be summed.
    """
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    if device.is_cpu or not trains:
        return CpuReplica(model.config, model, group)
    shared = group.size() > 1
    settings = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=shared,
        overlap_grad_reduce=shared,
        overlap_param_gather=shared,
        align_param_gather=shared and model.config.virtual_pipeline_model_parallel_size is not None,
    )
    return DeviceReplica(config=model.config, ddp_config=settings, module=model)


def finish_gradients(chunks: Sequence[Any], tokens: torch.Tensor, **groups: Any) -> None:
    """Sums the gradients over all ranks that share weights and divides them by the tokens of the step.

    Like Megatron-Core's ``finalize_model_grads``, except for the division: there the CPU reads the number of tokens,
    and so waits for the device once per chunk.

    Args:
        chunks: chunks of this rank.
        tokens: int [], tokens of this rank's micro-batches; only the last stage has counted them.
        groups: further arguments of Megatron-Core's schedules.
    """
    pipeline = parallel_state.get_pipeline_model_parallel_group()
    replicas = parallel_state.get_data_parallel_group(with_context_parallel=True)
    if parallel_state.get_model_parallel_group().size() == replicas.size() == 1:
        for chunk in chunks:
            chunk.finish_grad_sync()
    else:
        finalize_model_grads(list(chunks), None, **groups)
    if pipeline.size() > 1:
        dist.broadcast(tokens, src=dist.get_process_group_ranks(pipeline)[-1], group=pipeline)
    if replicas.size() > 1:
        dist.all_reduce(tokens, group=replicas)
    for chunk in chunks:
        chunk.scale_gradients(1.0 / tokens.clamp(min=1))
