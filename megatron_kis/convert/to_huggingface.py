"""``kis export hf``: a checkpoint of any layout as a folder that ``transformers`` opens.

``config.json``, ``generation_config.json``, ``model.safetensors`` (or numbered parts with their index), the tokenizer,
and ``export.json`` (``kis.export/1``): run, step and fingerprint of the checkpoint, or the fingerprint of the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_kis.checkpoint import shards
from megatron_kis.checkpoint.start import START_NAME, WEIGHTS, read_start
from megatron_kis.common.errors import InputError
from megatron_kis.common.files import atomic_folder, check_empty, fingerprint, sha256_file, write_json
from megatron_kis.config.ladder import ModelShape
from megatron_kis.convert.llama import EMBEDDING, llama_config, stored_names, to_llama
from megatron_kis.convert.tokenizer_json import write_tokenizer
from megatron_kis.data_tools.tokenizers.base import Tokenizer
from megatron_kis.data_tools.tokenizers.registry import load_tokenizer
from megatron_kis.evaluate.restore import open_checkpoint
from megatron_kis.training.artifacts import open_run

EXPORT_SCHEMA = "kis.export/1"
_PART_BYTES = 5_000_000_000  # the size of a part in transformers
_SAMPLES = 2_000
_LENGTH = 2_048  # transformers' value for a Llama that does not say


@dataclass(frozen=True)
class _Source:
    """What is exported: the weights of a run's checkpoint, or of a start."""

    folder: Path
    """Folder of the tensors."""

    shape: ModelShape
    """Shape of the model."""

    tokenizer: Tokenizer
    """The tokenizer that it was trained with."""

    tokenizer_path: Path
    """The tokenizer's file."""

    first: int
    """Token that comes before a document."""

    length: int
    """Tokens of the longest sequence that it was trained on."""

    positions: int | None
    """Tokens of the longest sequence that the model was made for, if its origin says so."""

    samples: Sequence[list[int]]
    """Token sequences on which an exported tokenizer is tried."""

    record: dict[str, Any]
    """What ``export.json`` says of it."""


def export_huggingface(source: Path, output: Path, *, step: int | None = None, tokenizer: bool = True) -> Path:
    """Writes a folder that ``transformers.AutoModelForCausalLM.from_pretrained`` opens.

    Args:
        source: folder of a run, or a start.
        output: a folder that does not exist, or is empty.
        step: step of the run's checkpoint; None for the newest.
        tokenizer: whether to write the tokenizer too.

    Returns:
        ``output``.

    Raises:
        InputError: no such run or checkpoint, the folder is taken, a start without a tokenizer, or a tokenizer that has
            no counterpart.
    """
    try:
        from safetensors.torch import save_file
    except ImportError:
        remedy = "pip install 'megatron-kis[export]'"
        raise InputError("safetensors is needed to export", remedy=remedy) from None
    check_empty(output)
    found = _start(source, step) if (source / START_NAME).is_file() else _run(source, step)
    eod_id, bos_id = found.tokenizer.eod_id, found.first
    with atomic_folder(output) as partial:
        if tokenizer:
            write_tokenizer(found.tokenizer_path, partial, longest=found.length, samples=found.samples)
        stored = shards.read_tensors(found.folder, stored_names(found.shape))  # after all that can be refused
        embedding = stored[EMBEDDING]
        write_json(
            partial / "config.json",
            llama_config(
                found.shape,
                vocabulary=embedding.shape[0],
                sequence_length=found.length,
                eod_id=eod_id,
                dtype=embedding.dtype,
                bos_id=bos_id,
                positions=found.positions,
            ),
        )
        parts = _parts(dict(to_llama(stored, found.shape)))
        for name, tensors in parts.items():
            save_file(tensors, partial / name, metadata={"format": "pt"})
            (partial / name).chmod((partial / "config.json").stat().st_mode)  # the library lets nobody else read it
        if len(parts) > 1:
            write_json(partial / "model.safetensors.index.json", _index(parts))
        write_json(
            partial / "generation_config.json", {"bos_token_id": bos_id, "eos_token_id": eod_id, "do_sample": False}
        )
        written = {path.name: sha256_file(path) for path in sorted(partial.iterdir())}
        write_json(partial / "export.json", {"schema": EXPORT_SCHEMA, **found.record, "files": written})
    return output


def _run(run: Path, step: int | None) -> _Source:
    past = open_run(run)
    config = past.config
    questions = past.questions(config.probes.templates)
    checkpoint = open_checkpoint(run, step)
    past.check_checkpoint(checkpoint)
    return _Source(
        folder=checkpoint.folder,
        shape=config.model.shape(),
        tokenizer=past.tokenizer,
        tokenizer_path=past.tokenizer_path,
        first=questions.first_tokens[0],
        length=config.training.sequence_length,
        positions=past.record.get("max_position_embeddings"),
        samples=[list(question.options[question.answer].tokens) for question in questions.questions[:_SAMPLES]],
        record={
            "run": past.record["run"],
            "step": checkpoint.step,
            "tokens": checkpoint.manifest["tokens"],
            "fingerprints": {
                **past.record["fingerprints"],  # of what the weights saw; the checkpoint has the same
                "tokenizer": past.tokenizer.fingerprint,
                "questions": past.questions_sha256,
                "checkpoint": fingerprint(checkpoint.manifest),
            },
        },
    )


def _start(folder: Path, step: int | None) -> _Source:
    if step is not None:
        raise InputError("a start has no steps", where="--step", remedy="leave it out")
    start = read_start(folder)
    entry = start.content["tokenizer"]
    if entry is None:
        remedy = "import the checkpoint again with --tokenizer"
        raise InputError("the start has no tokenizer", where=str(folder), remedy=remedy)
    path = folder / entry["file"]
    tokenizer = load_tokenizer(path)
    before = tokenizer.frame[0]
    return _Source(
        folder=folder / WEIGHTS,
        shape=start.shape,
        tokenizer=tokenizer,
        tokenizer_path=path,
        first=before[0] if before else tokenizer.eod_id,
        length=start.positions or _LENGTH,
        positions=start.positions,
        samples=[],
        record={"start": start.fingerprint, "fingerprints": {"tokenizer": tokenizer.fingerprint}},
    )


def _parts(tensors: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """Distributes tensors to files: one, or several where it would be too large. Returns them by file name."""
    parts: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if parts[-1] and size + tensor.nbytes > _PART_BYTES:
            parts.append({})
            size = 0
        parts[-1][name] = tensor.contiguous()
        size += tensor.nbytes
    if len(parts) == 1:
        return {"model.safetensors": parts[0]}
    return {f"model-{at:05d}-of-{len(parts):05d}.safetensors": part for at, part in enumerate(parts, start=1)}


def _index(parts: dict[str, dict[str, torch.Tensor]]) -> dict[str, Any]:
    total = sum(tensor.nbytes for part in parts.values() for tensor in part.values())
    places = {name: file for file, part in parts.items() for name in part}
    return {"metadata": {"total_size": total}, "weight_map": places}
