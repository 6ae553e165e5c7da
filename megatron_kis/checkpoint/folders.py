"""Checkpoints of a run: folders that are whole or absent, checked before they are used, and removed by a rule.

``checkpoints/step-00000120/`` holds the sharded tensors (``shards``), the logs up to there and ``checkpoint.json``,
written last, with the hash of every other file. A folder is written under a name with a dot and renamed when it is
whole; nothing points to the newest one: its name shows it. All ranks share the file system.

A checkpoint is damaged if something in it was read and is wrong, or is missing. If something cannot be read, that is an
error: no checkpoint is skipped or removed for it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from stat import S_ISDIR
from typing import Any, TypeVar

import torch.distributed as dist

from megatron_kis.checkpoint import shards
from megatron_kis.common.errors import InputError, KisError
from megatron_kis.common.files import fingerprint, naming, sha256_file, steadily, write_json
from megatron_kis.common.identity import CHECKPOINT_FILE, CHECKPOINT_SCHEMA
from megatron_kis.common.jsonl_log import JsonLines
from megatron_kis.common.parsing import parse_json
from megatron_kis.common.schemas import mismatch
from megatron_kis.distributed.collectives import from_first, gather, together

logger = logging.getLogger(__name__)

FOLDER = "checkpoints"
_NAME = re.compile(r"step-(\d{8,})")
_PARTIAL = re.compile(r"\.step-\d{8,}\.partial")
_KEYS = ("step", "sequences", "identity", "state", "logs", "files", "layout", "hash")
_ASIDE = ".damaged"
_Read = TypeVar("_Read")


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk."""

    folder: Path
    """Folder of the checkpoint, ``step-NNNNNNNN``."""

    manifest: dict[str, Any]
    """Content of the checkpoint's ``checkpoint.json``."""

    @property
    def step(self) -> int:
        """Number of optimizer steps done."""
        return int(self.manifest["step"])


