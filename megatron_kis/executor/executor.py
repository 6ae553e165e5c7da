"""Executes runs, some side by side, each a process of its own: here, or wherever the launcher starts them.

Every run is acquired first (``lease``), so that executors on many machines can share a study; each attempt is recorded
(``attempts``). A failed run is tried again at the end, ``retries`` times, and stops no other. A run that branches from
another one (``Run.trunk``) waits until that has ended, in any way, here or with another executor. Asked to stop
(SIGINT, SIGTERM, SIGUSR1), the executor asks its runs, which save and end; whatever is DONE is skipped the next time.
Runs ask the kernel to be ended when the executor dies: even a SIGKILL leaves no run behind.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from megatron_kis.config.executor import ExecutorConfig
from megatron_kis.executor.attempts import STOPPED, Outcome, end_attempt, is_exhausted
from megatron_kis.executor.interface import Launcher, Progress, Report, Run, Slot, local_command
from megatron_kis.executor.lease import HeldLease, Lease, acquire, is_live, is_suspect, read_lease, this_process
from megatron_kis.executor.resources import Machine, ResourcePool, this_machine
from megatron_kis.executor.run_process import RunProcess, start_run
from megatron_kis.executor.starter import Starter

_POLL_SECONDS = 0.2
_RETRY_SECONDS = 2.0  # between attempts to acquire runs whose owners may be dead, or that others wait for
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@dataclass
class _Stop:
    """The request to the executor to stop, if there was one, and its time."""

    number: int = 0
    """Number of the signal; 0 for none."""

    at: float = 0.0
    """Time of the signal, by the monotonic clock."""

    again: bool = False
    """Whether Ctrl-C was pressed once more after the first request."""

    passed_on: bool = False
    """Whether the request was passed on to the runs."""

    def __call__(self, number: int, _frame: object) -> None:
        if not self.number:
            self.number = number
            self.at = time.monotonic()
        elif number == signal.SIGINT:
            self.again = True


def execute(
    runs: Sequence[Run],
    *,
    done: Collection[str],
    settings: ExecutorConfig,
    report: Report = lambda _: None,
    launcher: Launcher = local_command,
    machine: Machine | None = None,
    lock: int | None = None,
) -> Progress:
    """Executes the runs that are not done, not given up and not held by another executor.

    Args:
        runs: the runs, in the order in which to start them.
        done: names of those that are complete.
        settings: how many side by side, and where.
        report: called whenever something changes, and about once per second.
        launcher: returns the command of a run, given its configuration file and its slot.
        machine: GPUs and cores to assign; what this process may use if not given.
        lock: file descriptor of a lock that the runs inherit; none where several executors work on the same runs.

    Returns:
        How it ended; ``signal`` says if it was asked to stop, and ``stopped`` which runs were not finished for that.

    Raises:
        InputError: a run that could never start on this machine.
    """
    pool = ResourcePool(machine or this_machine(settings), settings)
    executor = _Executor(runs, done, settings, pool, report, launcher, lock)
    if launcher is local_command:
        pool.check(list(executor.waiting))
    return executor.execute()


class _Executor:
    def __init__(
        self,
        runs: Sequence[Run],
        done: Collection[str],
        settings: ExecutorConfig,
        pool: ResourcePool,
        report: Report,
        launcher: Launcher,
        lock: int | None,
    ) -> None:
        self._settings = settings
        self._lease_seconds = 60 * settings.lease_minutes
        self._pool = pool
        self._report = report
        self._launcher = launcher
        self._lock = lock
        # For a single run, a starter would only take longer.
        self._starter = Starter() if launcher is local_command and len(runs) - len(done) > 1 else None
        self._owner = this_process()
        self._stop = _Stop()

        finished = set(done)
        self._total = len(runs)
        self.waiting = deque(run for run in runs if run.name not in finished)
        self._running: list[RunProcess] = []
        self._done = [run.name for run in runs if run.name in finished]
        self._failed: list[str] = []
        self._stopped: list[str] = []
        self._retried: list[str] = []
        self._elsewhere: list[tuple[str, str]] = []
        self._branches = any(run.trunk is not None for run in self.waiting)

        self._suspects: deque[Run] = deque()  # held by owners that may be dead, or that branches wait for
        self._heartbeats: dict[str, float] = {}  # of those owners, when they were first suspected
        self._suspects_tried = 0.0

    def execute(self) -> Progress:
        """Executes until nothing waits and nothing runs, or until asked to stop."""
        with _signals_to(self._stop):
            try:
                last_report = 0.0
                while ((self.waiting or self._suspects) and not self._stop.number) or self._running:
                    changed = self._collect_ended() + self._start_waiting() > 0
                    if self._stop.number:
                        self._pass_on_stop()
                    if changed or time.monotonic() - last_report >= 1.0:
                        last_report = time.monotonic()
                        self._report(self._progress())
                    if self._running or self._suspects:
                        time.sleep(_POLL_SECONDS)
            finally:
                self._kill_all()
        self._stopped += [run.name for run in (*self.waiting, *self._suspects)]
        return self._progress()

    def _progress(self) -> Progress:
        return Progress(
            done=tuple(self._done),
            failed=tuple(self._failed),
            running=tuple(process.run.name for process in self._running),
            total=self._total,
            stopped=tuple(self._stopped),
            elsewhere=tuple(self._elsewhere),
            retried=tuple(self._retried),
            signal=self._stop.number,
        )

    def _start_waiting(self) -> int:
        """Starts the runs that there is a slot for, in order: small runs do not block one that needs several GPUs."""
        count = 0
        if self._suspects and time.monotonic() - self._suspects_tried > _RETRY_SECONDS:
            self._suspects_tried = time.monotonic()
            self.waiting.extend(self._suspects)
            self._suspects.clear()
        while not self._stop.number and (run := self._first_ready()) is not None:
            slot = self._pool.acquire(run)
            if slot is None:
                break
            self.waiting.remove(run)
            if not self._start(run, slot):
                self._pool.release(run, slot)
            count += 1
        return count

    def _first_ready(self) -> Run | None:
        """Returns the first waiting run whose trunk is not pending or running here."""
        if not self._branches:
            return self.waiting[0] if self.waiting else None
        unfinished = {run.output for run in (*self.waiting, *self._suspects)}
        unfinished |= {process.run.output for process in self._running}
        return next((run for run in self.waiting if run.trunk not in unfinished), None)

    def _start(self, run: Run, slot: Slot) -> bool:
        """Acquires a run and starts it, unless that is not needed."""
        if run.trunk is not None and self._is_held_elsewhere(run.trunk):
            self._suspects.append(run)  # its trunk is not one of our runs, or was given up here
            return False
        held = acquire(run.output, owner=self._owner, seconds=self._lease_seconds)
        if not isinstance(held, HeldLease):
            if self._suspects_owner(run, held) or self._is_awaited(run):
                self._suspects.append(run)  # its lease expires in a few minutes, or its owner is alive and ends it
            else:
                self._elsewhere.append((run.name, str(held.owner)))
            return False
        try:
            if (run.output / "DONE").exists():  # by another executor, since ``done`` was looked up
                self._done.append(run.name)
            elif is_exhausted(run, self._settings.retries):
                self._failed.append(run.name)
            else:
                self._running.append(self._begin(run, slot, held))
                return True
        except BaseException:
            held.release()
            raise
        held.release()
        return False

    def _begin(self, run: Run, slot: Slot, held: HeldLease) -> RunProcess:
        return start_run(run, slot, held, self._launcher, lock=self._lock, starter=self._starter)

    def _is_awaited(self, run: Run) -> bool:
        """Tells whether other runs here branch from a run, and so depend on its end."""
        return any(other.trunk == run.output for other in (*self.waiting, *self._suspects))

    def _is_held_elsewhere(self, folder: Path) -> bool:
        """Tells whether another living executor executes a run."""
        lease = read_lease(folder)
        return lease is not None and is_live(lease, owner=self._owner, seconds=self._lease_seconds)

    def _suspects_owner(self, run: Run, lease: Lease) -> bool:
        """Tells whether the owner of a lease may be dead; once suspected, it is until it gives a sign of life."""
        if self._heartbeats.get(run.name) == lease.heartbeat:
            return True
        if not is_suspect(lease, self._owner, seconds=self._lease_seconds):
            return False
        now = read_lease(run.output)  # a heartbeat in the future was set back when we tried to acquire the run
        self._heartbeats[run.name] = now.heartbeat if now else lease.heartbeat
        return True

    def _collect_ended(self) -> int:
        """Collects the runs that have ended, and renews the leases of the others."""
        ended = [running for running in self._running if running.process.poll() is not None]
        for running in ended:
            self._collect(running)
        for running in self._running:
            if not running.lost and not running.lease.renew():
                running.lost = True  # another machine considered this one dead, and executes the run
                running.kill()
        return len(ended)

    def _collect(self, ended: RunProcess) -> None:
        run = ended.run
        self._running.remove(ended)
        ended.log.close()
        self._pool.release(run, ended.slot)
        if ended.lost:
            if self._is_awaited(run):
                self._suspects.append(run)
            else:
                self._elsewhere.append((run.name, "taken over by another executor"))
            return
        ending = ended.read_ending()
        status = ending.status if ending else ended.process.wait()
        outcome = self._outcome(run, status)
        end_attempt(ended.lease, status=status, outcome=outcome, error=ending.error if ending else "")
        ended.lease.release()
        if outcome == "done":
            self._done.append(run.name)
        elif outcome == "stopped":
            self._stopped.append(run.name)
        elif is_exhausted(run, self._settings.retries):
            self._failed.append(run.name)
        else:
            self._retried.append(run.name)
            self.waiting.append(run)  # after all others: the cause may pass

    def _outcome(self, run: Run, status: int) -> Outcome:
        if status == 0 and (run.output / "DONE").exists():
            return "done"
        # What ended because we asked, however it ended, resumes from its last checkpoint.
        return "stopped" if status == STOPPED or self._stop.number else "failed"

    def _pass_on_stop(self) -> None:
        """Asks the runs to stop, once; kills them when the time for it is over."""
        if not self._stop.passed_on:
            self._stop.passed_on = True
            for running in self._running:
                running.ask_to_stop()
        if self._stop.again or time.monotonic() - self._stop.at > self._settings.grace_seconds:
            for running in self._running:
                running.kill()

    def _kill_all(self) -> None:
        """Ends all runs, however the executor ends."""
        for running in self._running:
            running.kill()
        if self._starter is not None:
            self._starter.close()
        for running in self._running:
            running.process.wait()
            running.log.close()
            running.lease.release()
        self._running.clear()


@contextmanager
def _signals_to(stop: _Stop) -> Iterator[None]:
    """Sends signals to ``stop``, also a SIGINT that a shell's background job would ignore."""
    previous = {number: signal.signal(number, stop) for number in _STOPPING}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
