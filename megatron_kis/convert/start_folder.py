"""Writes an imported model as a start: its tables fitted to its tokenizer, the tokenizer next to them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from megatron_kis.checkpoint.initial_weights import write_start
from megatron_kis.checkpoint.start import Start, open_start
from megatron_kis.common.errors import InputError
from megatron_kis.common.files import atomic_folder, write_json
from megatron_kis.config.ladder import ModelShape
from megatron_kis.config.vocabulary import padded_vocabulary
from megatron_kis.convert.llama import EMBEDDING, OUTPUT
from megatron_kis.data_tools.tokenizers.base import META_SCHEMA, Tokenizer
from megatron_kis.data_tools.tokenizers.registry import load_tokenizer


def write_start_folder(
    output: Path,
    read: Callable[[], tuple[dict[str, torch.Tensor], dict[str, Any]]],
    shape: ModelShape,
    *,
    rows: int,
    tokenizer: Path | None,
    eod: str | None,
) -> Start:
    """Writes a start; nothing is left of one that fails.

    The tokenizer is checked before the weights are read.

    Args:
        output: a folder that does not exist, or is empty.
        read: returns whole tensors under the names of a checkpoint (``stored_names``), and further content of
            ``start.json``.
        shape: shape of the model.
        rows: rows of its embedding.
        tokenizer: file of the tokenizer; None to write none, and to leave the tables as they are.
        eod: spelling of the token that ends documents; None for the tokenizer's own.

    Returns:
        The start.

    Raises:
        InputError: a tokenizer that cannot be read, or has more pieces than the embedding rows; or ``eod`` is none of
            its tokens.
    """
    with atomic_folder(output) as partial:
        wanted, entry = padded_vocabulary(rows), None
        if tokenizer is not None:
            taken = _take_tokenizer(tokenizer, partial, eod)
            if rows < taken.vocab_size:
                problem = f"has {taken.vocab_size} pieces, the embedding only {rows} rows"
                raise InputError(problem, where=str(tokenizer), remedy="give the model's own tokenizer")
            wanted = padded_vocabulary(taken.vocab_size)
            entry = {"file": tokenizer.name, "fingerprint": taken.fingerprint, "eod_id": taken.eod_id}
        stored, record = read()
        for table in (EMBEDDING, OUTPUT):
            if table in stored:
                stored[table] = _resized(stored[table], wanted)
        counts = {"rows_added": max(0, wanted - rows), "rows_dropped": max(0, rows - wanted)}
        write_start(partial, stored, shape, vocabulary=wanted, record={**record, **counts, "tokenizer": entry})
    return open_start(output, shape, vocabulary=wanted)


def _resized(table: torch.Tensor, rows: int) -> torch.Tensor:
    """Removes rows of no piece, or appends rows of zeros."""
    kept = table[:rows]
    return torch.cat([kept, kept.new_zeros(rows - len(kept), kept.shape[1])])


def _take_tokenizer(source: Path, target: Path, eod: str | None) -> Tokenizer:
    """Copies the tokenizer, and records which token ends documents."""
    if eod == "":
        raise InputError("is empty", where="--eod", remedy="name a token of the tokenizer, or leave it out")
    name, tokenizer = source.name, load_tokenizer(source)
    shutil.copyfile(source, target / name)
    if tokenizer.library != "tokenizers":
        if eod is not None:
            raise InputError("cannot be chosen", where="--eod", remedy=f"a {name} names its own")
        meta_path = source.with_name(f"{name}.meta.json")
        if meta_path.is_file():
            shutil.copyfile(meta_path, target / meta_path.name)
        return tokenizer
    meta = {"schema": META_SCHEMA, "kind": "huggingface", "eod": eod or tokenizer.piece(tokenizer.eod_id)}
    write_json(target / f"{name}.meta.json", meta)
    foreign = InputError(f"{eod!r} is not a token of {source}", where="--eod", remedy="name one of its tokens")
    try:
        taken = load_tokenizer(target / name)
    except InputError:
        raise (foreign if eod else InputError("cannot be read", where=str(source))) from None
    if taken.piece(taken.eod_id) != meta["eod"]:
        raise foreign
    full = {**meta, "vocab_size": taken.vocab_size, "eod_id": taken.eod_id, "fingerprint": taken.fingerprint}
    write_json(target / f"{name}.meta.json", full)
    return taken
