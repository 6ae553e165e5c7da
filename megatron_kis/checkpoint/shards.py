"""Sharded tensors on disk: Megatron-Core's ``torch_dist`` format, written in two halves and read without unpickling.

Megatron-Core decides which rank holds which part of which tensor; PyTorch's writer puts the parts into files. Three
things are our own:

- Writing is split. ``stage`` copies what this rank has to write, which takes the time of a copy; ``Staged.write``
  needs no other rank and may run in a thread while training continues. Nothing is forked.
- ``.metadata``, PyTorch's list of where each part is, is a pickle, and its reader unpickles it: whoever can write to a
  checkpoint could run code with it. It is written all the same, so that other tools find what they expect; we read
  ``index.json``, which has the same content in JSON. The parts themselves are read with ``weights_only=True``.
- Objects that are no tensors are refused: PyTorch would unpickle those too.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint import load as read_parts
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult

from megatron_kis.common.errors import InputError, JobError
from megatron_kis.common.files import read_json, write_json
from megatron_kis.distributed.collectives import gather
from megatron_kis.distributed.megatron_imports import quiet_megatron

with quiet_megatron():
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.core import CheckpointingConfig, CheckpointingException, save_config
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedObject
    from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
    from megatron.core.dist_checkpointing.strategies import torch as torch_strategy
    from megatron.core.dist_checkpointing.strategies.state_dict_saver import save_state_dict_async_plan

INDEX_SCHEMA = "kis.index/1"
INDEX_NAME = "index.json"
COMMON_NAME = "common.pt"  # Megatron-Core's name for what is not sharded


class _StagedWriter(FileSystemWriter):
    """PyTorch's writer of files, in two halves: copy now, write later."""

    def prepare_write_data(self, plan: SavePlan, planner: SavePlanner) -> None:
        """Copies what the plan makes this rank write; called by Megatron-Core at the end of planning."""
        self._plan = plan
        self._copies = {item.index: _copy(planner.resolve_data(item)) for item in plan.items}

    def resolve_data(self, item: WriteItem) -> torch.Tensor:
        """The copy of an item: the writer calls this instead of the planner."""
        return self._copies[item.index]

    def write(self) -> list[WriteResult]:
        """Writes the copies, and returns where each is."""
        results: list[WriteResult] = self.write_data(self._plan, self).wait()  # type: ignore[arg-type]
        self._copies.clear()
        return results


def _copy(data: Any) -> torch.Tensor:
    assert isinstance(data, torch.Tensor)
    return data.detach().to("cpu", copy=True)


class Staged:
    """A copy of this rank's part of a checkpoint, to be written without any other rank."""

    def __init__(self, folder: Path, writer: _StagedWriter, metadata: Metadata | None, common: dict[str, Any]) -> None:
        """Keeps what ``stage`` prepared; ``metadata`` is None on every rank but the first."""
        self._folder = folder
        self._writer = writer
        self._metadata = metadata
        self._common = common

    def write(self) -> list[WriteResult]:
        """Writes this rank's files, and on the first rank those that all ranks share.

        Raises:
            OSError, RuntimeError: the disk is full, or the folder is gone (PyTorch's writer of archives turns some
                errors of the system into RuntimeError).
        """
        results = self._writer.write()
        if self._metadata is not None:
            buffer = io.BytesIO()
            torch.save(self._common, buffer)
            (self._folder / COMMON_NAME).write_bytes(buffer.getvalue())
            save_config(CheckpointingConfig("torch_dist"), str(self._folder))
        return results

    def finish(self, results: Sequence[list[WriteResult]]) -> None:
        """Writes where each part is; on the first rank, after all have written.

        Args:
            results: results of ``write`` on each rank.
        """
        assert self._metadata is not None
        self._writer.finish(self._metadata, list(results))
        _write_index(self._folder / INDEX_NAME, self._metadata)


class Plans:
    """Plan of a run's first checkpoint, on which all ranks agreed: later ones hold the same tensors, and reuse it."""

    def __init__(self) -> None:
        """Starts without a plan."""
        self.items: list[WriteItem] | None = None
        """Items that this rank has to write; None before the first checkpoint."""

        self.central: SavePlan | None = None
        """The same items, with their places among the files."""

        self.metadata: Metadata | None = None
        """Metadata of all ranks' items; on the first rank."""


def stage(sharded: dict[str, Any], folder: Path, plans: Plans | None = None) -> Staged:
    """Plans a checkpoint and copies this rank's part of it; collective: every rank calls this at the same step.

    The first time the ranks check together that each part is written exactly once.

    Args:
        sharded: nested; Megatron-Core's ``ShardedTensor`` for what ranks hold parts of, plain values elsewhere.
        folder: an existing folder to write to.
        plans: plans of the run's first checkpoint, set by it; None for a single checkpoint.
    """
    plans = plans or Plans()
    tensors, common = save_preprocess(sharded, plans.items is None)
    objects = [value.key for value in nested_values(tensors) if isinstance(value, ShardedObject)]
    if objects:
        msg = f"not tensors, and refused in a checkpoint: {objects}"
        raise TypeError(msg)
    by_key, _, _ = torch_strategy._replace_state_dict_keys_with_sharded_keys(tensors, True)
    parts = torch_strategy.mcore_to_pyt_state_dict(by_key, False)
    writer = _StagedWriter(folder, per_thread_copy_ahead=0)
    planner = torch_strategy.MCoreSavePlanner(
        dedup_replicated_tensors=False, flatten_state_dict=False, can_run_decentralized_global_plan=False
    )
    planner.set_up_planner(parts, is_coordinator=dist.get_rank() == 0)
    mine = planner.create_local_plan()
    known = plans.items is not None and all(gather(mine.items == plans.items))
    agreed = (plans.central, mine, True) if known else None
    planned = save_state_dict_async_plan(parts, writer, None, 0, planner=planner, cached_ckpt_structure=agreed)
    if not known:
        plans.items, plans.central, plans.metadata = mine.items, planned[1], planned[0][1]
    return Staged(folder, writer, plans.metadata, common)


