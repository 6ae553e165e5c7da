"""Imports of Megatron-Core, without PyTorch's compiler and without warnings that a user can do nothing about."""

from __future__ import annotations

import contextlib
import functools
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

_UNAVOIDABLE = {
    "megatron.core.models.gpt.gpt_model": "GPTModel IS DEPRECATED",
    "megatron.core.distributed.distributed_data_parallel": "DistributedDataParallel: full_param_layout not provided",
}
"""Loggers of Megatron-Core 0.19, and how the warning begins that each writes whenever a model is built.

Both recommend calls that 0.16 does not have (``HybridModel``, ``DistributedOptimizer.compute_full_param_layout``), and
0.19 still computes the same without them.
"""


def _leave_out_unavoidable_warnings() -> None:
    for name, beginning in _UNAVOIDABLE.items():
        logging.getLogger(name).addFilter(functools.partial(_does_not_begin, beginning))


def _does_not_begin(beginning: str, record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(beginning)


_leave_out_unavoidable_warnings()


@contextlib.contextmanager
def quiet_megatron(*begin: str) -> Iterator[None]:
    """Imports Megatron-Core inside the block without warnings of packages that are not installed.

    Megatron-Core decorates functions with ``torch.compile``, which imports PyTorch's compiler: 2.4 of the 6 seconds
    that a process takes to start, on a CPU for functions that are never called. Inside the block these functions are
    decorated so that they are compiled when they are first called.

    Args:
        begin: how the warnings begin that are left out; all warnings if not given.
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
    """Acts as ``torch.compile``, but compiles the function when it is first called."""
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
