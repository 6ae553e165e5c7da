"""The states of a study's jobs: from SLURM's controller, and from accounting for what that has forgotten."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from megatron_kis.common.errors import InputError
from megatron_kis.common.units import plural
from megatron_kis.executor.slurm import client
from megatron_kis.executor.slurm.records import Submitted, read_tasks, submission_folder, submitted

_OVER = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
}
_NO_REASON = {"None", "(null)", ""}


@dataclass(frozen=True)
class Queued:
    """State of a run in a scheduler's queue."""

    state: str
    """State in the scheduler's word, such as PENDING or RUNNING."""

    job: str = ""
    """Number of its job."""

    reason: str = ""
    """Reason for waiting, in the scheduler's word."""


@dataclass(frozen=True)
class Task:
    """A job, or a task of an array, or the tasks of an array that still wait together."""

    job: Submitted
    """Job that was submitted."""

    number: str
    """Number as SLURM's commands take it: ``123``, or ``123_4``."""

    indices: tuple[int, ...]
    """Tasks of the array; none where the job is no array."""

    state: str
    """State in SLURM's word, such as PENDING."""

    reason: str = ""
    """Reason for waiting, in SLURM's word."""

    restarts: int = 0
    """Number of times that it was requeued."""

    @property
    def live(self) -> bool:
        """True while it waits, runs, or is being ended."""
        return self.state not in _OVER


class Queue:
    """The queue as a study sees it, read repeatedly; SLURM is asked only once about a job that is over."""

    def __init__(self, output: Path, *, every: float = 15.0) -> None:
        """Asks nothing yet.

        Args:
            output: folder of the study.
            every: seconds for which an answer is used again, to spare the controller.
        """
        self._output = output
        self._every = every
        self._over: set[tuple[str, int]] = set()
        self._asked = -math.inf
        self._runs: dict[str, Queued] = {}

    def runs(self) -> dict[str, Queued]:
        """Returns the state of each run that is in the queue, by its name.

        Raises:
            InputError: SLURM is not installed here.
            JobError: its controller does not answer.
        """
        if time.monotonic() - self._asked < self._every:
            return self._runs
        self._runs = {}
        lists: dict[int, dict[tuple[str, int], list[str]]] = {}
        for job in submitted(self._output):
            if (job.name, job.first) in self._over:
                continue
            tasks = _tasks_of(job)
            if not any(task.live for task in tasks):
                self._over.add((job.name, job.first))
            for task in tasks:
                if task.live and task.indices:
                    if job.submission not in lists:
                        lists[job.submission] = _runs_by_task(self._output, job.submission)
                    self._note(task, lists[job.submission])
        self._asked = time.monotonic()
        return self._runs

    def _note(self, task: Task, listed: dict[tuple[str, int], list[str]]) -> None:
        array = task.number.partition("_")[0]
        state = f"{task.state}, requeued {plural(task.restarts, 'time')}" if task.restarts else task.state
        for index in task.indices:
            for run in listed.get((task.job.label, task.job.first + index), ()):
                self._runs[run] = Queued(state, f"{array}_{index}", "" if task.reason in _NO_REASON else task.reason)


def live_tasks(output: Path) -> list[Task]:
    """Returns the tasks of a study that still wait or run."""
    return [task for task in tasks_of(output) if task.live]


def runs_in(output: Path, tasks: list[Task]) -> set[str]:
    """Returns the names of the runs of some tasks."""
    found: set[str] = set()
    for number in {task.job.submission for task in tasks}:
        listed = _runs_by_task(output, number)
        for task in tasks:
            if task.job.submission == number:
                for index in task.indices:
                    found.update(listed.get((task.job.label, task.job.first + index), ()))
    return found


def tasks_of(output: Path) -> Iterator[Task]:
    """Yields all jobs of a study that SLURM still knows, in the order of their submission."""
    for job in submitted(output):
        yield from _tasks_of(job)


def _tasks_of(job: Submitted) -> list[Task]:
    if job.refused or job.number is None:
        return []
    found = [task for line in client.show_job(job.number) if (task := _from_controller(job, line))]
    return found or [task for row in client.account_of(job.number) if (task := _from_accounting(job, row))]


def _from_controller(job: Submitted, line: str) -> Task | None:
    """Reads a line of ``scontrol -o show job``; None if another job has the number now."""
    if _value(line, "JobName") != job.name:
        return None
    array = _value(line, "ArrayTaskId")
    indices: tuple[int, ...] = ()
    number = _value(line, "ArrayJobId") or _value(line, "JobId")
    if array:
        indices = tuple(_indices(array))
        number += f"_{array}" if array.isdecimal() else ""
    return Task(
        job,
        number,
        indices,
        state=_value(line, "JobState"),
        reason=_value(line, "Reason"),
        restarts=int(_value(line, "Restarts") or 0),
    )


def _from_accounting(job: Submitted, row: list[str]) -> Task | None:
    number, name, state = row
    if name != job.name:
        return None
    _, _, array = number.partition("_")
    return Task(job, number, tuple(_indices(array.strip("[]"))) if array else (), state=state.split(" ")[0])


def _value(line: str, key: str) -> str:
    """Returns the first value of a key: those that users choose (folders, comments) come after all that we read."""
    match = re.search(rf"(?:^| ){key}=(\S*)", line)
    return match[1] if match else ""


def _indices(text: str) -> Iterator[int]:
    """Yields the tasks of SLURM's notation: ``0,3-5%2`` -> 0, 3, 4, 5; a step (``0-8:4``) is understood, too."""
    for part in text.partition("%")[0].split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part)
        if match:
            first, last, step = match.groups()
            yield from range(int(first), int(last or first) + 1, int(step or 1))


def _runs_by_task(output: Path, number: int) -> dict[tuple[str, int], list[str]]:
    try:
        return read_tasks(submission_folder(output, number))
    except InputError:
        return {}  # it was removed; its runs are known by their folders alone
