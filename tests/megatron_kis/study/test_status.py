from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from megatron_kis.executor.attempts import Outcome, end_attempt, start_attempt
from megatron_kis.executor.lease import HeldLease, acquire
from megatron_kis.study.forecast import forecast
from megatron_kis.study.status import Overview, Queued, RunStatus, status_of
from tests.studies import run_of, train_row, write_log


def attempted(folder: Path, run: Any, outcome: Outcome | None, status: int = 1) -> HeldLease:
    held = acquire(folder)
    assert isinstance(held, HeldLease)
    start_attempt(held, run.settings_fingerprint())
    if outcome:
        end_attempt(held, status=status, outcome=outcome)
        held.release()
    return held


def only(run: Any, **options: Any) -> RunStatus:
    (status,) = status_of([run], **options)
    return status


def test_a_run_that_was_not_started_is_waiting_or_queued(tmp_path: Path) -> None:
    run = run_of(tmp_path, "r")
    found = only(run)
    assert (found.state, found.share, found.loss, found.attempts) == ("waiting", 0.0, None, 0)
    found = only(run, queue={"r": Queued("PENDING", "17", "Priority")})
    assert (found.state, found.where) == ("queued", "job 17 PENDING Priority")


def test_a_run_in_flight_is_running_and_says_where_and_how_far(tmp_path: Path) -> None:
    run = run_of(tmp_path, "r")  # 8 steps
    attempted(run.output, run, None)
    validation = {"kind": "validation", "step": 4, "loss": 9.0}
    write_log(run.output, "a\nb\n", [train_row(2, 3.0), train_row(4, 2.5), validation], torn='{"kind": "train", "st')
    found = only(run, queue={"r": Queued("RUNNING", "17")})
    assert (found.state, found.share, found.loss, found.tokens_per_second) == ("running", 0.5, 2.5, 5.0)
    assert found.where == os.uname().nodename
    assert found.log == ()


def test_what_a_dead_executor_left_goes_on_later(tmp_path: Path) -> None:
    run = run_of(tmp_path, "r")
    attempted(run.output, run, None).release()
    write_log(run.output, "a\nb\n", [train_row(4, 2.5)])
    found = only(run)
    assert (found.state, found.share, found.log) == ("stopped", 0.5, ("a", "b"))
    assert only(run, queue={"r": Queued("PENDING", "17")}).state == "queued"


@pytest.mark.parametrize(("outcome", "status", "state"), [("stopped", 75, "stopped"), ("failed", 1, "failed")])
def test_an_attempt_that_ended_says_what_comes_next(outcome: Outcome, status: int, state: str, tmp_path: Path) -> None:
    run = run_of(tmp_path, "r")
    attempted(run.output, run, outcome, status)
    write_log(run.output, "Traceback\nno such luck\n")
    found = only(run, retries=1)
    assert (found.state, found.attempts, found.log) == (state, 1, ("Traceback", "no such luck"))
    assert found.status == (1 if state == "failed" else None)


def test_a_run_that_failed_too_often_is_given_up_whatever_the_queue_says(tmp_path: Path) -> None:
    run = run_of(tmp_path, "r")
    attempted(run.output, run, "failed")
    assert only(run, retries=0).state == "given up"
    assert only(run, retries=0, queue={"r": Queued("PENDING")}).state == "given up"
    assert only(run, retries=1, queue={"r": Queued("PENDING")}).state == "queued"
    assert only(run_of(tmp_path, "r", 1), retries=0).state == "failed"  # other settings may do better


def test_a_done_run_is_done_and_says_what_it_took(tmp_path: Path) -> None:
    run = run_of(tmp_path, "r")
    attempted(run.output, run, "done", 0)
    write_log(run.output, "a\n", [train_row(8, 2.0)])
    (run.output / "DONE").write_text("{}")
    found = only(run)
    assert (found.state, found.share, found.loss, found.whole) == ("done", 1.0, 2.0, True)
    assert found.seconds is not None and 0 <= found.seconds < 60


@pytest.mark.parametrize("damaged", ["not json", '{"kind": "train"}', '{"kind": "train", "step": null}'])
def test_a_damaged_log_does_not_end_the_overview(damaged: str, tmp_path: Path) -> None:
    run = run_of(tmp_path, "r")
    write_log(run.output, "a\n", [train_row(2, 3.0), damaged])
    assert (only(run).state, only(run).share) == ("stopped", 0.25)


def test_only_the_ends_of_files_are_read(tmp_path: Path) -> None:
    run = run_of(tmp_path, "r")
    run.output.mkdir(parents=True)
    row = json.dumps(train_row(4, 2.5)).encode() + b"\n"
    with open(run.output / "metrics.jsonl", "wb") as file:  # 3 GB that take no room
        file.seek(3 << 30)
        file.write(b"\n" + row)
    validation = json.dumps({"kind": "validation", "note": "x" * 5000}).encode() + b"\n"
    started = time.process_time()
    assert only(run).share == 0.5
    with open(run.output / "metrics.jsonl", "ab") as file:
        file.write(validation)  # beyond the first look
    assert only(run).share == 0.5
    assert time.process_time() - started < 2


def test_what_is_done_is_looked_at_once(tmp_path: Path) -> None:
    runs = [run_of(tmp_path, name) for name in ("a", "b")]
    for run in runs:
        write_log(run.output, "", [train_row(4, 2.5)])
    (runs[0].output / "DONE").write_text("{}")
    view = Overview(runs)
    assert [row.state for row in view.look()] == ["done", "stopped"]
    for run in runs:
        (run.output / "metrics.jsonl").unlink()
    assert [row.loss for row in view.look()] == [2.5, None]


@pytest.mark.parametrize(
    ("record", "own"),
    [
        (None, 0.25),
        ({"config": {}, "branched_from": {"run": "t", "folder": "../t", "step": 6}}, 0.25),
        ({"config": {}}, 1.0),  # its trunk had no checkpoint for it
        ({}, 0.25),
    ],
)
def test_a_branch_trains_what_its_record_says(tmp_path: Path, record: dict[str, Any] | None, own: float) -> None:
    late = {"infusion": {"frequency": 0, "begins": 0.75}, "trunk": tmp_path / "t"}
    run, alone = run_of(tmp_path, "r", **late), run_of(tmp_path, "alone")
    if record is not None:
        run.output.mkdir(parents=True)
        (run.output / "run.json").write_text(json.dumps(record))
    found = only(run)
    assert (found.own, found.cost) == (own, own * only(alone).cost)
    speed = RunStatus("d", found.size, found.tokens, "done", 1.0, whole=True, seconds=80.0, cost=1.0)
    assert forecast([speed, found]).runs == {"r": 80.0 * own}
