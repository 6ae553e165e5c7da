"""``kis import megatron``: a checkpoint of Megatron-LM (``torch_dist``) as the start of a run.

Nothing is unpickled (``megatron_kis.checkpoint.foreign``). The shape is that of the checkpoint's own arguments, or the
model section of a file, and every weight must have the size that it asks for. Arguments under which a model computes
something else are refused by their names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from megatron_kis.checkpoint.foreign import METADATA, ForeignCheckpoint
from megatron_kis.checkpoint.start import Start
from megatron_kis.common.configuration import parse_config
from megatron_kis.common.errors import InputError
from megatron_kis.common.files import check_empty, read_text, sha256_file
from megatron_kis.common.parsing import damage, parse_yaml
from megatron_kis.config.ladder import ModelShape
from megatron_kis.config.megatron_model import OTHER_MODELS
from megatron_kis.config.model import ModelConfig
from megatron_kis.convert.llama import EMBEDDING, LAYERS, OUTPUT, stored_shapes
from megatron_kis.convert.start_folder import write_start_folder

_ALIKE: dict[str, tuple[Any, ...]] = {
    "swiglu": (True,),
    "normalization": ("RMSNorm",),
    "position_embedding_type": ("rope",),
    "add_bias_linear": (False,),
    "rotary_percent": (1.0,),
    "apply_layernorm_1p": (False,),  # `layernorm_zero_centered_gamma` before megatron-core 0.19
    "squared_relu": (False,),
    "softmax_scale": (None,),
    "multi_latent_attention": (False,),
    "num_experts": (None, 0),
    "mtp_num_layers": (None, 0),
    **{name: (usual,) for name, usual in OTHER_MODELS.items()},
    "rotary_seq_len_interpolation_factor": (None, 1),
}
"""Arguments of Megatron-LM that change what a model computes, and their values in the model here."""

_TRAINING = (
    *("optimizer", "chained_", "rng_state", "rerun_state", "opt_param_scheduler"),
    *("exp_avg.", "exp_avg_sq.", "main.", "random.", "fp8.", "ledger"),  # in checkpoints of our own runs
)
"""Beginnings of the names of tensors that are not the model's."""


def import_megatron(
    source: Path, output: Path, *, tokenizer: Path | None = None, eod: str | None = None, model: Path | None = None
) -> Start:
    """Writes a start.

    Args:
        source: a checkpoint (``iter_0001000``), or the folder of several, whose newest is taken.
        output: a folder that does not exist, or is empty.
        tokenizer: file of the tokenizer, which fits the tables to its pieces; None to leave them as they are.
        eod: spelling of the token that ends documents; None for the tokenizer's own.
        model: YAML with the model section of a run; needed if the checkpoint has no arguments.

    Returns:
        The start.

    Raises:
        InputError: no such checkpoint, another format, a model that is no Llama, or weights of other sizes.
    """
    check_empty(output)
    checkpoint = ForeignCheckpoint(source)
    where = str(checkpoint.folder)
    given = None if model is None else _given_shape(model)
    arguments = checkpoint.settings()
    if arguments is not None:
        _check_arguments(arguments, where)
        written = shape_of(arguments, where)
        if given is not None:
            _check_same(written, given, where, str(model))
        given = written
    if given is None:
        remedy = "give the model section of a run with --model FILE"
        raise InputError("has no arguments that give the model's shape", where=where, remedy=remedy)
    parts = _parts(checkpoint, given)
    positions = (arguments or {}).get("max_position_embeddings")
    record = {
        "max_position_embeddings": positions if isinstance(positions, int) else None,
        "source": {METADATA: sha256_file(checkpoint.folder / METADATA)},
    }
    return write_start_folder(
        output,
        lambda: (_weights(checkpoint, parts), record),
        given,
        rows=checkpoint.shapes[EMBEDDING][0],
        tokenizer=tokenizer,
        eod=eod,
    )


