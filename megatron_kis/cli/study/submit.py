"""``kis study submit``: the study as jobs of a SLURM cluster."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_kis.cli.study.common import add_step, check_first, load_study, look_over, warn
from megatron_kis.cli.study.run import add_selection, another_try, selected
from megatron_kis.common.errors import InputError, JobError, printable
from megatron_kis.common.units import plural

if TYPE_CHECKING:
    from megatron_kis.config.run import RunConfig
    from megatron_kis.config.study import StudyConfig
    from megatron_kis.executor.slurm.queue import Task
    from megatron_kis.executor.slurm.records import Source
    from megatron_kis.study.submission import Step, Submission

logger = logging.getLogger(__name__)


def add_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_step(
        steps, "submit", "write batch scripts for the runs that are not done, and submit them to SLURM", _submit
    )
    add_selection(parser)
    parser.add_argument("--dry-run", action="store_true", help="show everything; write and submit nothing")
    parser.add_argument(
        "--templates", type=Path, metavar="DIR", help="edited templates of the scripts (default: cluster.templates)"
    )


def _submit(options: argparse.Namespace) -> int:
    from megatron_kis.common.files import locked
    from megatron_kis.executor.attempts import is_exhausted
    from megatron_kis.executor.slurm import client, records
    from megatron_kis.executor.slurm.queue import live_tasks, runs_in
    from megatron_kis.study.conflicts import refuse, unfinished_conflicts
    from megatron_kis.study.data import source_files
    from megatron_kis.study.lock import lock_holders
    from megatron_kis.study.submission import DEFAULT_ARRAY, prepare_submission, submit, write_submission

    study = load_study(options)
    runs = selected(look_over(study), options.only)
    if not options.restart:
        refuse(study.output, unfinished_conflicts(runs))
    done = {run.name for run in runs if (run.output / "DONE").exists()}
    if len(done) < len(runs):
        warn(study, check_first(study))
    largest = study.cluster.max_array_size
    if options.dry_run:
        left = [run for run in runs if run.name not in done]
        shown = prepare_submission(
            study, left, folder=Path.cwd(), templates=options.templates, largest_array=largest or DEFAULT_ARRAY
        )
        _show(study, shown, len(done), as_json=options.json)
        return 0
    if local := lock_holders(study.output):
        raise JobError(f"kis study run is running this study here (process {local[0]}); stop it with kis study cancel")
    largest = largest or client.max_array_size()  # also fails at once where there is no SLURM
    with locked(study.output / records.FOLDER, "kis study submit"):
        live = live_tasks(study.output)
        sources = records.identities(source_files(study.data))
        _same_data(study, live, sources)
        queued = runs_in(study.output, live)
        open_runs = [run for run in runs if run.name not in done]
        another_try([run for run in open_runs if run.name not in queued], study.executor, options)
        hopeless = {run.name for run in open_runs if is_exhausted(run, study.executor.retries)}
        left = [run for run in open_runs if run.name not in queued and run.name not in hopeless]
        _say(study, runs, done, queued, hopeless)
        if not left:
            return _nothing(study, options, live)
        submission = prepare_submission(
            study,
            left,
            folder=Path.cwd(),
            templates=options.templates,
            largest_array=largest,
            sources=sources,
            after_data=[task.number for task in live if task.job.label == "data"],
            also_after=sorted({task.number.partition("_")[0] for task in live if task.indices}),
        )
        write_submission(submission)
        steps = submit(submission, study.output)
    if options.json:
        print(json.dumps(_as_json(submission, [number for _, number in steps]), indent=1))
        return 0
    for step, number in steps:
        print(f"{number}  {step.name}  {_size(step)}")
    print(
        f"{plural(submission.run_count, 'run')} in {submission.folder}; continue with kis study status and kis "
        "study cancel"
    )
    return 0


def _say(study: StudyConfig, runs: list[RunConfig], done: set[str], queued: set[str], hopeless: set[str]) -> None:
    names = {run.name for run in runs}
    line = f"{study.name}: {plural(len(runs), 'run')}, {len(done)} done already"
    if waiting := (queued & names) - done:
        line += f", {len(waiting)} queued or running"
    logger.info(line)
    for name in sorted(hopeless):
        logger.warning(f"{name} was given up; --retry-failed resumes it, --restart starts it again")


def _nothing(study: StudyConfig, options: argparse.Namespace, live: list[Task]) -> int:
    """Says that nothing is left to submit."""
    if options.json:
        print(json.dumps({"submission": None, "cells": 0, "jobs": []}, indent=1))
    else:
        report = "" if live else f"; kis study report {options.study} writes the report again"
        print(f"nothing to submit{report}")
    return 0


def _same_data(study: StudyConfig, live: list[Task], sources: list[Source]) -> None:
    """Refuses to make the data again while runs wait for them or read them."""
    from megatron_kis.common.identity import differences
    from megatron_kis.common.paths import absolute, with_paths
    from megatron_kis.executor.slurm.records import SOURCES, STUDY, changed_source, submission_folder

    remedy = "cancel them with kis study cancel, or wait for them"
    for number in sorted({task.job.submission for task in live if task.job.label != "report"}):
        folder = submission_folder(study.output.absolute(), number)
        if (folder / STUDY).exists():
            theirs = load_study(argparse.Namespace(study=folder / STUDY, overrides=[]))
            then = {"data": with_paths(theirs.data.model_dump(), absolute)}
            now = {"data": with_paths(study.data.model_dump(), absolute)}
            if changed := differences(then, now):
                raise InputError(
                    f"jobs in the queue use other settings of the data ({', '.join(changed)})",
                    where=str(study.output),
                    remedy=remedy,
                )
        if (folder / SOURCES).exists() and (changed_file := changed_source(folder, sources)) is not None:
            raise InputError(
                f"changed since the jobs of submission {number} were submitted", where=changed_file, remedy=remedy
            )


def _show(study: StudyConfig, submission: Submission, done: int, *, as_json: bool) -> None:
    """Shows what would be written and submitted."""
    from megatron_kis.executor.slurm.scripts import shell
    from megatron_kis.study.submission import described

    if as_json:
        print(json.dumps({**described(submission), "scripts": submission.scripts}, indent=1))
        return
    for label, script in submission.scripts.items():
        print(printable(f"==== {submission.folder / label}.sbatch\n{script}", keep="\n\t"))
    print("==== calls of sbatch, each job with the ids of the jobs before it")
    for step in submission.steps:
        words = ["sbatch", "--parsable", *step.options({}), f"{step.job.label}.sbatch", *step.arguments]
        print(f"{shell(words)}    # {_size(step)}")
    print(f"{study.name}: {plural(submission.run_count, 'run')} to execute, {done} done already; nothing was submitted")


def _size(step: Step) -> str:
    """Returns what a job runs, in words."""
    runs = sum(map(len, step.tasks))
    if not runs:
        return step.job.label
    words = f"{plural(runs, 'run')} in {plural(len(step.tasks), 'task')}"
    ranks = f" of {step.job.nodes} x {step.job.ranks_per_node} ranks"
    return words + (ranks if step.job.kind == "large" else "")


def _as_json(submission: Submission, numbers: list[str]) -> dict[str, Any]:
    from megatron_kis.study.submission import described

    content = described(submission)
    for row, number in zip(content["jobs"], numbers, strict=True):
        row["number"] = number
    return content
