"""One cluster for all tests here, and studies on data that are prepared once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_kis.cli.main import main
from tests.slurm.cluster import Cluster, missing
from tests.sources import Sources
from tests.studies import write_study

SMALL_JOBS = {
    "grace_seconds": 80,
    "data": {"cpus": 1},
    "report": {"cpus": 1},
    "small": {"cpus": 2, "cells_per_task": 1},
}
"""A cluster section for nodes of four cores."""


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A SLURM of six nodes, the one that SLURM's commands and ours speak to."""
    reason = missing()
    if reason:
        pytest.skip(f"no SLURM here: {reason}")
    running = Cluster(
        tmp_path_factory.mktemp("slurm"),
        settings={
            "PreemptType": "preempt/partition_prio",
            "PreemptMode": "REQUEUE",
            "SlurmctldParameters": "preempt_send_user_signal",
        },
        partitions="PartitionName=low Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime=600 State=UP\n"
        "PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF State=UP\n",
    )
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = running.environment["SLURM_CONF"]
    try:
        yield running
    finally:
        if before is None:
            os.environ.pop("SLURM_CONF")
        else:
            os.environ["SLURM_CONF"] = before
        running.stop()


@pytest.fixture(scope="session")
def make_study(tiny_sources: Sources, tiny_data: Path) -> Callable[..., Path]:
    """Writes a study into a folder, with its data prepared: jobs then only check them."""

    def make(folder: Path, **changes: Any) -> Path:
        folder.mkdir(parents=True)
        shutil.copytree(tiny_data, folder / "out" / "data")
        return write_study(folder, tiny_sources, **{"cluster": SMALL_JOBS, **changes})

    return make


def kis(*words: object) -> int:
    """A step of ``kis study``, in this process."""
    return main(["study", *map(str, words)])
