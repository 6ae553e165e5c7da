"""A start: weights with which a run begins (``model.init_from``), whatever its parallel layout.

Its folder holds ``start.json`` (``kis.start/1``), ``weights/`` in the format of a checkpoint's tensors, and the
tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_kis.checkpoint import shards
from megatron_kis.common.errors import InputError
from megatron_kis.common.files import fingerprint, read_json, sha256_file, write_json
from megatron_kis.config.ladder import ModelShape
from megatron_kis.distributed.collectives import gather
from megatron_kis.distributed.device import open_device
from megatron_kis.distributed.groups import close_groups, open_groups
from megatron_kis.distributed.megatron_imports import quiet_megatron

with quiet_megatron():
    from megatron.core.dist_checkpointing.mapping import ShardedTensor

START_SCHEMA = "kis.start/1"
START_NAME = "start.json"
WEIGHTS = "weights"


@dataclass(frozen=True)
class Start:
    """A start on disk."""

    folder: Path
    """Folder of the start."""

    content: dict[str, Any]
    """Content of the start's ``start.json``."""

    @property
    def positions(self) -> int | None:
        """Longest sequence that the model was made for, in tokens; None where the start does not say."""
        found = self.content.get("max_position_embeddings")
        return None if found is None else int(found)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of shape and weights: a run that begins with others is another run."""
        return fingerprint({key: self.content[key] for key in ("model", "vocabulary", "files")})


def write_start(
    folder: Path, tensors: Mapping[str, torch.Tensor], shape: ModelShape, *, vocabulary: int, record: dict[str, Any]
) -> None:
    """Writes ``weights/`` and ``start.json``; called by one process, outside of any process group.

    Args:
        folder: an existing folder.
        tensors: whole tensors, under the names of a checkpoint (``megatron_kis.convert.llama.STORED``).
        shape: shape of the model.
        vocabulary: number of rows of the embedding.
        record: further content of ``start.json``.
    """
    weights = folder / WEIGHTS
    weights.mkdir()
    open_groups(open_device("cpu"))
    try:
        sharded = {name: ShardedTensor.from_rank_offsets(name, tensor) for name, tensor in tensors.items()}
        staged = shards.stage({"model": sharded}, weights)
        staged.finish([staged.write()])
    finally:
        close_groups()
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)} for path in _files(weights)}
    write_json(
        folder / START_NAME,
        {"schema": START_SCHEMA, "model": asdict(shape), "vocabulary": vocabulary, **record, "files": files},
    )


def _files(weights: Path) -> list[Path]:
    """Returns the files that are read: the index and the parts. The rest is for other tools."""
    return sorted([weights / shards.INDEX_NAME, *weights.glob("*.distcp")])


def open_start(folder: Path, shape: ModelShape, *, vocabulary: int, longest: int | None = None) -> Start:
    """Reads a start and checks that it fits the run.

    Args:
        folder: folder of the start.
        shape: shape of the run's model.
        vocabulary: number of rows of the run's embedding, padded.
        longest: the run's sequence length; None where nothing will be trained.

    Raises:
        InputError: there is no start, a file of another size, a model of another shape or vocabulary, or one that was
            made for shorter sequences.
    """
    path = folder / START_NAME
    content = read_json(path, START_SCHEMA, keys=("model", "vocabulary", "files"))
    for name, value in asdict(shape).items():
        theirs = content["model"].get(name)
        if theirs != value:
            raise InputError(
                f"is {value}, that of the start {theirs}",
                where=f"model.{name}",
                remedy=f"take the model section of {path}",
            )
    if content["vocabulary"] != vocabulary:
        raise InputError(
            f"has {content['vocabulary']} rows in its embedding, the run's tokenizer needs {vocabulary}",
            where=str(path),
            remedy="make the data with the tokenizer that is next to it",
        )
    start = Start(folder, content)
    if longest is not None and start.positions is not None and longest > start.positions:
        raise InputError(
            f"is {longest}, the model of {path} was made for {start.positions} positions at most"
            " (max_position_embeddings)",
            where="training.sequence_length",
            remedy=f"use {start.positions} or less",
        )
    for name, facts in content["files"].items():
        file = folder / WEIGHTS / name
        if Path(name).name != name or not file.is_file() or file.stat().st_size != facts["bytes"]:
            raise InputError("is missing or of another size", where=str(file), remedy="import the model again")
    return start


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
        raise InputError("has another content than was written", where=where, remedy="import the model again")
    loaded: dict[str, Any] = shards.load({"model": sharded}, start.folder / WEIGHTS)["model"]
    return loaded
