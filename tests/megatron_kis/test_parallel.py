"""Real processes over gloo: tensor, pipeline and data parallel runs give the losses of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from megatron_kis.config import RunConfig

MakeRun = Callable[..., RunConfig]
SHAPE = {"layers": 2, "width": 32, "heads": 4, "query_groups": 2}
TRAINING = {"optimizer": {"learning_rate": 1e-2}}


def run_processes(config: RunConfig, processes: int, folder: Path) -> subprocess.CompletedProcess[str]:
    path = folder / f"{config.name}.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "megatron_kis", "train", str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)


def read(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def reference() -> dict[str, Path]:
    return {}


def one_process(tiny_run: MakeRun, tmp_path: Path, reference: dict[str, Path]) -> Path:
    """The run of one process that the others are compared with, trained once."""
    if "folder" not in reference:
        config = tiny_run(name="one", model=SHAPE, training=TRAINING)
        ended = run_processes(config, 1, tmp_path)
        assert ended.returncode == 0, ended.stderr
        reference["folder"] = config.output
    return reference["folder"]


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("parallel", "training"),
    [
        pytest.param({"tensor": 2}, {}, id="tensor"),
        pytest.param({"pipeline": 2}, {"micro_batch_size": 2}, id="pipeline"),
        pytest.param({}, {}, id="data"),
    ],
)
def test_two_processes_train_as_one(
    parallel: dict[str, int],
    training: dict[str, int],
    tiny_run: MakeRun,
    tmp_path: Path,
    reference: dict[str, Path],
) -> None:
    alone = one_process(tiny_run, tmp_path, reference)
    config = tiny_run(name="two", model=SHAPE, training={**TRAINING, **training}, parallel=parallel)
    ended = run_processes(config, 2, tmp_path)
    assert ended.returncode == 0, ended.stderr

    ours, theirs = read(config.output, "metrics.jsonl"), read(alone, "metrics.jsonl")
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    np.testing.assert_allclose([row["loss"] for row in ours], [row["loss"] for row in theirs], atol=1e-5)
    norms = [[row["grad_norm"] for row in rows if row["kind"] == "train"] for rows in (ours, theirs)]
    np.testing.assert_allclose(norms[0], norms[1], rtol=1e-3)
    margins = [[row["margin"] for row in read(folder, "probes.jsonl")] for folder in (config.output, alone)]
    np.testing.assert_allclose(margins[0], margins[1], atol=2e-3)
    ledgers = [json.loads((folder / "exposures.json").read_text()) for folder in (config.output, alone)]
    assert ledgers[0] == ledgers[1]
    records = [json.loads((folder / "run.json").read_text()) for folder in (config.output, alone)]
    assert records[0]["params"] == records[1]["params"]


@pytest.mark.distributed
def test_a_layout_that_does_not_divide_the_model_is_refused(tiny_run: MakeRun, tmp_path: Path) -> None:
    config = tiny_run(name="odd", model={"layers": 3, "width": 32, "heads": 2}, parallel={"pipeline": 2})
    ended = run_processes(config, 2, tmp_path)
    assert ended.returncode != 0
    assert "3 layers cannot be split into 2 stages" in ended.stderr
    assert not config.output.exists()


def test_too_few_processes_for_the_layout_are_refused(tiny_run: MakeRun, tmp_path: Path) -> None:
    config = tiny_run(name="alone", parallel={"tensor": 2})
    ended = run_processes(config, 1, tmp_path)
    assert ended.returncode == 2
    assert "torchrun" in ended.stderr
    assert "Traceback" not in ended.stderr
