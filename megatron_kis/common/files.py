"""Files that are either whole or absent: atomic writes, locks, JSON with a schema, JSON lines, fingerprints.

Read errors are distinguished: a missing file, or one without permission, is wrong input; an error of the disk
or the file server says nothing about the file. Such an error is retried, and then ends the work (``steadily``).
"""

from __future__ import annotations

import errno
import fcntl
import gzip
import hashlib
import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from megatron_kis.common.errors import FIRST_BYTES, InputError, JobError, KisError, not_utf8, wider_encoding
from megatron_kis.common.parsing import parse_json
from megatron_kis.common.schemas import described, mismatch, writer

_BLOCK = 1 << 20
_WAITS = (0.1, 0.5, 2.0)
"""Seconds before each further try to read a file; a file server that fails over takes longer, and ends the work."""

_DYING = 2.0
"""Seconds for which a lock is waited for: processes that were killed may not be gone yet."""

_OURS = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EACCES,
    errno.EPERM,
    errno.ELOOP,
    errno.ENAMETOOLONG,
}
"""Errors that are about the path, and occur again at every try."""

_Read = TypeVar("_Read")


def unreadable(error: OSError, path: Path, *, remedy: str | None = None) -> KisError:
    """Returns the error for a file that could not be read to its end, where a second try is not possible.

    Args:
        error: what the system, or a decompressor, said.
        path: the file.
        remedy: what would be right, where the file is.

    Returns:
        An InputError, if the path or the file is wrong; a JobError, if the disk or the file server failed.
    """
    if error.errno == errno.EISDIR:
        remedy = remedy or "name a file in it"
    if error.errno == errno.ENOENT:
        return InputError("no such file", where=str(path), remedy=remedy)
    if error.errno is None or error.errno in _OURS:
        return InputError(f"cannot be read ({error.strerror or error})", where=str(path), remedy=remedy)
    return JobError(f"{path}: cannot be read ({error.strerror or error}); nothing was changed")


