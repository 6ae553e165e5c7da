"""A submission: the scripts of a study's jobs, and their chain, data -> cells -> report.

Cells wait for the data, and are cancelled with them (afterok). The report waits for the data alike, and for the cells
however they end (afterany).
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from megatron_kis.common.errors import InputError, KisError, printable
from megatron_kis.common.files import write_text
from megatron_kis.common.paths import expanded
from megatron_kis.config.run import RunConfig
from megatron_kis.config.slurm import ClusterConfig
from megatron_kis.config.study import StudyConfig
from megatron_kis.executor.slurm import client
from megatron_kis.executor.slurm.container import contained
from megatron_kis.executor.slurm.jobs import Array, Job, arrays_of, jobs_of, single_job
from megatron_kis.executor.slurm.records import (
    STUDY,
    Source,
    Submitted,
    next_submission,
    record,
    submission_folder,
    with_number,
    write_sources,
    write_tasks,
)
from megatron_kis.executor.slurm.scripts import Templates, job_name
from megatron_kis.study.resolved import study_content

DEFAULT_ARRAY = 1001
"""SLURM's own MaxArraySize, for a dry run where there is no SLURM to ask."""


@dataclass(frozen=True)
class Step:
    """One call of sbatch."""

    job: Job
    """The job."""

    name: str
    """Its name in the queue."""

    after_ok: tuple[str, ...] = ()
    """What must have succeeded: numbers of jobs, or labels of this submission."""

    after_any: tuple[str, ...] = ()
    """What must have ended, however."""

    array: Array | None = None
    """Which part of the job it is, if that is an array."""

    def options(self, numbers: dict[str, list[str]]) -> list[str]:
        """For sbatch, with the numbers of the jobs that were submitted before, by their labels."""
        waits = [
            f"{kind}:" + ":".join(number for label in labels for number in numbers.get(label, [label]))
            for kind, labels in (("afterok", self.after_ok), ("afterany", self.after_any))
            if labels
        ]
        options = [f"--array={self.array.option}"] if self.array else []
        return options + ([f"--dependency={','.join(waits)}", "--kill-on-invalid-dep=yes"] if waits else [])

    @property
    def tasks(self) -> Sequence[Sequence[str]]:
        """The cells of each task of the array; none where the job is none."""
        array = self.array
        return self.job.tasks[array.first : array.first + array.count] if array else ()

    @property
    def arguments(self) -> list[str]:
        """For the script: the first of the job's tasks that this array has."""
        return [str(self.array.first)] if self.array else []


@dataclass(frozen=True)
class Submission:
    """Everything that is written and submitted."""

    number: int
    """Which of the study's, from 1."""

    folder: Path
    """Where its files lie."""

    study: str
    """The resolved study, as YAML."""

    scripts: dict[str, str] = field(default_factory=dict)
    """Label of the job to its script."""

    sources: tuple[Source, ...] = ()
    """What its data are to be made from."""

    steps: tuple[Step, ...] = ()
    """Calls of sbatch, in their order."""

    @property
    def cells(self) -> int:
        """How many cells it runs."""
        return len({cell for step in self.steps for task in step.job.tasks for cell in task})


def prepare_submission(
    study: StudyConfig,
    cells: Sequence[RunConfig],
    *,
    folder: Path,
    templates: Path | None = None,
    largest_array: int = DEFAULT_ARRAY,
    sources: Sequence[Source] = (),
    after_data: Sequence[str] = (),
    also_after: Sequence[str] = (),
) -> Submission:
    """Works out a submission; writes nothing, and needs neither SLURM nor data.

    Args:
        study: the study.
        cells: what to run, the most expensive first.
        folder: where the jobs work.
        templates: edited templates; the study's ``cluster.templates`` if not given.
        largest_array: MaxArraySize.
        sources: what the data are to be made from.
        after_data: numbers of data jobs that wait or run already: ours comes after them, and checks our runs.
        also_after: numbers of jobs for which the report waits, too.

    Raises:
        InputError: settings or templates that make no script.
    """
    study = study.model_copy(update={"cluster": _placed(study.cluster)})
    cluster = study.cluster
    if study.device == "cuda" and not cluster.gpus_per_node:
        raise InputError(
            "is 0, and the study trains on CUDA", where="cluster.gpus_per_node", remedy="give their number"
        )
    number = next_submission(study.output)
    target = submission_folder(study.output.resolve(), number)
    token = secrets.token_hex(4)
    running = jobs_of(cells, cluster)
    before = single_job("data", cluster)
    jobs = [before, *running, single_job("report", cluster)]
    made = Templates(templates or cluster.templates)
    scripts = {}
    for job in jobs:
        python = [cluster.python or sys.executable, "-m", "megatron_kis"]
        scripts[job.label] = made.script(
            job.kind,
            {
                "study": study.name,
                "study_file": target / STUDY,
                "submission": target,
                "folder": folder,
                "job": job,
                "job_name": job_name(study.name, job.label, token),
                "settings": job.settings,
                "cluster": cluster,
                "kis": python if job.kind == "large" else contained(python, study, job, folder=folder),
            },
        )
    steps = [Step(before, job_name(study.name, before.label, token), (), tuple(after_data))]
    for job in running:
        steps += [
            Step(job, job_name(study.name, job.label, token), (before.label,), (), array)
            for array in arrays_of(job, largest_array)
        ]
    report = jobs[-1]
    after = (*(job.label for job in running), *also_after)
    steps.append(Step(report, job_name(study.name, report.label, token), (before.label,), after))
    content = yaml.safe_dump(study_content(study, target), sort_keys=False)
    return Submission(number, target, content, scripts, tuple(sources), tuple(steps))


