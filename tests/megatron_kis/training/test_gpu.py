"""What needs a GPU (``pytest -m gpu``), and the benchmark's script on shapes of a CPU."""

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
import torch

from megatron_kis.config import RunConfig
from megatron_kis.training import saver as saver_module
from megatron_kis.training.run import train
from tests.megatron_kis.processes import losses, rows

MakeRun = Callable[..., RunConfig]
ROOT = Path(__file__).parents[3]
gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def on_gpu(function: Callable[..., Any]) -> Callable[..., Any]:
    for mark in gpu:
        function = mark(function)
    return function


@on_gpu
def test_half_precision_learns_over_nccl(tiny_run: MakeRun) -> None:
    folder = train(tiny_run(device="cuda", training={"precision": "bf16", "optimizer": {"learning_rate": 1e-2}}))
    found = losses(folder)
    assert found[max(found)] < found[min(found)] - 0.3
    record = json.loads((folder / "run.json").read_text())
    assert record["precision"] == "bf16"
    assert record["device"] == torch.cuda.get_device_name()


@on_gpu
def test_a_run_goes_on_on_the_gpu(tiny_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"device": "cuda", "checkpoints": {"moments": {"every": 5}}}
    whole = losses(train(tiny_run(name="whole", **settings)))
    cut = tiny_run(name="cut", **settings)
    after_step = saver_module.Saver.after_step

    def stop_after(self: Any, state: Any, *arguments: Any) -> None:
        after_step(self, state, *arguments)
        if state.step == 12:
            msg = "cut off"
            raise RuntimeError(msg)

    with monkeypatch.context() as patched:
        patched.setattr(saver_module.Saver, "after_step", stop_after)
        with pytest.raises(RuntimeError, match="cut off"):
            train(cut)
    again = losses(train(cut))
    np.testing.assert_allclose(
        [again[step] for step in sorted(whole)], [whole[step] for step in sorted(whole)], atol=1e-3
    )


@on_gpu
def test_probes_say_on_the_gpu_what_they_say_on_the_host(tiny_run: MakeRun) -> None:
    asked = {"probes": {"moments": {"shares": [0.0]}}, "training": {"precision": "fp32"}}
    folders = [train(tiny_run(name=device, device=device, **asked)) for device in ("cpu", "cuda")]
    margins = [[row["margin"] for row in rows(folder, "probes.jsonl") if row["step"] == 0] for folder in folders]
    assert margins[0]
    np.testing.assert_allclose(margins[1], margins[0], atol=1e-3)


def test_the_gpu_benchmark_runs_and_names_what_failed(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--presets", "cpu-32", "--lengths", "32",
        "--batch", "2", "--micro-batch", "1", "--vocabulary", "300", "--seconds", "0.1", "--together", "1",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=True, timeout=300)
    result = json.loads(ended.stdout)
    (cell,) = result["cells"]
    for kind in ("ours", "compiled"):
        assert cell[kind]["tokens_per_second"] > 0
        assert cell[kind]["loss"][1] < cell[kind]["loss"][0]  # the same batch again and again
    assert cell["ratio"] == pytest.approx(
        cell["ours"]["tokens_per_second"] / cell["compiled"]["tokens_per_second"], abs=2e-3
    )
    assert result["side_by_side"]["rows"][0]["cells_per_hour"] > 0

    command += ["--minutes", "0"]
    late = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=True, timeout=60)
    assert json.loads(late.stdout)["cells"][0]["ours"] == {"failed": "not done in the time"}