class CheckpointWriter:
    """Writes the checkpoints of one run. Every rank calls ``begin`` and ``complete`` at the same steps."""

    def __init__(self, run: Path, *, keep_last: int, keep_best: bool) -> None:
        """Prepares for the run's folder; leftovers of a killed writer are removed."""
        self._folder = run / FOLDER
        self._keep_last = keep_last
        self._keep_best = keep_best
        self._thread: threading.Thread | None = None
        self._plans = shards.Plans()
        together(self._clear_leftovers)

    def _clear_leftovers(self) -> None:
        if dist.get_rank() == 0:
            for leftover in self._folder.glob(".step-*.partial"):
                shutil.rmtree(leftover, ignore_errors=True)

    @property
    def pending(self) -> bool:
        """Whether a checkpoint was begun and not completed."""
        return self._thread is not None

    @property
    def writing(self) -> bool:
        """Whether this rank is still writing its part of a checkpoint."""
        return self._thread is not None and self._thread.is_alive()

    def begin(
        self, sharded: dict[str, Any], manifest: dict[str, Any], logs: Mapping[str, JsonLines] | None = None
    ) -> None:
        """Copies what this rank has to save and starts to write it.

        Args:
            sharded: the tensors, see ``shards.stage``.
            manifest: content of ``checkpoint.json`` without the files; the first rank's is written.
            logs: by name, on the rank that writes them; copied up to the ends in the manifest's ``logs``.
        """
        assert not self.pending
        self._logs = dict(logs or {})
        name = f"step-{manifest['step']:08d}"
        self._target = self._folder / name
        self._partial = self._folder / f".{name}.partial"
        self._manifest = manifest
        self._outcome: _Written | str = "nothing was written"
        staged = self._stage(sharded)
        self._staged = staged
        self._thread = threading.Thread(target=self._write, args=(staged,), name="checkpoint", daemon=True)
        self._thread.start()

    def _stage(self, sharded: dict[str, Any]) -> shards.Staged | None:
        """Plans and copies; returns None, with the reason as the outcome, where the folder cannot be made."""
        problem = None
        if dist.get_rank() == 0:
            try:
                self._partial.mkdir(parents=True)
            except OSError as error:
                problem = f"{self._partial}: {error.strerror}"
        problem = from_first(problem)
        if problem is not None:
            self._outcome = problem
            return None
        return shards.stage(sharded, self._partial, self._plans)

    def _write(self, staged: shards.Staged | None) -> None:
        """Writes this rank's files and takes their hashes, in a thread of its own."""
        if staged is None:
            return
        try:
            results = staged.write()
            names = {result.storage_data.relative_path for result in results}
            for name, log in self._logs.items():
                log.copy(self._partial / name, int(self._manifest["logs"][name]))
                names.add(name)
            if dist.get_rank() == 0:
                names |= {shards.COMMON_NAME, "metadata.json"}
            self._outcome = _Written(results, {name: _seal(self._partial / name) for name in sorted(names)})
        except Exception as error:
            self._outcome = reason_of(error, self._partial)

    def complete(self) -> str | None:
        """Waits for all ranks' parts and gives the checkpoint its name, or removes a failed one.

        Returns:
            Why there is no checkpoint; None if there is one.
        """
        assert self._thread is not None
        self._thread.join()
        self._thread = None
        outcomes = gather(self._outcome)
        problem = next((outcome for outcome in outcomes if isinstance(outcome, str)), None)
        if dist.get_rank() == 0:
            if problem is None:
                try:
                    self._finish([outcome for outcome in outcomes if isinstance(outcome, _Written)])
                except (OSError, KisError) as error:
                    problem = reason_of(error, self._partial)
            shutil.rmtree(self._partial, ignore_errors=True)
            if problem is None:
                self._make_room()
        self._staged = None
        return from_first(problem)

    def _finish(self, written: list[_Written]) -> None:
        assert self._staged is not None
        self._staged.finish([part.results for part in written])
        files = {name: facts for part in written for name, facts in part.files.items()}
        files |= {name: _seal(self._partial / name) for name in (".metadata", shards.INDEX_NAME)}
        content = {"schema": CHECKPOINT_SCHEMA, **self._manifest, "files": files, "written": _now()}
        write_manifest(self._partial / CHECKPOINT_FILE, content)
        _sync_folder(self._partial)
        if self._target.exists():  # a damaged one of the same step, which a resume did not use
            self._target.rename(_aside(self._target))
        self._partial.rename(self._target)
        _sync_folder(self._folder)

    def _make_room(self) -> None:
        """Removes what the rule does not keep. What cannot be read stays, and so does what a resume skipped."""
        try:
            found = [_read(folder) for folder in _folders(self._folder) if _step(folder) <= self._manifest["step"]]
        except KisError as error:
            logger.warning(f"kis: older checkpoints stay for now ({error})")
            return
        whole = [checkpoint for checkpoint in found if isinstance(checkpoint, Checkpoint)]
        keep = {checkpoint.step for checkpoint in whole[: self._keep_last]}
        keep |= {checkpoint.step for checkpoint in whole if checkpoint.manifest.get("milestone")}
        measured = [c for c in whole if c.manifest.get("validation_loss") is not None]
        if self._keep_best and measured:
            keep.add(min(measured, key=lambda c: float(c.manifest["validation_loss"])).step)
        for checkpoint in whole:
            if checkpoint.step not in keep:
                try:
                    _remove(checkpoint.folder)
                except OSError as error:
                    logger.warning(f"kis: {checkpoint.folder}: cannot be removed ({error.strerror or error})")


@dataclass(frozen=True)
class _Written:
    """Files that a rank wrote."""

    results: list[Any]
    files: dict[str, dict[str, Any]]


def newest(run: Path, *, at: int | None = None) -> Checkpoint | None:
    """Returns the newest checkpoint of a run that is whole; damaged ones are skipped with a warning.

    Collective: every rank calls this, and each checks a share of the files.

    Args:
        run: the run's folder.
        at: only the checkpoint of this step.

    Returns:
        The checkpoint, or None where there is none at all.

    Raises:
        InputError: there are checkpoints and none of them can be used, or they may not be read.
        JobError: the disk or the file server fails.
    """
    found, problems = _search(run, at)
    if found is None and problems:
        raise InputError(
            f"none of the checkpoints can be used ({_listed(problems)})",
            where=str(run / FOLDER),
            remedy="restore the missing files, or start again with --restart, which removes these checkpoints",
        )
    return found


