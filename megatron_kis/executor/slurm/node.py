"""What the worker of a batch script does on a node: its share of the cells, and whether to go on later."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from megatron_kis.common.errors import InputError, JobError, Stopped
from megatron_kis.common.files import read_json, write_json
from megatron_kis.config.run import RunConfig
from megatron_kis.config.study import ExecutorConfig, StudyConfig
from megatron_kis.executor.executor import Progress
from megatron_kis.executor.resources import Machine
from megatron_kis.executor.slurm.records import read_tasks

REQUEUES = "requeues"
REQUEUES_SCHEMA = "kis.requeues/1"
_TIME_LIMIT = signal.SIGUSR1
"""What the batch script passes on before the time limit; SIGTERM is somebody's wish that the job end."""


def share(folder: Path, label: str, first: int, environment: Mapping[str, str] = os.environ) -> tuple[int, list[str]]:
    """Which task of a job this process is, and the names of its cells.

    Args:
        folder: of the submission.
        label: the job.
        first: the job's task that is task 0 of the array.
        environment: SLURM_ARRAY_TASK_ID says which task of the array it is.

    Raises:
        InputError: there is no such task.
    """
    task = first + int(environment.get("SLURM_ARRAY_TASK_ID") or 0)
    cells = read_tasks(folder).get((label, task))
    if cells is None:
        raise InputError(f"has no task {task} of {label!r}", where=str(folder), remedy="submit the study again")
    return task, cells


def executor_settings(study: StudyConfig, environment: Mapping[str, str] = os.environ) -> ExecutorConfig:
    """The study's settings of the executor within a task of SLURM's."""
    settings = study.executor
    update: dict[str, object] = {"grace_seconds": max(5.0, 0.8 * study.cluster.grace_seconds)}
    cores = int(environment.get("SLURM_CPUS_PER_TASK") or study.cluster.small.cpus)
    shown = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    if shown > cores:
        # Nothing keeps us to our share of the node; others would be pinned to the same cores, and we must count.
        update["pin"] = False
        if settings.workers is None and not study.cluster.gpus_per_task:
            update["workers"] = max(1, cores // settings.threads)
    return settings.model_copy(update=update)


def batch_machine() -> Machine:
    """For a cell whose ranks run in steps of their own: nothing is dealt out to it here."""
    return Machine(gpus=(), cores=tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else (0,))


class Told:
    """The signal that came before the cells were started; 0 for none."""

    number = 0

    def __call__(self, number: int, _frame: object) -> None:
        """The handler."""
        self.number = self.number or number


@contextmanager
def signals_kept() -> Iterator[Told]:
    """Keeps signals that come while data are checked and no cell runs yet."""
    told = Told()
    previous = {number: signal.signal(number, told) for number in (_TIME_LIMIT, signal.SIGTERM)}
    try:
        yield told
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Requeues:
    """How often a task was requeued without having come further: it ends when that is too often."""

    def __init__(self, folder: Path, label: str, task: int) -> None:
        """Reads what the task's earlier starts have left."""
        self._path = folder / REQUEUES / f"{label}-{task}.json"
        self._steps, self._in_vain = 0, 0
        if self._path.exists():
            content = read_json(self._path, REQUEUES_SCHEMA, keys=("steps", "in_vain"))
            self._steps, self._in_vain = content["steps"], content["in_vain"]

    def worthwhile(self, cells: Sequence[RunConfig], *, at_most: int) -> bool:
        """Whether to requeue once more; notes where the cells stand.

        Args:
            cells: of the task.
            at_most: requeues in a row without progress.
        """
        steps = sum(map(saved_steps, cells))
        self._in_vain = 0 if steps > self._steps else self._in_vain + 1
        self._steps = steps
        write_json(self._path, {"schema": REQUEUES_SCHEMA, "steps": steps, "in_vain": self._in_vain})
        return self._in_vain <= at_most


def saved_steps(run: RunConfig) -> int:
    """Steps of a run that will not be done again: those of its newest checkpoint, or all."""
    if (run.output / "DONE").exists():
        return run.training.steps
    names = (path.name for path in (run.output / "checkpoints").glob("step-*"))
    return max((int(match[1]) for name in names if (match := re.fullmatch(r"step-(\d+)", name))), default=0)


def conclude(ended: Progress, cells: Sequence[RunConfig], requeues: Requeues, *, at_most: int) -> None:
    """Says by its error how the worker ends; returns if all went well.

    Args:
        ended: how the executor ended.
        cells: of the task.
        requeues: of the task.
        at_most: requeues in a row without progress.

    Raises:
        Stopped: the cells go on after a requeue, or when the study is submitted again.
        JobError: some were given up, or no requeue brings them further.
    """
    if ended.signal == _TIME_LIMIT and ended.stopped:
        if requeues.worthwhile(cells, at_most=at_most):
            why = "the time limit is near, or the job is preempted"
            raise Stopped(f"{why}; {len(ended.stopped)} cells resume after a requeue")
        raise JobError(
            f"requeued {at_most + 1} times without a new checkpoint of {', '.join(ended.stopped)}; "
            "raise cluster.time_limit or cluster.grace_seconds, or lower cluster.small.cells_per_task"
        )
    if ended.signal and ended.stopped:
        later = "after a requeue, or when the study is submitted again"
        raise Stopped(f"told to end; {len(ended.stopped)} cells resume {later}")
    if ended.failed:
        raise JobError(
            f"{len(ended.failed)} of {ended.total} cells failed and were given up: {', '.join(ended.failed)}"
        )


def note(line: str) -> None:
    """A line of the batch script's log."""
    print(line, file=sys.stderr, flush=True)
