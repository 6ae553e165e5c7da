"""Data-parallel replicas on the host: gradients summed over the data-parallel group through gloo.

The counterpart of Megatron-Core's ``DistributedDataParallel``, whose buffers live on CUDA, with the part of its
interface that the schedules and ``finalize_model_grads`` call.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from megatron_kis.distributed.megatron_imports import quiet_megatron

with quiet_megatron():
    from megatron.core.distributed import DistributedDataParallelConfig
    from megatron.core.distributed.data_parallel_base import _BaseDataParallel
    from megatron.core.transformer.transformer_config import TransformerConfig


class CpuReplica(_BaseDataParallel):
    """A model whose gradients, if there are any, are summed over replicas after each step's backward passes."""

    def __init__(self, config: TransformerConfig, module: torch.nn.Module, group: dist.ProcessGroup) -> None:
        """Wraps ``module``; ``group`` joins its replicas."""
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
        """Nothing: every replica has all weights of the last step."""

    def scale_gradients(self, scaling_factor: float | torch.Tensor) -> None:
        """Multiplies every gradient by ``scaling_factor`` (one over the step's tokens)."""
        gradients = [parameter.grad for parameter in self._trained if parameter.grad is not None]
        torch._foreach_mul_(gradients, scaling_factor)

    def zero_grad_buffer(self) -> None:
        """Forgets the gradients before a step."""
        for parameter in self._trained:
            parameter.grad = None
