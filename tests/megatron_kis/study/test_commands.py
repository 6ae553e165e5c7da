"""``kis study status``, ``watch``, ``logs`` and the choice of runs: no data, no training, folders made by hand."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from megatron_kis.cli.main import main
from megatron_kis.cli.study.run import selected
from megatron_kis.common.errors import InputError
from megatron_kis.config.run import RunConfig
from megatron_kis.executor.attempts import end_attempt, start_attempt
from megatron_kis.executor.lease import HeldLease, acquire
from megatron_kis.study.status import Overview, status_of
from tests.sources import Sources
from tests.studies import train_row, write_log, write_study

CELLS = [f"1x16_D5.12k_F{frequency}_s0" for frequency in (0, 3, 8)]  # of 10 steps each


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """The file of a study whose sources need not be there."""
    return write_study(tmp_path, Sources(tmp_path / "t.jsonl", tmp_path / "f.tsv", tmp_path / "t.yaml"))


def folder(study: Path, cell: str) -> Path:
    return study.parent / "out" / "runs" / cell


def runs(study: Path) -> dict[str, RunConfig]:
    import argparse

    from megatron_kis.cli.study.status import overview

    _, view = overview(argparse.Namespace(study=study, overrides=[]))
    return {run.name: run for run in view.runs}


def attempt(study: Path, cell: str, outcome: str | None = None, status: int = 0) -> HeldLease:
    held = acquire(folder(study, cell))
    assert isinstance(held, HeldLease)
    start_attempt(held, runs(study)[cell].settings_fingerprint())
    if outcome:
        end_attempt(held, status=status, outcome=outcome)  # type: ignore[arg-type]
        held.release()
    return held


def finish(study: Path, cell: str) -> None:
    attempt(study, cell, "done")
    write_log(folder(study, cell), "a line\n", [train_row(10, 1.5)])
    (folder(study, cell) / "DONE").write_text("{}")


def test_the_status_names_states_progress_and_what_failed(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finish(study, CELLS[0])
    for status in (1, 1):
        attempt(study, CELLS[1], "failed", status)
    write_log(folder(study, CELLS[1]), "Traceback\n[bold]no such luck[/]\n")
    assert main(["study", "status", str(study)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("small: 3 runs: 1 done, 1 waiting, 1 given up; about ")
    assert f"{CELLS[1]}: given up after 2 attempts, exit status 1" in shown
    assert "    [bold]no such luck[/]" in shown  # a log is not markup
    assert main(["study", "status", "--json", str(study)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["states"] == {"done": 1, "waiting": 1, "given up": 1}
    assert {row["name"]: row["state"] for row in found["runs"]}[CELLS[2]] == "waiting"


def test_many_runs_are_shown_by_size_unless_all_are_asked_for(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finish(study, CELLS[0])
    many = [str(study), f"seeds={list(range(30))}"]
    assert main(["study", "status", *many]) == 0
    shown = capsys.readouterr().out
    assert "90 runs: 1 done, 89 waiting" in shown
    assert CELLS[0] not in shown
    assert "1x16" in shown
    assert main(["study", "status", "--all", *many]) == 0
    assert CELLS[0] in capsys.readouterr().out


def test_watching_says_what_changes_and_ends_with_the_last_run(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for cell in CELLS[:2]:
        finish(study, cell)
    thread = threading.Timer(1.5, finish, [study, CELLS[2]])
    thread.start()
    assert main(["study", "watch", str(study), "--every", "0.2"]) == 0
    thread.join()
    lines = capsys.readouterr().out.splitlines()
    assert "2 done, 1 waiting" in lines[0]
    assert lines[-1].endswith("small: 3 runs: 3 done")
    assert len(lines) < 6  # a line a change, and not one a look


def test_watching_a_study_in_which_a_run_was_given_up_fails(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for cell in CELLS[:2]:
        finish(study, cell)
    attempt(study, CELLS[2], "failed", 2)
    assert main(["study", "watch", str(study)]) == 1
    assert "runs given up: 1 of 3" in capsys.readouterr().err


def test_a_log_is_shown_from_its_end(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_log(folder(study, CELLS[0]), "".join(f"line {number}\n" for number in range(50_000)))
    for lines, first, count in (("3", "line 49997", 3), ("40000", "line 10000", 40_000), ("0", "line 0", 50_000)):
        assert main(["study", "logs", str(study), CELLS[0], "--lines", lines]) == 0
        shown = capsys.readouterr().out.splitlines()
        assert (shown[0], shown[-1], len(shown)) == (first, "line 49999", count)
    write_log(folder(study, CELLS[0]), "one\ntwo\nno newline yet")
    assert main(["study", "logs", str(study), CELLS[0], "--lines", "2"]) == 0
    assert capsys.readouterr().out == "two\nno newline yet"


def test_a_log_is_followed_until_the_run_has_ended(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = attempt(study, CELLS[0])
    write_log(folder(study, CELLS[0]), "first\n")

    def go_on() -> None:
        time.sleep(1)
        with open(folder(study, CELLS[0]) / "log.txt", "a") as file:
            file.write("second\n")
        time.sleep(1)
        (folder(study, CELLS[0]) / "DONE").write_text("{}")
        held.release()

    thread = threading.Thread(target=go_on)
    thread.start()
    assert main(["study", "logs", str(study), CELLS[0], "--follow"]) == 0
    assert not thread.is_alive() or held is not None
    thread.join()
    assert capsys.readouterr().out == "first\nsecond\n"


def test_wrong_names_are_answered_with_the_nearest(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "logs", str(study), "1x16_D5.12k_F3_s1"]) == 2
    assert "did you mean '1x16_D5.12k_F3_s0'?" in capsys.readouterr().err
    assert main(["study", "logs", str(study), CELLS[0]]) == 2
    assert "has no log yet: it is waiting" in capsys.readouterr().err
    every = list(runs(study).values())
    assert [run.name for run in selected(every, [CELLS[2], CELLS[0]])] == [CELLS[0], CELLS[2]]  # type: ignore[arg-type, attr-defined]
    with pytest.raises(InputError, match="--only: no run '1x16'"):
        selected(every, ["1x16"])  # type: ignore[arg-type]


def test_the_files_of_a_study_of_another_version_still_tell(study: Path) -> None:
    """Run folders made before there were claims and attempts."""
    write_log(folder(study, CELLS[0]), "a\n", [train_row(5, 1.0)])
    write_log(folder(study, CELLS[1]), "a\n", [train_row(10, 1.0)])
    (folder(study, CELLS[1]) / "DONE").write_text("{}")
    found = status_of(list(runs(study).values()))  # type: ignore[arg-type]
    assert [row.state for row in found] == ["stopped", "done", "waiting"]
    assert Overview(list(runs(study).values())).look() == found  # type: ignore[arg-type]
