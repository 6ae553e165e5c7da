"""Requirements of CUDA beyond PyTorch and Megatron-Core: Transformer Engine for layers, a compiler for kernels."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import logging
import os
import re
import shutil

import torch.distributed as dist

from megatron_kis.distributed.device import Device
from megatron_kis.distributed.megatron_imports import quiet_megatron

TRANSFORMER_ENGINE = {"0.16": ("2.9", "2.12"), "0.19": ("2.9", "2.21")}
"""Versions of Transformer Engine, from and below, by version of Megatron-Core: for 0.16 those of its own metadata. 0.19
names none; its layers' specification was built with the Python code of 2.11 and of 2.20."""

logger = logging.getLogger(__name__)


def why_no_transformer_engine(device: Device) -> str | None:
    """Returns why Transformer Engine's layers cannot be used; None if they can.

    Megatron-Core decides: without what it imports it would build the layers from mocks.
    """
    if device.is_cpu:
        return "it needs CUDA"
    with quiet_megatron():
        from megatron.core.models.gpt import gpt_layer_specs
    if gpt_layer_specs.HAVE_TE:
        return None
    found = _version("transformer_engine")
    if found is None:
        return f"it is not installed ({_wanted()})"
    return f"Megatron-Core cannot use the installed version {found} ({_import_error()}; {_wanted()})"


def warn_if_transformer_engine_is_unused(device: Device) -> None:
    """Warns, once, that Transformer Engine is installed and not used, or that its version is not known to work."""
    found = _version("transformer_engine")
    if found is None or device.is_cpu:
        return
    if (why := why_no_transformer_engine(device)) is not None:
        _warn(f"Transformer Engine's layers are not used: {why}; PyTorch's attention is used")
    elif not _is_known(found):
        _warn(f"Transformer Engine {found} is used, but {_wanted()}")


def why_no_compiler() -> str | None:
    """Returns why PyTorch cannot compile functions for CUDA on this machine; None if it can."""
    try:
        importlib.import_module("triton")
    except ImportError as error:
        return f"triton cannot be imported ({error})"
    if not os.environ.get("CC") and not any(map(shutil.which, ("gcc", "clang"))):  # triton looks for these
        return "there is no C compiler (gcc, clang or CC)"
    return None


def fuses(device: Device) -> bool:
    """Returns whether SwiGLU and the residual's addition are compiled into one kernel each, as on CUDA with a compiler.

    Without a compiler a warning says, once, what that costs.
    """
    if device.is_cpu:
        return False
    why = why_no_compiler()
    if why is not None:
        _warn(f"functions are not compiled: {why}. Training is slower and keeps more activations than kis plan says")
    return why is None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _import_error() -> str:
    try:
        importlib.import_module("transformer_engine.pytorch.fp8")
    except Exception as error:  # libraries that do not fit fail in many ways
        return str(error) or type(error).__name__
    return "its extension does not fit"


def _range() -> tuple[str, str] | None:
    core = _version("megatron-core") or ""
    return TRANSFORMER_ENGINE.get(".".join(core.split(".")[:2]))


def _wanted() -> str:
    known = _range()
    core = f"Megatron-Core {_version('megatron-core')}"
    return f"{core} is known to work with transformer-engine>={known[0]},<{known[1]}" if known else f"with {core}"


def _is_known(version: str) -> bool:
    known = _range()
    return known is None or _numbers(known[0]) <= _numbers(version) < _numbers(known[1])


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+", maxsplit=1)[0])[:2])


@functools.cache
def _warn(message: str) -> None:
    if not dist.is_initialized() or dist.get_rank() == 0:
        logger.warning("kis: %s", message)
