"""``kis import hf``: a Llama, Mistral or Qwen of Hugging Face as the start of a run.

It reads ``config.json``, ``*.safetensors`` (no pickle) and the tokenizer. A feature that the model of
``megatron_kis.model.build`` does not have is refused by its name: nothing is ignored silently.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from megatron_kis.checkpoint.start import Start
from megatron_kis.common.errors import InputError
from megatron_kis.common.files import check_empty, not_a_folder, read_text, sha256_file
from megatron_kis.common.identity import RUN_FILE
from megatron_kis.common.parsing import parse_json
from megatron_kis.config.ladder import ModelShape
from megatron_kis.convert.architectures import read_positions, read_shape
from megatron_kis.convert.llama import from_llama, llama_shapes
from megatron_kis.convert.start_folder import write_start_folder
from megatron_kis.huggingface.folder import weight_files


def import_huggingface(source: Path, output: Path, *, eod: str | None = None) -> Start:
    """Writes a start, with the tokenizer next to it.

    Args:
        source: folder of the model.
        output: a folder that does not exist, or is empty.
        eod: spelling of the token that ends documents; None for the tokenizer's ``eos_token``.

    Returns:
        The start.

    Raises:
        InputError: no such model, another architecture than Llama, Mistral, Qwen2 or Qwen3, weights that do not fit its
            configuration, or the folder is taken.
    """
    check_empty(output)
    if not source.is_dir():
        remedy = "give the folder of a model, with config.json"
        raise InputError(not_a_folder(source), where=str(source), remedy=remedy)
    if (source / RUN_FILE).exists():
        remedy = "kis export hf writes it as a model; or start from it with kis train --branch-from"
        raise InputError("is the folder of a run of kis", where=str(source), remedy=remedy)
    path = source / "config.json"
    config = parse_json(read_text(path), where=str(path))
    positions, shape = read_positions(config, path), read_shape(config, path)
    rows = int(config["vocab_size"])

    def read() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        hashes = {path.name: sha256_file(path) for path in (path, *files)}
        record = {"max_position_embeddings": positions, "source": hashes}
        return from_llama(_weights(source, shape, rows=rows), shape), record

    files = weight_files(source)
    return write_start_folder(output, read, shape, rows=rows, tokenizer=_tokenizer(source), eod=eod)


def _tokenizer(source: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer.model"):
        if (source / name).is_file():
            return source / name
    raise InputError("has no tokenizer.json or tokenizer.model", where=str(source), remedy="add the tokenizer")


def _weights(source: Path, shape: ModelShape, *, rows: int) -> dict[str, torch.Tensor]:
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
    expected = llama_shapes(shape, vocabulary=rows)
    for name in sorted({*expected} ^ {*tensors}):
        problem = f"has no {name}" if name in expected else f"has {name}, which this model does not have"
        raise InputError(problem, where=str(source))
    for name, wanted in expected.items():
        if tuple(tensors[name].shape) != wanted:
            raise InputError(f"{name} is {tuple(tensors[name].shape)}, config.json says {wanted}", where=str(source))
    return tensors
