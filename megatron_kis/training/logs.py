"""Logs of a run: JSON lines that are on disk when they are written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class JsonLines:
    """An append-only JSON-lines file. A killed writer leaves at most a torn last line, which readers drop."""

    def __init__(self, path: Path, *, keep: int = 0) -> None:
        """Opens ``path`` and drops everything behind its first ``keep`` bytes (a checkpoint's ``position``)."""
        self._file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - closed by close()
        self._file.truncate(keep)

    def write(self, row: dict[str, Any]) -> None:
        """Appends one row. NaN and infinity, which JSON has not, are refused."""
        self._file.write(json.dumps(row, allow_nan=False) + "\n")

    def position(self) -> int:
        """Bytes written so far; they have reached the disk when this returns."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
