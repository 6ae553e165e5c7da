"""``kis import hf``: a Llama-like model of Hugging Face as the start of a run.

It reads ``config.json``, ``*.safetensors`` (no pickle) and the tokenizer. A feature that the model of
``megatron_kis.model.build`` does not have is refused by its name: nothing is ignored silently.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from megatron_kis.checkpoint.initial_weights import write_start
from megatron_kis.checkpoint.start import Start, open_start
from megatron_kis.common.errors import InputError
from megatron_kis.common.files import read_text, sha256_file, write_json
from megatron_kis.common.parsing import parse_json
from megatron_kis.config.ladder import ModelShape
from megatron_kis.config.vocabulary import padded_vocabulary
from megatron_kis.convert.llama import from_llama, llama_shapes
from megatron_kis.data_tools.tokenizers.base import META_SCHEMA, Tokenizer
from megatron_kis.data_tools.tokenizers.registry import load_tokenizer
from megatron_kis.huggingface.folder import weight_files

_KINDS = ("llama", "mistral")
"""Values of ``model_type``: the same layers under two names, without a sliding window."""

_NEEDED = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
)


def import_huggingface(source: Path, output: Path, *, eod: str | None = None) -> Start:
    """Writes a start, with the tokenizer next to it.

    Args:
        source: folder of the model.
        output: a folder that does not exist, or is empty.
        eod: spelling of the token that ends documents; None for the tokenizer's ``eos_token``.

    Returns:
        The start.

    Raises:
        InputError: no such model, one that is not Llama-like, weights that do not fit its configuration, or the folder
            is taken.
    """
    if output.exists() and any(output.iterdir()):
        raise InputError("the folder is not empty", where=str(output), remedy="choose another output")
    config = parse_json(read_text(source / "config.json"), where=str(source / "config.json"))
    shape, positions = _shape(config, source / "config.json"), _positions(config, source / "config.json")
    tensors = _weights(source, shape)
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        tokenizer, name = _take_tokenizer(source, partial, eod)
        given, rows = tensors["model.embed_tokens.weight"].shape[0], padded_vocabulary(tokenizer.vocab_size)
        if given < tokenizer.vocab_size:
            raise InputError(
                f"has {tokenizer.vocab_size} pieces, the embedding only {given} rows", where=str(source / name)
            )
        for table in ("model.embed_tokens.weight", "lm_head.weight"):
            if table in tensors:
                tensors[table] = _resized(tensors[table], rows)
        record = {
            "max_position_embeddings": positions,
            "rows_added": max(0, rows - given),
            "rows_dropped": max(0, given - rows),
            "tokenizer": {"file": name, "fingerprint": tokenizer.fingerprint, "eod_id": tokenizer.eod_id},
            "source": {path.name: sha256_file(path) for path in (source / "config.json", *weight_files(source))},
        }
        write_start(partial, from_llama(tensors, shape), shape, vocabulary=rows, record=record)
        if output.exists():
            output.rmdir()
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return open_start(output, shape, vocabulary=rows)


def _positions(config: Mapping[str, Any], path: Path) -> int | None:
    """Returns the longest sequence that the model was made for, in tokens; None where the file does not say."""
    found = config.get("max_position_embeddings")
    if found is not None and (not isinstance(found, int) or found < 1):
        raise InputError(f"max_position_embeddings is {found!r}", where=str(path), remedy="a number of tokens")
    return found


def _shape(config: Any, path: Path) -> ModelShape:
    """Returns the shape in a ``config.json``; other architectures are refused."""
    try:
        values = {name: int(config[name]) for name in _NEEDED}
        heads = values["num_attention_heads"]
        groups = int(config.get("num_key_value_heads") or heads)
        rope = config.get("rope_parameters") or {}
        base = float(rope.get("rope_theta", config.get("rope_theta", 10_000)))
        epsilon = float(config.get("rms_norm_eps", 1e-6))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        problem = f"not the configuration of a Llama ({type(error).__name__}: {error})"
        raise InputError(problem, where=str(path)) from None
    for feature, there in _foreign(config, values["hidden_size"] // heads, base):
        if there:
            remedy = "a plain Llama is needed: RMSNorm, rotary embedding, SwiGLU, no biases"
            raise InputError(f"{feature} is not supported", where=str(path), remedy=remedy)
    return ModelShape(
        layers=values["num_hidden_layers"],
        width=values["hidden_size"],
        heads=heads,
        query_groups=groups,
        ffn_width=values["intermediate_size"],
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        rope_base=int(base),
        norm_epsilon=epsilon,
    )


def _foreign(config: Mapping[str, Any], head: int, base: float) -> Iterator[tuple[str, bool]]:
    """Yields the features that are not supported, and whether the model has them."""
    rope = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default")) if scaling else rope.get("rope_type", "default")
    yield f"model_type {config.get('model_type')!r}", config.get("model_type") not in _KINDS
    yield f"hidden_act {config.get('hidden_act')!r}", config.get("hidden_act", "silu") != "silu"
    yield f"rope_type {kind!r}", kind != "default"
    yield f"rope_theta {base}", base != int(base)
    yield f"head_dim {config.get('head_dim')}", config.get("head_dim") not in (None, head)
    yield f"partial_rotary_factor {config.get('partial_rotary_factor')}", config.get("partial_rotary_factor", 1) != 1
    for name in ("attention_bias", "mlp_bias", "sliding_window", "quantization_config"):
        yield name, bool(config.get(name))


def _weights(source: Path, shape: ModelShape) -> dict[str, torch.Tensor]:
    """Reads all weights, and checks their shapes against the configuration."""
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise InputError("safetensors is needed to import", remedy="pip install 'megatron-kis[export]'") from None
    tensors: dict[str, torch.Tensor] = {}
    for path in weight_files(source):
        try:
            tensors |= load_file(path)
        except (OSError, SafetensorError) as error:
            raise InputError(f"cannot be read ({error})", where=str(path)) from None
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("rotary_emb.inv_freq")}
    embedding = tensors.get("model.embed_tokens.weight")
    output = tensors.get("lm_head.weight")
    if shape.tied_embeddings and embedding is not None and output is not None and torch.equal(embedding, output):
        del tensors["lm_head.weight"]
    rows = 0 if embedding is None else embedding.shape[0]
    expected = llama_shapes(shape, vocabulary=rows)
    for name in sorted({*expected} ^ {*tensors}):
        problem = f"has no {name}" if name in expected else f"has {name}, which this model does not have"
        raise InputError(problem, where=str(source))
    for name, wanted in expected.items():
        if tuple(tensors[name].shape) != wanted:
            raise InputError(f"{name} is {tuple(tensors[name].shape)}, config.json says {wanted}", where=str(source))
    return tensors


def _resized(table: torch.Tensor, rows: int) -> torch.Tensor:
    """Removes rows of no piece, or appends rows of zeros."""
    kept = table[:rows]
    return torch.cat([kept, kept.new_zeros(rows - len(kept), kept.shape[1])])


def _take_tokenizer(source: Path, target: Path, eod: str | None) -> tuple[Tokenizer, str]:
    """Copies the tokenizer, and records which token ends documents."""
    for name in ("tokenizer.json", "tokenizer.model"):
        if (source / name).is_file():
            break
    else:
        raise InputError("has no tokenizer.json or tokenizer.model", where=str(source), remedy="add the tokenizer")
    shutil.copyfile(source / name, target / name)
    if name == "tokenizer.model":
        if eod is not None:
            raise InputError("cannot be chosen", where="--eod", remedy="a tokenizer.model names its own")
        return load_tokenizer(target / name), name
    tokenizer = load_tokenizer(source / name)
    meta = {"schema": META_SCHEMA, "kind": "huggingface", "eod": eod or tokenizer.piece(tokenizer.eod_id)}
    write_json(target / f"{name}.meta.json", meta)
    taken = load_tokenizer(target / name)
    if taken.piece(taken.eod_id) != meta["eod"]:
        raise InputError(f"{eod!r} is no token of {source / name}", where="--eod", remedy="name one of its tokens")
    full = {**meta, "vocab_size": taken.vocab_size, "eod_id": taken.eod_id, "fingerprint": taken.fingerprint}
    write_json(target / f"{name}.meta.json", full)
    return taken, name
