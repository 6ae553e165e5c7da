"""The jobs that a study has submitted: ``<study>/slurm/jobs.jsonl`` and the folders of its submissions.

A job is known by its name, which no other job ever has; its number only says where to ask, and numbers begin again when
a cluster's state is lost. A row is written before sbatch is called and another when it has answered, so that a crash in
between leaves a row without a number, and not a job without a row.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_kis.common.errors import InputError
from megatron_kis.common.files import append_json_line, read_json, read_json_lines, write_json, write_json_lines

FOLDER = "slurm"
JOBS = "jobs.jsonl"
TASKS = "tasks.jsonl"
TASKS_SCHEMA = "kis.tasks/1"
STUDY = "study.yaml"
SOURCES = "sources.json"
SOURCES_SCHEMA = "kis.submission-sources/1"
DATA = "data.json"
DATA_SCHEMA = "kis.submission-data/1"


@dataclass(frozen=True)
class Submitted:
    """A job that was submitted, or one array of it."""

    submission: int
    """Number of the submission that it belongs to, from 1."""

    label: str
    """Label of the job within the submission: ``data``, ``small``, ``large-2x4``, ``report``."""

    name: str
    """Name of the job in the queue."""

    first: int = 0
    """Number of the job's task that is task 0 of this array."""

    count: int = 0
    """Number of tasks of the array; 0 where it is none."""

    number: str | None = None
    """Number that sbatch answered; None if it refused, or was not called, or a crash came between."""

    refused: bool = False
    """Whether sbatch refused the job."""


def record(output: Path, job: Submitted) -> None:
    """Adds a row; the last one of a name counts."""
    append_json_line(output / FOLDER / JOBS, {**asdict(job), "time": time.time()})


def submitted(output: Path) -> list[Submitted]:
    """Returns every job of a study, in the order of submission; lines that a crash has cut are skipped."""
    try:
        lines = (output / FOLDER / JOBS).read_bytes().splitlines()
    except FileNotFoundError:
        return []
    jobs: dict[tuple[str, int], Submitted] = {}
    for line in lines:
        job = _job(line)
        if job is not None:
            jobs[job.name, job.first] = job
    return list(jobs.values())


def submission_folder(output: Path, number: int) -> Path:
    """Returns the folder with the scripts and the logs of a submission."""
    return output / FOLDER / f"{number:04d}"


def next_submission(output: Path) -> int:
    """Returns the number of the next submission."""
    folders = (output / FOLDER).glob("[0-9]*")
    return 1 + max((int(folder.name) for folder in folders if folder.name.isdecimal()), default=0)


def write_tasks(folder: Path, tasks: Iterable[tuple[str, int, Sequence[str]]]) -> None:
    """Writes which runs each task of each job executes."""
    rows: list[dict[str, Any]] = [{"schema": TASKS_SCHEMA}]
    rows += [{"job": label, "task": task, "cells": list(names)} for label, task, names in tasks]
    write_json_lines(folder / TASKS, rows)


def read_tasks(folder: Path) -> dict[tuple[str, int], list[str]]:
    """Returns the names of the runs of each (job, task).

    Raises:
        InputError: the file is missing, or is of another kind.
    """
    path = folder / TASKS
    rows = read_json_lines(path)
    _, header = next(rows, (0, {}))
    if header.get("schema") != TASKS_SCHEMA:
        raise InputError("does not list the tasks of a submission", where=str(path), remedy="submit the study again")
    return {(row["job"], row["task"]): row["cells"] for _, row in rows}


Source = tuple[str, int | None, int | None]
"""A file that data are made from: its absolute path, its size in bytes and its time of modification in nanoseconds;
None for both where it was missing."""


def identities(files: Iterable[Path]) -> list[Source]:
    """Returns the identities of files as they are now."""
    found: list[Source] = []
    for path in files:
        try:
            stat = path.stat()
            found.append((str(path), stat.st_size, stat.st_mtime_ns))
        except OSError:
            found.append((str(path), None, None))
    return found


def write_sources(folder: Path, files: Iterable[Source]) -> None:
    """Writes what the data of a submission are to be made from."""
    rows = [{"path": path, "size": size, "mtime_ns": time_ns} for path, size, time_ns in files]
    write_json(folder / SOURCES, {"schema": SOURCES_SCHEMA, "files": rows})


def changed_source(folder: Path, now: Iterable[Source]) -> str | None:
    """Returns the first source that has changed since a submission was made; None if none has.

    A file that was missing then may exist by now.

    Args:
        folder: folder of the submission.
        now: the sources as they are.

    Raises:
        InputError: the record is missing or damaged.
    """
    content = read_json(folder / SOURCES, SOURCES_SCHEMA, keys=("files",))
    then: dict[str, tuple[int | None, int | None]] = {
        row["path"]: (row["size"], row["mtime_ns"]) for row in content["files"]
    }
    found = {path: (size, time_ns) for path, size, time_ns in now}
    for path in (*then, *found):
        if path in then and then[path] == (None, None):
            continue
        if then.get(path) != found.get(path):
            return path
    return None


def write_data(folder: Path, files: Mapping[str, Path], fingerprints: Mapping[str, str]) -> None:
    """Writes which data the runs of a submission are trained on.

    Args:
        folder: folder of the submission.
        files: corpus, validation, exposures and tokenizer.
        fingerprints: fingerprints of the data, by ``identity.DATA``.
    """
    paths = {name: str(path.absolute()) for name, path in files.items()}
    write_json(folder / DATA, {"schema": DATA_SCHEMA, "data": paths, "fingerprints": dict(fingerprints)})


def read_data(folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Returns what ``write_data`` wrote.

    Raises:
        InputError: it is missing: the submission's data job has not ended well.
    """
    path = folder / DATA
    if not path.exists():
        raise InputError(
            "is missing: the data job has not ended well", where=str(path), remedy="submit the study again"
        )
    content = read_json(path, DATA_SCHEMA, keys=("data", "fingerprints"))
    return {name: Path(place) for name, place in content["data"].items()}, content["fingerprints"]


def _job(line: bytes) -> Submitted | None:
    try:
        row = json.loads(line)
        row.pop("time", None)
        return Submitted(**row)
    except (ValueError, TypeError, AttributeError):
        return None