def required(run: Path, step: int | None) -> Checkpoint:
    """Returns the whole checkpoint of this step, or the newest one; collective: every rank calls this.

    Raises:
        InputError: there is none, or it may not be read.
        JobError: the disk or the file server fails.
    """
    checkpoint, problems = _search(run, step)
    if checkpoint is None:
        problem = "has no complete checkpoint" + ("" if step is None else f" of step {step}")
        if problems:
            problem += f" ({_listed(problems)})"
        there = ", ".join(map(str, steps_there(run)))
        remedy = f"available steps: {there}" if there else "train the run first"
        raise InputError(problem, where=str(run / FOLDER), remedy=remedy)
    return checkpoint


def whole_at(run: Path, step: int) -> Checkpoint | None:
    """Returns the checkpoint of this step if there is a whole one; collective: every rank calls this.

    Raises:
        InputError: it may not be read.
        JobError: the disk or the file server fails.
    """
    return _search(run, step)[0]


def _search(run: Path, at: int | None) -> tuple[Checkpoint | None, dict[int, str]]:
    """Returns the newest whole checkpoint, and the problem of each that is newer."""
    first = dist.get_rank() == 0
    names = together(lambda: [folder.name for folder in _folders(run / FOLDER)] if first else [])[0]
    problems: dict[int, str] = {}
    for folder in (run / FOLDER / name for name in names):
        if at is not None and _step(folder) != at:
            continue
        checks = together(partial(_checked, folder))
        problem = next((said for said in checks if isinstance(said, str)), None)
        if problem is None:
            checkpoint = _read(folder)
            assert isinstance(checkpoint, Checkpoint)
            return checkpoint, problems
        problems[_step(folder)] = problem
        if first:
            logger.warning(f"kis: checkpoint {folder} is damaged ({problem}); it is skipped")
    return None, problems


def _listed(problems: Mapping[int, str]) -> str:
    return "; ".join(f"step {step}: {problem}" for step, problem in problems.items())


def _folders(folder: Path) -> list[Path]:
    """Returns the folders that are named like checkpoints, the newest first."""
    names = _unless_missing(lambda: [path.name for path in folder.iterdir() if _NAME.fullmatch(path.name)], folder)
    paths = [folder / name for name in names or []]
    found = [(path, _unless_missing(path.stat, path)) for path in paths]
    there = [path for path, facts in found if facts is not None and S_ISDIR(facts.st_mode)]
    return sorted(there, key=_step, reverse=True)


def left_there(run: Path) -> list[str]:
    """Lists everything in a run's folder of checkpoints except parts that a killed writer has left.

    They need not be usable checkpoints: one that was renamed, or a link to a place that is not mounted, may be
    somebody's work as well. If the folder itself is a broken link, ``checkpoints`` is listed.

    Raises:
        InputError: the folder may not be read.
        JobError: the disk or the file server fails.
    """
    folder = run / FOLDER
    names = _unless_missing(lambda: [path.name for path in folder.iterdir()], folder)
    if names is None:
        return [FOLDER] if folder.is_symlink() else []
    return sorted(name for name in names if not _PARTIAL.fullmatch(name))


def steps_there(run: Path) -> list[int]:
    """Lists the steps of the checkpoints in a run's folder, whole or damaged, ascending.

    Raises:
        InputError: the folder may not be read.
        JobError: the disk or the file server fails.
    """
    return [_step(folder) for folder in reversed(_folders(run / FOLDER))]


def _step(folder: Path) -> int:
    match = _NAME.fullmatch(folder.name)
    assert match is not None
    return int(match[1])


