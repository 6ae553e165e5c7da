"""Logs of a run: JSON lines that are on disk when they are written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class JsonLines:
    """An append-only JSON-lines file. A killed writer leaves at most a torn last line, which readers drop."""

    def __init__(self, path: Path) -> None:
        """Opens ``path`` anew."""
        self._file = open(path, "w", encoding="utf-8", buffering=1)  # noqa: SIM115 - closed by close()

    def write(self, row: dict[str, Any]) -> None:
        """Appends one row. NaN and infinity, which JSON has not, are refused."""
        self._file.write(json.dumps(row, allow_nan=False) + "\n")

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
