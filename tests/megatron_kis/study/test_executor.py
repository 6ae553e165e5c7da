"""The executor alone, with a stand-in for the training process that takes no time (``kis study`` is tested whole)."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from megatron_kis.cli.main import main
from megatron_kis.common import files
from megatron_kis.common.configuration import load_config
from megatron_kis.common.errors import JobError
from megatron_kis.config.executor import ExecutorConfig
from megatron_kis.config.run import RunConfig
from megatron_kis.executor import executor
from megatron_kis.executor.attempts import read_attempts, request_restart, reset_failures
from megatron_kis.executor.executor import execute
from megatron_kis.executor.interface import Command, Progress, Run, Slot, local_command
from megatron_kis.executor.lease import HeldLease, Owner, acquire, read_lease
from megatron_kis.executor.logs import failure_reason, last_lines
from megatron_kis.study.lock import study_lock
from tests.sources import Sources
from tests.studies import processes_naming, run_of, write_study

STAND_IN = """#!{python}
import json, os, pathlib, signal, subprocess, sys, time, yaml
if "torch.distributed.run" in sys.argv:  # ranks in sessions of their own, and a status that says little
    count = int(next(word for word in sys.argv if word.startswith("--nproc")).split("=")[1])
    rank = [sys.argv[0], *sys.argv[sys.argv.index("megatron_kis") - 1:]]
    ranks = [subprocess.Popen(rank, start_new_session=True) for _ in range(count)]
    sys.exit(max(rank.wait() != 0 for rank in ranks))
