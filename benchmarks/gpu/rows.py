"""The rows of results: appended to a file as soon as they are there, and said on stderr for people."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.commands import Failed, Skipped

OK, FAILED, SKIPPED = "ok", "failed", "skipped"


class Rows:
    """An open file of results; threads may share it."""

    def __init__(self, path: Path, only: Sequence[str] = ()) -> None:
        """Appends to ``path``; if ``only`` is not empty, of the attempts only those whose item contains one of it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._only, self._lock = path, only, threading.Lock()
        self.failed = 0
        """Rows of this call that say ``failed``."""

        self.chosen = 0
        """Attempts whose item contains what was asked for."""

    def add(self, part: str, item: str, status: str = OK, **values: Any) -> None:
        """Appends a row, and prints it."""
        row = {"part": part, "item": item, "status": status, **values}
        with self._lock:
            self.failed += status == FAILED
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{part:13}{item:46} {status:8}{said(values)}", file=sys.stderr, flush=True)

    def attempt(self, part: str, item: str, work: Callable[[], Mapping[str, Any]], *, needed: bool = False) -> bool:
        """Calls a function and adds a row of its result, or of the reason why it failed or cannot run here.

        Args:
            part: of the benchmark.
            item: of the part.
            work: what to do.
            needed: other parts need it, so it always runs.

        Returns:
            Whether it succeeded.
        """
        if not needed and self._only and not any(text in item for text in self._only):
            return False
        self.chosen += 1
        started = time.monotonic()

        def seconds() -> float:
            return round(time.monotonic() - started, 1)

        try:
            values = work()
        except Skipped as reason:
            self.add(part, item, SKIPPED, message=str(reason))
        except Failed as reason:
            self.add(part, item, FAILED, message=str(reason), seconds=seconds())
        except Exception as error:  # a fault here must not cost what comes after it
            self.add(part, item, FAILED, message=f"{type(error).__name__}: {error}", seconds=seconds())
        else:
            self.add(part, item, OK, **{"seconds": seconds(), **values})
            return True
        return False


def said(values: Mapping[str, Any]) -> str:
    """Values on a line."""
    return "  ".join(f"{name} {short(value)}" for name, value in values.items())


def short(value: Any) -> str:
    """A value as people read it."""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All whole rows of a file of results."""
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
