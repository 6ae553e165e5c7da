"""Runs that are forked by a process that has imported everything: like those that their commands start."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_kis.config.executor import ExecutorConfig
from megatron_kis.config.run import RunConfig
from megatron_kis.executor import run_process, starter
from megatron_kis.executor.attempts import read_attempts
from megatron_kis.executor.executor import execute
from megatron_kis.executor.interface import Slot
from megatron_kis.executor.lease import read_lease
from megatron_kis.executor.processes import parent, start_ticks
from tests.run_files import losses
from tests.runs import trained

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