def _unless_missing(read: Callable[[], _Read], path: Path) -> _Read | None:
    """Returns what ``read`` returns; None where there is no such file, as far as the file server knows.

    Raises:
        InputError: it may not be read.
        JobError: the disk or the file server fails.
    """

    def attempt() -> _Read | None:
        try:
            return read()
        except FileNotFoundError:
            return None

    return steadily(attempt, path)


def _checked(folder: Path) -> str | None:
    """Returns what is wrong with a checkpoint, as far as this rank's share of the files tells."""
    found = _read(folder)
    return found if isinstance(found, str) else _damage(found)


def _read(folder: Path) -> Checkpoint | str:
    """Returns the checkpoint in a folder, or what is wrong with its manifest."""
    path = folder / CHECKPOINT_FILE
    try:
        text = _unless_missing(lambda: path.read_text(encoding="utf-8"), path)
    except UnicodeDecodeError:
        return f"{CHECKPOINT_FILE} is not text"
    return f"{CHECKPOINT_FILE} is missing" if text is None else _parsed(folder, text)


def _parsed(folder: Path, text: str) -> Checkpoint | str:
    try:
        manifest = parse_json(text, where=CHECKPOINT_FILE)
    except InputError as error:
        return str(error)
    if not isinstance(manifest, dict):
        return f"{CHECKPOINT_FILE} is not a JSON object"
    if (found := manifest.get("schema")) != CHECKPOINT_SCHEMA:
        return f"{CHECKPOINT_FILE} {mismatch(found, CHECKPOINT_SCHEMA)}"
    lacking = next((key for key in _KEYS if key not in manifest), None)
    if lacking is not None:
        return f"{CHECKPOINT_FILE} has no {lacking!r}"
    if manifest.pop("hash") != fingerprint(manifest):
        return f"{CHECKPOINT_FILE} has changed since it was written"
    return Checkpoint(folder, manifest)


def write_manifest(path: Path, content: dict[str, Any]) -> None:
    """Writes ``checkpoint.json``, with a hash of its own content."""
    content = {name: value for name, value in content.items() if name != "hash"}
    write_json(path, {**content, "hash": fingerprint(content)})


def _damage(checkpoint: Checkpoint) -> str | None:
    """Returns what is wrong with this rank's share of the files."""
    logs = checkpoint.manifest["logs"]  # lost copies of logs are no damage of weights: see log_repair
    files = sorted(item for item in checkpoint.manifest["files"].items() if item[0] not in logs)
    for name, facts in files[dist.get_rank() :: dist.get_world_size()]:
        path = checkpoint.folder / name
        there = _unless_missing(path.stat, path) if Path(name).name == name else None
        if there is None:
            return f"{name} is missing"
        if there.st_size != facts["bytes"]:
            return f"{name} has changed since it was written"
        try:
            sha256 = sha256_file(path)
        except InputError:
            if _unless_missing(path.stat, path) is None:  # removed meanwhile, by a run that makes room
                return f"{name} is missing"
            raise
        if sha256 != facts["sha256"]:
            return f"{name} has changed since it was written"
    return None


def reason_of(error: BaseException, path: Path) -> str:
    """Returns why something could not be written, with the path.

    PyTorch's writer of archives turns an error of the system into one of its own, which does not name it
    (``[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598``); the first one is its context.

    Args:
        error: the error that was caught.
        path: the file that was being written, where the error does not name one.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return f"{cause.filename or path}: {cause.strerror}"
        cause = cause.__cause__ or cause.__context__
    return str(error) if isinstance(error, KisError) else f"{path}: {error}"


def _seal(path: Path) -> dict[str, Any]:
    """Brings a file to the disk, and returns its size and hash."""
    with open(path, "rb") as file, naming(path):
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems cannot
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove(folder: Path) -> None:
    """Removes a checkpoint: first what makes it one, so that half a folder is never used as a whole one."""
    (folder / CHECKPOINT_FILE).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _aside(folder: Path) -> Path:
    """Returns a free name that is not a checkpoint's, for a damaged one."""
    names = (folder.with_name(f"{folder.name}{_ASIDE}{number}") for number in ("", *range(2, 1000)))
    return next(name for name in names if not name.exists())


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
