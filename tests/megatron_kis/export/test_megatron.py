"""A run for Megatron-LM: Megatron-Core loads the checkpoint into a model of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from megatron_kis.checkpoint.shards import read_tensors
from megatron_kis.cli.main import main
from megatron_kis.common.errors import InputError
from megatron_kis.config.run import RunConfig
from megatron_kis.convert.from_megatron import import_megatron
from megatron_kis.convert.llama import stored_names
from megatron_kis.convert.to_megatron import export_megatron
from megatron_kis.distributed.device import open_device
from megatron_kis.distributed.groups import close_groups, open_groups
from megatron_kis.distributed.megatron_imports import quiet_megatron
from megatron_kis.evaluate.restore import open_checkpoint
from megatron_kis.model.build import ModelSpec, build_model
from tests.runs import trained

with quiet_megatron():
    from megatron.core import dist_checkpointing, parallel_state
    from megatron.core.dist_checkpointing.validation import StrictHandling

MakeRun = Callable[..., RunConfig]


@pytest.mark.slow
def test_megatron_core_loads_an_exported_run(tiny_run: MakeRun, tmp_path: Path) -> None:
    run = trained(tiny_run())
    output = tmp_path / "megatron"
    assert main(["export", "megatron", str(run), "--output", str(output)]) == 0
    assert (output / "latest_checkpointed_iteration.txt").read_text() == "release"
    shape = tiny_run().model.shape()
    names = stored_names(shape)
    ours = read_tensors(open_checkpoint(run, None).folder, names)
    device = open_device("cpu")
    layout = open_groups(device)
    try:
        rows = ours["embedding.word_embeddings.weight"].shape[0]
        model = build_model(ModelSpec(shape, rows, 64, layout, device, implementation="local"), seed=5)
        metadata = {"dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True)}
        sharded = {"model": model.sharded_state_dict(metadata=metadata)}
        with quiet_megatron():  # as Megatron-LM does with --dist-ckpt-strictness log_all
            loaded = dist_checkpointing.load(sharded, str(output / "release"), strict=StrictHandling.LOG_ALL)
        model.load_state_dict(loaded["model"])
        found = dict(model.named_parameters())
    finally:
        close_groups()
    assert vars(loaded["args"])["hidden_size"] == shape.width
    for layer in range(shape.layers):
        name = f"decoder.layers.{layer}.self_attention.linear_qkv.weight"
        assert torch.equal(found[name], ours["decoder.layers.self_attention.linear_qkv.weight"][layer])
    assert torch.equal(found["embedding.word_embeddings.weight"], ours["embedding.word_embeddings.weight"])
    start = import_megatron(output, tmp_path / "start")
    assert (start.content["model"], start.positions) == (shape.as_dict(), 64)
    back = read_tensors(start.folder / "weights", names)
    assert all(torch.equal(back[name], ours[name]) for name in names)
    with pytest.raises(InputError, match="not empty"):
        export_megatron(run, output)
    with pytest.raises(InputError, match="no complete checkpoint of step 7"):
        export_megatron(run, tmp_path / "other", step=7)
