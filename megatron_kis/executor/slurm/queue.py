"""Where a study's jobs stand, by SLURM: from the controller, and from accounting for what it has forgotten."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from megatron_kis.common.errors import InputError
from megatron_kis.executor.slurm import client
from megatron_kis.executor.slurm.records import Submitted, read_tasks, submission_folder, submitted

_OVER = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
}  # fmt: skip
_PLAIN = {"None", "(null)", ""}
"""Reasons that are none."""


@dataclass(frozen=True)
class Queued:
    """What a scheduler says of a cell."""

    state: str
    """In the scheduler's word, such as PENDING or RUNNING."""

    job: str = ""
    """Number of its job."""

    reason: str = ""
    """Why it waits, in the scheduler's word."""


@dataclass(frozen=True)
class Task:
    """A job, or a task of an array, or the tasks of an array that still wait together."""

    job: Submitted
    """What was submitted."""

    number: str
    """As SLURM's commands take it: ``123``, or ``123_4``."""

    indices: tuple[int, ...]
    """Tasks of the array; none where the job is no array."""

    state: str
    """SLURM's word, such as PENDING."""

    reason: str = ""
    """Why it waits."""

    restarts: int = 0
    """How often it was requeued."""

    @property
    def live(self) -> bool:
        """Whether it waits, runs, or is being ended."""
        return self.state not in _OVER


class Queue:
    """The queue as a study sees it, looked at again and again; what is over is asked for once."""

    def __init__(self, output: Path, *, every: float = 15.0) -> None:
        """Asks nothing yet.

        Args:
            output: the study's folder.
            every: seconds for which an answer serves; controllers have better things to do.
        """
        self._output, self._every = output, every
        self._over: set[tuple[str, int]] = set()
        self._asked = -math.inf
        self._cells: dict[str, Queued] = {}

    def cells(self) -> dict[str, Queued]:
        """What the queue says of each cell that it holds; nothing where none was submitted.

        Raises:
            InputError: SLURM is not installed here.
            JobError: its controller does not answer.
        """
        if time.monotonic() - self._asked < self._every:
            return self._cells
        self._cells = {}
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
                        lists[job.submission] = _lists(self._output, job.submission)
                    self._note(task, lists[job.submission])
        self._asked = time.monotonic()
        return self._cells

    def _note(self, task: Task, listed: dict[tuple[str, int], list[str]]) -> None:
        array = task.number.partition("_")[0]
        state = f"{task.state}, requeued {task.restarts} times" if task.restarts else task.state
        for index in task.indices:
            for cell in listed.get((task.job.label, task.job.first + index), ()):
                self._cells[cell] = Queued(state, f"{array}_{index}", "" if task.reason in _PLAIN else task.reason)


def live_tasks(output: Path) -> list[Task]:
    """What of a study still waits or runs."""
    return [task for task in tasks_of(output) if task.live]


def cells_of(output: Path, tasks: list[Task]) -> set[str]:
    """The cells of some tasks."""
    found: set[str] = set()
    for number in {task.job.submission for task in tasks}:
        listed = _lists(output, number)
        for task in tasks:
            if task.job.submission == number:
                for index in task.indices:
                    found.update(listed.get((task.job.label, task.job.first + index), ()))
    return found


def tasks_of(output: Path) -> Iterator[Task]:
    """All jobs of a study that SLURM still knows, in the order of their submission."""
    for job in submitted(output):
        yield from _tasks_of(job)


def _tasks_of(job: Submitted) -> list[Task]:
    if job.refused or job.number is None:
        return []
    found = [task for line in client.show_job(job.number) if (task := _from_controller(job, line))]
    return found or [task for row in client.account_of(job.number) if (task := _from_accounting(job, row))]


def _from_controller(job: Submitted, line: str) -> Task | None:
    """A line of ``scontrol -o show job``; None if it is another job that has the number now."""
    if _value(line, "JobName") != job.name:
        return None
    array, indices = _value(line, "ArrayTaskId"), tuple[int, ...]()
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
    """The first value of a key: those that users choose (folders, comments) come behind all that we read."""
    match = re.search(rf"(?:^| ){key}=(\S*)", line)
    return match[1] if match else ""


def _indices(text: str) -> Iterator[int]:
    """SLURM's list of tasks: ``0,3-5%2`` -> 0, 3, 4, 5; a step (``0-8:4``) is understood, too."""
    for part in text.partition("%")[0].split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part)
        if match:
            first, last, step = match.groups()
            yield from range(int(first), int(last or first) + 1, int(step or 1))


def _lists(output: Path, number: int) -> dict[tuple[str, int], list[str]]:
    try:
        return read_tasks(submission_folder(output, number))
    except InputError:
        return {}  # somebody cleared it away; its cells are known by their folders alone
