"""Megatron-LM's ``pretrain()`` on fake CUDA tensors: two steps, probes before, between and after, and validation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_kis.config.run import RunConfig
from tests.dry_device import wheel
from tests.dry_device.cases import missing, need

pytestmark = pytest.mark.slow

SHARED = "--use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather"
TENSOR = "--tensor-model-parallel-size 2"
ALL = {"kinds": ["train 2", "validation 1", "validation 2"], "probes": [0, 1, 2], "done": True}


@pytest.mark.parametrize(
    ("words", "rank", "ranks", "reports"),
    [
        pytest.param("", 0, 1, True, id="one GPU"),
        pytest.param(f"{SHARED} {TENSOR} --sequence-parallel", 0, 4, True, id="tensor, replicas"),
        pytest.param(f"{SHARED} --pipeline-model-parallel-size 2", 2, 4, True, id="last stage"),
        pytest.param(f"{SHARED} --pipeline-model-parallel-size 2", 1, 4, False, id="first stage"),
        pytest.param("--context-parallel-size 2", 0, 2, True, id="shared sequences"),
        pytest.param("--fp8-format hybrid --kis-set training.precision=fp8", 0, 1, True, id="FP8"),
    ],
)
def test_pretrain_trains_probes_and_validates(
    ask_dry_device: Callable[..., Any],
    tiny_run: Callable[..., RunConfig],
    tmp_path: Path,
    words: str,
    rank: int,
    ranks: int,
    reports: bool,
) -> None:
    need(missing() or wheel.missing() or wheel.missing("megatron-core"))
    config = tiny_run(
        device="cuda",
        model={"layers": 2, "width": 128, "heads": 2},
        training={"token_budget": 2 * 8 * 64, "micro_batch_size": 2, "precision": "bf16"},
        infusion={"frequency": 0, "background": {"frequency": 0}},  # a fake token is equal to none
        probes={"moments": {"shares": [0.0, 0.5, 1.0]}},
    )
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    line = ["--kis-run", str(path), *words.split(), "--num-workers", "0", "--no-gradient-accumulation-fusion"]
    found = ask_dry_device("tests.dry_device.megatron_lm:trained", line, rank, ranks, str(config.output))
    assert found == {"status": 0, **(ALL if reports else {"kinds": [], "probes": [], "done": False})}