assert sys.argv[1:4] == ["-m", "megatron_kis", "train"] and sys.argv[5:] in ([], ["--restart"]), sys.argv
run = yaml.safe_load(open(sys.argv[4]))
output = pathlib.Path(run["output"])
seen = {{"arguments": sys.argv[1:], "threads": os.environ["OMP_NUM_THREADS"], "started": time.monotonic(),
    "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "cores": sorted(os.sched_getaffinity(0))}}
if run["name"].startswith("saving"):
    signal.signal(signal.SIGTERM, lambda *_: ((output / f"saved-{{os.getpid()}}").touch(), sys.exit(75)))
if run["name"].startswith("deaf"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("line of", run["name"], flush=True)
time.sleep(run["training"]["seed"] / 1000)  # a run's seed says how long it takes
attempt = sum('"start"' in line for line in open(output / "attempts.jsonl"))
if run["name"].startswith("bad") or (run["name"].startswith("flaky") and attempt == 1):
    sys.exit("no such luck")
if run["name"].startswith(("wrong", "torn")):
    print("kis: error: [0m wrong input", flush=True)
    if not run["name"].endswith("silent"):  # the first of many ranks that fail
        try:
            with open(os.environ["KIS_STATUS_FILE"], "x") as file:
                ending = {{"schema": "kis.status/1", "status": 2, "error": "seed: is -1"}}
                file.write(json.dumps(ending)[: 9 if run["name"].startswith("torn") else None])
        except FileExistsError:
            pass
    print("what others say of it\\n" * 9, flush=True)
    sys.exit(2)
seen["ended"] = time.monotonic()
(output / "seen.json").write_text(json.dumps(seen))
if not run["name"].startswith("silent"):
    (output / "DONE").write_text("{{}}")
"""

FAR = Owner(host="far", pid=1, boot="b", namespace="n", start_ticks=1)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "python"
    script.write_text(STAND_IN.format(python=sys.executable))
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setattr(executor, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(executor, "_RETRY_SECONDS", 0.2)


def run_all(
    folder: Path, runs: list[RunConfig], *, workers: int = 2, done: tuple[str, ...] = (), **settings: Any
) -> Progress:
    with study_lock(folder) as lock:
        return execute(
            runs, done=done, settings=ExecutorConfig(workers=workers, **{"threads": 3, **settings}), lock=lock
        )


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
        written = run.output / "config.yaml"
        assert load_config(RunConfig, written).model_dump(exclude={"data"}) == run.model_dump(exclude={"data"})
        copy = tmp_path / "elsewhere" / "start.yaml"
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(written, copy)  # as the start of another run: its paths are the same
        assert load_config(RunConfig, copy) == load_config(RunConfig, written)
        assert load_config(RunConfig, copy).data.corpus == run.data.corpus.absolute()
        assert last_lines(run.output, 1) == [f"line of {run.name}"]
        (attempt,) = read_attempts(run.output).attempts
        assert (attempt.number, attempt.outcome, attempt.status, attempt.pid) == (1, "done", 0, os.getpid())
        found = read_lease(run.output)
        assert found is not None and found.released


@pytest.mark.usefixtures("stand_in")
def test_runs_start_in_order_and_no_more_than_the_workers_at_once(tmp_path: Path) -> None:
    runs = [run_of(tmp_path, f"r{number}", 200) for number in range(5)]
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
    ended = run_all(tmp_path, runs, workers=1, retries=0)
    assert ended.done == ("good",)
    assert ended.failed == ("bad", "silent")  # an exit without DONE is a failure, whatever its status
    assert last_lines(runs[0].output, 2) == ["line of bad", "no such luck"]


@pytest.mark.usefixtures("stand_in")
def test_a_failed_run_is_tried_again_after_the_others_and_then_given_up(tmp_path: Path) -> None:
    runs = [run_of(tmp_path, name) for name in ("bad", "flaky", "good")]
    ended = run_all(tmp_path, runs, workers=1, retries=2)
    assert ended.done == ("good", "flaky")
    assert (ended.failed, ended.retried) == (("bad",), ("bad", "flaky", "bad"))
    assert [attempt.outcome for attempt in read_attempts(runs[0].output).attempts] == ["failed"] * 3
    assert [attempt.outcome for attempt in read_attempts(runs[1].output).attempts] == ["failed", "done"]
    log = (runs[0].output / "log.txt").read_text()  # no attempt's log is lost
    assert [line.split(",")[0] for line in log.splitlines() if line.startswith("====")] == [
        f"==== attempt {number}" for number in (1, 2, 3)
    ]
    assert log.count("no such luck") == 3


@pytest.mark.usefixtures("stand_in")
def test_what_was_given_up_is_named_and_left_alone_until_it_is_reset_or_changed(tmp_path: Path) -> None:
    bad = run_of(tmp_path, "bad")
    run_all(tmp_path, [bad], retries=1)
    again = run_all(tmp_path, [bad], retries=1)
    assert again.failed == ("bad",)
    assert len(read_attempts(bad.output).attempts) == 2
    reset_failures([bad.output])
    run_all(tmp_path, [bad], retries=0)
    assert len(read_attempts(bad.output).attempts) == 3
    run_all(tmp_path, [run_of(tmp_path, "bad", 1)], retries=0)  # other settings, other luck
    assert len(read_attempts(bad.output).attempts) == 4


@pytest.mark.usefixtures("stand_in")
def test_wrong_input_is_not_tried_again(tmp_path: Path) -> None:
    wrong = run_of(tmp_path, "wrong")
    assert run_all(tmp_path, [wrong], retries=5).failed == ("wrong",)
    assert [attempt.status for attempt in read_attempts(wrong.output).attempts] == [2]


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_status_and_the_reason_are_those_of_the_first_rank_that_failed(tmp_path: Path, ranks: int) -> None:
    wrong = run_of(tmp_path, "wrong", parallel={"tensor": ranks}, device="cpu")
    wrong.output.mkdir(parents=True)
    (wrong.output / ".status-7.json").write_text("of an executor that was killed")
    assert run_all(tmp_path, [wrong], retries=5).failed == ("wrong",)
    (attempt,) = read_attempts(wrong.output).attempts  # torchrun's own status would have been tried again
    assert (attempt.status, attempt.error) == (2, "seed: is -1")
    assert failure_reason(wrong.output) == ["kis: error: seed: is -1"]
    assert not list(wrong.output.glob(".status*"))


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(("name", "status"), [("wrong-silent", 1), ("torn", 1)])
def test_without_a_whole_status_file_the_log_says_why(tmp_path: Path, name: str, status: int) -> None:
    run = run_of(tmp_path, name, parallel={"tensor": 2}, device="cpu")
    run_all(tmp_path, [run], retries=0)
    (attempt,) = read_attempts(run.output).attempts
    assert (attempt.status, attempt.error) == (status, "")
    assert failure_reason(run.output) == ["kis: error: [0m wrong input"]


def test_a_rank_that_met_the_end_of_another_is_not_the_reason(tmp_path: Path) -> None:
    run = run_of(tmp_path, "a")
    run.output.mkdir(parents=True)
    log = "==== attempt 1\nkis: error: rank 1: another rank of this run has ended; ...\nSignal 9 (SIGKILL) received\n"
    (run.output / "log.txt").write_text(log)
    assert failure_reason(run.output, 1) == ["Signal 9 (SIGKILL) received"]
    (run.output / "log.txt").write_text(log.replace("attempt 1\n", "attempt 1\nkis: error: no space left\n"))
    assert failure_reason(run.output) == ["kis: error: no space left"]


@pytest.mark.usefixtures("stand_in")
def test_the_reason_of_an_earlier_attempt_is_not_that_of_the_last(tmp_path: Path) -> None:
    run = run_of(tmp_path, "bad")
    run.output.mkdir(parents=True)
    (run.output / "log.txt").write_text("kis: error: long ago\n")
    run_all(tmp_path, [run], retries=0)
    assert failure_reason(run.output, 2) == ["line of bad", "no such luck"]


def test_ranks_that_were_asked_to_stop_are_not_failed_for_what_torchrun_says(tmp_path: Path) -> None:
    run = run_of(tmp_path, "a")

    def launcher(run: Run, config: Path, slot: Slot) -> Command:
        said = json.dumps({"schema": "kis.status/1", "status": 75, "error": "stopped"})
        script = f"import os, sys; open(os.environ['KIS_STATUS_FILE'], 'x').write({said!r}); sys.exit(1)"
        return Command([sys.executable, "-c", script])

    ended = execute([run], done=(), settings=ExecutorConfig(workers=1), launcher=launcher)
    assert (ended.stopped, ended.failed) == (("a",), ())
    assert [attempt.outcome for attempt in read_attempts(run.output).attempts] == ["stopped"]


@pytest.mark.usefixtures("stand_in")
def test_a_run_that_is_to_begin_again_does_so_once(tmp_path: Path) -> None:
    runs = [run_of(tmp_path, name) for name in ("flaky", "b")]
    for run in runs:
        run.output.mkdir(parents=True)
    request_restart([runs[0].output])
    flags: dict[str, list[bool]] = {}

    def launcher(run: Run, config: Path, slot: Slot) -> Command:
        flags.setdefault(run.name, []).append(read_attempts(run.output).restart)
        return local_command(run, config, slot)

    settings = ExecutorConfig(workers=1, threads=3)
    assert sorted(execute(runs, done=(), settings=settings, launcher=launcher).done) == ["b", "flaky"]
    assert flags == {"flaky": [True, False], "b": [False]}
    assert seen(runs[0])["arguments"][-1] != "--restart"  # its second attempt went on where the first had failed
    request_restart([run_of(tmp_path, "b").output])
    (runs[1].output / "DONE").unlink()
    execute(runs[1:], done=(), settings=settings)
    assert seen(runs[1])["arguments"][-1] == "--restart"


@pytest.mark.usefixtures("stand_in")
def test_a_lease_from_the_future_is_waited_for_and_taken_over(tmp_path: Path) -> None:
    run = run_of(tmp_path, "a")
    assert isinstance(acquire(run.output, owner=FAR), HeldLease)
    os.utime(run.output / "claims" / "1.json", (time.time() + 1e8,) * 2)
    started = time.monotonic()
    assert run_all(tmp_path, [run], lease_minutes=1.0 / 60).done == ("a",)
    assert time.monotonic() - started > 0.75


@pytest.mark.usefixtures("stand_in")
def test_a_run_that_another_executor_holds_is_left_to_it(tmp_path: Path) -> None:
    runs = [run_of(tmp_path, name) for name in ("theirs", "ours")]
    held = acquire(runs[0].output)
    assert isinstance(held, HeldLease)
    ended = run_all(tmp_path, runs)
    assert ended.done == ("ours",)
    assert [name for name, _ in ended.elsewhere] == ["theirs"]
    assert not (runs[0].output / "log.txt").exists()
    held.release()
    assert run_all(tmp_path, runs, done=("ours",)).done == ("ours", "theirs")


@pytest.mark.usefixtures("stand_in")
def test_a_run_of_a_machine_that_seems_to_have_died_is_waited_for_and_taken_over(tmp_path: Path) -> None:
    run = run_of(tmp_path, "a")
    assert isinstance(acquire(run.output, owner=FAR), HeldLease)
    lease = 1.5
    os.utime(run.output / "claims" / "1.json", (time.time() - 0.5 * lease,) * 2)
    started = time.monotonic()
    assert run_all(tmp_path, [run], lease_minutes=lease / 60).done == ("a",)
    assert time.monotonic() - started > 0.4 * lease
    assert read_attempts(run.output).attempts[-1].number == 2


@pytest.mark.usefixtures("stand_in")
def test_a_run_that_another_executor_has_finished_meanwhile_is_not_run_again(tmp_path: Path) -> None:
    run = run_of(tmp_path, "a")
    run.output.mkdir(parents=True)
    (run.output / "DONE").write_text("{}")
    assert run_all(tmp_path, [run]).done == ("a",)
    assert not (run.output / "log.txt").exists()


@pytest.mark.usefixtures("stand_in")
def test_an_executor_that_lost_its_lease_ends_the_run(tmp_path: Path) -> None:
    run = run_of(tmp_path, "slow", 60_000)

    def usurp() -> None:
        wait_for(lambda: bool(last_lines(run.output)) and "line of slow" in last_lines(run.output))
        (run.output / "claims" / "2.json").write_text((run.output / "claims" / "1.json").read_text())

    thread = threading.Thread(target=usurp)
    thread.start()
    ended = run_all(tmp_path, [run], lease_minutes=0.05)  # a heartbeat every 0.3 s
    thread.join()
    assert [name for name, _ in ended.elsewhere] == ["slow"]
    assert read_attempts(run.output).attempts[0].outcome is None  # what became of it is the other's to say


@pytest.mark.usefixtures("stand_in")
def test_what_is_done_is_not_touched(tmp_path: Path) -> None:
    runs = [run_of(tmp_path, "a"), run_of(tmp_path, "b")]
    ended = run_all(tmp_path, runs, done=("a",))
    assert ended.done == ("a", "b")
    assert not runs[0].output.exists()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)


def strike_when(condition: Callable[[], bool], *numbers: signal.Signals) -> threading.Thread:
    def strike() -> None:
        wait_for(condition)
        for position, number in enumerate(numbers):
            if position:
                time.sleep(0.5)  # the one before is seen first
            os.kill(os.getpid(), number)

    thread = threading.Thread(target=strike)
    thread.start()
    return thread


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_lets_the_runs_in_flight_save_and_end(tmp_path: Path, number: signal.Signals) -> None:
    long = ("saving", "slow", "waiting")
    runs = [run_of(tmp_path, "quick"), *(run_of(tmp_path, name, 60_000) for name in long)]
    thread = strike_when(lambda: all(last_lines(run.output, 1) == [f"line of {run.name}"] for run in runs[1:3]), number)
    before = signal.getsignal(signal.SIGTERM)
    ended = run_all(tmp_path, runs)
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before
    assert ended.signal == number
    assert ended.done == ("quick",)
    assert sorted(ended.stopped) == ["saving", "slow", "waiting"]
    assert ended.failed == ()
    assert [attempt.status for attempt in read_attempts(runs[1].output).attempts] == [75]
    assert [attempt.outcome for attempt in read_attempts(runs[2].output).attempts] == ["stopped"]  # it had no handler
    assert run_all(tmp_path, [run_of(tmp_path, "after")]).done == ("after",)  # the lock is free again


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("name", ["saving", "deaf"])
def test_the_ranks_of_torchrun_are_asked_themselves_and_none_is_left(tmp_path: Path, name: str) -> None:
    run = run_of(tmp_path, name, 60_000, parallel={"tensor": 2}, device="cpu")
    thread = strike_when(lambda: last_lines(run.output, 2) == [f"line of {name}"] * 2, signal.SIGTERM)
    ended = run_all(tmp_path, [run], grace_seconds=30 if name == "saving" else 0.5)
    thread.join()
    assert ended.stopped == (name,)
    assert len(list(run.output.glob("saved-*"))) == (2 if name == "saving" else 0)
    wait_for(lambda: not processes_naming(str(run.output)))


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("impatient", [True, False])
def test_a_run_that_does_not_end_is_killed_after_the_grace_or_a_second_interrupt(
    tmp_path: Path, impatient: bool
) -> None:
    deaf = run_of(tmp_path, "deaf", 60_000)
    signals = [signal.SIGINT, signal.SIGINT] if impatient else [signal.SIGTERM]
    thread = strike_when(lambda: last_lines(deaf.output, 1) == ["line of deaf"], *signals)
    started = time.monotonic()
    ended = run_all(tmp_path, [deaf], grace_seconds=60 if impatient else 0.5)
    thread.join()
    assert time.monotonic() - started < 30
    assert ended.stopped == ("deaf",)
    assert [attempt.status for attempt in read_attempts(deaf.output).attempts] == [-signal.SIGKILL]


@pytest.mark.usefixtures("stand_in")
def test_runs_get_gpus_and_cores_of_their_own(tmp_path: Path) -> None:
    runs = [run_of(tmp_path, f"r{number}", 200) for number in range(4)]
    mine = sorted(os.sched_getaffinity(0))
    ended = run_all(tmp_path, runs, workers=4, gpus=("5", "GPU-abc"), cells_per_gpu=2, pin=True)
    assert len(ended.done) == 4
    assert sorted(seen(run)["gpus"] for run in runs) == ["5", "5", "GPU-abc", "GPU-abc"]
    assert all(set(seen(run)["cores"]) < set(mine) or len(mine) == 1 for run in runs)
    assert set().union(*(seen(run)["cores"] for run in runs)) == set(mine[:4])


def test_another_launcher_starts_runs_its_own_way(tmp_path: Path) -> None:
    run = run_of(tmp_path, "a")

    def launcher(run: Run, config: Path, slot: Slot) -> Command:
        script = "import os, pathlib, sys; pathlib.Path(sys.argv[1], 'DONE').write_text(os.environ['SAYS'])"
        assert config == run.output / "config.yaml" and config.exists()
        return Command([sys.executable, "-c", script, str(run.output)], {"SAYS": f"worker {slot.worker}"})

    ended = execute([run], done=(), settings=ExecutorConfig(workers=1), launcher=launcher)
    assert ended.done == ("a",)
    assert (run.output / "DONE").read_text() == "worker 0"


@pytest.mark.usefixtures("stand_in")
def test_a_lock_keeps_a_second_executor_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_DYING", 0.2)
    with open(tmp_path / ".lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(JobError, match="another 'kis study run' is running here"):
            run_all(tmp_path, [run_of(tmp_path, "a")])
    assert not (tmp_path / "runs").exists()
    assert run_all(tmp_path, [run_of(tmp_path, "a")]).done == ("a",)


def test_the_end_of_a_log_is_read_from_its_end(tmp_path: Path) -> None:
    run = run_of(tmp_path, "a")
    assert last_lines(run.output) == []
    run.output.mkdir(parents=True)
    (run.output / "log.txt").write_bytes(b"x" * 100_000 + "\n\nfünf\n \nsechs\n".encode())
    assert last_lines(run.output, 2) == ["fünf", "sechs"]


def test_the_data_of_a_study_at_work_are_not_made_again(
    tmp_path: Path, tiny_sources: Sources, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_DYING", 0.2)
    study = write_study(tmp_path, tiny_sources)
    with study_lock(tmp_path / "out"):
        assert main(["study", "run", str(study), "data.seed=7"]) == 1
    assert "another 'kis study run' is running here" in capsys.readouterr().err
    assert not (tmp_path / "out" / "data").exists()


@pytest.mark.usefixtures("stand_in")
def test_branches_wait_for_their_trunk_and_others_do_not(tmp_path: Path) -> None:
    trunk = run_of(tmp_path, "trunk", 400)
    late = {"infusion": {"frequency": 0, "begins": 0.5}, "trunk": trunk.output}
    branches = [run_of(tmp_path, name, **late) for name in ("b1", "b2")]
    ended = run_all(tmp_path, [*branches, trunk, run_of(tmp_path, "other")], workers=3)
    assert sorted(ended.done) == ["b1", "b2", "other", "trunk"]
    assert all(seen(run)["started"] >= seen(trunk)["ended"] for run in branches)
    assert seen(run_of(tmp_path, "other"))["started"] < seen(trunk)["ended"]


@pytest.mark.usefixtures("stand_in")
def test_branches_of_a_trunk_that_is_given_up_or_not_asked_for_are_executed(tmp_path: Path) -> None:
    trunk = run_of(tmp_path, "bad")
    late = {"infusion": {"frequency": 0, "begins": 0.5}}
    runs = [run_of(tmp_path, "b", trunk=trunk.output, **late), run_of(tmp_path, "c", trunk=tmp_path / "no", **late)]
    ended = run_all(tmp_path, [trunk, *runs], retries=1)
    assert (sorted(ended.done), ended.failed) == (["b", "c"], ("bad",))


def ended_while(held: HeldLease, runs: list[RunConfig], folder: Path, end: Callable[[], object]) -> Progress:
    """Executes runs; another executor ends one of them half a second later."""

    def later() -> None:
        time.sleep(0.5)
        assert not (runs[-1].output / "log.txt").exists(), "it waits for its trunk"
        end()
        held.release()

    with ThreadPoolExecutor() as pool:
        other = pool.submit(later)
        ended = run_all(folder, runs)
        other.result()
    return ended


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("finished", [True, False])
def test_branches_wait_for_a_trunk_that_is_elsewhere(tmp_path: Path, *, asked: bool, finished: bool) -> None:
    trunk = run_of(tmp_path, "trunk")
    held = acquire(trunk.output, owner=FAR)
    assert isinstance(held, HeldLease)
    branch = run_of(tmp_path, "b", infusion={"frequency": 0, "begins": 0.5}, trunk=trunk.output)
    runs = [*([trunk] if asked else []), run_of(tmp_path, "other"), branch]
    ended = ended_while(held, runs, tmp_path, (trunk.output / "DONE").touch if finished else lambda: None)
    assert (ended.done[0], sorted(ended.done)) == ("other", sorted(run.name for run in runs))
    assert ended.elsewhere == ()
    assert (trunk.output / "log.txt").exists() == (asked and not finished)  # what was stopped there goes on here


@pytest.mark.usefixtures("stand_in")
def test_a_trunk_that_was_taken_over_is_waited_for(tmp_path: Path) -> None:
    trunk = run_of(tmp_path, "slow", 60_000)
    branch = run_of(tmp_path, "b", infusion={"frequency": 0, "begins": 0.5}, trunk=trunk.output)
    claims = trunk.output / "claims"

    def take_over() -> None:
        wait_for(lambda: "line of slow" in last_lines(trunk.output))
        (claims / "2.json").write_text((claims / "1.json").read_text())
        time.sleep(1.0)
        (trunk.output / "DONE").touch()
        (claims / "2.json").write_text(json.dumps({**json.loads((claims / "1.json").read_text()), "released": True}))

    with ThreadPoolExecutor() as pool:
        other = pool.submit(take_over)
        ended = run_all(tmp_path, [trunk, branch], lease_minutes=0.05)  # a heartbeat every 0.3 s
        other.result()
    assert (ended.done, ended.elsewhere) == (("slow", "b"), ())


@pytest.mark.usefixtures("stand_in")
def test_a_trunk_that_is_elsewhere_is_left_there_if_nothing_waits_for_it(tmp_path: Path) -> None:
    trunk = run_of(tmp_path, "trunk")
    assert isinstance(acquire(trunk.output, owner=FAR), HeldLease)
    branch = run_of(tmp_path, "b", infusion={"frequency": 0, "begins": 0.5}, trunk=trunk.output)
    ended = run_all(tmp_path, [trunk, branch], done=("b",))
    assert [name for name, _ in ended.elsewhere] == ["trunk"]
