"""The executor alone, with a stand-in for the training process that takes no time (``kis study`` is tested whole)."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from megatron_kis.cli import main
from megatron_kis.config import RunConfig
from megatron_kis.errors import JobError
from megatron_kis.settings import load_config, parse_config
from megatron_kis.study.config import ExecutorConfig
from megatron_kis.study.executor import Progress, execute, last_lines, study_lock
from tests.megatron_kis.test_study import write_study
from tests.sources import Sources

STAND_IN = """#!{python}
import json, os, pathlib, sys, time, yaml
assert sys.argv[1:-1] == ["-m", "megatron_kis", "train"], sys.argv
run = yaml.safe_load(open(sys.argv[-1]))
output = pathlib.Path(run["output"])
seen = {{"arguments": sys.argv[1:], "threads": os.environ["OMP_NUM_THREADS"], "started": time.monotonic()}}
print("line of", run["name"], flush=True)
time.sleep(run["training"]["seed"] / 1000)  # a run's seed says how long it takes
if run["name"].startswith("bad"):
    sys.exit("no such luck")
seen["ended"] = time.monotonic()
(output / "seen.json").write_text(json.dumps(seen))
if not run["name"].startswith("silent"):
    (output / "DONE").write_text("{{}}")
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "python"
    script.write_text(STAND_IN.format(python=sys.executable))
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))


def run_of(folder: Path, name: str, milliseconds: int = 0) -> RunConfig:
    content: dict[str, Any] = {
        "name": name,
        "output": folder / "runs" / name,
        "data": {"corpus": "c", "validation": "v", "exposures": "e", "tokenizer": "t"},
        "model": {"preset": "cpu-32"},
        "training": {"token_budget": 64, "sequence_length": 8, "global_batch_size": 1, "seed": milliseconds},
        "infusion": {"frequency": 0},
    }
    return parse_config(RunConfig, content, source="test")


def run_all(folder: Path, runs: list[RunConfig], *, workers: int = 2, done: tuple[str, ...] = ()) -> Progress:
    settings = ExecutorConfig(workers=workers, threads=3)
    with study_lock(folder) as lock:
        return execute(runs, done=done, settings=settings, lock=lock, report=lambda _: None)


def seen(run: RunConfig) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.output / "seen.json").read_text())
    return found


@pytest.mark.usefixtures("stand_in")
def test_every_run_is_a_process_with_its_settings_and_its_log(tmp_path: Path) -> None:
    runs = [run_of(tmp_path, name) for name in ("a", "b", "c")]
    ended = run_all(tmp_path, runs)
    assert (sorted(ended.done), ended.failed, ended.running, ended.total) == (["a", "b", "c"], (), (), 3)
    for run in runs:
        assert seen(run)["threads"] == "3"
        assert load_config(RunConfig, run.output / "config.yaml") == run
        assert last_lines(run) == [f"line of {run.name}"]


@pytest.mark.usefixtures("stand_in")
def test_runs_start_in_order_and_no_more_than_the_workers_at_once(tmp_path: Path) -> None:
    runs = [run_of(tmp_path, f"r{number}", 300) for number in range(5)]
    at_once: list[tuple[str, ...]] = []
    with study_lock(tmp_path) as lock:
        execute(
            runs,
            done=(),
            settings=ExecutorConfig(workers=2),
            lock=lock,
            report=lambda progress: at_once.append(progress.running),
        )
    assert at_once[0] == ("r0", "r1")
    assert max(map(len, at_once)) == 2
    started = list(dict.fromkeys(name for running in at_once for name in running))
    assert started == sorted(started)
    times = [(seen(run)["started"], seen(run)["ended"]) for run in runs]
    for start, _ in times:
        assert sum(begun <= start < ended for begun, ended in times) <= 2


@pytest.mark.usefixtures("stand_in")
def test_a_failure_stops_nothing_and_is_told_from_success(tmp_path: Path) -> None:
    runs = [run_of(tmp_path, name) for name in ("bad", "silent", "good")]
    ended = run_all(tmp_path, runs, workers=1)
    assert ended.done == ("good",)
    assert ended.failed == ("bad", "silent")  # an exit without DONE is a failure, whatever its status
    assert last_lines(runs[0]) == ["line of bad", "no such luck"]


@pytest.mark.usefixtures("stand_in")
def test_what_is_done_is_not_touched(tmp_path: Path) -> None:
    runs = [run_of(tmp_path, "a"), run_of(tmp_path, "b")]
    ended = run_all(tmp_path, runs, done=("a",))
    assert ended.done == ("a", "b")
    assert not runs[0].output.exists()


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_runs_in_flight_and_is_an_interrupt(tmp_path: Path, number: signal.Signals) -> None:
    runs = [run_of(tmp_path, "quick"), run_of(tmp_path, "slow", 60_000), run_of(tmp_path, "waiting")]

    def strike() -> None:
        deadline = time.monotonic() + 60
        while not ((runs[0].output / "DONE").exists() and last_lines(runs[1])) and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=strike)
    thread.start()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        run_all(tmp_path, runs[:2], workers=2)
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before
    assert (runs[0].output / "DONE").exists()
    assert not (runs[1].output / "seen.json").exists()
    assert run_all(tmp_path, [run_of(tmp_path, "after")]).done == ("after",)  # the lock is free again


@pytest.mark.usefixtures("stand_in")
def test_a_lock_keeps_a_second_executor_out(tmp_path: Path) -> None:
    with open(tmp_path / ".lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(JobError, match="another 'kis study run' is at work here"):
            run_all(tmp_path, [run_of(tmp_path, "a")])
    assert not (tmp_path / "runs").exists()
    assert run_all(tmp_path, [run_of(tmp_path, "a")]).done == ("a",)


def test_the_end_of_a_log_is_read_from_its_end(tmp_path: Path) -> None:
    run = run_of(tmp_path, "a")
    assert last_lines(run) == []
    run.output.mkdir(parents=True)
    (run.output / "log.txt").write_bytes(b"x" * 100_000 + "\n\nfünf\n \nsechs\n".encode())
    assert last_lines(run, 2) == ["fünf", "sechs"]


@pytest.mark.parametrize("step", ["plan", "run"])
def test_the_data_of_a_study_at_work_are_not_made_anew(
    step: str, tmp_path: Path, tiny_sources: Sources, capsys: pytest.CaptureFixture[str]
) -> None:
    study = write_study(tmp_path, tiny_sources)
    with study_lock(tmp_path / "out"):
        assert main(["study", step, str(study), "data.seed=7"]) == 1
    assert "another 'kis study run' is at work here" in capsys.readouterr().err
    assert not (tmp_path / "out" / "data").exists()
