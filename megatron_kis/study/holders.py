"""Holders of the data of a study: runs that were trained on them, runs that train on them, jobs that wait for them.

Data that something holds are not made again with other content. A run that has ended holds the data that it was trained
on, and none if there are other data by now; so does a checkpoint. A running run and a job in the queue hold the data
that are there. All folders count, also those of runs that the study no longer names.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_kis.common.errors import InputError, KisError, first_of
from megatron_kis.common.files import read_json
from megatron_kis.common.identity import RUN_FILE, RUN_SCHEMA
from megatron_kis.common.units import plural
from megatron_kis.executor.lease import LEASE_SECONDS, is_live, read_lease
from megatron_kis.executor.slurm.queue import live_tasks
from megatron_kis.executor.slurm.records import Submitted, read_tasks, submission_folder, submitted
from megatron_kis.study.conflicts import newest_identity
from megatron_kis.study.data import same_data

_SHOWN = 3  # names of each kind
_SHOWN_DIFFERENCES = 6


@dataclass(frozen=True)
class Holders:
    """Runs and jobs that hold some data."""

    runs: tuple[str, ...] = ()
    """Complete runs that hold the data."""

    checkpoints: tuple[str, ...] = ()
    """Unfinished runs with checkpoints."""

    running: tuple[str, ...] = ()
    """Runs that are being executed."""

    jobs: tuple[str, ...] = ()
    """Numbers of SLURM's jobs that wait or run."""

    unknown: tuple[str, ...] = ()
    """Numbers of jobs that may be over or not."""

    problem: str = ""
    """Why that is not known."""

    def __bool__(self) -> bool:
        """Tells whether anything holds the data."""
        return bool(self.runs or self.checkpoints or self.running or self.jobs or self.unknown)

    def __str__(self) -> str:
        """Names the first of each kind."""
        parts = [
            _counted(self.runs, "complete run"),
            _counted(self.checkpoints, "unfinished run", "with checkpoints"),
            _counted(self.running, "run", "in progress"),
            _counted(self.jobs, "job", "in the queue"),
            _counted(self.unknown, "job", f"that may still wait or run ({self.problem})"),
        ]
        return ", ".join(part for part in parts if part)

    @property
    def remedy(self) -> str:
        """Remedies, for the user."""
        ways = ["restore the settings and sources", "give the study another 'output'"]
        if self.runs or self.checkpoints:
            ways.append("move or remove those runs")
        if self.checkpoints and not self.runs:
            ways.append("begin them again with --restart")
        if self.running or self.jobs or self.unknown:
            ways.append("end what is at work with kis study cancel")
        return ", ".join(ways[:-1]) + f", or {ways[-1]}"


def holders_of(
    output: Path,
    there: Mapping[str, str],
    *,
    lease: float = LEASE_SECONDS,
    submission: int | None = None,
    restarted: Collection[str] = (),
) -> Holders:
    """Returns what holds the data of a study.

    Args:
        output: folder of the study.
        there: fingerprints of the data that are there; nothing holds data that are not there.
        lease: duration of leases, seconds.
        submission: number of the submission that asks; its jobs do not count.
        restarted: names of runs that are to begin again, so that their checkpoints hold nothing.
    """
    if not there:
        return Holders()
    runs = []
    checkpoints = []
    running = []
    for folder in _run_folders(output):
        if (folder / "DONE").exists():
            if same_data(_data_of_run(folder), there):
                runs.append(folder.name)
            continue
        data = None if folder.name in restarted else _data_of_checkpoint(folder)
        if data is not None and same_data(data, there):
            checkpoints.append(folder.name)
        held = read_lease(folder)
        if held is not None and is_live(held, seconds=lease):
            running.append(folder.name)
    jobs, unknown, problem = _jobs(output, submission)
    return Holders(tuple(runs), tuple(checkpoints), tuple(running), tuple(jobs), tuple(unknown), problem)


def refusal(
    output: Path,
    there: Mapping[str, str],
    *,
    lease: float = LEASE_SECONDS,
    submission: int | None = None,
    restarted: Collection[str] = (),
) -> Callable[[str, list[str]], None]:
    """Returns what ``prepare_data`` calls before it makes a step again: an error while something holds the data.

    Args:
        output: folder of the study.
        there: fingerprints of the data that are there.
        lease: duration of leases, seconds.
        submission: number of the submission that asks; its jobs do not count.
        restarted: see ``holders_of``.

    Returns:
        A function of a step and its differences, which raises ``InputError``.
    """
    found: list[Holders] = []

    def held(step: str, differences: list[str]) -> None:
        if not found:
            found.append(holders_of(output, there, lease=lease, submission=submission, restarted=restarted))
        if found[0]:
            raise refused(output, differences or [f"{step} changed"], found[0])

    return held


def refused(output: Path, differences: Sequence[str], holders: Holders) -> InputError:
    """Returns the error: what differs, what holds the data, and what the user can do."""
    shown = first_of(differences, _SHOWN_DIFFERENCES, separator="; ")
    return InputError(
        f"the data there are not those of the study ({shown}), and are not made again: they are held by {holders}",
        where=str(output / "data"),
        remedy=holders.remedy,
    )


def _run_folders(output: Path) -> Iterator[Path]:
    runs = output / "runs"
    if runs.is_dir():
        yield from sorted(path for path in runs.iterdir() if path.is_dir() and not path.name.startswith("."))


def _data_of_run(folder: Path) -> dict[str, Any]:
    """Returns the fingerprints of a run's data; none where its record is damaged, which counts as holding any data."""
    try:
        prints = read_json(folder / RUN_FILE, RUN_SCHEMA).get("fingerprints")
    except InputError:
        return {}
    return prints if isinstance(prints, dict) else {}


def _data_of_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Returns the fingerprints of the newest checkpoint's data; None where there is no checkpoint."""
    identity = newest_identity(folder)
    if identity is None:
        return None
    data = identity.get("data")
    return data if isinstance(data, dict) else {}


def _jobs(output: Path, submission: int | None) -> tuple[list[str], list[str], str]:
    """Returns the numbers of jobs that wait or run, of those that may, and why that is not known."""
    rows = [job for job in submitted(output) if _counts(job, submission) and not _over(output, job)]
    if not rows:
        return [], [], ""
    try:
        live = [task for task in live_tasks(output) if _counts(task.job, submission)]
    except KisError as error:
        return [], sorted({str(job.number) for job in rows}, key=_as_number), str(error)
    return sorted({task.number.partition("_")[0] for task in live}, key=_as_number), [], ""


def _counts(job: Submitted, submission: int | None) -> bool:
    """Tells whether a job reads data: the report's does not."""
    return job.number is not None and not job.refused and job.submission != submission and job.label != "report"


def _over(output: Path, job: Submitted) -> bool:
    """Tells whether the folders alone say that a job is over: every run of its submission is DONE."""
    try:
        tasks = read_tasks(submission_folder(output, job.submission))
    except InputError:
        return False
    names = {name for task in tasks.values() for name in task}
    return bool(names) and all((output / "runs" / name / "DONE").exists() for name in names)


def _as_number(text: str) -> tuple[int, str]:
    return (int(text) if text.isdecimal() else 0, text)


def _counted(names: Sequence[str], kind: str, more: str = "") -> str:
    if not names:
        return ""
    shown = first_of(names, _SHOWN)
    words = plural(len(names), kind)
    return f"{words} {more} ({shown})" if more else f"{words} ({shown})"
