"""The benchmark of the first hour on a GPU: its parts with shapes of a CPU, and its checks where there is a GPU."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import commands
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.checks import Chain
from benchmarks.gpu.commands import ROOT, Command, Failed, Limit, Skipped, run
from benchmarks.gpu.memory import ALONE
from benchmarks.gpu.memory_work import TOP_PARTS
from benchmarks.gpu.rows import Rows, read_rows
from benchmarks.gpu.runs import compare_losses, compare_scores
from benchmarks.gpu.table import table
from tests.benchmarks.forks import Fork
from tests.dry_device.cases import missing, need

SMALL = ["--device", "cpu", "--presets", "cpu-32", "--lengths", "64", "--batch", "2", "--micro-batch", "1"]
SMALL += ["--vocabulary", "400", "--seconds", "0.1", "--facts", "16", "--turns", "1", "--together", "1"]
SMALL += ["--steps", "12", "--jobs", "2", "--devices", "2"]

Found = dict[str, dict[str, Any]]
Forks = Callable[..., tuple[int, Found]]
Dry = Callable[..., list[dict[str, Any]]]


def started(output: Path, *arguments: str) -> subprocess.Popen[str]:
    """The benchmark as users start it."""
    line = [sys.executable, "-m", "benchmarks.gpu", "--output", str(output), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(line, cwd=ROOT, env=environment, text=True, stderr=subprocess.PIPE)


def results(output: Path, *arguments: str) -> tuple[int, Found]:
    """Its exit status, and its rows by item."""
    process = started(output, *arguments)
    _, said = process.communicate()
    rows = read_rows(output / "results.jsonl")
    assert len(said.splitlines()) >= len(rows)
    return process.returncode, {row["item"]: row for row in rows}


@pytest.fixture
def results_of_forks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, Found]]]:
    """``results`` of a benchmark in this process, whose commands are forked: of their time, most would be imports.

    A command with the text ``as_users`` among its words is started as it is for users.
    """

    def run(*arguments: str, as_users: str = "") -> tuple[int, Found]:
        def start(words: list[str], **options: Any) -> Any:
            real = as_users and any(as_users in word for word in words)
            return (subprocess.Popen if real else Fork)(words, **options)

        monkeypatch.setattr(commands, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": start}))
        monkeypatch.setattr("sys.argv", ["benchmarks.gpu", "--output", str(tmp_path), *arguments])
        status = command.main()
        rows = read_rows(tmp_path / "results.jsonl")
        assert len(capfd.readouterr().err.splitlines()) >= len(rows)
        return status, {row["item"]: row for row in rows}

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def a_bench(folder: Path, seconds: float, **options: Any) -> Bench:
    """One in this process."""
    chosen = argparse.Namespace(device="cpu", steps=2, **options)
    return Bench(chosen, Rows(folder / "results.jsonl"), Limit(seconds), folder, folder / "logs", {})


@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_check_holds_on_this_gpu(tmp_path: Path) -> None:
    status, rows = results(tmp_path, "checks", "--minutes", "20")
    assert [row for row in rows.values() if row["status"] == "failed"] == []
    assert status == 0
    assert rows["auto bf16: resume"]["status"] == "ok"


@pytest.mark.slow
@pytest.mark.distributed
def test_the_checks_are_made_of_real_runs(results_of_forks: Forks) -> None:
    wanted = ["resume", "kis probe", "export", "other layers", "refused", "twice", "DP2", "TP2 SP"]
    status, rows = results_of_forks("checks", *SMALL, "--minutes", "15", "--only", *wanted, as_users="TP2-SP.yaml")
    done = {item.removeprefix("sdpa fp32: "): row for item, row in rows.items() if row["status"] == "ok"}
    assert {row["status"] for row in rows.values()} == {"ok", "skipped"}, rows
    assert status == 0
    assert done["train"]["loss"][1] < done["train"]["loss"][0]
    assert [cut.split()[0] for cut in done["resume"]["cuts"]] == ["SIGTERM", "SIGKILL"]
    for name, count in (("resume", 12), ("twice with training.deterministic", 12), ("kis probe", None)):
        assert done[name]["identical"] == done[name]["of"] == (count or done[name]["of"])
    assert 0 < done["export"]["logits"]["difference"] < 1e-4 < done["export"]["logits"]["std"]
    assert 0 < done["export"]["validation_loss"]["difference"] < 1e-5
    assert 0 < done["probe with other layers"]["largest_difference"] < 1e-3
    for layout in ("DP2", "TP2 SP"):
        assert done[f"{layout} beside one rank"]["identical"] < 12  # sums in another order
    assert "FP8 needs Transformer Engine" in done["sdpa fp8: refused"]["message"]
    assert rows["transformer_engine fp8"]["message"] == "fp8 is not trained on a CPU"
    assert rows["sdpa fp32: TP2 SP DP2 beside one rank"]["message"] == "needs 4 GPUs, there are 2"


@pytest.mark.slow
def test_memory_speed_and_runs_side_by_side_are_measured(tmp_path: Path, results_of_forks: Forks) -> None:
    parts, only = ["memory", "speed", "side-by-side"], ["auto fp32 V=400", "ours", "compiled", "1 x"]
    status, rows = results_of_forks(*parts, *SMALL, "--minutes", "15", "--only", *only)
    assert status == 0, rows
    held = rows["cpu-32 L=64 mb=1 auto fp32 V=400"]["parts"]
    assert list(held) == ["static", "passes", "update", "validation", "probe", "save", "peak"]
    assert held["static"]["ratio"] == pytest.approx(held["static"]["bytes"] / held["static"]["planned"], rel=1e-3)
    assert held["peak"]["bytes"] >= held["static"]["bytes"] > 0
    ours, compiled = rows["cpu-32 L=64 ours"], rows["cpu-32 L=64 compiled"]
    for row in (ours, compiled):
        assert row["tokens_per_second"] > 0
        assert row["loss"][1] < row["loss"][0]  # the same batch again and again
    assert rows["1 x cpu-32"]["runs_per_hour"] == pytest.approx(
        3600 * rows["1 x cpu-32"]["tokens_per_second"] / 1e9, abs=1e-3
    )
    ratio = f"{ours['tokens_per_second'] / compiled['tokens_per_second']:.3f}"
    assert f"| {ratio} |" in table(tmp_path / "results.jsonl")


@pytest.mark.slow
@pytest.mark.compare
def test_probes_are_timed_beside_the_other_tools(tmp_path: Path, results_of_forks: Forks) -> None:
    pytest.importorskip("lm_eval")
    status, rows = results_of_forks("probes", *SMALL, "--minutes", "15")
    assert status == 0, rows
    found = rows["cpu-32 16 facts"]
    assert max(found["largest_difference"].values()) < 1e-3
    assert all(set(tools) == {"lm_pub_quiz", "lm_eval"} for tools in found["ratios_by_turn"].values())
    assert "| `kis probe --model` |" in table(tmp_path / "results.jsonl")
    assert f"| {found['ours']['questions_a_second']:,.0f} |" in table(tmp_path / "results.jsonl")


@pytest.mark.slow
def test_what_fails_is_named_and_the_rest_has_its_turn(results_of_forks: Forks) -> None:
    status, rows = results_of_forks("speed", "side-by-side", *SMALL, "--presets", "none-such", "--minutes", "5")
    assert status == 1
    for item in ("none-such L=64 ours", "none-such L=64 compiled", "1 x none-such"):
        assert rows[item]["status"] == "failed"
        assert "none-such" in rows[item]["message"]
    assert rows["cpu"]["versions"]["torch"] == torch.__version__
    assert rows["none-such L=64 fp8"] | {"seconds": 0} == {
        "part": "speed",
        "item": "none-such L=64 fp8",
        "status": "skipped",
        "seconds": 0,
        "message": "Transformer Engine needs CUDA",
    }


@pytest.mark.slow
def test_a_stopped_benchmark_keeps_its_rows_and_leaves_no_process(tmp_path: Path) -> None:
    process = started(tmp_path, "speed", "side-by-side", *SMALL, "--seconds", "61.25", "--minutes", "5")
    deadline = time.monotonic() + 120
    while not mentioning("61.25", but=process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert mentioning("61.25", but=process.pid)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    rows = {row["item"]: row for row in read_rows(tmp_path / "results.jsonl")}
    assert rows["cpu"]["status"] == "ok"
    assert rows["cpu-32 L=64 ours"]["message"] == "not done in the time"
    assert rows["all"] == {"part": "side-by-side", "item": "all", "status": "skipped", "message": "no time left"}
    assert process.returncode == 1
    assert not mentioning("61.25", but=process.pid)


def mentioning(text: str, *, but: int) -> list[int]:
    """Processes with a text in their command line."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) not in (but, os.getpid()):
            try:
                line = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if text.encode() in line and b"benchmarks.gpu.work" in line:
                found.append(int(folder.name))
    return found


