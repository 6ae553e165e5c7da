"""The worker of a batch script on its node: which runs it executes, with what, and whether the job is requeued."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from megatron_kis.common.errors import InputError, JobError, Stopped
from megatron_kis.common.files import read_json, write_json
from megatron_kis.common.units import plural
from megatron_kis.config.executor import ExecutorConfig
from megatron_kis.config.slurm import ClusterConfig
from megatron_kis.executor.interface import Progress
from megatron_kis.executor.resources import Machine
from megatron_kis.executor.slurm.records import read_tasks

REQUEUES = "requeues"
REQUEUES_SCHEMA = "kis.requeues/1"
_TIME_LIMIT = signal.SIGUSR1
"""Signal that the batch script passes on before the time limit; SIGTERM means that somebody ends the job."""


def own_task(
    folder: Path, label: str, first: int, environment: Mapping[str, str] = os.environ
) -> tuple[int, list[str]]:
    """Returns which task of a job this process is, and the names of its runs.

    Args:
        folder: folder of the submission.
        label: label of the job.
        first: number of the job's task that is task 0 of the array.
        environment: SLURM_ARRAY_TASK_ID says which task of the array it is.

    Raises:
        InputError: there is no such task.
    """
    task = first + int(environment.get("SLURM_ARRAY_TASK_ID") or 0)
    names = read_tasks(folder).get((label, task))
    if names is None:
        raise InputError(f"has no task {task} of {label!r}", where=str(folder), remedy="submit the study again")
    return task, names


def settings_within_task(
    settings: ExecutorConfig, cluster: ClusterConfig, environment: Mapping[str, str] = os.environ
) -> ExecutorConfig:
    """Returns the settings of the executor within a task of SLURM's."""
    update: dict[str, object] = {"grace_seconds": max(5.0, 0.8 * cluster.grace_seconds)}
    cores = int(environment.get("SLURM_CPUS_PER_TASK") or cluster.small.cpus)
    shown = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    if shown > cores:
        # Nothing limits us to our share of the node: other jobs may use the same cores, so cores are counted.
        update["pin"] = False
        if settings.workers is None and not cluster.gpus_per_task:
            update["workers"] = max(1, cores // settings.threads)
    return settings.model_copy(update=update)


def batch_machine() -> Machine:
    """Returns the machine for a run whose ranks are started by srun: no GPUs are assigned to it here."""
    return Machine(gpus=(), cores=tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else (0,))


class EarlySignal:
    """A signal that came before the runs were started."""

    number = 0
    """Number of the first signal; 0 for none."""

    def __call__(self, number: int, _frame: object) -> None:
        """Keeps the number of the first signal."""
        self.number = self.number or number


@contextmanager
def early_signals() -> Iterator[EarlySignal]:
    """Remembers signals that come while data are checked and no run has started yet."""
    told = EarlySignal()
    previous = {number: signal.signal(number, told) for number in (_TIME_LIMIT, signal.SIGTERM)}
    try:
        yield told
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Requeues:
    """Counts how often a task was requeued without a new checkpoint in between; too many end it."""

    def __init__(self, folder: Path, label: str, task: int) -> None:
        """Reads the count that the task's earlier starts have left."""
        self._path = folder / REQUEUES / f"{label}-{task}.json"
        self._steps = 0
        self._in_vain = 0
        if self._path.exists():
            content = read_json(self._path, REQUEUES_SCHEMA, keys=("steps", "in_vain"))
            self._steps = content["steps"]
            self._in_vain = content["in_vain"]

    def worthwhile(self, steps: int, *, at_most: int) -> bool:
        """Tells whether to requeue again; records the progress of the task's runs.

        Args:
            steps: steps of all runs of the task that are saved.
            at_most: largest number of requeues in a row without progress.
        """
        self._in_vain = 0 if steps > self._steps else self._in_vain + 1
        self._steps = steps
        write_json(self._path, {"schema": REQUEUES_SCHEMA, "steps": steps, "in_vain": self._in_vain})
        return self._in_vain <= at_most


def conclude(ended: Progress, steps: int, requeues: Requeues, *, at_most: int) -> None:
    """Raises the error that says how the worker ends; returns if all went well.

    Args:
        ended: how the executor ended.
        steps: steps of all runs of the task that are saved.
        requeues: requeues of the task.
        at_most: largest number of requeues in a row without progress.

    Raises:
        Stopped: the runs resume after a requeue, or when the study is submitted again.
        JobError: some were given up, or requeues make no progress.
    """
    if ended.signal == _TIME_LIMIT and ended.stopped:
        if requeues.worthwhile(steps, at_most=at_most):
            why = "the time limit is near, or the job is preempted"
            raise Stopped(f"{why}; after a requeue, {plural(len(ended.stopped), 'run')} will resume")
        raise JobError(
            f"requeued {plural(at_most + 1, 'time')} without a new checkpoint of {', '.join(ended.stopped)}; "
            "raise cluster.time_limit or cluster.grace_seconds, or lower cluster.small.cells_per_task"
        )
    if ended.signal and ended.stopped:
        later = "after a requeue, or when the study is submitted again"
        raise Stopped(f"stopped by a signal; {plural(len(ended.stopped), 'run')} will resume {later}")
    if ended.failed:
        raise JobError(
            f"{len(ended.failed)} of {plural(ended.total, 'run')} failed and were given up: {', '.join(ended.failed)}"
        )
