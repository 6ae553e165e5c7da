"""Real processes over gloo: tensor, pipeline and data parallel runs give the losses of one process."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from megatron_kis.cli import main as cli
from megatron_kis.common.errors import InputError
from megatron_kis.config.run import RunConfig
from megatron_kis.distributed.slurm_environment import environment_of_srun, first_node
from tests.megatron_kis.ranks import Rank, Ranks, finish, free_port

MakeRun = Callable[..., RunConfig]
SHAPE = {"layers": 4, "width": 32, "heads": 4, "query_groups": 2, "head_width": 12, "qkv_bias": True, "qk_norm": True}
SETTINGS: dict[str, Any] = {
    "model": SHAPE,
    "training": {"token_budget": 10 * 8 * 64, "optimizer": {"learning_rate": 1e-2}},
    "infusion": {"frequency": 3, "background": {"frequency": 2}},
}


def read(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def reference() -> dict[str, Path]:
    return {}


def one_process(tiny_run: MakeRun, reference: dict[str, Path]) -> Path:
    """The run of one process that the others are compared with, trained once."""
    if "folder" not in reference:
        config = tiny_run(name="one", **SETTINGS)
        finish(config, 1)
        reference["folder"] = config.output
    return reference["folder"]


def assert_trained_as(ours: Path, theirs: Path) -> None:
    """The same losses, probes and ledger, but for the order of sums."""
    metrics = [read(folder, "metrics.jsonl") for folder in (ours, theirs)]
    assert [row["step"] for row in metrics[0]] == [row["step"] for row in metrics[1]]
    np.testing.assert_allclose(*([row["loss"] for row in rows] for rows in metrics), atol=1e-5)
    norms = [[row["grad_norm"] for row in rows if row["kind"] == "train"] for rows in metrics]
    np.testing.assert_allclose(norms[0], norms[1], rtol=1e-3)
    margins = [[row["margin"] for row in read(folder, "probes.jsonl")] for folder in (ours, theirs)]
    np.testing.assert_allclose(margins[0], margins[1], atol=2e-3)
    ledgers = [json.loads((folder / "exposures.json").read_text()) for folder in (ours, theirs)]
    assert ledgers[0] == ledgers[1]
    records = [json.loads((folder / "run.json").read_text()) for folder in (ours, theirs)]
    assert records[0]["params"] == records[1]["params"]


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(
    ("parallel", "training"),
    [
        pytest.param({"tensor": 2}, {}, id="tensor"),
        pytest.param({"pipeline": 2}, {"micro_batch_size": 2}, id="pipeline"),
        pytest.param({"pipeline": 2, "virtual": 2}, {"micro_batch_size": 2}, id="interleaved"),
        pytest.param({"context": 2}, {}, id="context"),
        pytest.param({"tensor": 2, "pipeline": 2}, {"micro_batch_size": 2}, id="tensor-pipeline"),
        pytest.param({"tensor": 2, "sequence": True}, {}, id="sequence"),
        pytest.param({"tensor": 2, "context": 2}, {}, id="tensor-context"),
    ],
)
def test_many_processes_train_as_one(
    parallel: dict[str, int], training: dict[str, int], tiny_run: MakeRun, reference: dict[str, Path]
) -> None:
    alone = one_process(tiny_run, reference)
    settings = {**SETTINGS, "training": {**SETTINGS["training"], **training}, "parallel": parallel}
    config = tiny_run(name="many", **settings)
    said = finish(config, math.prod(parallel.values()) // parallel.get("virtual", 1))
    assert "Warning" not in said, said
    assert_trained_as(config.output, alone)


@pytest.mark.slow
@pytest.mark.distributed
def test_documents_apart_stay_apart_where_ranks_share_sequences(tiny_run: MakeRun) -> None:
    documents = {"reset_attention": True, "mask_boundaries": True}
    settings = {**SETTINGS, "documents": documents}
    alone, shared = tiny_run(name="one", **settings), tiny_run(name="two", parallel={"context": 2}, **settings)
    finish(alone, 1)
    finish(shared, 2)
    assert_trained_as(shared.output, alone.output)


@pytest.mark.slow
@pytest.mark.distributed
def test_replicas_started_by_torchrun_train_as_one(
    tiny_run: MakeRun, tmp_path: Path, reference: dict[str, Path]
) -> None:
    config = tiny_run(name="replicas", **SETTINGS)
    path = tmp_path / "replicas.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, "-m", "megatron_kis", "train", str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0, ended.stderr
    assert_trained_as(config.output, one_process(tiny_run, reference))


@pytest.mark.slow
@pytest.mark.distributed
def test_a_layout_that_does_not_divide_the_model_is_refused(tiny_run: MakeRun) -> None:
    config = tiny_run(name="odd", model={"layers": 3, "width": 32, "heads": 2}, parallel={"pipeline": 2})
    with Ranks(config, 2) as ranks:
        assert ranks.wait() == [2, 2]
        assert "3 layers cannot be split into 2 stages" in ranks.said()
    assert not config.output.exists()


def test_too_few_processes_for_the_layout_are_refused(
    tiny_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "alone.yaml"
    path.write_text(yaml.safe_dump(tiny_run(name="alone", parallel={"tensor": 2}).model_dump(mode="json")))
    assert cli.main(["train", str(path)]) == 2
    said = capsys.readouterr().err
    assert "torchrun" in said
    assert "Traceback" not in said


SRUN = {
    "SLURM_STEP_ID": "2",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_NTASKS": "16",
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_NODELIST": "gpu[007-008]",
}


def test_tasks_of_srun_know_their_place() -> None:
    place = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "gpu007", "MASTER_PORT": "23402"}
    assert environment_of_srun(SRUN) == place
    own = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    assert environment_of_srun({**SRUN, **own}) == {**place, **own}


def test_outside_a_job_step_and_under_torchrun_nothing_is_taken_from_slurm() -> None:
    batch_script = {name: value for name, value in SRUN.items() if not name.startswith("SLURM_STEP")}
    assert environment_of_srun(batch_script) == {}
    assert environment_of_srun({**SRUN, "RANK": "0"}) == {}


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("gpu[007-012,020],login1", "gpu007"),
        ("a-b[3,5]", "a-b3"),
        ("c[01-02]-ib", "c01-ib"),
        ("host.domain", "host.domain"),
    ],
)
def test_the_first_node_of_a_list(nodes: str, first: str) -> None:
    assert first_node(nodes) == first


def test_a_list_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match="set MASTER_ADDR"):
        first_node("[1-2]")


@pytest.mark.slow
@pytest.mark.distributed
def test_ranks_started_as_srun_starts_them_train_together(tiny_run: MakeRun, tmp_path: Path) -> None:
    config = tiny_run(name="srun", **SETTINGS)
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    shared = {
        **SRUN,
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NODELIST": "localhost",
        "OMP_NUM_THREADS": "1",
        "MASTER_PORT": str(free_port()),
    }
    ranks = [
        Rank(["train", str(path)], {**shared, "SLURM_PROCID": rank, "SLURM_LOCALID": rank}, tmp_path / f"{rank}.log")
        for rank in ("0", "1")
    ]
    assert [rank.wait(timeout=300) for rank in ranks] == [0, 0]
    assert json.loads((config.output / "run.json").read_text())["parallel"]["data_size"] == 2
