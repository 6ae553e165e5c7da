"""Checkpoints of a run: folders that are whole or absent, checked before they are used, and cleared away by a rule.

``checkpoints/step-00000120/`` holds the sharded tensors (``shards``) and ``checkpoint.json``, written last, with the
hash of every other file. A folder is written under a name with a dot and renamed when it is whole; nothing points to
the newest one, the names say which it is. All ranks share the file system.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron_kis.errors import InputError
from megatron_kis.files import fingerprint, read_json, sha256_file, write_json
from megatron_kis.parallel import barrier, from_first, gather
from megatron_kis.training import shards

CHECKPOINT_SCHEMA = "kis.checkpoint/1"
MANIFEST = "checkpoint.json"
FOLDER = "checkpoints"
_NAME = re.compile(r"step-(\d{8,})")
_KEYS = ("step", "sequences", "identity", "state", "logs", "files", "layout", "hash")


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk."""

    folder: Path
    """Where it lies."""

    manifest: dict[str, Any]
    """The content of ``checkpoint.json``."""

    @property
    def step(self) -> int:
        """Steps done."""
        return int(self.manifest["step"])


class CheckpointWriter:
    """Writes the checkpoints of one run. Every rank calls ``begin`` and ``complete`` at the same steps."""

    def __init__(self, run: Path, *, keep_last: int, keep_best: bool) -> None:
        """Prepares for the run's folder; leftovers of a killed writer are cleared away."""
        self._folder = run / FOLDER
        self._keep_last, self._keep_best = keep_last, keep_best
        self._thread: threading.Thread | None = None
        self._first = True
        if dist.get_rank() == 0:
            for leftover in self._folder.glob(".step-*.partial"):
                shutil.rmtree(leftover, ignore_errors=True)
        barrier()

    @property
    def pending(self) -> bool:
        """Whether a checkpoint was begun and not completed."""
        return self._thread is not None

    @property
    def writing(self) -> bool:
        """Whether this rank is still writing its part."""
        return self._thread is not None and self._thread.is_alive()

    def begin(self, sharded: dict[str, Any], manifest: dict[str, Any]) -> None:
        """Copies what this rank has to save and starts to write it.

        Args:
            sharded: the tensors, see ``shards.stage``.
            manifest: what ``checkpoint.json`` says besides the files; the first rank's counts.
        """
        assert not self.pending
        name = f"step-{manifest['step']:08d}"
        self._target, self._partial = self._folder / name, self._folder / f".{name}.partial"
        self._manifest = manifest
        self._outcome: _Written | str = "nothing was written"
        staged = self._stage(sharded)
        self._staged = staged
        self._thread = threading.Thread(target=self._write, args=(staged,), name="checkpoint", daemon=True)
        self._thread.start()

    def _stage(self, sharded: dict[str, Any]) -> shards.Staged | None:
        """None, with the outcome saying why, where the folder cannot be made."""
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
        staged = shards.stage(sharded, self._partial, validate=self._first)
        self._first = False
        return staged

    def _write(self, staged: shards.Staged | None) -> None:
        """In a thread of its own: this rank's files and their hashes."""
        if staged is None:
            return
        try:
            results = staged.write()
            names = {result.storage_data.relative_path for result in results}
            if dist.get_rank() == 0:
                names |= {shards.COMMON_NAME, "metadata.json"}
            self._outcome = _Written(results, {name: _seal(self._partial / name) for name in sorted(names)})
        except Exception as error:
            self._outcome = f"{self._partial}: {error}"

    def complete(self) -> str | None:
        """Waits for all ranks' parts and gives the checkpoint its name, or clears a failed one away.

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
                except OSError as error:
                    problem = f"{self._partial}: {error.strerror}"
            shutil.rmtree(self._partial, ignore_errors=True)
        self._staged = None
        return from_first(problem)

    def _finish(self, written: list[_Written]) -> None:
        assert self._staged is not None
        self._staged.finish([part.results for part in written])
        files = {name: facts for part in written for name, facts in part.files.items()}
        files |= {name: _seal(self._partial / name) for name in (".metadata", shards.INDEX_NAME)}
        content = {"schema": CHECKPOINT_SCHEMA, **self._manifest, "files": files, "written": _now()}
        write_manifest(self._partial / MANIFEST, content)
        _sync_folder(self._partial)
        if self._target.exists():  # a damaged one of the same step, which a resume did not use
            _remove(self._target)
        self._partial.rename(self._target)
        _sync_folder(self._folder)
        self._make_room()

    def _make_room(self) -> None:
        """Removes what the rule does not keep."""
        found = [_read(folder) for folder in _folders(self._folder)]
        whole = [checkpoint for checkpoint in found if isinstance(checkpoint, Checkpoint)]
        keep = {checkpoint.step for checkpoint in whole[: self._keep_last]}
        keep |= {checkpoint.step for checkpoint in whole if checkpoint.manifest.get("milestone")}
        measured = [c for c in whole if c.manifest.get("validation_loss") is not None]
        if self._keep_best and measured:
            keep.add(min(measured, key=lambda c: float(c.manifest["validation_loss"])).step)
        for checkpoint in whole:
            if checkpoint.step not in keep:
                _remove(checkpoint.folder)


@dataclass(frozen=True)
class _Written:
    """What a rank wrote."""

    results: list[Any]
    files: dict[str, dict[str, Any]]


def newest(run: Path, *, at: int | None = None) -> Checkpoint | None:
    """The newest checkpoint of a run that is whole; damaged ones are passed over, and it says so.

    Every rank calls this; each checks a share of the files.

    Args:
        run: the run's folder.
        at: only the checkpoint of this step.

    Returns:
        The checkpoint, or None where there is none.
    """
    names = from_first([folder.name for folder in _folders(run / FOLDER)])
    for name in names:
        folder = run / FOLDER / name
        if at is not None and _step(folder) != at:
            continue
        found = _read(folder)
        problem = found if isinstance(found, str) else _damage(found, run)
        problem = next((said for said in gather(problem) if said is not None), None)
        if problem is None:
            assert isinstance(found, Checkpoint)
            return found
        if dist.get_rank() == 0:
            print(f"kis: checkpoint {folder} is damaged ({problem}); looking for the one before", file=sys.stderr)
    return None


def required(run: Path, step: int | None) -> Checkpoint:
    """The checkpoint of this step, or the newest one, that is whole; every rank calls this.

    Raises:
        InputError: there is none.
    """
    checkpoint = newest(run, at=step)
    if checkpoint is None:
        problem = "has no whole checkpoint" + ("" if step is None else f" of step {step}")
        there = ", ".join(str(_step(folder)) for folder in reversed(_folders(run / FOLDER)))
        remedy = f"steps that lie there: {there}" if there else "train the run first"
        raise InputError(problem, where=str(run / FOLDER), remedy=remedy)
    return checkpoint


def _folders(folder: Path) -> list[Path]:
    """Folders that are named like checkpoints, the newest first."""
    if not folder.is_dir():
        return []
    named = [path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(named, key=_step, reverse=True)


def _step(folder: Path) -> int:
    match = _NAME.fullmatch(folder.name)
    assert match is not None
    return int(match[1])


def _read(folder: Path) -> Checkpoint | str:
    """The checkpoint in a folder, or why it is none."""
    try:
        manifest = read_json(folder / MANIFEST, CHECKPOINT_SCHEMA, keys=_KEYS)
    except InputError as error:
        return str(error)
    if manifest.pop("hash") != fingerprint(manifest):
        return f"{MANIFEST} has another content than was written"
    return Checkpoint(folder, manifest)


def write_manifest(path: Path, content: dict[str, Any]) -> None:
    """Writes ``checkpoint.json``, with a hash of its own content."""
    content = {name: value for name, value in content.items() if name != "hash"}
    write_json(path, {**content, "hash": fingerprint(content)})


def _damage(checkpoint: Checkpoint, run: Path) -> str | None:
    """What is wrong with this rank's share of the files, and with the logs that belong to them."""
    files = sorted(checkpoint.manifest["files"].items())
    for name, facts in files[dist.get_rank() :: dist.get_world_size()]:
        path = checkpoint.folder / name
        if Path(name).name != name or not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != facts["bytes"] or sha256_file(path) != facts["sha256"]:
            return f"{name} has another content than was written"
    for name, size in checkpoint.manifest["logs"].items():
        path = run / name
        if not path.is_file() or path.stat().st_size < size:
            return f"{path} is shorter than when it was written"
    return None


def _seal(path: Path) -> dict[str, Any]:
    """Brings a file to the disk, and says what it is."""
    with open(path, "rb") as file:
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
    """Removes a checkpoint: first what makes it one, so that half a folder is never taken for a whole one."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
