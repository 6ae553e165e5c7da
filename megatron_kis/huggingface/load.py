"""Loads a causal model of Hugging Face from its folder: safetensors alone, no code of the folder, no network."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from megatron_kis.common.errors import InputError, JobError, nearest
from megatron_kis.common.extras import import_extra
from megatron_kis.huggingface.folder import PURPOSE, check_model_folder
from megatron_kis.huggingface.scorer import in_one_line

DTYPES = {
    "auto": "auto",
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""Types by name; ``auto`` is the type in which the weights are stored."""

DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
"""Ways in which accelerate spreads a model over devices."""


def read_config(folder: Path) -> Any:
    """Returns the configuration of a model, as transformers has it, after all checks that need no weights.

    Raises:
        InputError: as ``check_model_folder``, or transformers cannot read it.
    """
    check_model_folder(folder)
    transformers = import_extra("transformers", PURPOSE, extra="export")
    try:
        return transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds of errors for a damaged file
        raise InputError(in_one_line(error), where=str(folder / "config.json")) from None


def empty_model(config: Any) -> torch.nn.Module:
    """Returns the model of a configuration without its weights (on the device ``meta``).

    Raises:
        InputError: transformers cannot build it.
    """
    transformers = import_extra("transformers", PURPOSE, extra="export")
    try:
        with torch.device("meta"):
            model: torch.nn.Module = transformers.AutoModelForCausalLM.from_config(config)
    except Exception as error:  # transformers raises many kinds of errors
        raise InputError(in_one_line(error), where="config.json") from None
    return model


def check_choices(dtype: str, device: str, device_map: str | None) -> None:
    """Refuses an unknown type, device or distribution over devices.

    Raises:
        InputError: with the option's name.
    """
    if dtype not in DTYPES:
        raise InputError(f"unknown dtype {dtype!r}", where="dtype", remedy=nearest(dtype, DTYPES))
    if device_map is None:
        chosen_device(device)
        return
    if device_map not in DEVICE_MAPS:
        raise InputError(f"is {device_map!r}", where="device_map", remedy=nearest(device_map, DEVICE_MAPS))
    if device != "auto":
        raise InputError(
            "cannot be combined with device_map, which chooses devices", where="device", remedy="leave it out"
        )
    if importlib.util.find_spec("accelerate") is None:
        raise InputError("the package accelerate is not installed", where="device_map", remedy="pip install accelerate")


def chosen_device(name: str) -> torch.device:
    """Returns the device of a name: ``auto`` (CUDA if there is one), ``cpu``, ``cuda`` or ``cuda:1``.

    Raises:
        InputError: an unknown name, or a missing device.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if count else "cpu")
    kind, colon, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (colon and (kind == "cpu" or not number.isdecimal())):
        raise InputError(f"unknown device {name!r}", where="device", remedy="valid: auto, cpu, cuda, cuda:N")
    if kind == "cuda" and int(number or 0) >= count:
        found = f"there are {count} CUDA devices" if count else "no CUDA device is available"
        raise InputError(found, where="device", remedy=f"{name!r} was asked for; use cpu or auto")
    return torch.device(name)


def load_model(
    folder: Path | str, *, dtype: str = "auto", device: str = "auto", device_map: str | None = None
) -> torch.nn.Module:
    """Loads a causal model.

    Args:
        folder: the folder of the model, with ``config.json`` and ``*.safetensors``.
        dtype: ``float32``, ``bfloat16``, ``float16``, or ``auto``: as stored.
        device: ``auto`` (CUDA if there is one), ``cpu``, ``cuda`` or ``cuda:N``.
        device_map: how accelerate spreads the model over devices: ``auto``, ``balanced``, ``balanced_low_0`` or
            ``sequential``; None to put all of it on ``device``.

    Returns:
        The model, in evaluation mode.

    Raises:
        InputError: no such model, type or device; a package is missing; or weights that do not fit the configuration.
        JobError: too little memory.
    """
    folder = Path(folder)
    check_choices(dtype, device, device_map)
    config = read_config(folder)
    transformers = import_extra("transformers", PURPOSE, extra="export")
    import_extra("safetensors", PURPOSE, extra="export")
    settings: dict[str, Any] = {"config": config, "local_files_only": True, "trust_remote_code": False}
    settings |= {"use_safetensors": True, "torch_dtype": DTYPES[dtype], "output_loading_info": True}
    settings["ignore_mismatched_sizes"] = True  # refused below, by name
    if device_map is not None:
        settings["device_map"] = device_map
    with _quiet(transformers):
        try:
            model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, **settings)
            loaded: torch.nn.Module = model if device_map else model.to(chosen_device(device))
        except torch.OutOfMemoryError:
            raise JobError(f"{folder} does not fit into memory; use --dtype bfloat16 or --device-map auto") from None
        except Exception as error:  # transformers and safetensors raise many kinds of errors for damaged files
            raise InputError(f"cannot be loaded ({in_one_line(error)})", where=str(folder)) from None
    for key, what in (("missing_keys", "lacks"), ("mismatched_keys", "has another shape of")):
        if info.get(key):
            names = sorted(map(str, info[key]))
            problem = f"{what} {len(names)} tensors of the model, the first {names[0]}"
            raise InputError(problem, where=str(folder), remedy="give weights that belong to config.json")
    if foreign := _foreign(info["unexpected_keys"], loaded):
        problem = f"has {len(foreign)} tensors that the model of config.json does not have, the first {foreign[0]}"
        raise InputError(problem, where=str(folder), remedy="give weights that belong to config.json")
    return loaded.eval()


def _foreign(names: Iterable[str], model: torch.nn.Module) -> list[str]:
    """Returns those of a model's unused tensors that would change it: further layers, or biases that it does not have.

    Others, such as buffers of older versions or the heads of other tasks, are left out by transformers on purpose.
    """
    places = {_place(name) for name, _ in model.named_parameters(remove_duplicate=False)}
    return sorted(name for name in names if _place(name) in places)


def _place(name: str) -> str:
    """Returns the module of a tensor, the same for all layers."""
    return re.sub(r"\d+", "N", name.rpartition(".")[0])


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Lets transformers print errors only inside the block."""
    logging = transformers.utils.logging
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
