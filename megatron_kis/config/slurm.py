"""The ``cluster`` section of a study: what its jobs ask SLURM for, and what they find on the nodes.

Values go into ``#SBATCH`` lines and shell scripts. What they may contain is checked here, so that no value can add a
line or a command; the scripts quote them besides. Only ``setup`` is shell, and is meant to be.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, NonNegativeInt, PositiveInt, model_validator

from megatron_kis.common.configuration import Config

_OWN_OPTIONS = {
    "job-name",
    "output",
    "error",
    "open-mode",
    "array",
    "dependency",
    "kill-on-invalid-dep",
    "requeue",
    "no-requeue",
    "signal",
    "parsable",
    "wrap",
    "chdir",
    "nodes",
    "ntasks",
    "ntasks-per-node",
    "cpus-per-task",
    "test-only",
    "wait",
    "J",
    "o",
    "e",
    "a",
    "d",
    "N",
    "n",
    "c",
    "D",
    "W",
}


def _one_line(text: str) -> str:
    if not text.strip() or not text.isprintable():
        msg = "must be one line of printable text"
        raise ValueError(msg)
    return text


def _matching(pattern: str, what: str) -> Callable[[str], str]:
    def check(text: str) -> str:
        if re.fullmatch(pattern, text, flags=re.ASCII) is None:
            msg = f"{text!r} is not {what}"
            raise ValueError(msg)
        return text

    return check


def _quoted(value: object) -> object:
    if isinstance(value, int):
        msg = 'is a number to YAML; write it in quotes, such as "12:00:00"'
        raise ValueError(msg)
    return value


def _option(text: str) -> str:
    _one_line(text)
    match = re.match(r"--?([A-Za-z][\w-]*)", text, flags=re.ASCII)
    if match is None:
        msg = f"{text!r} is not an option of sbatch, such as --mail-type=END"
        raise ValueError(msg)
    if match[1] in _OWN_OPTIONS:
        msg = f"{match[0]} is set by kis; use the keys of cluster, or your own templates"
        raise ValueError(msg)
    return text


def _mount(text: str) -> str:
    _one_line(text)
    if "," in text or not text.startswith("/"):
        msg = f"{text!r} is not a mount, such as /data or /data:/data:ro (without commas)"
        raise ValueError(msg)
    return text


def _variables(variables: dict[str, str]) -> dict[str, str]:
    for name in variables:
        _matching(r"[A-Za-z_]\w*", "the name of a variable")(name)
    return variables


Line = Annotated[str, AfterValidator(_one_line)]
Name = Annotated[str, AfterValidator(_matching(r"[A-Za-z0-9_][\w.,:@+=/-]*", "a name in the form that SLURM uses"))]
Constraint = Annotated[
    str, AfterValidator(_matching(r"[\w.,:&|*+!\[\]()-]+", "a constraint such as h100|h200, without spaces"))
]
Memory = Annotated[str, AfterValidator(_matching(r"\d+[KMGT]?", "an amount of memory, such as 64G"))]
TimeLimit = Annotated[
    str,
    BeforeValidator(_quoted),
    AfterValidator(
        _matching(
            r"UNLIMITED|(\d+-\d+(:\d\d){0,2})|(\d+(:\d\d){0,2})",
            "a time, such as 12:00:00 or 2-00:00:00, or UNLIMITED",
        )
    ),
]


def seconds_of(limit: str) -> int | None:
    """A time limit in seconds, in SLURM's notations: minutes, m:s, h:m:s, d-h, d-h:m, d-h:m:s.

    Returns:
        None where there is none: ``UNLIMITED``, or a time of zero, which means the same to SLURM.
    """
    if limit == "UNLIMITED":
        return None
    days, dash, rest = limit.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if not dash:
        parts = [0, *parts, 0] if len(parts) == 1 else [0] * (3 - len(parts)) + parts
    hours, minutes, seconds = [*parts, 0, 0][:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds or None


class JobConfig(Config):
    """Resources of one kind of job; what is not given here is that of ``cluster``."""

    account: Name | None = None
    """Account to charge."""

    partition: Name | None = None
    """Partition, or several between commas."""

    qos: Name | None = None
    """Quality of service (QOS) under which the job is queued."""

    constraint: Constraint | None = None
    """Features that a node must have."""

    time_limit: TimeLimit | None = None
    """Time limit of one job (``"12:00:00"``, in quotes); the partition's if not given. Cells that take longer are saved
    before it is over, requeued, and resumed. ``UNLIMITED`` (or ``"0"``) is no limit; where a partition has one, SLURM
    refuses such a job, or never starts it."""

    memory: Memory | None = None
    """Memory per node; the partition's if not given. ``"0"`` is all of it."""

    options: tuple[Annotated[str, AfterValidator(_option)], ...] = ()
    """Further options of sbatch, one line each, such as ``--exclusive`` or ``--mail-type=END``."""


class DataJobConfig(JobConfig):
    """A job of one process without GPUs."""

    cpus: PositiveInt = 4
    """Number of cores of the job."""