def shape_of(arguments: Mapping[str, Any], where: str) -> ModelShape:
    """Returns the shape that Megatron-LM's arguments describe.

    Args:
        arguments: the arguments by name, ``num_layers`` and so on.
        where: the checkpoint, for the message.

    Raises:
        InputError: an argument that is missing, or a shape that is none.
    """
    try:
        heads, width = int(arguments["num_attention_heads"]), int(arguments["hidden_size"])
        groups = arguments.get("num_query_groups") if arguments.get("group_query_attention", True) else None
        stretched = float(arguments.get("rope_scaling_factor", 8.0))  # Megatron-LM's default
        epsilon = arguments["norm_epsilon" if "norm_epsilon" in arguments else "layernorm_epsilon"]
        return ModelShape(
            layers=int(arguments["num_layers"]),
            width=width,
            heads=heads,
            query_groups=int(groups or heads),
            ffn_width=int(arguments["ffn_hidden_size"]),
            tied_embeddings=not arguments["untie_embeddings_and_output_weights"],
            rope_base=int(arguments["rotary_base"]),
            norm_epsilon=float(epsilon),
            head_width=int(arguments.get("kv_channels") or width // heads),
            qkv_bias=bool(arguments.get("add_qkv_bias", False)),
            qk_norm=bool(arguments.get("qk_layernorm", False)),
            rope_scaling=stretched if arguments.get("use_rope_scaling") else None,
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        problem = f"its arguments do not give the model's shape ({damage(error)})"
        raise InputError(problem, where=where) from None
    except InputError as error:  # which names a key of ours
        raise InputError(f"{error.where} {error.problem}", where=where, remedy=error.remedy) from None


def _check_arguments(arguments: Mapping[str, Any], where: str) -> None:
    for name, values in _ALIKE.items():
        if name in arguments and arguments[name] not in values:
            said = arguments[name]
            value = said if isinstance(said, bool | int | float | str) else "set"
            remedy = "a Llama is needed: RMSNorm, rotary embedding, SwiGLU, no other biases than --add-qkv-bias"
            raise InputError(f"the argument {name} is {value}, which is not supported", where=where, remedy=remedy)


def _given_shape(path: Path) -> ModelShape:
    """Returns the shape in the model section of a file, or in a file that is one."""
    content = parse_yaml(read_text(path), where=str(path))
    if isinstance(content, dict) and "model" in content:
        return parse_config(ModelConfig, content["model"], source=str(path), section="model").shape()
    return parse_config(ModelConfig, content, source=str(path)).shape()


def _check_same(written: ModelShape, given: ModelShape, where: str, path: str) -> None:
    for name, value in asdict(written).items():
        if (said := getattr(given, name)) != value:
            problem = f"is {said}, the checkpoint's arguments say {value}"
            remedy = f"leave --model out, or correct it: {where} gives the shape"
            raise InputError(problem, where=f"{path}: model.{name}", remedy=remedy)


def _parts(checkpoint: ForeignCheckpoint, shape: ModelShape) -> dict[str, list[str]]:
    """Returns the names of each weight's tensors, layer by layer, after their shapes were checked."""
    where = str(checkpoint.folder)
    found = {name: size for name, size in checkpoint.shapes.items() if not name.startswith(_TRAINING)}
    parts: dict[str, list[str]] = {}
    for name in sorted(found, key=_by_layer):
        parts.setdefault(re.sub(rf"^{re.escape(LAYERS)}\d+\.", LAYERS, name), []).append(name)
    rows = found.get(EMBEDDING, (0,))[0]
    expected = stored_shapes(shape, vocabulary=rows)
    for name in sorted({*expected} ^ {*parts}):
        tables = "; its embedding is tied" if name == OUTPUT and name in expected else ""
        problem = f"has no {name}{tables}" if name in expected else f"has {name}, which this model does not have"
        raise InputError(problem, where=where)
    for name, wanted in expected.items():
        names = parts[name]
        one_by_one = names != [name]
        size = (len(names), *found[names[0]]) if one_by_one else found[name]
        if size != wanted or len({found[part] for part in names}) > 1:
            raise InputError(f"{name} is {size}, the model's shape needs {wanted}", where=where)
    return parts


def _weights(checkpoint: ForeignCheckpoint, parts: dict[str, list[str]]) -> dict[str, torch.Tensor]:
    """Reads all weights; layers that were saved one by one are stacked."""
    tensors = checkpoint.tensors([part for names in parts.values() for part in names])
    for name, tensor in tensors.items():
        if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            problem = f"{name} is of type {tensor.dtype}"
            raise InputError(problem, where=str(checkpoint.folder), remedy="save it in bf16")
    return {
        name: tensors[name] if names == [name] else torch.stack([tensors[part] for part in names])
        for name, names in parts.items()
    }


def _by_layer(name: str) -> tuple[int, str]:
    number = re.match(rf"{re.escape(LAYERS)}(\d+)\.", name)
    return (int(number[1]) if number else -1, name)
