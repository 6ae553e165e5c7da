from __future__ import annotations

from pathlib import Path

from megatron_kis.executor.attempts import (
    NAME,
    WRONG_INPUT,
    History,
    Outcome,
    end_attempt,
    is_exhausted,
    read_attempts,
    request_restart,
    reset_failures,
    start_attempt,
)
from megatron_kis.executor.lease import HeldLease, acquire
from tests.megatron_kis.study.test_executor import run_of


def attempt(folder: Path, outcome: Outcome | None, *, status: int = 1, config: str = "c") -> None:
    held = acquire(folder)
    assert isinstance(held, HeldLease)
    start_attempt(held, config)
    if outcome:
        end_attempt(held, status=status, outcome=outcome)
    held.release()


def test_a_run_that_was_never_tried_has_no_history(tmp_path: Path) -> None:
    assert read_attempts(tmp_path) == History()


def test_attempts_are_numbered_and_say_how_they_ended(tmp_path: Path) -> None:
    attempt(tmp_path, "failed")
    attempt(tmp_path, None)
    attempt(tmp_path, "stopped", status=75)
    attempt(tmp_path, "done", status=0)
    found = read_attempts(tmp_path).attempts
    assert [(a.number, a.outcome, a.status) for a in found] == [
        (1, "failed", 1),
        (2, None, None),
        (3, "stopped", 75),
        (4, "done", 0),
    ]
    assert all(a.ended is None or a.started <= a.ended for a in found)


def test_what_a_crash_has_cut_spoils_nothing_that_comes_after(tmp_path: Path) -> None:
    attempt(tmp_path, "failed")
    with open(tmp_path / NAME, "ab") as file:
        file.write(b'{"event": "start", "att')
    assert len(read_attempts(tmp_path).attempts) == 1
    attempt(tmp_path, "failed")
    with open(tmp_path / NAME, "ab") as file:
        file.write(b'\xff\n[]\n{"event": "end"}\n')
    assert [a.outcome for a in read_attempts(tmp_path).attempts] == ["failed", "failed"]


def test_only_failures_count_and_only_against_the_same_settings(tmp_path: Path) -> None:
    for outcome in ("failed", "stopped", None):
        attempt(tmp_path, outcome)  # type: ignore[arg-type]
    history = read_attempts(tmp_path)
    assert not history.exhausted("c", retries=1)
    assert history.exhausted("c", retries=0)
    assert not history.exhausted("other", retries=0)
    attempt(tmp_path, "failed")
    assert read_attempts(tmp_path).exhausted("c", retries=1)


def test_wrong_input_counts_at_once(tmp_path: Path) -> None:
    run = run_of(tmp_path, "a")
    assert not is_exhausted(run, retries=0)
    attempt(run.output, "failed", status=WRONG_INPUT, config=run.settings_fingerprint())
    assert is_exhausted(run, retries=9)
    assert not is_exhausted(run_of(tmp_path, "a", 1), retries=9)


def test_reset_failures_do_not_count_and_later_ones_do(tmp_path: Path) -> None:
    for _ in range(3):
        attempt(tmp_path, "failed")
    reset_failures([tmp_path, tmp_path / "never tried"])
    assert not read_attempts(tmp_path).exhausted("c", retries=0)
    assert not (tmp_path / "never tried").exists()
    attempt(tmp_path, "failed")
    assert read_attempts(tmp_path).exhausted("c", retries=0)


def test_a_restart_is_for_the_next_attempt_alone_and_resets_failures(tmp_path: Path) -> None:
    attempt(tmp_path, "failed", status=WRONG_INPUT)
    request_restart([tmp_path, tmp_path / "never tried"])
    history = read_attempts(tmp_path)
    assert history.restart
    assert not history.exhausted("c", retries=0)
    assert not (tmp_path / "never tried").exists()
    attempt(tmp_path, None)  # it was lost with its machine
    assert not read_attempts(tmp_path).restart
    attempt(tmp_path, "failed", status=WRONG_INPUT)
    assert read_attempts(tmp_path).exhausted("c", retries=9)


def test_a_run_that_only_kis_train_knew_can_be_begun_again(tmp_path: Path) -> None:
    request_restart([tmp_path])
    assert read_attempts(tmp_path) == History((), 0, restart=True)
    reset_failures([tmp_path])
    assert read_attempts(tmp_path).restart


def test_an_attempt_says_why_it_failed(tmp_path: Path) -> None:
    held = acquire(tmp_path)
    assert isinstance(held, HeldLease)
    start_attempt(held, "c")
    end_attempt(held, status=2, outcome="failed", error="seed: is -1" + "x" * 9000)
    (found,) = read_attempts(tmp_path).attempts
    assert found.error.startswith("seed: is -1")
    assert len(found.error) < 5000
