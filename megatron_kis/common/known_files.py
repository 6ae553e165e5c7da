"""Files whose content is known: recognised by size, times of change and inode, hashed again where one of them differs.

Hashing a corpus of 100 GB takes minutes; asking for its status takes microseconds. A status stands for the content as
long as it is the same to the nanosecond. The inode's time of change belongs to it: programs can set a file's date back,
but not that one. Its number tells apart two files that were made in one tick of the clock, when a link is turned from
one to the other. The device's number is left out: machines that share a file system each have their own for it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from megatron_kis.common.errors import InputError
from megatron_kis.common.files import read_json, sha256_file, steadily, write_json

SCHEMA = "kis.seen/1"

_TICK = 0.02
"""Seconds within which a file system may give two changes the same time; Linux's clock ticks every 1 to 10 ms."""
_COARSE = 1_000_000
"""Coarse resolution in nanoseconds: times that are whole multiples of it come from a file system without finer ones."""

Status = list[int]
"""Size in bytes, time of the last change of the content and of the inode in nanoseconds, the inode's number."""
_NUMBERS = 4
"""Number of entries of a status; one with fewer, from an earlier version, is not known."""


def status_of(path: Path) -> Status:
    """Returns what changes whenever a file does, or a link leads to another.

    Raises:
        InputError: the file is missing, or not to be read.
    """
    status = steadily(path.stat, path)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


class Sources:
    """Files that must stay as they are while something is made from them."""

    def __init__(self, paths: Iterable[Path]) -> None:
        """Remembers the present status of each file."""
        self._statuses = {path: status_of(path) for path in paths}

    def check(self) -> None:
        """Refuses a file that changed since.

        Raises:
            InputError: names it.
        """
        for path, status in self._statuses.items():
            if status_of(path) != status:
                remedy = "give the command again when nothing writes to it"
                raise InputError("changed while it was read", where=str(path), remedy=remedy)


class Seen:
    """SHA-256 of files by their status, kept in a file from one command to the next."""

    def __init__(self, path: Path) -> None:
        """Reads what is known; a missing or damaged file only has all files hashed."""
        self._path = path
        self._known: dict[str, list[Any]] = {}
        self._changed = False
        try:
            known = read_json(path, SCHEMA, keys=("files",))["files"]
        except InputError:
            return
        if isinstance(known, dict):
            self._known = {name: entry for name, entry in known.items() if _whole(entry)}

    def sha256(self, path: Path) -> str:
        """Hexadecimal SHA-256 of a file.

        Raises:
            InputError: it is missing, or not to be read.
        """
        status = status_of(path)
        known = self._known.get(self._name(path))
        if known and known[0] == status:
            return str(known[1])
        digest = sha256_file(path)
        if status_of(path) != status:
            raise InputError("changed while it was read", where=str(path), remedy="give the command again")
        self.add(path, digest, status)
        return digest

    def add(self, path: Path, digest: str, status: Status | None = None) -> None:
        """Notes the SHA-256 of a file that was written or hashed just now."""
        self._known[self._name(path)] = [status or status_of(path), digest]
        self._changed = True

    def save(self) -> None:
        """Writes what is known, where that is news and the folder can be written to.

        Waits until another change of a file that was seen would have another time.
        """
        if not self._changed:
            return
        time.sleep(_TICK)
        fine = {name: [status, digest] for name, (status, digest) in self._known.items() if status[2] % _COARSE}
        try:
            write_json(self._path, {"schema": SCHEMA, "files": fine})
        except PermissionError:
            return
        self._changed = False

    def _name(self, path: Path) -> str:
        """Returns where links lead; a place in the study's own folder is relative, so that it can be moved."""
        place = path.resolve()
        home = self._path.parent.parent.resolve()
        return str(place.relative_to(home)) if place.is_relative_to(home) else str(place)


def _whole(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], list) and len(entry[0]) == _NUMBERS
