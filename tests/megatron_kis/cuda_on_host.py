"""Megatron-Core's replicas and optimizers of CUDA on the host, so that real numbers go through them without a GPU.

They ask for nothing that gloo and a CPU lack, but for the names of types and devices: ``Tensor.type()`` must name a
tensor of CUDA, and ``device="cuda"`` must mean the host. ``install`` changes a process for good: use one of its own.
"""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import torch

from megatron_kis.distributed import cpu_backend
from megatron_kis.distributed.device import Device, open_device
from megatron_kis.engine import engine, replica
from megatron_kis.engine import optimizer as optimizer_module
from megatron_kis.training import trainer as run

CUDA = Device(kind="cuda", torch_device=torch.device("cpu"), backend="gloo", name="host")


def install() -> None:
    """Puts them in the place of the host's; one replica has the optimizer that is not distributed."""
    from megatron.core import utils
    from megatron.core.distributed import distributed_data_parallel, param_and_grad_buffer
    from megatron.core.optimizer import clip_grads, distrib_optimizer, optimizer

    open_device("cpu")
    names, build, wrap = torch.Tensor.type, optimizer_module.build_optimizer, replica.wrap_model

    def type_of(self: torch.Tensor, *wanted: Any, **more: Any) -> Any:
        said = names(self, *wanted, **more)
        return said.replace("torch.", "torch.cuda.", 1) if isinstance(said, str) else said

    changed: Any = torch.Tensor
    changed.type = type_of
    cuda: Any = torch.cuda
    cuda.current_stream = lambda *_: SimpleNamespace(wait_stream=lambda _: None)  # from megatron-core 0.19 on
    for module in (distributed_data_parallel, param_and_grad_buffer, clip_grads, distrib_optimizer, optimizer, utils):
        module.torch = cpu_backend._CpuTorch()
    engine.wrap_model = lambda model, _, *, trains: wrap(model, CUDA, trains=trains)
    engine.build_optimizer = lambda chunks, settings, _, *, half: build(chunks, settings, CUDA, half=half)
    run.check_precision = lambda *_, **__: None  # in half precision there are main weights here, as on CUDA
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
