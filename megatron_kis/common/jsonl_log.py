"""Logs of a run: JSON lines that are on disk when they are written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from megatron_kis.common.errors import JobError
from megatron_kis.common.files import naming

_BLOCK = 1 << 20


class JsonLines:
    """An append-only JSON-lines file. A killed writer leaves at most a torn last line, which readers drop."""

    def __init__(self, path: Path, *, keep: int = 0) -> None:
        """Opens ``path`` and drops everything after its first ``keep`` bytes (a checkpoint's ``position``)."""
        self._path = path
        with naming(path):
            self._file = open(path, "a+", encoding="utf-8", buffering=1)  # noqa: SIM115 - closed by close()
            self._file.truncate(keep)

    def write(self, row: dict[str, Any]) -> None:
        """Appends one row. NaN and infinity, which JSON does not have, are refused."""
        with naming(self._path):
            self._file.write(json.dumps(row, allow_nan=False) + "\n")

    def position(self) -> int:
        """Returns the number of bytes written so far; they have reached the disk when this returns."""
        with naming(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
            return os.fstat(self._file.fileno()).st_size

    def copy(self, target: Path, size: int) -> None:
        """Copies the first ``size`` bytes, also of a file that was renamed or removed since; in any thread.

        Raises:
            JobError: there are not as many.
        """
        with open(target, "wb") as file, naming(target):
            reached = 0
            while reached < size:
                block = os.pread(self._file.fileno(), min(_BLOCK, size - reached), reached)
                if not block:
                    raise JobError(f"{self._path}: was cut off while the run was writing it")
                file.write(block)
                reached += len(block)

    def close(self) -> None:
        """Closes the file."""
        with naming(self._path):
            self._file.close()
