"""Megatron-LM's ``pretrain()`` on a CPU over gloo, for tests: the CPU answers what is asked of CUDA.

The project's CPU backend serves Megatron-Core. ``megatron.training`` asks for more: streams, memory counters, tensors,
random states. Nothing else is replaced: arguments, samplers, loaders, loop, optimizer, checkpoints and Megatron-LM's
own evaluation are the real ones.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from runpy import run_path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch.overrides import TorchFunctionMode

from tests.megatron_kis.ranks import SERVER, free_port

_WORDS = (
    "--transformer-impl local --use-cpu-initialization --distributed-backend gloo --no-rope-fusion"
    " --no-masked-softmax-fusion --no-bias-swiglu-fusion --no-bias-dropout-fusion --no-gradient-accumulation-fusion"
    " --no-persist-layer-norm --num-workers 0"
)
FLAGS = _WORDS.split()
"""Arguments without which Megatron-LM uses kernels that a CPU does not have."""


class _Stream(contextlib.nullcontext):  # type: ignore[type-arg]
    def wait_stream(self, _: Any) -> None:
        """Does nothing: a CPU computes in order."""


class _OnCpu(TorchFunctionMode):
    """Makes tensors of device ``cuda`` on the CPU, and lets their types be called those of CUDA."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = dict(kwargs or {})
        if str(named.get("device", "")).startswith("cuda"):
            named["device"] = "cpu"
        result = function(*args, **named)
        if function is torch.Tensor.type and isinstance(result, str):
            return result.replace("torch.", "torch.cuda.")  # Megatron-LM asserts the name
        return result


def _install() -> None:
    from megatron_kis.distributed.cpu_backend import install_cpu_backend
    from megatron_kis.distributed.megatron_imports import quiet_megatron

    install_cpu_backend()
    cuda: Any = torch.cuda
    cuda.is_available, cuda.device_count = lambda: True, lambda: 8
    cuda.empty_cache = lambda: None
    torch.accelerator.current_accelerator = lambda **_: None  # optimizers and loaders ask for it
    torch.accelerator.is_available = lambda: False
    cuda.Stream = cuda.current_stream = cuda.stream = lambda *_, **__: _Stream()
    for name in ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"):
        setattr(cuda, name, lambda *_: 0)
    cuda.memory_stats = lambda *_: {}
    cuda.get_device_capability = lambda *_: (9, 0)
    cuda.get_device_properties = lambda *_: SimpleNamespace(major=9, minor=0, name="none", total_memory=1 << 30)
    cuda.get_rng_state = lambda *_, **__: torch.get_rng_state()
    cuda.set_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    begin = dist.init_process_group
    dist.init_process_group = lambda *_, timeout=None, **__: begin("gloo", timeout=timeout)
    with quiet_megatron():
        from megatron.core import mpu, tensor_parallel
        from megatron.training import training

    def seed(value: int, *_: Any, **__: Any) -> None:
        torch.manual_seed(value)
        tracker = tensor_parallel.get_cuda_rng_tracker()
        tracker.reset()
        for number, name in enumerate(("model-parallel-rng", "data-parallel-rng", "expert-parallel-rng")):
            tracker.add(name, value + 2718 + number + mpu.get_tensor_model_parallel_rank())

    tensor_parallel.model_parallel_cuda_manual_seed = seed
    training.set_jit_fusion_options = lambda **_: None  # compiles kernels and runs them


def _rank(words: list[str], environment: dict[str, str], log: Path, script: str | None) -> None:
    os.environ.update(environment)
    with open(log, "wb") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    _install()
    from megatron_kis.megatron_lm.gpt import forward_step, gpt_datasets, use_compiled_helpers
    from megatron_kis.run_scripts import pretrain_kis

    sys.argv = ["pretrain_kis.py", *words, *FLAGS]
    with _OnCpu():
        if script:
            use_compiled_helpers()
            run_path(script, {"train_valid_test_datasets_provider": gpt_datasets, "forward_step": forward_step})
            sys.exit()
        sys.exit(pretrain_kis.main())


def pretrain(folder: Path, *words: object, ranks: int = 1, script: Path | None = None) -> tuple[int, str]:
    """Runs ``pretrain_kis.py`` with arguments, or another ``script`` for which datasets and step are defined.

    Returns:
        The largest exit status of its ranks, and what they have printed.
    """
    port = str(free_port())
    processes, logs = [], [folder / f"rank{rank}.log" for rank in range(ranks)]
    for rank, log in enumerate(logs):
        environment = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_PORT": port}
        environment |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", "CUDA_DEVICE_MAX_CONNECTIONS": "1"}
        environment["TORCHDYNAMO_DISABLE"] = "1"
        processes.append(
            SERVER.Process(target=_rank, args=([str(word) for word in words], environment, log, script and str(script)))
        )
        processes[-1].start()
    for process in processes:
        process.join(180)
        if process.exitcode is None:
            process.kill()
            process.join()
    said = "\n".join(log.read_text(encoding="utf-8", errors="replace") for log in logs)
    return max(abs(process.exitcode or 0) for process in processes), said