@pytest.fixture
def dry(ask_dry_device: Callable[..., Any]) -> Dry:
    """Results of a measurement on the dry device, as on CUDA: ``dry("speed", **settings)``."""
    need(missing())
    return lambda name, **settings: ask_dry_device("tests.benchmarks.dry_work:measured", name, settings)


@pytest.mark.slow
def test_memory_on_cuda_is_that_of_the_plan(tiny_data: Path, dry: Dry) -> None:
    case = {
        "preset": "70m",
        "length": 2048,
        "micro_batch": 2,
        "recompute": "none",
        "implementation": "sdpa",
        "precision": "bf16",
        "vocabulary": 32000,
        **ALONE,
    }
    found = {row["name"]: row for row in dry("memory", case=case, device="cuda", data=str(tiny_data))}
    assert list(found) == ["static", *TOP_PARTS, "peak", "reserved", "context"]
    assert found["static"]["ratio"] == pytest.approx(1, abs=0.01)
    assert found["peak"]["ratio"] == pytest.approx(1, abs=0.1)
    assert found["passes"]["bytes"] > found["validation"]["bytes"] > found["update"]["bytes"] > 0
    case["preset"] = "7b"
    (refused,) = dry("memory", case=case, device="cuda", data=str(tiny_data))
    assert "the device has 85.0" in refused["too_large"]


