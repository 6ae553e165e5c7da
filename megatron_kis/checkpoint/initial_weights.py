"""A start: weights with which a run begins (``model.init_from``), whatever its parallel layout.

Its folder holds ``start.json`` (``kis.start/1``), ``weights/`` in the format of a checkpoint's tensors, and the
tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from megatron_kis.checkpoint import shards
from megatron_kis.checkpoint.start import START_NAME, START_SCHEMA, WEIGHTS, Start
from megatron_kis.common.errors import InputError
from megatron_kis.common.files import sha256_file, write_json
from megatron_kis.config.ladder import ModelShape
from megatron_kis.distributed.collectives import gather
from megatron_kis.distributed.device import open_device
from megatron_kis.distributed.groups import close_groups, open_groups
from megatron_kis.distributed.megatron_imports import quiet_megatron

with quiet_megatron():
    from megatron.core.dist_checkpointing.mapping import ShardedTensor


def write_start(
    folder: Path, tensors: Mapping[str, torch.Tensor], shape: ModelShape, *, vocabulary: int, record: dict[str, Any]
) -> None:
    """Writes ``weights/`` and ``start.json``; called by one process, outside of any process group.

    Args:
        folder: an existing folder.
        tensors: whole tensors, under the names of a checkpoint (``megatron_kis.convert.llama.stored_names``).
        shape: shape of the model.
        vocabulary: number of rows of the embedding.
        record: further content of ``start.json``.
    """
    weights = folder / WEIGHTS
    weights.mkdir()
    write_whole(weights, tensors)
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)} for path in _files(weights)}
    write_json(
        folder / START_NAME,
        {"schema": START_SCHEMA, "model": shape.as_dict(), "vocabulary": vocabulary, **record, "files": files},
    )


def write_whole(folder: Path, tensors: Mapping[str, torch.Tensor], common: Mapping[str, Any] | None = None) -> None:
    """Writes whole tensors in the format of a checkpoint; called by one process, outside of any process group.

    Args:
        folder: an existing folder.
        tensors: whole tensors, under the names of a checkpoint.
        common: what other tools find next to them (``common.pt``).
    """
    open_groups(open_device("cpu"))
    try:
        sharded = {name: ShardedTensor.from_rank_offsets(name, tensor) for name, tensor in tensors.items()}
        staged = shards.stage({"model": sharded, **(common or {})}, folder)
        staged.finish([staged.write()])
    finally:
        close_groups()


def _files(weights: Path) -> list[Path]:
    """Returns the files that are read: the index and the parts. The rest is for other tools."""
    return sorted([weights / shards.INDEX_NAME, *weights.glob("*.distcp")])


def load_start(start: Start, sharded: dict[str, Any]) -> dict[str, Any]:
    """Loads the weights of this rank; collective: every rank calls this, and each checks a share of the files.

    Args:
        start: the start.
        sharded: Megatron-Core's ``ShardedTensor`` of each weight of this rank, by name.

    Raises:
        InputError: a file with another content than was written.
    """
    rank = torch.distributed.get_rank()
    world = torch.distributed.get_world_size()
    files = sorted(start.content["files"].items())[rank::world]
    damaged = [name for name, facts in files if sha256_file(start.folder / WEIGHTS / name) != facts["sha256"]]
    found = [name for names in gather(damaged) for name in names]
    if found:
        where = str(start.folder / WEIGHTS / found[0])
        raise InputError("has changed since it was written", where=where, remedy="import the model again")
    loaded: dict[str, Any] = shards.load({"model": sharded}, start.folder / WEIGHTS)["model"]
    return loaded
