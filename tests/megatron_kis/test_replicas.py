"""Megatron-Core's replicas and optimizer train as the host's do: real processes and numbers, its code on the host."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_kis.checkpoint import shards
from megatron_kis.common.configuration import parse_config
from megatron_kis.config.run import RunConfig
from megatron_kis.distributed.determinism import seed_device
from megatron_kis.distributed.device import open_device
from megatron_kis.distributed.groups import close_groups, open_groups
from megatron_kis.engine.engine import Engine
from megatron_kis.probes.forward import Scorer
from megatron_kis.probes.prefix_tree import build_prefix_trees
from megatron_kis.probes.probe import ROW_WIDTH
from megatron_kis.probes.ragged import Ragged
from tests.megatron_kis.cuda_on_host import install
from tests.megatron_kis.ranks import SERVER, finish, free_port
from tests.run_files import rows, tensor_shapes

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
EVERY_OTHER = {"moments": {"every": 2}}


@pytest.mark.parametrize(
    ("ranks", "parallel"),
    [
        pytest.param(2, {}, id="replicas"),
        pytest.param(4, {"tensor": 2, "sequence": True}, id="replicas of tensor ranks"),
        pytest.param(4, {"pipeline": 2, "virtual": 2}, id="replicas of interleaved stages"),
    ],
)
def test_passes_and_checkpoints_have_the_weights_of_the_last_step(
    ranks: int, parallel: dict[str, Any], tiny_run: Callable[..., RunConfig]
) -> None:
    """Replicas gather their weights in the next forward pass, or when they are saved before one (after step 5)."""
    settings: dict[str, Any] = {
        "model": {"layers": 4, "width": 32, "heads": 4, "query_groups": 2},
        "training": {
            "micro_batch_size": 2,
            "token_budget": 6 * 8 * 64,
            "optimizer": {"learning_rate": 3e-3, "gradient_clip": 0.5},  # which every step's gradients exceed
        },
        "infusion": {"frequency": 2},
        "parallel": parallel,
        "validation": EVERY_OTHER,
        "probes": EVERY_OTHER,
        "logging": {"every": 1},
        "checkpoints": {"moments": {"every": 5}},
    }
    runs = [tiny_run(name=name, **settings) for name in ("host", "megatron")]
    for run, before in zip(runs, (None, install), strict=True):
        finish(run, ranks, before=before)
    for file, keys in {"metrics.jsonl": ("loss", "grad_norm"), "probes.jsonl": ("margin",)}.items():
        ours, theirs = ([[row.get(key) for key in keys] for row in rows(run.output, file)] for run in runs)
        assert len(ours) > 5
        np.testing.assert_allclose(np.array(ours, float), np.array(theirs, float), atol=2e-4)
    folders = [run.output / "checkpoints" / "step-00000005" for run in runs]
    of_model = [name for name in tensor_shapes(folders[0]) if name.startswith(("decoder.", "embedding."))]
    assert len(of_model) > 5
    host, megatron = (shards.read_tensors(folder, of_model) for folder in folders)
    for name, values in host.items():
        assert (values - megatron[name]).abs().mean() < 1e-5, name


LENGTH, BATCH = 32, 4


def trained_and_probed(folder: Path, rank: int, size: int, port: int, cuda: bool) -> None:
    """In a rank: scores of one row of options before a step, after one, and after one whose update is left out."""
    os.environ.update(
        WORLD_SIZE=str(size), RANK=str(rank), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    if cuda:
        install()
    content = {
        "name": "probed",
        "output": "unused",
        "device": "cpu",
        "infusion": {"frequency": 0},
        "data": dict.fromkeys(("corpus", "validation", "exposures", "tokenizer"), "unused"),
        "model": {"layers": 2, "width": 32, "heads": 4},
        "training": {"token_budget": BATCH * LENGTH, "sequence_length": LENGTH, "global_batch_size": BATCH},
    }
    device = open_device("cpu")
    layout = open_groups(device)
    seed_device(device, 0, tensor_rank=0, pipeline_rank=0)
    config = parse_config(RunConfig, content, source="test")
    engine = Engine(config, vocabulary=256, layout=layout, device=device)
    scorer = Scorer(engine)
    trees = build_prefix_trees(Ragged.of([[5, 6, 7, 8]]), bos_id=1, width=ROW_WIDTH, branching=scorer.branching)
    text = torch.randint(0, 256, (BATCH, LENGTH + 1), generator=torch.Generator().manual_seed(1))
    samples = [
        {"tokens": row[:-1], "labels": row[1:], "loss_mask": torch.ones(LENGTH), "position_ids": torch.arange(LENGTH)}
        for row in text[layout.data_rank :: size]
    ]
    scores = []
    for accepted in (None, True, False, True):
        if accepted is not None:
            engine.train_step(samples, micro_batch_size=2, learning_rate=0.1, accept=lambda *_, said=accepted: said)
        found = scorer.score(trees, 8)
        assert found is not None
        scores.append(found.log_probs)
    np.save(folder / f"{size}.{rank}.npy", np.stack(scores))
    close_groups()


def test_a_replica_without_rows_of_a_probe_gathers_with_the_others(tmp_path: Path) -> None:
    for size, cuda in ((1, False), (2, True)):
        port = free_port()
        ranks = [
            SERVER.Process(target=trained_and_probed, args=(tmp_path, rank, size, port, cuda)) for rank in range(size)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(60)
            process.kill()
        assert [process.exitcode for process in ranks] == [0] * size
    alone, *shared = (np.load(tmp_path / name) for name in ("1.0.npy", "2.0.npy", "2.1.npy"))
    assert np.abs(alone[1] - alone[0]).max() > 0.1
    np.testing.assert_array_equal(alone[2], alone[1])
    for found in shared:
        np.testing.assert_allclose(found, alone, atol=1e-3)
