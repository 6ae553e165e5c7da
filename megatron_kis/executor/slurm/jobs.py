"""From the cells of a study to the jobs that run them: pure functions, which need no SLURM.

Small cells go into one array, several to a task; cells of more ranks than a task has GPUs go into an array for each
shape (nodes x ranks a node), one to a task. Thousands of cells are a few arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from megatron_kis.common.errors import InputError
from megatron_kis.config.run import RunConfig
from megatron_kis.config.slurm import ClusterConfig, JobConfig

Kind = Literal["data", "small", "large", "report"]


@dataclass(frozen=True)
class Job:
    """A job, or an array of them, and what it asks for."""

    label: str
    """What it is called within a submission: its kind, and the shape of large cells (``large-2x4``)."""

    kind: Kind
    """Which template its script is made from."""

    settings: JobConfig
    """Account, partition, time limit and the like, resolved."""

    cpus: int
    """Cores of a task of SLURM's: of the job, or of a rank."""

    gpus: int = 0
    """GPUs a node."""

    nodes: int = 1
    """Nodes."""

    ranks_per_node: int = 1
    """Ranks on a node, of large cells."""

    tasks: tuple[tuple[str, ...], ...] = ()
    """Cells of each task of the array, by name; none where the job is no array."""

    at_once: int | None = None
    """Tasks that may run at the same time."""


@dataclass(frozen=True)
class Array:
    """One array of a job: clusters limit how many tasks an array may have, and so a job may need several."""

    first: int
    """The job's task that is this array's task 0."""

    count: int
    """Tasks."""

    at_once: int | None
    """Tasks that may run at the same time."""

    @property
    def option(self) -> str:
        """For ``sbatch --array``."""
        return f"0-{self.count - 1}" + (f"%{self.at_once}" if self.at_once else "")


def jobs_of(cells: Sequence[RunConfig], cluster: ClusterConfig) -> list[Job]:
    """The jobs that run some cells of a study, without those of the data and the report.

    Args:
        cells: the cells, the most expensive first.
        cluster: settings.

    Raises:
        InputError: a cell whose ranks cannot be spread evenly over nodes.
    """
    small = [cell for cell in cells if cell.parallel.ranks <= max(1, cluster.gpus_per_task)]
    shapes: dict[tuple[int, int], list[str]] = {}
    for cell in cells:
        if cell.parallel.ranks > max(1, cluster.gpus_per_task):
            shapes.setdefault(_shape(cell, cluster.ranks_per_node), []).append(cell.name)
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
                tasks=dealt([cell.name for cell in small], cluster.small.cells_per_task),
                at_once=cluster.small.at_once,
            )
        )
    return jobs


def single_job(kind: Literal["data", "report"], cluster: ClusterConfig) -> Job:
    """The job before the cells, or the one after them."""
    section = cluster.data if kind == "data" else cluster.report
    return Job(kind, kind, resolved(cluster, section), cpus=section.cpus)


def resolved(cluster: ClusterConfig, section: JobConfig) -> JobConfig:
    """The settings of one kind of job: its own, and the cluster's where it has none."""
    names = set(JobConfig.model_fields) - {"options"}
    own = {name: value for name in names if (value := getattr(section, name)) is not None}
    shared = {name: getattr(cluster, name) for name in names}
    return JobConfig(**{**shared, **own, "options": (*cluster.options, *section.options)})


def dealt(names: Sequence[str], size: int) -> tuple[tuple[str, ...], ...]:
    """Cells in tasks of at most ``size``, dealt like cards: with the most expensive first, tasks take about as long."""
    count = -(-len(names) // size)
    return tuple(tuple(names[task::count]) for task in range(count))


def arrays_of(job: Job, largest: int) -> list[Array]:
    """The arrays of a job, of at most ``largest`` tasks; the limit of tasks at once is shared between them."""
    count = -(-len(job.tasks) // largest)
    at_once = None if job.at_once is None else max(1, job.at_once // count)
    return [Array(first, min(largest, len(job.tasks) - first), at_once) for first in range(0, len(job.tasks), largest)]


def _shape(cell: RunConfig, ranks_per_node: int) -> tuple[int, int]:
    """Nodes, and ranks on each."""
    ranks = cell.parallel.ranks
    nodes = -(-ranks // ranks_per_node)
    if ranks % nodes:
        raise InputError(
            f"{ranks} ranks cannot be spread evenly over {nodes} nodes of {ranks_per_node}",
            where=f"run {cell.name}: parallel",
            remedy=f"use a multiple of {ranks_per_node} ranks (parallel.replicas), or cluster.large.ranks_per_node",
        )
    return nodes, ranks // nodes
