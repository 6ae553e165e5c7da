"""Where a study's jobs stand, by SLURM: from the controller, and from accounting for what it has forgotten."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from megatron_kis.errors import InputError
from megatron_kis.study.slurm import client
from megatron_kis.study.slurm.records import Submitted, read_tasks, submission_folder, submitted

_OVER = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
}  # fmt: skip
_PASSING = {"None", "Priority", "Resources", "Dependency", "BeginTime", "JobArrayTaskLimit", "(null)", ""}
"""Reasons for which a job waits and that need nobody's attention."""


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

    @property
    def word(self) -> str:
        """For a table: ``queued``, ``requeued``, ``running``, or how it ended."""
        if self.state in ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT"):
            word = "requeued" if self.restarts else "queued"
            return word if self.reason in _PASSING else f"{word} ({self.reason})"
        return self.state.lower().replace("_", " ")


def queue_states(output: Path) -> dict[str, tuple[str, str]]:
    """What the queue says of each cell that was submitted and is not DONE.

    Args:
        output: the study's folder.

    Returns:
        Cell to (state, number of its job). States: ``queued``, ``requeued``, ``running``, ``completing``, or how its
        newest job ended (``timeout``, ``cancelled`` ...). Empty where nothing was submitted.

    Raises:
        InputError: SLURM is not installed here.
        JobError: its controller does not answer.
    """
    states: dict[str, tuple[str, str]] = {}
    lists: dict[int, dict[tuple[str, int], list[str]]] = {}
    for task in tasks_of(output):
        if not task.indices:
            continue
        number = task.job.submission
        if number not in lists:
            lists[number] = _lists(output, number)
        for index in task.indices:
            place = f"{task.number.partition('_')[0]}_{index}"
            for cell in lists[number].get((task.job.label, task.job.first + index), ()):
                states[cell] = (task.word, place)
    return states


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
        if job.refused or job.number is None:
            continue
        found = [task for line in client.show_job(job.number) if (task := _from_controller(job, line))]
        yield from found or filter(None, (_from_accounting(job, row) for row in client.account_of(job.number)))


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
