"""A submission: the scripts of a study's jobs, and their chain, data -> runs -> report.

Runs wait for the data, and are cancelled with them (afterok). The report waits for the data alike, and for the runs
however they end (afterany). Where runs branch from trunks, the trunks have jobs of their own, and the others wait for
these however they end.
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
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
from megatron_kis.executor.slurm.jobs import Array, Job, arrays_of, jobs_of, single_job
from megatron_kis.executor.slurm.launch import contained
from megatron_kis.executor.slurm.records import (
    STUDY,
    Source,
    Submitted,
    next_submission,
    record,
    submission_folder,
    write_sources,
    write_tasks,
)
from megatron_kis.executor.slurm.scripts import Templates, job_name
from megatron_kis.study.manifest import study_content

logger = logging.getLogger(__name__)

DEFAULT_ARRAY = 1001
"""SLURM's own MaxArraySize, for a dry run where there is no SLURM to ask."""


@dataclass(frozen=True)
class Step:
    """One call of sbatch."""

    job: Job
    """The job that it submits."""

    name: str
    """Name of the job in the queue."""

    after_ok: tuple[str, ...] = ()
    """Jobs that must have succeeded: their numbers, or their labels in this submission."""

    after_any: tuple[str, ...] = ()
    """Jobs that must have ended, however."""

    array: Array | None = None
    """Part of the job that it submits, if the job is an array."""

    def options(self, numbers: dict[str, list[str]]) -> list[str]:
        """Returns the options of sbatch, given the numbers of the jobs submitted before, by their labels."""
        waits = [
            f"{kind}:" + ":".join(number for label in labels for number in numbers.get(label, [label]))
            for kind, labels in (("afterok", self.after_ok), ("afterany", self.after_any))
            if labels
        ]
        options = [f"--array={self.array.option}"] if self.array else []
        return options + ([f"--dependency={','.join(waits)}", "--kill-on-invalid-dep=yes"] if waits else [])

    @property
    def tasks(self) -> Sequence[Sequence[str]]:
        """Names of the runs of each task of the array; none where the job is no array."""
        array = self.array
        return self.job.tasks[array.first : array.first + array.count] if array else ()

    @property
    def arguments(self) -> list[str]:
        """Arguments of the script: the first of the job's tasks that this array has."""
        return [str(self.array.first)] if self.array else []


@dataclass(frozen=True)
class Submission:
    """Everything that is written and submitted."""

    number: int
    """Number among the study's submissions, from 1."""

    folder: Path
    """Folder of its files."""

    study: str
    """The resolved study, as YAML."""

    scripts: dict[str, str] = field(default_factory=dict)
    """Scripts by the label of the job."""

    sources: tuple[Source, ...] = ()
    """Files that its data are to be made from."""

    steps: tuple[Step, ...] = ()
    """Calls of sbatch, in their order."""

    @property
    def run_count(self) -> int:
        """Number of runs that it executes."""
        return len({name for step in self.steps for task in step.job.tasks for name in task})


def prepare_submission(
    study: StudyConfig,
    runs: Sequence[RunConfig],
    *,
    folder: Path,
    templates: Path | None = None,
    largest_array: int = DEFAULT_ARRAY,
    sources: Sequence[Source] = (),
    after_data: Sequence[str] = (),
    also_after: Sequence[str] = (),
) -> Submission:
    """Returns a submission; writes nothing, and needs neither SLURM nor data.

    Args:
        study: the study.
        runs: runs to execute, the most expensive first.
        folder: folder in which the jobs run.
        templates: edited templates; the study's ``cluster.templates`` if not given.
        largest_array: MaxArraySize of the cluster.
        sources: files that the data are to be made from.
        after_data: numbers of data jobs that wait or run already: ours comes after them, and checks our runs.
        also_after: numbers of further jobs for which the report waits.

    Raises:
        InputError: settings or templates that make no script.
    """
    study = study.model_copy(update={"cluster": _expanded(study.cluster)})
    cluster = study.cluster
    if study.device == "cuda" and not cluster.gpus_per_node:
        raise InputError(
            "is 0, and the study trains on CUDA", where="cluster.gpus_per_node", remedy="give their number"
        )
    number = next_submission(study.output)
    target = submission_folder(study.output.resolve(), number)
    token = secrets.token_hex(4)
    trunks = {run.trunk for run in runs}
    first = [
        replace(job, label=f"{job.label}-trunks")
        for job in jobs_of([run for run in runs if run.output in trunks], cluster)
    ]
    running = [*first, *jobs_of([run for run in runs if run.output not in trunks], cluster)]
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
                "kis": python
                if job.kind == "large"
                else contained(python, cluster.container, study.output, job, folder=folder),
            },
        )
    steps = [Step(before, job_name(study.name, before.label, token), (), tuple(after_data))]
    for job in running:
        after_trunks = () if job in first else tuple(trunk.label for trunk in first)
        steps += [
            Step(job, job_name(study.name, job.label, token), (before.label,), after_trunks, array)
            for array in arrays_of(job, largest_array)
        ]
    report = jobs[-1]
    after = (*(job.label for job in running), *also_after)
    steps.append(Step(report, job_name(study.name, report.label, token), (before.label,), after))
    content = yaml.safe_dump(study_content(study, target), sort_keys=False)
    return Submission(number, target, content, scripts, tuple(sources), tuple(steps))


def _expanded(cluster: ClusterConfig) -> ClusterConfig:
    """Expands ``~`` and variables in the names of a program or an image: the scripts quote what they call.

    Raises:
        InputError: a variable that is not set.
    """
    changed: dict[str, Any] = {}
    if cluster.python is not None:
        changed["python"] = _expanded_text(cluster.python, "cluster.python")
    if cluster.container is not None:
        container = cluster.container
        image = _expanded_text(container.image, "cluster.container.image")
        changed["container"] = container.model_copy(update={"image": image})
    return cluster.model_copy(update=changed)


def _expanded_text(text: str, key: str) -> str:
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
    rows = [(label, task, names) for label, job in jobs.items() for task, names in enumerate(job.tasks)]
    write_tasks(submission.folder, rows)


def submit(
    submission: Submission, output: Path, *, sbatch: Callable[..., str] = client.sbatch
) -> list[tuple[Step, str]]:
    """Submits a written submission, and records its jobs.

    Returns:
        The steps and the numbers of their jobs.

    Raises:
        KisError: sbatch refuses one; those before it are cancelled, so that no half of a study runs.
    """
    if unused := client.unused_variables(submission.scripts.values(), os.environ):
        logger.warning(
            "kis: ignored where the jobs set them: %s; use the keys of cluster", printable(", ".join(unused))
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
            record(output, replace(row, refused=True))
            with suppress(KisError):
                client.scancel([number for _, number in done])
            raise
        record(output, replace(row, number=number))
        numbers.setdefault(step.job.label, []).append(number)
        done.append((step, number))
    return done


def described(submission: Submission) -> dict[str, Any]:
    """Returns a submission as JSON shows it."""
    return {
        "submission": submission.number,
        "folder": str(submission.folder),
        "cells": submission.run_count,
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