def share_out(model: dict[str, Any], rank: int, size: int) -> None:
    """Makes each data-parallel replica write a share of the weights that they all have; the first would write all.

    Args:
        model: nested sharded state of the model with Megatron-Core's replica numbers (stage, tensor, data), which are
            changed.
        rank: number of this rank's replica.
        size: number of replicas.
    """
    load = [0] * size
    for entry in nested_values(model):
        writer = load.index(min(load))
        load[writer] += entry.data.numel()
        entry.replica_id = (*entry.replica_id[:-1], (rank - writer) % size)


def load(sharded: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Reads a checkpoint into the tensors of this rank, whatever layout it was written under.

    Args:
        sharded: nested, with a ``ShardedTensor`` for each part that this rank wants.
        folder: the checkpoint.

    Returns:
        The same nesting with plain tensors, and the values that are not sharded.

    Raises:
        InputError: a missing or invalid index, or a checkpoint of other tensors.
        JobError: the disk or the file server fails.
    """
    torch_strategy._get_filesystem_reader = _IndexReader  # in place of the only reader in Megatron-Core that unpickles
    with quiet_megatron():  # of functions that PyTorch means to remove
        try:
            # what ranks read may overlap or be incomplete: they need not exchange plans
            loaded: dict[str, Any] = dist_checkpointing.load(sharded, str(folder), validate_access_integrity=False)
        except CheckpointException as error:  # no Exception: `except Exception` would miss it
            failures = [failure for failure, _ in error.failures.values()]
            for failure in failures:
                if isinstance(failure, OSError):
                    raise JobError(f"{folder}: cannot be read ({failure.strerror or failure})") from None
            for failure in failures:
                if isinstance(failure, KeyError | CheckpointingException):
                    said = str(failure.args[0]).split(": [")[0]  # without all the names that are there
                    remedy = "use the version that wrote it"
                    raise InputError(f"holds other tensors ({said})", where=str(folder), remedy=remedy) from None
            raise
    return loaded


class _IndexReader(FileSystemReader):
    """PyTorch's reader of files, with ``index.json`` as its list of parts."""

    def __init__(self, path: Path | str, *, metadata: Metadata | None = None, **_: Any) -> None:
        """Accepts the arguments that Megatron-Core passes to a reader; those about cached metadata are not used."""
        super().__init__(path)
        self._metadata = _read_index(Path(path) / INDEX_NAME) if metadata is None else metadata
        self._metadata.storage_meta = StorageMeta(load_id=self.load_id)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Returns where each part is."""
        return self._metadata


def _write_index(path: Path, metadata: Metadata) -> None:
    tensors: dict[str, Any] = {}
    for name, tensor in metadata.state_dict_metadata.items():
        assert isinstance(tensor, TensorStorageMetadata)
        parts = []
        for chunk in tensor.chunks:
            place = metadata.storage_data[MetadataIndex(name, chunk.offsets)]
            parts.append([list(chunk.offsets), list(chunk.sizes), place.relative_path, place.offset, place.length])
        dtype = str(tensor.properties.dtype).removeprefix("torch.")
        tensors[name] = {"dtype": dtype, "shape": list(tensor.size), "parts": parts}
    part = ["offsets", "sizes", "file", "start", "bytes"]
    write_json(path, {"schema": INDEX_SCHEMA, "part": part, "tensors": tensors})


def _read_index(path: Path) -> Metadata:
    index = read_json(path, INDEX_SCHEMA, keys=("tensors",))
    tensors: dict[str, Any] = {}
    places: dict[MetadataIndex, _StorageInfo] = {}
    try:
        for name, tensor in index["tensors"].items():
            dtype = getattr(torch, tensor["dtype"])
            if not isinstance(dtype, torch.dtype):
                raise ValueError(f"dtype {tensor['dtype']}")
            chunks = []
            for offsets, sizes, file, start, length in tensor["parts"]:
                if Path(file).name != file:
                    raise ValueError(f"file {file!r} is outside the checkpoint")
                chunks.append(ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)))
                places[MetadataIndex(name, offsets)] = _StorageInfo(file, int(start), int(length))
            properties = TensorProperties(dtype=dtype)
            tensors[name] = TensorStorageMetadata(properties, torch.Size(tensor["shape"]), chunks)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"not an index of tensors ({error})", where=str(path)) from None
    return Metadata(state_dict_metadata=tensors, storage_data=places)


def read_tensors(folder: Path, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Reads whole tensors of a checkpoint, whatever layout it was written under; not collective.

    Raises:
        InputError: the index is missing or invalid, or a name is not in it.
    """
    return read_parts_of(folder, _read_index(folder / INDEX_NAME), names)


def read_parts_of(folder: Path, metadata: Metadata, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Reads whole tensors of a checkpoint; not collective.

    Args:
        folder: the checkpoint.
        metadata: where each part is, from a source that needs no unpickling.
        names: names of the tensors.

    Raises:
        InputError: there is no tensor of a name.
    """
    tensors = {}
    for name in names:
        entry = metadata.state_dict_metadata.get(name)
        if not isinstance(entry, TensorStorageMetadata):
            raise InputError(f"holds no {name}", where=str(folder))
        tensors[name] = torch.empty(entry.size, dtype=entry.properties.dtype)
    with quiet_megatron():
        read_parts(tensors, storage_reader=_IndexReader(folder, metadata=metadata), no_dist=True)
    return tensors