@pytest.mark.slow
def test_speed_on_cuda_has_a_share_of_the_peak(dry: Dry) -> None:
    cell = {"kind": "ours", "preset": "70m", "length": 512, "batch": 2, "micro_batch": 1, "vocabulary": 32000}
    (found,) = dry("speed", **cell, device="cuda", seconds=0)
    assert found["steps"] == 2
    assert found["mfu"] > 0
    assert found["memory_bytes"] > 500e6  # weights, gradients and moments


def test_parts_without_time_are_named(tmp_path: Path) -> None:
    bench = a_bench(tmp_path, 0.0)
    command._all_parts(bench, list(command.PARTS))
    rows = read_rows(tmp_path / "results.jsonl")
    assert [(row["part"], row["status"], row["message"]) for row in rows] == [
        (part, "skipped", "no time left") for part in command.PARTS
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--minutes", "0"], "--minutes must be more than 0"),
        (["--lengths", "64", "0"], "--lengths must be more than 0"),
        (["--table", "none/such.jsonl"], "there is no file none/such.jsonl"),
        (["speeds"], "no part 'speeds'"),
    ],
)
def test_wrong_words_are_refused_before_any_work(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["benchmarks.gpu", *words])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_the_time_that_a_part_leaves_goes_to_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []
    parts = {
        "one": (lambda bench: given.append(bench.limit.left()), 1.0),
        "two": (lambda bench: given.append(bench.limit.left()), 3.0),
    }
    monkeypatch.setattr(command, "PARTS", parts)
    command._all_parts(a_bench(tmp_path, 100.0), ["one", "two"])
    assert given == [pytest.approx(25, abs=1), pytest.approx(100, abs=2)]


def test_a_command_over_its_time_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    line = ["sh", "-c", "sleep 300 & echo $!; wait"]
    with Command(line, log=tmp_path / "log", limit=Limit(0.5)) as running:
        assert running.wait_until(lambda: bool(running.output()))
        child = int(running.output())
        os.kill(child, 0)
        with pytest.raises(Failed, match="not done in the time"):
            running.wait()
    state = Path(f"/proc/{child}/stat")
    for _ in range(100):
        if not state.exists() or state.read_text().split()[2] == "Z":
            break
        time.sleep(0.05)
    else:
        pytest.fail("the child still runs")


def test_the_last_words_of_a_command_that_fails_are_its_message(tmp_path: Path) -> None:
    with pytest.raises(Failed, match=r"^ValueError: this is why$"):
        run([sys.executable, "-c", "raise ValueError('this is why')"], log=tmp_path / "log", limit=Limit(30))
    two_ranks = "[rank0]: OSError: this\\n[rank0]:  is\\nroot cause:\\n torch.errors.ChildFailedError:\\n====\\n"
    with pytest.raises(Failed, match=r"^OSError: this$"):
        run(["sh", "-c", f"printf '{two_ranks}' >&2; exit 1"], log=tmp_path / "ranks", limit=Limit(30))
    with pytest.raises(Skipped, match="no time left"):
        run(["true"], log=tmp_path / "log", limit=Limit(0))


