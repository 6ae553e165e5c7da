"""What all parts share: the device, the time, the rows, and where to write."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.gpu.commands import Failed, Limit, last_object, run, worker
from benchmarks.gpu.rows import Rows


@dataclass(frozen=True)
class Bench:
    """One call of the benchmark, as a part sees it."""

    options: argparse.Namespace
    rows: Rows
    limit: Limit
    work: Path
    """Folder for runs and data, removed at the end."""

    logs: Path
    """Folder of the messages of all processes."""

    machine: dict[str, Any]
    """The header row."""

    @property
    def device(self) -> str:
        """``cuda`` or ``cpu``."""
        return str(self.options.device)

    @property
    def on_host(self) -> bool:
        """Whether the script is only tried."""
        return self.device == "cpu"

    def within(self, limit: Limit) -> Bench:
        """The same with another limit."""
        return replace(self, limit=limit)

    def log(self, name: str) -> Path:
        """The file of messages of a process."""
        return self.logs / ("".join(letter if letter.isalnum() or letter in "-." else "_" for letter in name) + ".log")

    def measure(self, name: str, what: str, **settings: Any) -> dict[str, Any]:
        """The one result of a measurement in a process of its own.

        Args:
            name: of the log.
            what: the measurement (``work``).
            settings: of the measurement.

        Raises:
            Failed: it failed, or was not done in the time.
            Skipped: the time is over.
        """
        output = run(worker(what, **settings), log=self.log(name), limit=self.limit)
        try:
            return last_object(output)
        except (IndexError, ValueError):
            raise Failed("no result") from None

    def data(self, name: str, **settings: Any) -> Path:
        """A small study's data, made once."""
        folder = self.work / name
        if not (folder / "data" / "facts.jsonl").exists():
            self.measure(f"data-{name}", "data", folder=folder, **settings)
        return folder / "data"
