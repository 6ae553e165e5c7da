"""SLURM's own commands, called with lists of arguments; what they refuse is explained.

Only these are used: ``sbatch``, ``scancel``, ``scontrol`` (a job, a node, the configuration) and ``sacct``, each for
single jobs by their number, which costs a controller little however long its queue is.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from megatron_kis.common.errors import InputError, JobError
from megatron_kis.common.files import read_text

_ELSEWHERE = "submit on a machine of the cluster, or use kis study run (--dry-run shows the scripts anywhere)"
_TIMEOUT = 120.0
"""Seconds after which a command that does not answer is given up; controllers are slow at times."""

_KEPT = {"SLURM_CONF", "SLURM_JWT", "SLURM_CLUSTERS"}

_DEFAULTS = {
    "SBATCH_ACCOUNT": ("account", "A"),
    "SBATCH_CLUSTERS": ("clusters", "M"),
    "SBATCH_CONSTRAINT": ("constraint", "C"),
    "SBATCH_PARTITION": ("partition", "p"),
    "SBATCH_QOS": ("qos", "q"),
    "SBATCH_RESERVATION": ("reservation", None),
    "SBATCH_TIMELIMIT": ("time", "t"),
}
"""Variables by which a user's shell says where jobs go, and the script's options of the same meaning. sbatch itself
would give the variables priority."""

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
)


def run(*command: str, folder: Path | None = None, keep: Collection[str] = ()) -> str:
    """Runs a SLURM command and returns what it prints.

    Args:
        command: the command and its arguments.
        folder: folder in which it runs.
        keep: further variables of the environment that it sees.

    Raises:
        InputError: SLURM is not installed here, or refuses what was asked for.
        JobError: its controller does not answer.
    """
    try:
        ended = subprocess.run(
            command,
            cwd=folder,
            env=_environment(os.environ, keep),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT,
            check=False,
        )
    except FileNotFoundError:
        raise InputError(
            f"{command[0]} is not installed here",
            where="SLURM",
            remedy=_ELSEWHERE,
        ) from None
    except subprocess.TimeoutExpired:
        raise JobError(f"{command[0]} did not answer for {_TIMEOUT:.0f} s; try again later") from None
    if ended.returncode == 0:
        return ended.stdout
    said = " ".join(ended.stderr.split()) or f"status {ended.returncode}"
    if re.search(r"[Uu]nable to contact slurm controller|Connection refused|Socket timed out|slurm_load_ctl", said):
        raise JobError(f"SLURM's controller does not answer ({said}); try again later")
    if re.search(r"fetch_config|configuration source|[Uu]nable to (open|read) .*slurm\.conf", said):
        raise InputError(f"SLURM is not configured on this machine ({said})", where=command[0], remedy=_ELSEWHERE)
    remedy = next((remedy for words, remedy in _REMEDIES if words.lower() in said.lower()), None)
    raise InputError(said, where=command[0], remedy=remedy or "change cluster: in the study, or the templates")


def sbatch(script: Path, *, options: Sequence[str], arguments: Sequence[str] = ()) -> str:
    """Submits a script from its own folder and returns the job's number.

    What the script does not say, the variables of the shell may (``used_variables``).

    Raises:
        InputError: it is refused.
        JobError: the controller does not answer.
    """
    kept = used_variables(read_text(script), os.environ)
    printed = run("sbatch", "--parsable", *options, script.name, *arguments, folder=script.parent, keep=kept)
    number = printed.strip().split(";")[0]  # followed by the cluster's name where there are several
    if not number.isdecimal():
        raise JobError(f"sbatch printed {printed.strip()!r} where the job's number was expected")
    return number


def used_variables(script: str, environment: Mapping[str, str]) -> set[str]:
    """Returns the variables for sbatch that count: those that say what a script leaves open.

    Args:
        script: text of the script, with its ``#SBATCH`` lines.
        environment: variables of the shell.
    """
    said = _options_of(script)
    return {
        name
        for name, (long, short) in _DEFAULTS.items()
        if name in environment and not any(long.startswith(word) or word == f"-{short}" for word in said)
    }


def unused_variables(scripts: Iterable[str], environment: Mapping[str, str]) -> list[str]:
    """Returns the variables for sbatch that do not count for all of some scripts, sorted."""
    given = {name for name in environment if name.startswith("SBATCH_")}
    used = given
    for script in scripts:
        used = used & used_variables(script, environment)
    return sorted(given - used)


def scancel(jobs: Sequence[str]) -> None:
    """Ends jobs; those that are over already are skipped."""
    if jobs:
        run("scancel", "--quiet", *jobs)


def show_job(number: str) -> list[str]:
    """Returns one line per job, or per task of an array, of ``scontrol -o show job``; none of a forgotten job."""
    try:
        printed = run("scontrol", "-o", "show", "job", number)
    except InputError as error:
        if "Invalid job id" in str(error):
            return []
        raise
    return [line for line in printed.splitlines() if line.startswith("JobId=")]


def account_of(number: str) -> list[list[str]]:
    """Returns (number, name, state) of a job, or of each task, from accounting; none where there is no accounting."""
    try:
        printed = run("sacct", "-X", "-n", "-P", "-j", number, "-o", "JobID,JobName,State")
    except (InputError, JobError):
        return []
    return [line.split("|") for line in printed.splitlines() if line.count("|") == 2]


def max_array_size(fallback: int = 1001) -> int:
    """Returns the largest number of tasks of an array; SLURM's own default where it does not say."""
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", run("scontrol", "show", "config"), flags=re.M)
    return int(match[1]) if match else fallback


def node_address(name: str) -> str | None:
    """Returns the address at which SLURM itself finds a node."""
    match = re.search(r"\bNodeAddr=(\S+)", run("scontrol", "-o", "show", "node", name))
    return match[1] if match else None


def _options_of(script: str) -> set[str]:
    """Returns the options of a script's ``#SBATCH`` lines, as sbatch reads them: up to the first command.

    Long options are returned by their names (which may be abbreviated), short ones as ``-p``.
    """
    options = set()
    for line in script.splitlines():
        if line.strip() and not line.startswith("#"):
            break
        if match := re.match(r"#SBATCH\s+(.*)", line):
            words = match[1].split()
            options |= {word[2:].partition("=")[0] for word in words if re.match(r"--\w", word)}
            options |= {word[:2] for word in words if re.match(r"-\w", word)}
    return options


def _environment(environment: Mapping[str, str], keep: Collection[str]) -> dict[str, str]:
    """Returns the environment without the variables of a job in which we may be, and without the shell's for new jobs.

    sbatch would pass on the former, and prefer the latter to what the script says.
    """
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith(("SLURM_", "SBATCH_")) or name in _KEPT or name in keep
    }