def _placed(cluster: ClusterConfig) -> ClusterConfig:
    """With ``~`` and variables filled in where a program or an image is named: the scripts quote what they call.

    Raises:
        InputError: a variable that is not set.
    """
    changed: dict[str, Any] = {}
    if cluster.python is not None:
        changed["python"] = _expanded(cluster.python, "cluster.python")
    if cluster.container is not None:
        container = cluster.container
        image = _expanded(container.image, "cluster.container.image")
        changed["container"] = container.model_copy(update={"image": image})
    return cluster.model_copy(update=changed)


def _expanded(text: str, key: str) -> str:
    if not text.startswith("~") and "$" not in text:
        return text  # as it is: an address is no path
    try:
        return str(expanded(text))
    except InputError as error:
        raise InputError(error.problem, where=key, remedy=error.remedy) from None


def write_submission(submission: Submission) -> None:
    """Writes the scripts, the list of tasks and the resolved study."""
    (submission.folder / "logs").mkdir(parents=True)  # sbatch does not make it
    write_text(submission.folder / STUDY, submission.study)
    write_sources(submission.folder, submission.sources)
    for label, script in submission.scripts.items():
        write_text(submission.folder / f"{label}.sbatch", script)
    jobs = {step.job.label: step.job for step in submission.steps}
    rows = [(label, task, cells) for label, job in jobs.items() for task, cells in enumerate(job.tasks)]
    write_tasks(submission.folder, rows)


def submit(
    submission: Submission, output: Path, *, sbatch: Callable[..., str] = client.sbatch
) -> list[tuple[Step, str]]:
    """Submits what was written, and records it.

    Returns:
        The steps and the numbers of their jobs.

    Raises:
        KisError: sbatch refuses one; those before it are cancelled, so that no half of a study runs.
    """
    if unused := client.unused_variables(submission.scripts.values(), os.environ):
        print(
            f"kis: not used where the jobs say otherwise: {printable(', '.join(unused))}; use the keys of cluster",
            file=sys.stderr,
        )
    numbers: dict[str, list[str]] = {}
    done: list[tuple[Step, str]] = []
    for step in submission.steps:
        first, count = (step.array.first, step.array.count) if step.array else (0, 0)
        row = Submitted(submission.number, step.job.label, step.name, first, count)
        record(output, row)
        try:
            number = sbatch(
                submission.folder / f"{step.job.label}.sbatch",
                options=step.options(numbers),
                arguments=step.arguments,
            )
        except KisError:
            record(output, Submitted(submission.number, step.job.label, step.name, first, count, refused=True))
            with suppress(KisError):
                client.scancel([number for _, number in done])
            raise
        record(output, with_number(row, number))
        numbers.setdefault(step.job.label, []).append(number)
        done.append((step, number))
    return done


def described(submission: Submission) -> dict[str, Any]:
    """A submission as JSON has it."""
    return {
        "submission": submission.number,
        "folder": str(submission.folder),
        "cells": submission.cells,
        "jobs": [
            {
                "job": step.job.label,
                "name": step.name,
                "tasks": step.array.count if step.array else 1,
                "cells": sum(map(len, step.tasks)),
                "nodes": step.job.nodes,
                "ranks": step.job.nodes * step.job.ranks_per_node,
                "options": step.options({}),
                "script": f"{step.job.label}.sbatch",
                "arguments": step.arguments,
            }
            for step in submission.steps
        ],
    }
