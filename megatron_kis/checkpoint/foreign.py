"""A checkpoint of Megatron-LM in the format ``torch_dist``, read without unpickling anything.

Its list of parts (``.metadata``) and its settings are pickles. Both are read by ``pickles.read_pickle``, which calls
nothing that they name; the parts themselves are read with ``weights_only=True``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from megatron_kis.checkpoint import shards
from megatron_kis.checkpoint.pickles import Inert, read_pickle
from megatron_kis.common.errors import InputError
from megatron_kis.common.files import not_a_folder, read_text, unreadable
from megatron_kis.common.parsing import damage, parse_json

METADATA = ".metadata"
_TRACKER = "latest_checkpointed_iteration.txt"
_SHOWN = 40  # letters of a name in a message
_COMMON_STATE = "common_state/shard_0_1"  # from megatron-core 0.19 on; before, a file of its own

_CONVERT = "write it with Megatron-LM's --ckpt-format torch_dist (--ckpt-convert-format converts one)"


class ForeignCheckpoint:
    """A checkpoint in the format ``torch_dist``: its tensors and its settings."""

    def __init__(self, folder: Path) -> None:
        """Reads the list of parts.

        Args:
            folder: a checkpoint (``iter_0001000``), or the folder of several, whose newest is taken.

        Raises:
            InputError: no such checkpoint, another format, or a list of parts that cannot be read.
        """
        self.folder = _newest(folder)
        where = str(self.folder / METADATA)
        content = read_pickle((self.folder / METADATA).read_bytes(), where=where)
        try:
            self.metadata, self._objects = _metadata(content)
        except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise InputError(f"not a list of parts ({damage(error)})", where=where) from None

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Whole shape of each tensor, by name."""
        tensors = self.metadata.state_dict_metadata.items()
        return {name: tuple(entry.size) for name, entry in tensors if isinstance(entry, TensorStorageMetadata)}

    def tensors(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """Returns whole tensors in their own type.

        Raises:
            InputError: a file that is missing or damaged.
        """
        wanted = 0
        for name in names:
            entry = self.metadata.state_dict_metadata.get(name)
            if isinstance(entry, TensorStorageMetadata):
                wanted += math.prod(entry.size) * entry.properties.dtype.itemsize
        there = sum(path.stat().st_size for path in self.folder.glob("*.distcp"))
        if wanted > there:
            problem = (
                f"its tensors cannot be read ({wanted:,} bytes, its files have {there:,}); a file is damaged or missing"
            )
            raise InputError(problem, where=str(self.folder))
        try:
            return shards.read_parts_of(self.folder, self.metadata, names)
        except CheckpointException as error:  # no Exception
            failure = next((one for one, _ in error.failures.values()), error)
            said = " ".join([type(failure).__name__, *str(failure).splitlines()[:1]])
            problem = f"its tensors cannot be read ({said}); a file is damaged or missing"
            raise InputError(problem, where=str(self.folder)) from None

    def settings(self) -> dict[str, Any] | None:
        """Returns Megatron-LM's arguments, as far as they are plain values; None where none were written."""
        path = self.folder / shards.COMMON_NAME
        if path.is_file():
            data = path.read_bytes()
        elif _COMMON_STATE in self._objects:
            place = self._objects[_COMMON_STATE]
            path = self.folder / place.relative_path
            try:
                there = path.stat().st_size
                if place.offset + place.length > there:
                    raise InputError(f"is too short ({there:,} bytes); it is damaged", where=str(path))
                with path.open("rb") as file:
                    file.seek(place.offset)
                    data = file.read(place.length)
            except OSError as error:
                raise unreadable(error, path) from None
        else:
            return None
        content = read_pickle(data, where=str(path))
        if isinstance(content, list) and len(content) == 1:  # one rank's part of what all ranks share
            content = content[0]
        found = content.get("args") if isinstance(content, Mapping) else None
        if isinstance(found, Inert):
            found = found.fields
        if not isinstance(found, dict) or not found:
            return None
        return {name: value for name, value in found.items() if isinstance(name, str)}


def _newest(folder: Path) -> Path:
    """Returns the folder of a checkpoint, which ``folder`` is or names the newest of."""
    if not folder.is_dir():
        raise InputError(not_a_folder(folder), where=str(folder), remedy="give the folder of a checkpoint")
    tracker = folder / _TRACKER
    if tracker.is_file() and not (folder / METADATA).is_file():
        said = read_text(tracker).strip()
        name = f"iter_{said.zfill(7)}" if said.isdecimal() else said
        if name not in {path.name for path in folder.iterdir() if path.is_dir()}:
            raise InputError(f"names {said[:_SHOWN]!r}, which does not exist", where=str(tracker))
        folder = folder / name
    if (folder / METADATA).is_file():
        _check_format(folder)
        return folder
    old = next(folder.glob("mp_rank_*"), None)
    problem = "is a checkpoint of the older format, with one pickle per rank" if old else f"holds no {METADATA}"
    raise InputError(problem, where=str(folder), remedy=_CONVERT)


def _check_format(folder: Path) -> None:
    path = folder / "metadata.json"
    if not path.is_file():
        raise InputError("is missing; this is not a checkpoint of Megatron-LM", where=str(path), remedy=_CONVERT)
    try:
        backend = parse_json(read_text(path), where=str(path))["sharded_backend"]
    except (KeyError, TypeError):
        raise InputError("does not name the checkpoint's format", where=str(path)) from None
    if backend != "torch_dist":
        raise InputError(f"the format is {backend}", where=str(path), remedy=_CONVERT)


def _metadata(content: Any) -> tuple[Metadata, dict[str, _StorageInfo]]:
    """Returns PyTorch's list of the tensors' parts, and the places of all else by name."""
    fields = content.fields
    tensors: dict[str, Any] = {}
    for name, entry in fields["state_dict_metadata"].items():
        if not entry.name.endswith(".TensorStorageMetadata"):
            continue
        chunks = [
            ChunkStorageMetadata(_size(chunk.fields["offsets"]), _size(chunk.fields["sizes"]))
            for chunk in entry.fields["chunks"]
        ]
        properties = TensorProperties(dtype=_dtype(entry.fields["properties"]))
        tensors[str(name)] = TensorStorageMetadata(properties, _size(entry.fields["size"]), chunks)
    places: dict[MetadataIndex, _StorageInfo] = {}
    objects: dict[str, _StorageInfo] = {}
    for index, place in fields["storage_data"].items():
        file = place.fields["relative_path"]
        if Path(file).name != file:
            raise ValueError(f"file {file!r} is outside the checkpoint")
        if place.fields.get("transform_descriptors"):
            raise ValueError(f"{file!r} is compressed")
        info = _StorageInfo(file, int(place.fields["offset"]), int(place.fields["length"]))
        if min(info.offset, info.length) < 0:
            raise ValueError(f"a part of {file!r} is at {info.offset}, of {info.length} bytes")
        name, offset = str(index.fields["fqn"]), index.fields.get("offset")
        if name in tensors:
            places[MetadataIndex(name, _size(offset))] = info
        else:
            objects[name] = info
    return Metadata(state_dict_metadata=tensors, storage_data=places), objects


def _size(written: Any) -> torch.Size:
    """Returns a ``torch.Size``, which pickles as a call with a tuple."""
    values = written.values[0] if isinstance(written, Inert) else written
    return torch.Size(int(value) for value in values)


def _dtype(properties: Any) -> torch.dtype:
    """Returns the type of a tensor's numbers, the first item of its properties' state."""
    state = properties.state
    written = state[0] if isinstance(state, tuple) else state["dtype"]
    found = getattr(torch, written.name.removeprefix("torch."))
    if not isinstance(found, torch.dtype):
        raise ValueError(f"dtype {written.name}")
    return found
