"""The jobs that execute the runs of a study: pure functions, which need no SLURM.

Small runs go into one array, several per task; runs of more ranks than a task has GPUs go into one array per shape
(nodes x ranks per node), one per task. Thousands of runs are a few arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from megatron_kis.common.errors import InputError
from megatron_kis.config.slurm import ClusterConfig, JobConfig
from megatron_kis.executor.interface import Run

Kind = Literal["data", "small", "large", "report"]


@dataclass(frozen=True)
class Job:
    """A job, or an array of jobs, and what it asks for."""

    label: str
    """Name within a submission: its kind, and the shape of large runs (``large-2x4``)."""

    kind: Kind
    """Template that its script is made from."""

    settings: JobConfig
    """Account, partition, time limit and the like, resolved."""

    cpus: int
    """Cores per task as SLURM counts tasks: those of the job, or of a rank."""

    gpus: int = 0
    """GPUs per node."""

    nodes: int = 1
    """Number of nodes of each task."""

    ranks_per_node: int = 1
    """Ranks per node, of large runs."""

    tasks: tuple[tuple[str, ...], ...] = ()
    """Names of the runs of each task of the array; none where the job is no array."""

    at_once: int | None = None
    """Tasks that may run at the same time."""


@dataclass(frozen=True)
class Array:
    """One array of a job: clusters limit how many tasks an array may have, and so a job may need several."""

    first: int
    """Number of the job's task that is task 0 of this array."""

    count: int
    """Number of tasks of this array."""

    at_once: int | None
    """Tasks that may run at the same time."""

    @property
    def option(self) -> str:
        """Value of ``sbatch --array``."""
        return f"0-{self.count - 1}" + (f"%{self.at_once}" if self.at_once else "")


def jobs_of(runs: Sequence[Run], cluster: ClusterConfig) -> list[Job]:
    """Returns the jobs that execute some runs, without those of the data and the report.

    Args:
        runs: the runs, the most expensive first.
        cluster: settings of the cluster.

    Raises:
        InputError: a run whose ranks cannot be spread evenly over nodes.
    """
    small: list[str] = []
    shapes: dict[tuple[int, int], list[str]] = {}
    for run in runs:
        if run.ranks <= max(1, cluster.gpus_per_task):
            small.append(run.name)
        else:
            shapes.setdefault(_shape(run, cluster.ranks_per_node), []).append(run.name)
    jobs = []
    for (nodes, ranks), names in shapes.items():
        jobs.append(
            Job(
                f"large-{nodes}x{ranks}",
                "large",
                resolved(cluster, cluster.large),
                cpus=cluster.large.cpus_per_rank,
                gpus=ranks if cluster.gpus_per_node else 0,
                nodes=nodes,
                ranks_per_node=ranks,
                tasks=tuple((name,) for name in names),
                at_once=cluster.large.at_once,
            )
        )
    if small:
        jobs.append(
            Job(
                "small",
                "small",
                resolved(cluster, cluster.small),
                cpus=cluster.small.cpus,
                gpus=cluster.gpus_per_task,
                tasks=deal(small, cluster.small.cells_per_task),
                at_once=cluster.small.at_once,
            )
        )
    return jobs


def single_job(kind: Literal["data", "report"], cluster: ClusterConfig) -> Job:
    """Returns the job before the runs, or the one after them."""
    section = cluster.data if kind == "data" else cluster.report
    return Job(kind, kind, resolved(cluster, section), cpus=section.cpus)


def resolved(cluster: ClusterConfig, section: JobConfig) -> JobConfig:
    """Returns the settings of one kind of job: its own, and the cluster's where it has none."""
    names = set(JobConfig.model_fields) - {"options"}
    own = {name: value for name in names if (value := getattr(section, name)) is not None}
    shared = {name: getattr(cluster, name) for name in names}
    return JobConfig(**{**shared, **own, "options": (*cluster.options, *section.options)})


def deal(names: Sequence[str], size: int) -> tuple[tuple[str, ...], ...]:
    """Distributes runs in turn to tasks of at most ``size`` runs.

    With the most expensive runs first, all tasks take about the same time.
    """
    count = -(-len(names) // size)
    return tuple(tuple(names[task::count]) for task in range(count))


def arrays_of(job: Job, largest: int) -> list[Array]:
    """Splits a job into arrays of at most ``largest`` tasks, which share the limit of tasks at once."""
    count = -(-len(job.tasks) // largest)
    at_once = None if job.at_once is None else max(1, job.at_once // count)
    return [Array(first, min(largest, len(job.tasks) - first), at_once) for first in range(0, len(job.tasks), largest)]


def _shape(run: Run, ranks_per_node: int) -> tuple[int, int]:
    """Returns the number of nodes, and of ranks on each."""
    ranks = run.ranks
    nodes = -(-ranks // ranks_per_node)
    if ranks % nodes:
        raise InputError(
            f"{ranks} ranks cannot be spread evenly over {nodes} nodes of {ranks_per_node}",
            where=f"run {run.name}: parallel",
            remedy=f"use a multiple of {ranks_per_node} ranks (parallel.replicas), or cluster.large.ranks_per_node",
        )
    return nodes, ranks // nodes
