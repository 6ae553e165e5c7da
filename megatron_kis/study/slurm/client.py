"""SLURM's own commands, called with lists of arguments; what they refuse is explained.

Only these are used: ``sbatch``, ``scancel``, ``scontrol`` (a job, a node, the configuration) and ``sacct``, each for
single jobs by their number, which costs a controller little however long its queue is.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_kis.errors import InputError, JobError

_PATIENCE = 120.0
"""Seconds after which a command that does not answer is given up; controllers are slow at times."""

_KEPT = {"SLURM_CONF", "SLURM_JWT", "SLURM_CLUSTERS"}

_REMEDIES = (
    ("Invalid account", "cluster.account must be one of yours (sacctmgr show associations user=$USER)"),
    ("Invalid qos", "cluster.qos must be one of yours (sacctmgr show associations user=$USER format=account,qos)"),
    ("invalid partition", "cluster.partition must be one that sinfo lists"),
    ("Invalid generic resource", "cluster.gres and gpus_per_node must be what the nodes have (sinfo -o '%N %G')"),
    ("Invalid feature", "cluster.constraint must be what the nodes have (sinfo -o '%N %f')"),
    ("Requested time limit is invalid", "lower cluster.time_limit; sinfo -o '%P %l' shows the limits of partitions"),
    ("Memory specification", "lower memory of the job in cluster; sinfo -o '%N %m' shows what the nodes have"),
    ("node configuration is not available", "lower cpus, memory or GPUs in cluster; see sinfo -o '%N %c %m %G'"),
    ("Invalid job array", "set cluster.max_array_size to the cluster's MaxArraySize"),
    ("submit limit", "wait for jobs to end, or raise cluster.small.cells_per_task for fewer tasks"),
    ("QOS", "the limits of the account or the QOS do not allow it; cluster.qos, time_limit and gpus decide"),
    ("dependency", "the job to wait for is gone; submit again"),
)  # fmt: skip


def run(*command: str, folder: Path | None = None) -> str:
    """What a SLURM command prints.

    Raises:
        InputError: SLURM is not installed here, or refuses what was asked for.
        JobError: its controller does not answer.
    """
    try:
        ended = subprocess.run(
            command, cwd=folder, env=_environment(os.environ), stdin=subprocess.DEVNULL, capture_output=True,
            text=True, errors="replace", timeout=_PATIENCE, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        raise InputError(
            f"there is no {command[0]} here",
            where="SLURM",
            remedy="submit on a machine of the cluster, or use kis study run (--dry-run shows the scripts anywhere)",
        ) from None
    except subprocess.TimeoutExpired:
        raise JobError(f"{command[0]} did not answer for {_PATIENCE:.0f} s; try again later") from None
    if ended.returncode == 0:
        return ended.stdout
    said = " ".join(ended.stderr.split()) or f"status {ended.returncode}"
    if re.search(r"[Uu]nable to contact slurm controller|Connection refused|Socket timed out|slurm_load_ctl", said):
        raise JobError(f"SLURM's controller does not answer ({said}); try again later")
    remedy = next((remedy for words, remedy in _REMEDIES if words.lower() in said.lower()), None)
    raise InputError(said, where=command[0], remedy=remedy or "change cluster: in the study, or the templates")


def sbatch(script: Path, *, options: Sequence[str], arguments: Sequence[str] = ()) -> str:
    """Submits a script from its own folder and returns the job's number.

    Raises:
        InputError: it is refused.
        JobError: the controller does not answer.
    """
    printed = run("sbatch", "--parsable", *options, script.name, *arguments, folder=script.parent)
    number = printed.strip().split(";")[0]  # with the cluster's name behind it where there are several
    if not number.isdecimal():
        raise JobError(f"sbatch printed {printed.strip()!r} where the job's number was expected")
    return number


def scancel(jobs: Sequence[str]) -> None:
    """Ends jobs; those that are over already are passed over."""
    if jobs:
        run("scancel", "--quiet", *jobs)


def show_job(number: str) -> list[str]:
    """A line a job, or a line a task of an array, as ``scontrol -o show job`` prints it; none if it is forgotten."""
    try:
        printed = run("scontrol", "-o", "show", "job", number)
    except InputError as error:
        if "Invalid job id" in str(error):
            return []
        raise
    return [line for line in printed.splitlines() if line.startswith("JobId=")]


def account_of(number: str) -> list[list[str]]:
    """(number, name, state) of a job, or of each task, as accounting has it; none where there is no accounting."""
    try:
        printed = run("sacct", "-X", "-n", "-P", "-j", number, "-o", "JobID,JobName,State")
    except (InputError, JobError):
        return []
    return [line.split("|") for line in printed.splitlines() if line.count("|") == 2]


def max_array_size(fallback: int = 1001) -> int:
    """Tasks that an array may have at most; SLURM's own default where it does not say."""
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", run("scontrol", "show", "config"), flags=re.M)
    return int(match[1]) if match else fallback


def node_address(name: str) -> str | None:
    """Where SLURM itself finds a node."""
    match = re.search(r"\bNodeAddr=(\S+)", run("scontrol", "-o", "show", "node", name))
    return match[1] if match else None


def _environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Without the variables of a job in which we may be: sbatch would hand them on."""
    return {name: value for name, value in environment.items() if not name.startswith("SLURM_") or name in _KEPT}
