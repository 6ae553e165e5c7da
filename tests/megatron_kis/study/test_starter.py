"""Runs that are forked by a process that has imported everything: like those that their commands start."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_kis.config.executor import ExecutorConfig
from megatron_kis.config.run import RunConfig
from megatron_kis.executor import run_process, starter
from megatron_kis.executor.attempts import read_attempts
from megatron_kis.executor.executor import execute
from megatron_kis.executor.interface import Progress, Slot
from megatron_kis.executor.lease import read_lease
from megatron_kis.executor.processes import descendants, parent, start_ticks
from tests.run_files import losses
from tests.runs import trained
from tests.studies import run_of

MakeRun = Callable[..., RunConfig]
LONG: dict[str, Any] = {"training": {"token_budget": 100_000 * 8 * 64}, "infusion": {"frequency": 0}}


@pytest.mark.parametrize(("threads", "gpus", "ranks"), [(1, None, 1), (2, None, 1), (1, ("0",), 1), (1, None, 2)])
def test_only_runs_of_one_thread_and_one_rank_without_a_gpu_are_forked(
    tiny_run: MakeRun, threads: int, gpus: tuple[str, ...] | None, ranks: int
) -> None:
    run = tiny_run(parallel={"replicas": ranks})
    assert starter.may_fork(run, Slot(gpus=gpus, threads=threads)) == ((threads, gpus, ranks) == (1, None, 1))


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def no_command(*_: Any, **__: Any) -> None:
    raise AssertionError("started by its command")


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_forked_runs_train_fail_and_log_like_others(tiny_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[list[str]] = []
    popen = subprocess.Popen

    def counting(arguments: list[str], **settings: Any) -> Any:
        if starter.MODULE in arguments:
            begun.append(arguments)
        return popen(arguments, **settings)

    monkeypatch.setattr(starter.subprocess, "Popen", counting)
    monkeypatch.setattr(run_process, "subprocess", None)
    runs = [tiny_run(name=name) for name in ("first", "second", "third")]
    wrong = tiny_run(name="wrong", data={"corpus": Path("nowhere")})
    ended = execute([wrong, *runs], done=(), settings=ExecutorConfig(workers=2, threads=1))
    assert sorted(ended.done) == ["first", "second", "third"]
    assert ended.failed == ("wrong",)
    assert len(begun) == 1
    plain = losses(trained(tiny_run()))
    for run in runs:
        assert losses(run.output) == plain
        log = (run.output / "log.txt").read_text(encoding="utf-8")
        assert log.startswith("==== attempt 1, ")
        assert log.splitlines()[-1] == str(run.output)
        (attempt,) = read_attempts(run.output).attempts
        assert (attempt.status, attempt.outcome) == (0, "done")
    (attempt,) = read_attempts(wrong.output).attempts
    assert (attempt.status, attempt.outcome) == (2, "failed")
    assert "nowhere" in attempt.error
    assert f"kis: error: {attempt.error}" in (wrong.output / "log.txt").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_where_the_starter_fails_runs_are_started_by_their_commands(
    tiny_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starter, "MODULE", "megatron_kis.no_such_module")
    runs = [tiny_run(name=name) for name in ("first", "second")]
    assert len(execute(runs, done=(), settings=ExecutorConfig(workers=2, threads=1)).done) == 2


class Begin:
    """Starts runs by the starter of ``plain_starter.py``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.starter = starter.Starter()

    def __call__(self, name: str, *does: str) -> starter.Process | None:
        run = run_of(self._folder, name)
        run.output.mkdir(parents=True)
        python = [sys.executable, "-m", "megatron_kis"]
        log = run.output / "log.txt"
        environment = dict(os.environ)
        return self.starter.start([*python, *does], run, Slot(), environment=environment, own={}, log=log, lock=None)


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Begin]:
    shutil.copy(Path(__file__).with_name("plain_starter.py"), tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(starter, "MODULE", "plain_starter")
    begin = Begin(tmp_path)
    yield begin
    begin.starter.close()


def polled(process: starter.Process) -> int | None:
    """The status, which takes no time to learn."""
    started = time.monotonic()
    status = process.poll()
    assert time.monotonic() - started < 0.5
    return status


def test_a_run_whose_end_was_not_reported_yet_has_no_status(begin: Begin) -> None:
    run = begin("a", "end")
    assert run is not None and polled(run) is None
    serving = parent(run.pid)
    os.kill(serving, signal.SIGSTOP)
    Path("end").touch()
    wait_for(lambda: not start_ticks(run.pid))
    assert polled(run) is None
    os.kill(serving, signal.SIGCONT)
    assert run.wait() == 3


def test_a_starter_that_is_late_ends_no_other_run_and_starts_none_twice(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begin("a", "end")
    assert run is not None
    monkeypatch.setattr(starter, "_PATIENCE", 0.5)
    Path("slow").touch()
    assert begin("b", "touch", "b") is None, "it is to be started by its command"
    assert begin("c", "touch", "c") is None
    Path("slow").unlink()
    serving = parent(run.pid)
    time.sleep(0.5)
    assert polled(run) is None, "the starter was not ended"
    Path("end").touch()
    assert run.wait() == 3
    wait_for(lambda: not descendants(serving))
    assert start_ticks(serving)
    assert not Path("b").exists() and not Path("c").exists()


def test_a_starter_that_is_late_with_its_first_run_is_ended(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starter, "_PATIENCE", 3.0)
    Path("slow").touch()
    assert begin("a", "touch", "a") is None
    assert begin.starter.is_closed


@pytest.mark.parametrize("status", [75, 0])
def test_without_the_starter_a_run_that_is_not_done_was_stopped(begin: Begin, status: int) -> None:
    run = begin("a", "save", str(status))
    assert run is not None
    wait_for(Path("ready").exists)
    os.kill(parent(run.pid), signal.SIGKILL)
    time.sleep(0.5)
    assert polled(run) is None, "it is saving"
    wait_for(lambda: not start_ticks(run.pid))
    assert polled(run) == status
    assert begin("b", "touch", "b") is None


@pytest.mark.usefixtures("begin", "one_thread")
def test_an_executor_ends_its_runs_whatever_the_starter_does(tmp_path: Path) -> None:
    serving: list[int] = []

    def fail(progress: Progress) -> None:
        if progress.running:
            lease = read_lease(runs[0].output)
            assert lease and lease.owner.run_process
            serving.extend((parent(lease.owner.run_process[0]), lease.owner.run_process[0]))
            os.kill(serving[0], signal.SIGSTOP)
            raise OSError("the disk is full")

    runs = [run_of(tmp_path, name) for name in ("first", "second")]
    with within(20), pytest.raises(OSError, match="the disk is full"):
        execute(runs, done=(), settings=ExecutorConfig(workers=2, threads=1), report=fail)
    assert serving and not any(map(start_ticks, serving))


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Fails where something takes longer."""

    def late(*_: object) -> None:
        raise AssertionError("it waits")

    previous = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


EXECUTE = """
import sys
from pathlib import Path
from megatron_kis.common.configuration import load_config
from megatron_kis.config.executor import ExecutorConfig
from megatron_kis.config.run import RunConfig
from megatron_kis.executor.executor import execute
runs = [load_config(RunConfig, Path(path)) for path in sys.argv[1:]]
execute(runs, done=(), settings=ExecutorConfig(workers=2, threads=1, grace_seconds=60))
"""


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_forked_runs_save_when_the_executor_is_stopped_or_dies(
    tiny_run: MakeRun, tmp_path: Path, number: signal.Signals
) -> None:
    runs = [tiny_run(name=name, **LONG) for name in ("first", "second")]
    paths = [tmp_path / f"{run.name}.yaml" for run in runs]
    for run, path in zip(runs, paths, strict=True):
        path.write_text(yaml.safe_dump(run.absolute_content()), encoding="utf-8")
    with subprocess.Popen([sys.executable, "-c", EXECUTE, *map(str, paths)]) as executor:
        wait_for(lambda: executor.poll() is not None or all(losses_there(run) for run in runs))
        assert executor.poll() is None
        processes = [lease.owner.run_process for run in runs if (lease := read_lease(run.output))]
        (forked_by,) = {parent(process[0]) for process in processes if process}
        assert parent(forked_by) == executor.pid
        executor.send_signal(number)
        executor.wait(60)
    wait_for(lambda: not any(start_ticks(process[0]) for process in (*processes, (forked_by,)) if process))
    for run in runs:
        assert list((run.output / "checkpoints").glob("step-*")), "it has saved"
        assert not (run.output / "DONE").exists()
        attempt = read_attempts(run.output).attempts[0]
        assert attempt.outcome == ("stopped" if number == signal.SIGTERM else None)


def losses_there(run: RunConfig) -> bool:
    path = run.output / "metrics.jsonl"
    return path.exists() and path.stat().st_size > 0


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)
