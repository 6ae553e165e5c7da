"""Processes with a limit: each is started in a process group of its own, read while it runs, and ended in time."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parents[2]
POLL = 0.02  # seconds
GRACE = 2.0  # seconds after which a stopped process is killed

_RANK = re.compile(r"^\[rank\d+\]:\s?")
"""What PyTorch puts before the lines of a traceback."""

_ERROR = re.compile(r"(kis: |[\w.]*(Error|Exception|OutOfMemory)\b.*: ?\S)")
"""A line that names an error; torchrun's ``ChildFailedError:`` has no text after its colon."""


class Failed(Exception):
    """A check failed; the message says what was found."""


class Skipped(Exception):
    """It cannot be shown here; the message says why."""


class Limit:
    """A moment by which something must be done; a limit made of another is never later than it."""

    def __init__(self, seconds: float, within: Limit | None = None) -> None:
        """Counts from now."""
        self._end, self._within = time.monotonic() + seconds, within

    def left(self) -> float:
        """Seconds, 0 if it is over."""
        left = max(0.0, self._end - time.monotonic())
        return left if self._within is None else min(left, self._within.left())

    def stop(self) -> None:
        """Is over now, for all that are made of it too."""
        self._end = 0.0

    def need(self, seconds: float) -> None:
        """Continues if there is enough time left.

        Raises:
            Skipped: there is not enough time.
        """
        if self.left() < seconds:
            raise Skipped("no time left")


class Command:
    """A running command, its messages in ``log`` and its output next to it; as a context it leaves no process."""

    def __init__(
        self, arguments: Sequence[str], *, log: Path, limit: Limit, environment: Mapping[str, str] | None = None
    ) -> None:
        """Starts it in the checkout's root.

        Raises:
            Skipped: the time is over.
        """
        limit.need(0.1)
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log, self._out, self._limit, self._read = log, log.with_suffix(".out"), limit, 0
        paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        with open(self._log, "ab") as errors, open(self._out, "wb") as output:
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                cwd=ROOT,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": paths, **(environment or {})},
            )

    def __enter__(self) -> Command:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    @property
    def ended(self) -> bool:
        """Whether it has ended by itself."""
        return self._process.poll() is not None

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to it alone, not to what it has started."""
        self._process.send_signal(number)

    def wait_until(self, condition: Callable[[], bool]) -> bool:
        """Waits for a condition; False if the command ends before.

        Raises:
            Failed: the time is over before.
        """
        while not condition():
            if self.ended:
                return condition()
            self._check_time()
            time.sleep(POLL)
        return True

    def wait(self, line: Callable[[dict[str, Any]], None] | None = None) -> int:
        """Its exit status, that of a signal negative.

        Args:
            line: told each line of the output that is a JSON object, as soon as it is there.

        Raises:
            Failed: the time is over before.
        """
        while True:
            ended = self.ended
            if line is not None:
                for found in self._new_objects():
                    line(found)
            if ended:
                return int(self._process.returncode)
            self._check_time()
            time.sleep(POLL)

    def output(self) -> str:
        """What it has printed so far."""
        return self._out.read_text(encoding="utf-8", errors="replace")

    def reason(self) -> str:
        """What it said of its failure: its last error, else its last words, else its exit status."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        said = [text for line in lines if (text := _RANK.sub("", line).strip())]
        errors = [text for text in said if _ERROR.match(text)]
        return next(reversed(errors or said), f"exit status {self._process.poll()}")[:500]

    def _new_objects(self) -> list[dict[str, Any]]:
        with open(self._out, "rb") as file:
            file.seek(self._read)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        found = []
        for line in whole.decode("utf-8", errors="replace").splitlines():
            if line.startswith("{"):
                try:
                    found.append(json.loads(line))
                except json.JSONDecodeError:
                    continue
        return found

    def _check_time(self) -> None:
        if self._limit.left() <= 0:
            self._end()
            raise Failed("not done in the time")

    def _end(self) -> None:
        """Ends the whole group: what is left of it may hold the GPU's memory."""
        for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, 30.0)):
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                break
            if self.ended and number == signal.SIGTERM:
                continue
            try:
                self._process.wait(timeout=patience)
            except subprocess.TimeoutExpired:
                continue
        self._process.wait()


def run(
    arguments: Sequence[str],
    *,
    log: Path,
    limit: Limit,
    environment: Mapping[str, str] | None = None,
    line: Callable[[dict[str, Any]], None] | None = None,
) -> str:
    """Runs a command to its end and returns its output; see ``Command``.

    Raises:
        Failed: it ended with another status than 0, or not in the time.
        Skipped: the time is over.
    """
    with Command(arguments, log=log, limit=limit, environment=environment) as command:
        if command.wait(line):
            raise Failed(command.reason())
        return command.output()


def worker(name: str, *, ranks: int = 1, **settings: Any) -> list[str]:
    """The command of a measurement (``benchmarks.gpu.work``)."""
    return python("benchmarks.gpu.work", name, json.dumps(settings, default=str), ranks=ranks)


def python(module: str, *arguments: str, ranks: int = 1) -> list[str]:
    """A module of Python with its arguments, with so many ranks under torchrun."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    return [sys.executable, *launcher, "-m", module, *arguments]


def kis(*arguments: str | Path) -> list[str]:
    """A command of ``kis``."""
    return python("megatron_kis", *map(str, arguments))


def last_object(output: str) -> dict[str, Any]:
    """The last line of an output that is a JSON object."""
    found: dict[str, Any] = json.loads([line for line in output.splitlines() if line.startswith("{")][-1])
    return found