class SmallJobsConfig(JobConfig):
    """Cells that fit into a task of the array, several of them in each."""

    cells_per_task: PositiveInt = 8
    """Cells that a task of the array executes. ``executor`` says how many of them run side by side (``workers``,
    ``cells_per_gpu``). Few tasks of many cells are a smaller load on the scheduler than many tasks."""

    gpus: NonNegativeInt | None = None
    """GPUs of a task; one if the nodes have any. Cells of more ranks are large ones."""

    cpus: PositiveInt = 4
    """Number of cores of a task."""

    at_once: PositiveInt | None = None
    """Tasks that may run at the same time; as many as the queue allows if not given."""


class LargeJobsConfig(JobConfig):
    """Cells of several ranks, each on nodes of its own."""

    launcher: Literal["srun", "torchrun"] = "srun"
    """``srun`` starts every rank itself; with ``torchrun``, srun starts one torchrun per node, which starts the
    ranks."""

    ranks_per_node: PositiveInt | None = None
    """Ranks that share a node; its GPUs if not given (one where there are none)."""

    cpus_per_rank: PositiveInt = 4
    """Number of cores of a rank."""

    at_once: PositiveInt | None = None
    """Cells of one shape that may run at the same time; as many as the queue allows if not given."""


class ContainerConfig(Config):
    """The container in which everything runs."""

    kind: Literal["pyxis", "apptainer"]
    """``pyxis``: srun's ``--container-image`` (enroot); ``apptainer``: ``apptainer exec`` on the nodes."""

    image: Line
    """Image: a file, or an address as pyxis (``nvcr.io#nvidia/pytorch:25.06-py3``) or apptainer understands it."""

    mounts: tuple[Annotated[str, AfterValidator(_mount)], ...] = ()
    """Folders of the host, ``/source``, ``/source:/target`` or ``/source:/target:ro``. The folder in which the study
    was submitted and the study's own are always there."""

    python: Line = "python"
    """Python inside, in which megatron_kis is installed."""


class ClusterConfig(JobConfig):
    """How ``kis study submit`` runs the study on a SLURM cluster."""

    gpus_per_node: NonNegativeInt = 0
    """GPUs of a node; 0 trains on CPUs."""

    gres: Annotated[str, AfterValidator(_matching(r"[A-Za-z][\w.-]*(:[\w.-]+)?", "a resource such as gpu:h100"))] = (
        "gpu"
    )
    """Name of the GPUs as a resource: jobs ask for ``--gres=<gres>:<number>``."""

    data: DataJobConfig = DataJobConfig()
    """The job that prepares the data."""

    small: SmallJobsConfig = SmallJobsConfig()
    """The arrays of small cells."""

    large: LargeJobsConfig = LargeJobsConfig()
    """The jobs of large cells."""

    report: DataJobConfig = DataJobConfig()
    """The job that writes the report."""

    grace_seconds: int = Field(300, ge=10)
    """Seconds before the time limit at which a job is signalled, so that its cells can save a checkpoint. SLURM checks
    every 30 seconds, and may be up to 60 seconds early."""

    requeues_without_progress: int = Field(2, ge=0)
    """Number of times in a row that a job may be requeued without a new checkpoint; then it ends, and names its
    cells."""

    container: ContainerConfig | None = None
    """Container; none if not given. Large cells also need megatron_kis on the host, where ``srun`` is."""

    modules: tuple[Name, ...] = ()
    """Environment modules to load."""

    environment: Annotated[dict[str, Line], AfterValidator(_variables)] = Field(default_factory=dict)
    """Variables for all jobs. They have precedence over those that kis sets (MASTER_ADDR, GLOO_SOCKET_IFNAME ...)."""

    setup: tuple[Line, ...] = ()
    """Shell commands before everything else, such as ``source /opt/env/bin/activate``. They are run as they are."""

    python: Line | None = None
    """Python on the nodes, outside of any container; if not given, the Python that submits."""

    max_array_size: PositiveInt | None = None
    """Largest number of tasks of one array; the cluster's MaxArraySize if not given."""

    templates: Path | None = None
    """Folder with edited templates of the scripts. For files that are not there, the templates of kis are used."""

    @model_validator(mode="after")
    def _can_be_told_in_time(self) -> ClusterConfig:
        for name in ("small", "large"):
            limit = getattr(self, name).time_limit or self.time_limit
            seconds = None if limit is None else seconds_of(limit)
            if seconds is not None and seconds <= self.grace_seconds:
                msg = f"{name}: the time limit {limit} is not longer than grace_seconds ({self.grace_seconds})"
                raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _fits_a_node(self) -> ClusterConfig:
        for name, count in (("small.gpus", self.gpus_per_task), ("large.ranks_per_node", self.large.ranks_per_node)):
            if count and count > self.gpus_per_node and (self.gpus_per_node or name == "small.gpus"):
                msg = f"{name} is {count}, and a node has {self.gpus_per_node} GPUs (gpus_per_node)"
                raise ValueError(msg)
        return self

    @property
    def gpus_per_task(self) -> int:
        """Number of GPUs of a task of small cells."""
        return min(1, self.gpus_per_node) if self.small.gpus is None else self.small.gpus

    @property
    def ranks_per_node(self) -> int:
        """Number of ranks of large cells on a node."""
        return self.large.ranks_per_node or max(1, self.gpus_per_node)
