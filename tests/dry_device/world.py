"""WORLD with one process: PyTorch's ``fake`` backend, whose messages come back at once and change nothing."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

_SHORT = {
    "TENSOR_MODEL_PARALLEL_GROUP": "tp",
    "PIPELINE_MODEL_PARALLEL_GROUP": "pp",
    "CONTEXT_PARALLEL_GROUP": "cp",
    "DATA_PARALLEL_GROUP": "dp",
    "DATA_PARALLEL_GROUP_WITH_CP": "dp_cp",
    "MODEL_PARALLEL_GROUP": "mp",
    "EMBEDDING_GROUP": "embedding",
    "default_pg": "world",
}
MADE: Counter[str] = Counter()
"""Groups by the backend that was asked for."""


def become(rank: int, world: int) -> None:
    """Says which rank of how many this process is; before its process groups are made."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK="0", LOCAL_WORLD_SIZE=str(min(world, 8)))


def open_world(rank: int, world: int, said: Callable[[str, Any], None]) -> None:
    """Makes this process rank ``rank`` of ``world``, whatever backend is asked for later.

    Args:
        rank: of this process.
        world: ranks.
        said: told the name and the group of messages that carry Python's objects: these never reach the backend.
    """
    become(rank, world)
    start, new_group = dist.init_process_group, dist.new_group

    def init_process_group(*_: Any, **__: Any) -> None:
        place, size = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))  # forks have ranks of their own
        start("fake", store=FakeStore(), rank=place, world_size=size)

    def group(ranks: Any = None, *_: Any, backend: str | None = None, group_desc: str | None = None, **__: Any) -> Any:
        MADE[str(backend)] += 1
        return new_group(ranks, backend="fake", group_desc=group_desc)

    # The names of the arguments are PyTorch's. Every other rank is taken to say what this one says.
    def all_gather_object(object_list: list[Any], obj: Any, group: Any = None) -> None:
        said("all_gather_object", group)
        object_list[:] = [obj] * len(object_list)

    def gather_object(obj: Any, object_gather_list: Any = None, dst: Any = None, group: Any = None, **_: Any) -> None:
        said("gather_object", group)
        if object_gather_list is not None:
            object_gather_list[:] = [obj] * len(object_gather_list)

    def broadcast_object_list(object_list: Any, src: Any = None, group: Any = None, **_: Any) -> None:
        said("broadcast_object_list", group)

    def scatter_object_list(
        scatter_object_output_list: Any,
        scatter_object_input_list: Any = None,
        src: Any = None,
        group: Any = None,
        **_: Any,
    ) -> None:
        said("scatter_object_list", group)
        if scatter_object_input_list:
            scatter_object_output_list[0] = scatter_object_input_list[dist.get_rank(group)]

    def barrier(group: Any = None, **_: Any) -> None:
        said("barrier", group)

    for stand_in in (
        init_process_group,
        all_gather_object,
        gather_object,
        broadcast_object_list,
        scatter_object_list,
        barrier,
    ):
        for module in (dist, dist.distributed_c10d):
            setattr(module, stand_in.__name__, stand_in)
    dist.new_group = dist.distributed_c10d.new_group = group


def group_in(arguments: Any) -> dist.ProcessGroup | None:
    """The process group among the arguments of a c10d operator."""
    for argument in arguments:
        if isinstance(argument, torch.ScriptObject) and "ProcessGroup" in str(argument._type()):
            return dist.ProcessGroup.unbox(argument)
    return None


def name_of(group: dist.ProcessGroup | None) -> str:
    """What a group is for: ``tp``, ``pp``, ``dp``, ``dp_cp``, ``cp``, ``mp``, ``world``, or Megatron-Core's name."""
    group = group or dist.group.WORLD
    return _SHORT.get(group.group_desc, group.group_desc)
