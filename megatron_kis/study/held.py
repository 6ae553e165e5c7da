"""Who holds the data of a study: what was trained on them, trains on them, or waits for them.

Data that somebody holds are not made again with other content. A run that has ended holds the data that it was trained
on, and none if other data are there by now; so does a checkpoint. A cell at work and a job in the queue hold what is
there. All folders count, also of cells that the study no longer names.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_kis.common.errors import InputError, KisError, first_of
from megatron_kis.common.files import read_json
from megatron_kis.common.identity import RUN_FILE, RUN_SCHEMA
from megatron_kis.executor.lease import FOLDER as CLAIMS
from megatron_kis.executor.lease import LEASE_SECONDS, alive, look
from megatron_kis.executor.slurm.queue import live_tasks
from megatron_kis.executor.slurm.records import Submitted, read_tasks, submission_folder, submitted
from megatron_kis.study.data import same_data
from megatron_kis.study.standing import newest_identity

_SHOWN = 3  # names of each kind
_SHOWN_DIFFERENCES = 6


@dataclass(frozen=True)
class Holders:
    """Who holds some data."""

    runs: tuple[str, ...] = ()
    """Runs that are complete."""

    checkpoints: tuple[str, ...] = ()
    """Runs that are not, and have checkpoints."""

    cells: tuple[str, ...] = ()
    """Cells that are running."""

    jobs: tuple[str, ...] = ()
    """Numbers of SLURM's jobs that wait or run."""

    unknown: tuple[str, ...] = ()
    """Numbers of jobs of which nobody can say whether they are over."""

    problem: str = ""
    """Why not."""

    def __bool__(self) -> bool:
        """Whether there is anybody."""
        return bool(self.runs or self.checkpoints or self.cells or self.jobs or self.unknown)

    def __str__(self) -> str:
        """All of them, the first of each kind by name."""
        parts = [
            _counted(self.runs, "complete run"),
            _counted(self.checkpoints, "unfinished run", "with checkpoints"),
            _counted(self.cells, "running cell"),
            _counted(self.jobs, "job", "in the queue"),
            _counted(self.unknown, "job", f"that may still wait or run ({self.problem})"),
        ]
        return ", ".join(part for part in parts if part)

    @property
    def remedy(self) -> str:
        """What would be right."""
        ways = ["restore the settings and sources", "give the study another 'output'"]
        if self.runs or self.checkpoints:
            ways.append("move or remove those runs")
        if self.checkpoints and not self.runs:
            ways.append("begin them again with --restart")
        if self.cells or self.jobs or self.unknown:
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
    """Who holds the data of a study.

    Args:
        output: the study's folder.
        there: fingerprints of the data that are there; nobody holds data that are not there.
        lease: of claims, seconds.
        submission: whose jobs do not count: the one that asks.
        restarted: runs that are to begin again, so that their checkpoints hold nothing.
    """
    if not there:
        return Holders()
    runs, checkpoints, cells = [], [], []
    for folder in _run_folders(output):
        if (folder / "DONE").exists():
            if same_data(_data_of_run(folder), there):
                runs.append(folder.name)
            continue
        data = None if folder.name in restarted else _data_of_checkpoint(folder)
        if data is not None and same_data(data, there):
            checkpoints.append(folder.name)
        seen = look(folder) if (folder / CLAIMS).is_dir() else None
        if seen is not None and alive(seen, lease=lease):
            cells.append(folder.name)
    jobs, unknown, problem = _jobs(output, submission)
    return Holders(tuple(runs), tuple(checkpoints), tuple(cells), tuple(jobs), tuple(unknown), problem)


def refusal(
    output: Path,
    there: Mapping[str, str],
    *,
    lease: float = LEASE_SECONDS,
    submission: int | None = None,
    restarted: Collection[str] = (),
) -> Callable[[str, list[str]], None]:
    """For ``prepare_data``: refuses to make a step again while somebody holds the data.

    Args:
        output: the study's folder.
        there: fingerprints of the data that are there.
        lease: of claims, seconds.
        submission: whose jobs do not count.
        restarted: see ``holders_of``.

    Returns:
        A function of a step and what differs, which raises ``InputError``.
    """
    found: list[Holders] = []

    def held(step: str, differences: list[str]) -> None:
        if not found:
            found.append(holders_of(output, there, lease=lease, submission=submission, restarted=restarted))
        if found[0]:
            raise refused(output, differences or [f"{step} changed"], found[0])

    return held


def refused(output: Path, differences: Sequence[str], holders: Holders) -> InputError:
    """The error: what differs, who holds the data, and what would be right."""
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
    """The fingerprints of a run's data; none where its record is damaged, which counts as holding any."""
    try:
        prints = read_json(folder / RUN_FILE, RUN_SCHEMA).get("fingerprints")
    except InputError:
        return {}
    return prints if isinstance(prints, dict) else {}


def _data_of_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The same of the newest checkpoint; None where there is none."""
    identity = newest_identity(folder)
    if identity is None:
        return None
    data = identity.get("data")
    return data if isinstance(data, dict) else {}


def _jobs(output: Path, submission: int | None) -> tuple[list[str], list[str], str]:
    """Numbers of jobs that wait or run, numbers of those that may, and why that is not known."""
    rows = [job for job in submitted(output) if _counts(job, submission) and not _over(output, job)]
    if not rows:
        return [], [], ""
    try:
        live = [task for task in live_tasks(output) if _counts(task.job, submission)]
    except KisError as error:
        return [], sorted({str(job.number) for job in rows}, key=_as_number), str(error)
    return sorted({task.number.partition("_")[0] for task in live}, key=_as_number), [], ""


def _counts(job: Submitted, submission: int | None) -> bool:
    """Whether a job reads data: the report's does not."""
    return job.number is not None and not job.refused and job.submission != submission and job.label != "report"


def _over(output: Path, job: Submitted) -> bool:
    """Whether the folders alone say that a job is over: every cell of its submission is DONE."""
    try:
        tasks = read_tasks(submission_folder(output, job.submission))
    except InputError:
        return False
    cells = {cell for names in tasks.values() for cell in names}
    return bool(cells) and all((output / "runs" / cell / "DONE").exists() for cell in cells)


def _as_number(text: str) -> tuple[int, str]:
    return (int(text) if text.isdecimal() else 0, text)


def _counted(names: Sequence[str], kind: str, more: str = "") -> str:
    if not names:
        return ""
    shown = first_of(names, _SHOWN)
    words = f"{len(names):,} {kind}{'s' * (len(names) > 1)}"
    return f"{words} {more} ({shown})" if more else f"{words} ({shown})"
