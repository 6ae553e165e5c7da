"""Megatron-Core's replicas and optimizer train as the host's do: real processes and numbers, its code on the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from megatron_kis.config import RunConfig
from megatron_kis.training import shards
from tests.megatron_kis.cuda_on_host import install
from tests.megatron_kis.processes import finish, rows

pytestmark = pytest.mark.distributed
EVERY_STEP = {"moments": {"every": 1}}
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
    """Replicas gather their weights in the next forward pass, or when they are saved before one (after step 7)."""
    settings: dict[str, Any] = {
        "model": {"layers": 4, "width": 32, "heads": 4, "query_groups": 2},
        "training": {
            "micro_batch_size": 2,
            "token_budget": 8 * 8 * 64,
            "optimizer": {"learning_rate": 3e-3, "gradient_clip": 0.5},  # which every step's gradients exceed
        },
        "infusion": {"frequency": 2},
        "parallel": parallel,
        "validation": EVERY_OTHER,
        "probes": EVERY_OTHER,
        "logging": {"every": 1},
        "checkpoints": EVERY_STEP,
    }
    runs = [tiny_run(name=name, **settings) for name in ("host", "megatron")]
    for run, before in zip(runs, (None, install), strict=True):
        finish(run, ranks, before=before)
    for file, keys in {"metrics.jsonl": ("loss", "grad_norm"), "probes.jsonl": ("margin",)}.items():
        ours, theirs = ([[row.get(key) for key in keys] for row in rows(run.output, file)] for run in runs)
        assert len(ours) > 5
        np.testing.assert_allclose(np.array(ours, float), np.array(theirs, float), atol=2e-4)
    folders = [run.output / "checkpoints" / "step-00000007" for run in runs]
    of_model = [name for name in shards.tensor_shapes(folders[0]) if name.startswith(("decoder.", "embedding."))]
    assert len(of_model) > 5
    host, megatron = (shards.read_tensors(folder, of_model) for folder in folders)
    for name, values in host.items():
        assert (values - megatron[name]).abs().mean() < 1e-5, name