def test_objects_of_a_command_are_told_though_it_is_ended(tmp_path: Path) -> None:
    found: list[dict[str, Any]] = []
    with pytest.raises(Failed):
        run(
            ["sh", "-c", 'echo {\\"part\\": 1}; echo noise; sleep 300'],
            log=tmp_path / "log",
            limit=Limit(1),
            line=found.append,
        )
    assert found == [{"part": 1}]


def test_a_training_that_fails_takes_only_its_own_checks_with_it(tmp_path: Path) -> None:
    Chain(a_bench(tmp_path, 120), "sdpa", "fp32", tmp_path / "none").all()
    (row,) = read_rows(tmp_path / "results.jsonl")
    assert (row["item"], row["status"]) == ("sdpa fp32: train", "failed")
    assert str(tmp_path / "none") in row["message"]


def test_runs_that_differ_are_told_apart() -> None:
    assert compare_losses({1: 2.0, 2: 1.0}, {1: 2.0, 2: 1.0}, 0.0) == {
        "largest_difference": 0.0,
        "identical": 2,
        "of": 2,
    }
    near = compare_losses({1: 2.0, 2: 1.001}, {1: 2.0, 2: 1.0}, 0.01)
    assert near["first_different_step"] == 2
    assert near["identical"] == 1
    with pytest.raises(Failed, match=r"differ by 0\.5 > 0\.1, first at step 2"):
        compare_losses({1: 2.0, 2: 1.5}, {1: 2.0, 2: 1.0}, 0.1)
    with pytest.raises(Failed, match="1 steps in the log where 2"):
        compare_losses({1: 2.0}, {1: 2.0, 2: 1.0}, 0.1)
    with pytest.raises(Failed, match="differ by nan"):
        compare_losses({1: float("nan")}, {1: 2.0}, 0.1)


def test_probes_that_differ_are_told_apart() -> None:
    one = np.array([[-1.0, -np.inf], [-2.0, -3.0]])
    assert compare_scores(one, one, 0.0)["of"] == 3
    with pytest.raises(Failed, match=r"differ by 1 > 0\.5"):
        compare_scores(one + np.array([[0, 0], [0, 1]]), one, 0.5)
    with pytest.raises(Failed, match="not finite"):
        compare_scores(np.where(one == -2, np.nan, one), one, 0.5)
    with pytest.raises(Failed, match="shape"):
        compare_scores(one[:1], one, 0.5)


def test_the_table_has_every_row_once_and_the_newest(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "results.jsonl")
    machine = {
        "device": "NVIDIA H200",
        "devices": 1,
        "versions": {"torch": "2.11"},
        "driver": "580",
        "commit": "a" * 40,
        "changed": False,
        "code": "b",
        "time": "2026-01-02T00:00:00Z",
    }
    rows.add("header", "NVIDIA H200", **machine)
    rows.add("checks", "auto bf16: resume", "failed", message="a | b")
    rows.add(
        "memory",
        "1b",
        parts={
            "static": {"bytes": 17_158_000_000, "planned": 17_158_000_000, "ratio": 1.0},
            "context": {"bytes": 600_000_000},
        },
    )
    rows.add("speed", "3b L=2048 ours", "skipped", message="no time left")
    cell = {"preset": "1b", "length": 2048, "memory_bytes": 4e10}
    rows.add("speed", "1b L=2048 ours", kind="ours", tokens_per_second=60_000, mfu=0.5, **cell)
    rows.add("header", "NVIDIA H200", **machine)
    rows.add("speed", "1b L=2048 compiled", kind="compiled", tokens_per_second=30_000, **cell)
    rows.add("checks", "auto bf16: resume", largest_difference=0.0)
    text = table(tmp_path / "results.jsonl")
    assert text.count("NVIDIA H200") == 1
    assert "| auto bf16: resume | ok | largest_difference 0 |" in text
    assert "a \\| b" not in text
    assert "| 1b | 17.158 (1.000) |  |  |  |  |  |  |  | 0.600 |" in text
    assert "| 1b | 2048 | 60,000, MFU 50.0%, 40.0 GB | 30,000, 40.0 GB |  |  | 2.000 |" in text
    assert "- speed, 3b L=2048 ours: skipped, no time left" in text