def steadily(read: Callable[[], _Read], path: Path) -> _Read:
    """Returns what ``read`` returns; an error of the disk or the file server is tried again a few times.

    Args:
        read: reads something.
        path: what it reads, for the message.

    Raises:
        InputError: the path is wrong: missing, of another kind, or not to be read by us.
        JobError: the error did not pass.
    """
    for wait in (*_WAITS, None):
        try:
            return read()
        except OSError as error:
            if error.errno in _OURS or wait is None:
                raise unreadable(error, path) from None
        time.sleep(wait)
    raise AssertionError("unreachable")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a sibling path to write to; it is renamed to ``path`` on success and removed on failure."""
    make_folder(path.parent)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with naming(path, partial):
            yield partial
            with open(partial, "rb") as written:
                os.fsync(written.fileno())
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def check_empty(folder: Path) -> None:
    """Refuses a folder that ``atomic_folder`` could not write, before any work.

    Raises:
        InputError: something is in it, it or a folder above it is a file, or it is the current folder.
    """
    there = next((place for place in (folder, *folder.parents) if place.exists()), None)
    if there is not None and not there.is_dir():
        raise InputError("is a file, not a folder", where=str(there), remedy="choose another output")
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError("the folder is not empty", where=str(folder), remedy="choose another output")
    if folder.resolve() == Path.cwd():
        raise InputError("is the current folder, which cannot be replaced", where=str(folder), remedy="name one in it")


def not_a_folder(path: Path) -> str:
    """Returns what is wrong with a path at which there is no folder: ``is a file`` or ``no such folder``."""
    return "is a file" if path.exists() else "no such folder"


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty sibling to write to; it is renamed to ``folder`` on success and removed on failure.

    Args:
        folder: a folder that does not exist, or is empty.

    Raises:
        InputError: as ``check_empty``.
    """
    check_empty(folder)
    place = folder.resolve()  # the folder itself, where this is a link
    partial = place.with_name(f".{place.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    make_folder(partial)
    try:
        yield partial
        if place.exists():
            place.rmdir()
        partial.rename(place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def naming(path: Path, partial: Path | None = None) -> Iterator[None]:
    """Adds the path to a system error that names no file (a full disk while writing), or ``partial``."""
    try:
        yield
    except OSError as error:
        if error.filename is None or str(error.filename) == str(partial):
            error.filename = str(path)
        raise


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it.

    Raises:
        InputError: something on the way is a file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        there = next((place for place in (folder, *folder.parents) if place.exists() and not place.is_dir()), folder)
        raise InputError("is a file, not a folder", where=str(there), remedy="choose another place") from None


@contextmanager
def locked(folder: Path, holder: str) -> Iterator[int]:
    """Holds the lock of a folder, which is made if it is not there; a process that dies releases it.

    Args:
        folder: what is locked.
        holder: who else would hold it, for the message.

    Yields:
        The lock's file descriptor, for child processes to inherit.

    Raises:
        JobError: another process holds it.
    """
    make_folder(folder)
    with open(folder / ".lock", "w", encoding="utf-8") as file:
        patience = time.monotonic() + _DYING
        while not _has_lock(file):
            if time.monotonic() > patience:
                raise JobError(f"{folder}: another '{holder}' is running here; wait for it or stop it")
            time.sleep(0.05)
        yield file.fileno()


def _has_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[str]]:
    """Yields a UTF-8 text file that appears under its name only when it is complete."""
    with atomic_path(path) as partial, open(partial, "w", encoding="utf-8") as file:
        yield file


def write_text(path: Path, text: str) -> None:
    """Writes ``text`` atomically."""
    with atomic_write(path) as file:
        file.write(text)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes ``content`` atomically."""
    with atomic_path(path) as partial:
        partial.write_bytes(content)


def write_json(path: Path, content: Any) -> None:
    """Writes ``content`` as indented JSON, atomically. NaN and infinity are refused."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, schema: str, *, keys: Iterable[str] = ()) -> dict[str, Any]:
    """Reads a JSON object whose ``schema`` key is ``schema`` and that has all of ``keys``.

    Raises:
        InputError: the file is missing, not JSON, not an object, of another schema, or lacks a key.
    """
    wanted = f"expected {described(schema)}"
    if path.is_dir():
        raise InputError("is a folder", where=str(path), remedy=wanted)
    text = read_text(path)
    try:
        content = parse_json(text, where=str(path))
    except InputError as error:
        raise InputError(error.problem, where=error.where, remedy=error.remedy or wanted) from None
    if not isinstance(content, dict):
        raise InputError("not a JSON object", where=str(path), remedy=wanted)
    if (found := content.get("schema")) != schema:
        raise InputError(mismatch(found, schema), where=str(path), remedy=wanted)
    for key in keys:
        if key not in content:
            raise InputError(f"has no {key!r}", where=str(path), remedy=f"make the file again with {writer(schema)}")
    return content


def read_text(path: Path) -> str:
    """Reads a UTF-8 file.

    Raises:
        InputError: it is missing, not to be read, or not UTF-8.
        JobError: the disk or the file server fails.
    """
    try:
        text = steadily(lambda: path.read_text(encoding="utf-8"), path)
    except UnicodeDecodeError as error:
        problem, remedy = not_utf8(error)
        raise InputError(problem, where=str(path), remedy=remedy) from None
    if wide := wider_encoding(text[:FIRST_BYTES].encode()):  # its zero bytes are valid UTF-8
        problem, remedy = wide
        raise InputError(problem, where=str(path), remedy=remedy)
    return text


def read_json_lines(path: Path, *, tolerate_torn_tail: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number from 1, object) of a JSON-lines file; blank lines are skipped.

    Args:
        path: the file.
        tolerate_torn_tail: drop a last line without a newline, as a killed writer leaves it.

    Raises:
        InputError: a missing file, or a line that is not a JSON object, with its number.
    """
    with steadily(lambda: open_content(path), path) as file, naming(path), _whole(path):
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            if tolerate_torn_tail and not line.endswith(b"\n"):
                return
            row = parse_json_line(line, where=f"{path}:{number}")
            if not isinstance(row, dict):
                raise InputError("not a JSON object", where=f"{path}:{number}")
            yield number, row


def open_content(path: Path) -> IO[bytes]:
    """Opens a file for reading; what ends with ``.gz`` is decompressed."""
    return cast("IO[bytes]", gzip.open(path, "rb")) if path.suffix == ".gz" else open(path, "rb")


def sha256_content(path: Path) -> str:
    """Returns the hexadecimal SHA-256 of what a file holds; what ends with ``.gz`` is decompressed first.

    Raises:
        InputError: it is missing, not to be read, or no gzip file.
        JobError: the disk or the file server fails.
    """
    return _sha256(path, open_content)


def _sha256(path: Path, opened: Callable[[Path], IO[bytes]]) -> str:
    def read() -> str:
        digest = hashlib.sha256()
        with opened(path) as file, _whole(path):
            while block := file.read(_BLOCK):
                digest.update(block)
        return digest.hexdigest()

    return steadily(read, path)


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Reports a compressed file that is cut off or damaged as wrong input."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"not a whole gzip file ({error})", where=str(path)) from None


def parse_json_line(line: bytes, *, where: str) -> Any:
    """Returns the content of one line of a JSON-lines file.

    Raises:
        InputError: it is malformed, or an object in it has a key twice.
    """
    try:
        return parse_json(line, where=where)
    except InputError as error:
        if error.problem.startswith("not valid JSON"):
            detail = error.problem.removeprefix("not valid JSON")
            raise InputError(f"malformed JSON line{detail}", where=where) from None
        raise


def append_json_line(path: Path, row: dict[str, Any]) -> None:
    """Appends a row to a JSON-lines file and waits for the disk; after a line cut by a crash it begins a new one."""
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
    """Returns the hexadecimal SHA-256 of a file's bytes.

    Raises:
        InputError: it is missing, or not to be read.
        JobError: the disk or the file server fails.
    """
    return _sha256(path, lambda path: open(path, "rb"))


def fingerprint(content: Any) -> str:
    """Returns the hexadecimal SHA-256 of a JSON-serialisable value in canonical form (sorted keys, no spaces)."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
