"""Private names of Megatron-Core and PyTorch that checkpoints and replicas use: one contract each.

A new version that renames one of them, or changes what it does, fails here, before any checkpoint is written.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.filesystem import _StorageInfo

from megatron_kis.checkpoint import shards
from megatron_kis.distributed.megatron_imports import quiet_megatron

with quiet_megatron():
    from megatron.core.dist_checkpointing.mapping import ShardedTensor
    from megatron.core.dist_checkpointing.strategies import torch as torch_strategy
    from megatron.core.distributed.data_parallel_base import _BaseDataParallel


def test_sharded_tensors_are_grouped_by_key_on_their_main_replica() -> None:
    """``torch_strategy._replace_state_dict_keys_with_sharded_keys``: the first of three results is what we use."""
    main = ShardedTensor.from_rank_offsets("main", torch.zeros(2))
    other = ShardedTensor.from_rank_offsets("other", torch.zeros(2), replica_id=1)
    by_key, *rest = torch_strategy._replace_state_dict_keys_with_sharded_keys({"x": {"a": main, "b": other}}, True)
    assert by_key == {"main": [main]}
    assert len(rest) == 2


def test_megatron_reads_checkpoints_through_one_function_that_takes_a_folder() -> None:
    """``torch_strategy._get_filesystem_reader``: replaced by a reader that does not unpickle."""
    source = inspect.getsource(torch_strategy.TorchDistLoadShardedStrategy.load)
    assert re.search(r"\b_get_filesystem_reader\(\s*checkpoint_dir", source)  # looked up by its name when called
    assert " FileSystemReader(" not in source


def test_an_index_reader_takes_the_arguments_of_the_function_that_it_replaces(tmp_path: Path) -> None:
    (tmp_path / shards.INDEX_NAME).write_text('{"schema": "kis.index/1", "tensors": {}}', encoding="utf-8")
    reader = shards._IndexReader(tmp_path, cache_metadata=True)
    assert isinstance(reader, FileSystemReader)
    assert reader.read_metadata().state_dict_metadata == {}


def test_where_a_part_is_has_a_file_a_start_and_a_length() -> None:
    """``torch.distributed.checkpoint.filesystem._StorageInfo``."""
    names = [field.name for field in dataclasses.fields(_StorageInfo)]
    assert names[:3] == ["relative_path", "offset", "length"]


def test_a_writer_asks_the_planner_that_it_is_given_for_the_data() -> None:
    """``FileSystemWriter.write_data``: we are the planner, and give it the copies."""
    assert list(inspect.signature(FileSystemWriter.write_data).parameters)[:3] == ["self", "plan", "planner"]
    assert "resolve_data" in dir(shards._StagedWriter)


def test_a_replica_calls_its_module() -> None:
    """``megatron.core.distributed.data_parallel_base._BaseDataParallel``."""
    from megatron.core.transformer.transformer_config import TransformerConfig

    config = TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=1, use_cpu_initialization=True)
    module: Any = torch.nn.Linear(2, 3)
    replica = _BaseDataParallel(config=config, module=module)
    assert replica(torch.ones(1, 2)).shape == (1, 3)
    assert replica.module is module
    with replica.no_sync():
        pass
