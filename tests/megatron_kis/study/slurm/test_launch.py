"""Runs over nodes: the command, and where its ranks meet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_kis.common.configuration import load_config
from megatron_kis.common.errors import InputError
from megatron_kis.config.run import RunConfig
from megatron_kis.config.study import StudyConfig
from megatron_kis.executor.interface import Slot
from megatron_kis.executor.slurm.launch import rendezvous_variables, srun_launcher
from tests.megatron_kis.test_study import write_study
from tests.sources import Sources

BATCH = {"SLURM_JOB_ID": "41", "SLURMD_NODENAME": "gpu07"}


def resolves(**known: str) -> Callable[[str], str | None]:
    return lambda host: known.get(host, host if host[0].isdigit() else None)


def test_the_first_node_is_met_by_its_name_where_that_resolves() -> None:
    variables = rendezvous_variables(2, BATCH, resolves=resolves(gpu07="10.0.0.7"), node_address=lambda _: None)
    assert variables["MASTER_ADDR"] == "gpu07"
    assert 20000 <= int(variables["MASTER_PORT"]) < 30000
    assert "NCCL_SOCKET_IFNAME" not in variables  # NCCL finds InfiniBand by itself


def test_a_node_whose_name_does_not_resolve_is_met_where_slurm_finds_it() -> None:
    variables = rendezvous_variables(
        2, BATCH, resolves=resolves(), node_address=lambda name: {"gpu07": "127.0.0.1"}[name]
    )
    assert variables["MASTER_ADDR"] == "127.0.0.1"
    assert variables["GLOO_SOCKET_IFNAME"] == variables["NCCL_SOCKET_IFNAME"] == "lo"
    with pytest.raises(InputError, match=r"set MASTER_ADDR in cluster\.environment"):
        rendezvous_variables(2, BATCH, resolves=resolves(), node_address=lambda _: "unknown.example")


def test_what_the_user_set_is_left_as_it_is() -> None:
    own = {"MASTER_ADDR": "10.1.1.1", "MASTER_PORT": "4000", "NCCL_DEBUG": "INFO"}
    variables = rendezvous_variables(2, {**BATCH, **own}, resolves=resolves(), node_address=lambda _: None)
    assert {name: variables[name] for name in own} == own


def test_jobs_next_to_each_other_meet_at_other_ports() -> None:
    ports = {rendezvous_variables(1, {"SLURM_JOB_ID": str(job)})["MASTER_PORT"] for job in range(50)}
    assert len(ports) > 45


@pytest.fixture
def command(tiny_run: Callable[..., RunConfig], tmp_path: Path, tiny_sources: Sources) -> Callable[..., list[str]]:
    run = tiny_run(parallel={"tensor": 2, "replicas": 4})

    def make(**cluster: Any) -> list[str]:
        study = load_config(StudyConfig, write_study(tmp_path, tiny_sources, cluster={"gpus_per_node": 4, **cluster}))
        launcher = srun_launcher(
            study.cluster,
            output=study.output,
            folder=Path("/w"),
            environment={**BATCH, "MASTER_ADDR": "m", "MASTER_PORT": "1"},
        )
        return launcher(run, Path("/r/config.yaml"), Slot(threads=3)).arguments

    return make


def test_srun_starts_every_rank(command: Callable[..., list[str]]) -> None:
    words = command(python="/py")
    assert words[:5] == ["srun", "--nodes=2", "--ntasks=8", "--ntasks-per-node=4", "--cpus-per-task=4"]
    assert words[-5:] == ["/py", "-m", "megatron_kis", "train", "/r/config.yaml"]


def test_torchrun_is_started_once_a_node(command: Callable[..., list[str]]) -> None:
    words = command(large={"launcher": "torchrun"})
    assert words[:5] == ["srun", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--cpus-per-task=16"]
    for option in ("--nnodes=2", "--nproc-per-node=4", "--rdzv-endpoint=m:1", "--rdzv-id=41"):
        assert option in words


@pytest.mark.parametrize("kind", ["pyxis", "apptainer"])
def test_ranks_run_inside_the_container(command: Callable[..., list[str]], kind: str, tmp_path: Path) -> None:
    words = command(container={"kind": kind, "image": "i m.sqsh", "mounts": ["/data:/data:ro"], "python": "python3"})
    assert words[-5:] == ["python3", "-m", "megatron_kis", "train", "/r/config.yaml"]
    mounts = [word for word in words if "/data:/data:ro" in word]
    if kind == "pyxis":
        assert "--container-image=i m.sqsh" in words
        assert mounts == [f"--container-mounts=/data:/data:ro,/w:/w,{tmp_path}/out:{tmp_path}/out"]
    else:
        assert words[words.index("apptainer") : words.index("apptainer") + 3] == ["apptainer", "exec", "--nv"]
        assert words[-6] == "i m.sqsh"
        assert f"{tmp_path}/out:{tmp_path}/out" in words
