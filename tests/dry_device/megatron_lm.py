"""Megatron-LM's ``pretrain()`` on the fake device: its whole loop under a plan, with probes, validation and records.

``megatron.training`` is in megatron-core from 0.19 on, which is for Python 3.12 and needs Triton, a part of the CUDA
build of PyTorch. The fake device needs the CPU build: there its Python code runs from ``wheel.FOLDER``, without Triton.
"""

from __future__ import annotations

import importlib.machinery
import json
import os
import sys
import typing
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import typing_extensions

from tests.dry_device import cuda, kernels, transformer_engine, wheel, world
from tests.dry_device.counts import Counts, read_from_the_host

import torch  # isort: skip

_TRITON = ("triton", "triton.language")
"""Packages that Megatron-Core 0.19 imports at its top, for kernels of experts."""


def trained(words: list[str], rank: int, ranks: int, output: str) -> dict[str, Any]:
    """Runs ``pretrain_kis.py`` as one rank of a job.

    Returns:
        ``status``; and of the folder ``output``: the ``kinds`` and steps of its rows, the steps of its ``probes``, and
        whether it is ``done``.
    """
    os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"  # Megatron-LM asks for it
    counts: Counts = Counts()
    world.open_world(rank, ranks, counts.say)
    mode = cuda.install(counts.sync)
    _more_of_cuda()
    transformer_engine.load()
    _import_megatron_lm()
    kernels.install()
    read_from_the_host(counts)
    from megatron_kis.run_scripts import pretrain_kis

    sys.argv = ["pretrain_kis.py", *words]
    with mode, counts:
        status = pretrain_kis.main()
    rows = [json.loads(line) for line in _lines(Path(output) / "metrics.jsonl")]
    return {
        "status": status,
        "kinds": sorted({f"{row['kind']} {row['step']}" for row in rows}),
        "probes": sorted({json.loads(line)["step"] for line in _lines(Path(output) / "probes.jsonl")}),
        "done": (Path(output) / "DONE").exists(),
    }


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _more_of_cuda() -> None:
    for name, answer in {"reset_peak_memory_stats": None, "memory_stats": {}, "max_memory_reserved": 0}.items():
        setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)


def _import_megatron_lm() -> None:
    assert not [name for name in sys.modules if name.startswith("megatron.")]
    sys.path.insert(0, str(wheel.FOLDER))
    if not hasattr(typing, "override"):
        typing.override = typing_extensions.override
    for name in _TRITON:
        sys.modules[name] = MagicMock(name=name)
        sys.modules[name].__spec__, sys.modules[name].__version__ = importlib.machinery.ModuleSpec(name, None), "3.0"
    from megatron_kis.distributed.megatron_imports import quiet_megatron

    with quiet_megatron():
        from megatron.training import training
    for name in _TRITON:
        del sys.modules[name]  # for PyTorch, which would take it for installed
    training.set_jit_fusion_options = lambda **_: None  # compiles kernels and runs them
    build = training.build_train_valid_test_data_iterators

    def iterators(*given: Any) -> Any:
        built = build(*given)
        training.get_args().do_test = built[2] is not None  # a number on the device, which reads as 1
        return built

    training.build_train_valid_test_data_iterators = iterators
