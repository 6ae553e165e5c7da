"""Files that are either whole or absent: atomic writes, locks, JSON with a schema, JSON lines, fingerprints."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from megatron_kis.errors import InputError, JobError

_BLOCK = 1 << 20


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a sibling path to write to; it is renamed to ``path`` on success and removed on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with open(partial, "rb") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path, holder: str) -> Iterator[int]:
    """Holds the lock of a folder, which is made if it is not there; a process that dies lets go of it.

    Args:
        folder: what is locked.
        holder: who else would hold it, for the message.

    Yields:
        The lock's file descriptor, for child processes to inherit.

    Raises:
        JobError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise JobError(f"{folder}: another '{holder}' is at work here; wait for it or stop it") from None
        yield file.fileno()


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[str]]:
    """A UTF-8 text file that appears under its name only when it is complete."""
    with atomic_path(path) as partial, open(partial, "w", encoding="utf-8") as file:
        yield file


def write_text(path: Path, text: str) -> None:
    """Writes ``text`` atomically."""
    with atomic_write(path) as file:
        file.write(text)


def write_json(path: Path, content: Any) -> None:
    """Writes ``content`` as indented JSON, atomically. NaN and infinity are refused."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, schema: str, *, keys: Iterable[str] = ()) -> dict[str, Any]:
    """Reads a JSON object whose ``schema`` key is ``schema`` and that has all of ``keys``.

    Raises:
        InputError: the file is missing, not JSON, not an object, of another schema, or lacks a key.
    """
    text = read_text(path)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"not valid JSON ({error.msg})", where=f"{path}:{error.lineno}") from None
    if not isinstance(content, dict):
        raise InputError("not a JSON object", where=str(path))
    found = content.get("schema")
    if found != schema:
        raise InputError(f"schema is {found!r}", where=str(path), remedy=f"expected {schema!r}")
    for key in keys:
        if key not in content:
            raise InputError(f"has no {key!r}", where=str(path), remedy="make the file again")
    return content


def read_text(path: Path) -> str:
    """Reads a UTF-8 file; a missing, unreadable or undecodable one is an InputError."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(path)) from None
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 (byte {error.start})", where=str(path)) from None


def read_json_lines(path: Path, *, tolerate_torn_tail: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number from 1, object) of a JSON-lines file; blank lines are skipped.

    Args:
        path: the file.
        tolerate_torn_tail: drop a last line without a newline, as a killed writer leaves it.

    Raises:
        InputError: a missing file, or a line that is not a JSON object, with its number.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(path)) from None
    with file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            if tolerate_torn_tail and not line.endswith(b"\n"):
                return
            try:
                row = json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise InputError(f"malformed JSON line ({error})", where=f"{path}:{number}") from None
            if not isinstance(row, dict):
                raise InputError("not a JSON object", where=f"{path}:{number}")
            yield number, row


def append_json_line(path: Path, row: dict[str, Any]) -> None:
    """Appends a row to a JSON-lines file and waits for the disk; behind a line that a crash has cut it begins anew."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        line = json.dumps(row).encode() + b"\n"
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = b"\n" + line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def write_json_lines(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Writes rows as JSON lines, atomically, and returns their number."""
    count = 0
    with atomic_write(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            count += 1
    return count


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(path)) from None
    return digest.hexdigest()


def fingerprint(content: Any) -> str:
    """Hexadecimal SHA-256 of a JSON-serialisable value in canonical form (sorted keys, no spaces)."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
