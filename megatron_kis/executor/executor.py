"""Executes cells, some side by side, each a process of its own: here, or wherever the launcher starts them.

Every cell is claimed first (``claim``), so that executors on many machines can share a study; each attempt is noted
(``attempts``). A failed cell is tried again at the end, ``retries`` times, and stops no other. Asked to stop (SIGINT,
SIGTERM, SIGUSR1), the executor asks its cells, which save and end; whatever is DONE is skipped when the study is run
again. Cells ask the kernel to be ended when the executor dies: even a SIGKILL leaves none behind that a second one
would meet.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import yaml

from megatron_kis.common.configuration import absolute_content
from megatron_kis.common.ending import VARIABLE, Ending, read_ending
from megatron_kis.common.files import locked, write_text
from megatron_kis.config.run import RunConfig
from megatron_kis.config.study import ExecutorConfig
from megatron_kis.executor.attempts import (
    STOPPED,
    Outcome,
    end_attempt,
    given_up,
    read_attempts,
    settings_fingerprint,
    start_attempt,
)
from megatron_kis.executor.launch import Command, Launcher, local_command
from megatron_kis.executor.lease import Claim, Owner, Seen, claim, doubtful, look, this_process
from megatron_kis.executor.logs import ATTEMPT, LOG_NAME
from megatron_kis.executor.processes import descendants, prepared
from megatron_kis.executor.resources import Machine, Place, Places, this_machine

_ENDING = ".status-{}.json"  # in the run's folder, by the number of the attempt
_POLL_SECONDS = 0.2
_LOOK_SECONDS = 2.0  # between looks at claims whose owners may be dead
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@dataclass(frozen=True)
class Progress:
    """Where the execution stands. Names of runs."""

    done: tuple[str, ...]
    """Runs that are DONE, those skipped included."""

    failed: tuple[str, ...]
    """Runs that are given up; those that were given up before included."""

    running: tuple[str, ...]
    """Runs in flight."""

    total: int
    """Runs that were asked for."""

    stopped: tuple[str, ...] = ()
    """Runs that were asked to stop, or were not started because the executor was."""

    elsewhere: tuple[tuple[str, str], ...] = ()
    """Runs that another executor has claimed, and who."""

    retried: tuple[str, ...] = ()
    """Runs of which an attempt failed and that were, or will be, tried again."""

    signal: int = 0
    """The signal that asked the executor to stop; 0 for none."""


Report = Callable[[Progress], None]


@dataclass(eq=False)
class _Cell:
    run: RunConfig
    place: Place
    claim: Claim
    command: Command
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    ending: Path
    """Where its first failing rank says why."""

    lost: bool = False


@dataclass
class _Stop:
    """Whether and when the executor was asked to stop."""

    number: int = 0
    """The signal; 0 for none."""

    at: float = 0.0
    """When, by the monotonic clock."""

    again: bool = False
    """Whether Ctrl-C was pressed once more."""

    passed_on: bool = False
    """Whether the cells were asked."""

    def __call__(self, number: int, _frame: object) -> None:
        if not self.number:
            self.number, self.at = number, time.monotonic()
        elif number == signal.SIGINT:
            self.again = True


def execute(
    runs: Sequence[RunConfig],
    *,
    done: Collection[str],
    settings: ExecutorConfig,
    report: Report = lambda _: None,
    launcher: Launcher = local_command,
    machine: Machine | None = None,
    lock: int | None = None,
    dead: Callable[[Owner], bool] | None = None,
) -> Progress:
    """Executes the runs that are not done, not given up and not claimed by another.

    Args:
        runs: runs of a study, all or some, in the order in which to start them.
        done: names of those that are complete.
        settings: how many side by side, and where.
        report: called whenever something changes and about once a second.
        launcher: from a run, its configuration file and its place to its command.
        machine: GPUs and cores to deal out; what this process may use if not given.
        lock: file descriptor of the study's lock (``study_lock``), which the runs share; none where several executors
            work on a study.
        dead: see ``claim.claim``.

    Returns:
        How it ended; ``signal`` says if it was asked to stop, and ``stopped`` which runs were not finished for that.

    Raises:
        InputError: a run for which there is no place.
    """
    return _Executor(runs, done, settings, report, launcher, machine, lock, dead).execute()


class _Executor:
    def __init__(
        self,
        runs: Sequence[RunConfig],
        done: Collection[str],
        settings: ExecutorConfig,
        report: Report,
        launcher: Launcher,
        machine: Machine | None,
        lock: int | None,
        dead: Callable[[Owner], bool] | None,
    ) -> None:
        finished = set(done)
        self._total = len(runs)
        self._done = [run.name for run in runs if run.name in finished]
        self._waiting = deque(run for run in runs if run.name not in finished)
        self._doubtful: deque[RunConfig] = deque()
        self._looked = 0.0
        self._beats: dict[str, float] = {}
        self._failed: list[str] = []
        self._stopped: list[str] = []
        self._retried: list[str] = []
        self._elsewhere: list[tuple[str, str]] = []
        self._cells: list[_Cell] = []
        self._settings, self._report, self._launcher = settings, report, launcher
        self._lock, self._dead = lock, dead
        self._owner = this_process()
        self._places = Places(machine or this_machine(settings), settings)
        if launcher is local_command:
            self._places.check(list(self._waiting))
        self._stop = _Stop()

    def execute(self) -> Progress:
        """Until nothing waits and nothing runs, or until asked to stop."""
        with _signals_to(self._stop):
            try:
                last_report = 0.0
                while ((self._waiting or self._doubtful) and not self._stop.number) or self._cells:
                    changed = self._ended() + self._started() > 0
                    if self._stop.number:
                        self._pass_on()
                    if changed or time.monotonic() - last_report >= 1.0:
                        last_report = time.monotonic()
                        self._report(self._progress())
                    if self._cells or self._doubtful:
                        time.sleep(_POLL_SECONDS)
            finally:
                self._kill()
        self._stopped += [run.name for run in (*self._waiting, *self._doubtful)]
        return self._progress()

    def _progress(self) -> Progress:
        return Progress(
            done=tuple(self._done),
            failed=tuple(self._failed),
            running=tuple(cell.run.name for cell in self._cells),
            total=self._total,
            stopped=tuple(self._stopped),
            elsewhere=tuple(self._elsewhere),
            retried=tuple(self._retried),
            signal=self._stop.number,
        )

    def _started(self) -> int:
        """Starts what there is a place for, in order: small ones do not starve one that waits for several GPUs."""
        count = 0
        if self._doubtful and time.monotonic() - self._looked > _LOOK_SECONDS:
            self._looked = time.monotonic()
            self._waiting.extend(self._doubtful)
            self._doubtful.clear()
        while self._waiting and not self._stop.number:
            place = self._places.take(self._waiting[0])
            if place is None:
                break
            run = self._waiting.popleft()
            if not self._start(run, place):
                self._places.give_back(run, place)
            count += 1
        return count

    def _start(self, run: RunConfig, place: Place) -> bool:
        """Claims a run and starts it, unless that is not needed."""
        lease = 60 * self._settings.lease_minutes
        held = claim(run.output, owner=self._owner, lease=lease, dead=self._dead)
        if not isinstance(held, Claim):
            if self._doubts(run, held, lease):
                self._doubtful.append(run)  # its lease ends in a few minutes, or it gives a sign of life
            else:
                self._elsewhere.append((run.name, str(held.owner)))
            return False
        try:
            if (run.output / "DONE").exists():  # by another executor, since ``done`` was looked up
                self._done.append(run.name)
            elif given_up(run, self._settings.retries):
                self._failed.append(run.name)
            else:
                self._cells.append(self._launch(run, place, held))
                return True
        except BaseException:
            held.release()
            raise
        held.release()
        return False

    def _doubts(self, run: RunConfig, seen: Seen, lease: float) -> bool:
        """Whether the owner of a claim may be dead; once it may, until it gives a sign of life."""
        if self._beats.get(run.name) == seen.beat:
            return True
        if not doubtful(seen, self._owner, lease=lease):
            return False
        now = look(run.output)  # a heartbeat in the future was set back when we tried to claim the cell
        self._beats[run.name] = now.beat if now else seen.beat
        return True

    def _launch(self, run: RunConfig, place: Place, held: Claim) -> _Cell:
        config = run.output / "config.yaml"
        write_text(config, yaml.safe_dump(absolute_content(run), sort_keys=False))
        command = self._launcher(run, config, place)
        again = ["--restart"] if read_attempts(run.output).restart else []
        start_attempt(held, settings_fingerprint(run))
        for left in run.output.glob(_ENDING.format("*")):  # by an executor that was killed
            left.unlink(missing_ok=True)
        # A name that nobody has looked up before: NFS remembers for a while that a file is not there.
        ending = run.output.resolve() / _ENDING.format(held.number)
        log = open(run.output / LOG_NAME, "ab")  # noqa: SIM115 - closed when the run ends
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        log.write(f"{ATTEMPT}{held.number}, {when}, {self._owner}\n".encode())
        log.flush()
        # A session of its own: Ctrl-C reaches the executor alone, which then stops its runs in order.
        process = subprocess.Popen(
            [*command.arguments, *again],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **command.environment, VARIABLE: str(ending)},
            start_new_session=True,
            pass_fds=() if self._lock is None else (self._lock,),
            preexec_fn=prepared(place.cores),  # noqa: PLW1509 - two system calls, looked up before the fork
        )
        held.started(process.pid)
        return _Cell(run, place, held, command, process, log, ending)

    def _ended(self) -> int:
        """Collects the cells that have ended, renews the claims of the others."""
        ended = [cell for cell in self._cells if cell.process.poll() is not None]
        for cell in ended:
            self._collect(cell)
        for cell in self._cells:
            if not cell.lost and not cell.claim.renew():
                cell.lost = True  # another machine took this one for dead, and runs the cell
                _kill_all(cell)
        return len(ended)

    def _collect(self, cell: _Cell) -> None:
        run, status = cell.run, int(cell.process.returncode)
        self._cells.remove(cell)
        cell.log.close()
        self._places.give_back(run, cell.place)
        if cell.lost:
            self._elsewhere.append((run.name, "taken over by another executor"))
            return
        said = _said(cell)
        status = said.status if said else status
        outcome = self._outcome(run, status)
        end_attempt(cell.claim, status=status, outcome=outcome, error=said.error if said else "")
        cell.claim.release()
        if outcome == "done":
            self._done.append(run.name)
        elif outcome == "stopped":
            self._stopped.append(run.name)
        elif given_up(run, self._settings.retries):
            self._failed.append(run.name)
        else:
            self._retried.append(run.name)
            self._waiting.append(run)  # after all others: what ails it may pass

    def _outcome(self, run: RunConfig, status: int) -> Outcome:
        if status == 0 and (run.output / "DONE").exists():
            return "done"
        # What ended because we asked, however it ended, goes on from its last checkpoint.
        return "stopped" if status == STOPPED or self._stop.number else "failed"

    def _pass_on(self) -> None:
        """Asks the cells to stop, once; kills them when the time for it is over."""
        if not self._stop.passed_on:
            self._stop.passed_on = True
            for cell in self._cells:
                _ask(cell)
        if self._stop.again or time.monotonic() - self._stop.at > self._settings.grace_seconds:
            for cell in self._cells:
                _kill_all(cell)

    def _kill(self) -> None:
        """However the executor ends, no cell is left behind."""
        for cell in self._cells:
            _kill_all(cell)
            cell.process.wait()
            cell.log.close()
            cell.claim.release()
        self._cells.clear()


def _said(cell: _Cell) -> Ending | None:
    """What the first failing rank of an ended cell wrote: launchers of several ranks end with a status of their own."""
    said = read_ending(cell.ending) if cell.process.returncode else None
    with suppress(OSError):
        cell.ending.unlink(missing_ok=True)
    return said


def _ask(cell: _Cell) -> None:
    """Asks a cell to save and end."""
    process = cell.process.pid
    asked = descendants(process, depth=1) if cell.command.signal_children else []
    for number in asked or [process]:
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGTERM)


def _kill_all(cell: _Cell) -> None:
    """Kills a cell with all that came of it; torchrun's ranks are in sessions of their own."""
    process = cell.process.pid
    for number in [process, *descendants(process)]:
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    with suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)


@contextmanager
def study_lock(folder: Path) -> Iterator[int]:
    """Holds the lock of a study, without which nobody changes its data or starts its runs.

    Yields:
        Its file descriptor, for the runs to inherit.

    Raises:
        JobError: another process holds it.
    """
    with locked(folder, "kis study run") as lock:
        yield lock


@contextmanager
def _signals_to(stop: _Stop) -> Iterator[None]:
    """Also a SIGINT that a shell's background job would ignore."""
    previous = {number: signal.signal(number, stop) for number in _STOPPING}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
