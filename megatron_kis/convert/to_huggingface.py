"""``kis export hf``: a checkpoint of any layout as a folder that ``transformers`` opens.

``config.json``, ``generation_config.json``, ``model.safetensors`` (or numbered parts with their index), the tokenizer,
and ``export.json`` (``kis.export/1``): run, step and fingerprint of the checkpoint.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from megatron_kis.checkpoint import shards
from megatron_kis.common.errors import InputError
from megatron_kis.common.files import fingerprint, sha256_file, write_json
from megatron_kis.convert.llama import EMBEDDING, llama_config, stored_names, to_llama
from megatron_kis.convert.tokenizer_json import write_tokenizer
from megatron_kis.evaluate.restore import open_checkpoint
from megatron_kis.training.artifacts import open_run

EXPORT_SCHEMA = "kis.export/1"
_PART_BYTES = 5_000_000_000  # the size of a part in transformers
_SAMPLES = 2_000


def export_huggingface(run: Path, output: Path, *, step: int | None = None, tokenizer: bool = True) -> Path:
    """Writes a folder that ``transformers.AutoModelForCausalLM.from_pretrained`` opens.

    Args:
        run: the run's folder.
        output: a folder that does not exist, or is empty.
        step: step of the checkpoint; None for the newest.
        tokenizer: whether to write the tokenizer too.

    Returns:
        ``output``.

    Raises:
        InputError: no such run or checkpoint, the folder is taken, or a tokenizer that has no counterpart.
    """
    try:
        from safetensors.torch import save_file
    except ImportError:
        remedy = "pip install 'megatron-kis[export]'"
        raise InputError("safetensors is needed to export", remedy=remedy) from None
    if output.exists() and any(output.iterdir()):
        raise InputError("the folder is not empty", where=str(output), remedy="choose another output")
    past = open_run(run)
    config, shape = past.config, past.config.model.shape()
    questions = past.questions(config.probes.templates)
    checkpoint = open_checkpoint(run, step)
    past.check_checkpoint(checkpoint)
    stored = shards.read_tensors(checkpoint.folder, stored_names(shape))
    embedding = stored[EMBEDDING]
    eod_id = past.tokenizer.eod_id
    bos_id = questions.first_tokens[0]
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        if tokenizer:
            samples = [list(question.options[question.answer].tokens) for question in questions.questions[:_SAMPLES]]
            write_tokenizer(past.tokenizer_path, partial, longest=config.training.sequence_length, samples=samples)
        write_json(
            partial / "config.json",
            llama_config(
                shape,
                vocabulary=embedding.shape[0],
                sequence_length=config.training.sequence_length,
                eod_id=eod_id,
                dtype=embedding.dtype,
                bos_id=bos_id,
                positions=past.record.get("max_position_embeddings"),
            ),
        )
        parts = _parts(dict(to_llama(stored, shape)))
        for name, tensors in parts.items():
            save_file(tensors, partial / name, metadata={"format": "pt"})
            (partial / name).chmod((partial / "config.json").stat().st_mode)  # the library lets nobody else read it
        if len(parts) > 1:
            write_json(partial / "model.safetensors.index.json", _index(parts))
        write_json(
            partial / "generation_config.json", {"bos_token_id": bos_id, "eos_token_id": eod_id, "do_sample": False}
        )
        written = {path.name: sha256_file(path) for path in sorted(partial.iterdir())}
        write_json(
            partial / "export.json",
            {
                "schema": EXPORT_SCHEMA,
                "run": past.record["run"],
                "step": checkpoint.step,
                "tokens": checkpoint.manifest["tokens"],
                "fingerprints": {
                    **past.record["fingerprints"],  # of what the weights saw; the checkpoint has the same
                    "tokenizer": past.tokenizer.fingerprint,
                    "questions": past.questions_sha256,
                    "checkpoint": fingerprint(checkpoint.manifest),
                },
                "files": written,
            },
        )
        if output.exists():
            output.rmdir()
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return output


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
