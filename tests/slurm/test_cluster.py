"""Studies on a real SLURM: through the queue to the report, over nodes, past time limits, lost nodes and mistakes."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_kis.common.configuration import parse_config
from megatron_kis.config.run import RunConfig
from megatron_kis.executor.attempts import read_attempts
from megatron_kis.executor.lease import read_lease
from megatron_kis.training.trainer import train
from tests.run_files import losses
from tests.slurm.cluster import Cluster, wait_for
from tests.slurm.conftest import SMALL_JOBS, kis

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

BATCH = 8 * 64
SECONDS = 1200  # what a study of seconds may take at most, on a machine that does much else


@dataclass(frozen=True)
class Started:
    """The studies that are submitted before the first test: their jobs run beside each other and beside its own."""

    limited: Path
    preempted: Path
    late: Path
    hostile: Path
    over_nodes: Path
    torchrun: Path
    wrong: Path
    no_data: Path
    limit: Future[None]
    """What happens to the cell of ``limited``, in a thread: SLURM alone takes 30 seconds of it."""
    preemption: Future[None]
    """What happens to the cell of ``preempted``, in a thread."""


@pytest.fixture(scope="module")
def started(
    cluster: Cluster, make_study: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Started]:
    folder = tmp_path_factory.mktemp("studies")
    small = {"layers": 1, "width": 16, "heads": 2}
    large = {**SMALL_JOBS, "large": {"ranks_per_node": 2, "cpus_per_rank": 1}}
    threads = ThreadPoolExecutor()
    limited = make_study(
        folder / "limit",
        token_budgets=[300 * BATCH],
        frequencies=[100],
        checkpoints={"moments": {"every": 20}},
        logging={"every": 20},
        cluster={**SMALL_JOBS, "time_limit": "01:00:00", "grace_seconds": 100},
    )
    assert kis("submit", limited) == 0
    limit = threads.submit(_reach_time_limit, cluster, limited)
    preempted = make_study(
        folder / "preempted",
        token_budgets=[30000 * BATCH],
        frequencies=[100],
        checkpoints={"moments": {"every": 50}},
        cluster={**SMALL_JOBS, "small": {"cpus": 2, "partition": "low", "options": ["--exclusive"]}},
    )
    assert kis("submit", preempted) == 0
    cancel_report(cluster, preempted)
    preemption = threads.submit(_preempt, cluster, preempted)
    late = make_study(folder / "late", frequencies=[8])
    assert kis("submit", late, "cluster.small.options=[--hold]") == 0
    cancel_report(cluster, late)
    studies = Started(
        limited=limited,
        limit=limit,
        preempted=preempted,
        preemption=preemption,
        late=late,
        over_nodes=make_study(
            folder / "nodes",
            ladder=[{"layers": 2, "width": 16, "heads": 2, "parallel": {"tensor": 2, "replicas": 2}}],
            frequencies=[8],
            logging={"every": 1},
            cluster=large,
        ),
        hostile=make_study(
            folder / 'a "b"; it\'s 50% $(touch pwned)',
            ladder=[small, {"name": "exploding", **small, "learning_rate": 1e30, "frequencies": [0]}],
            frequencies=[0, 8],
            training={"sequence_length": 64, "global_batch_size": 8, "optimizer": {"warmup_share": 0.0}},
            cluster={
                **SMALL_JOBS,
                "small": {"cpus": 2, "cells_per_task": 2},
                "max_array_size": 1,
                "environment": {"KIS_TEST": "a 'quoted' value"},
            },
        ),
        torchrun=make_study(
            folder / "torchrun",
            ladder=[{**small, "parallel": {"replicas": 2}}],
            frequencies=[8],
            cluster={
                **SMALL_JOBS,
                "large": {"ranks_per_node": 1, "cpus_per_rank": 1, "launcher": "torchrun"},
                "container": {"kind": "apptainer", "image": "an image.sif", "python": sys.executable},
                "setup": [f"export PATH={shlex.quote(str(_stand_in(folder)))}:$PATH"],
            },
        ),
        wrong=make_study(
            folder / "wrong",
            ladder=[{**small, "parallel": {"replicas": 2}}],
            frequencies=[8],
            device="auto",
            training={"sequence_length": 64, "global_batch_size": 8, "precision": "fp8"},  # only its ranks can tell
            executor={"retries": 2},
            cluster={**SMALL_JOBS, "large": {"ranks_per_node": 2, "cpus_per_rank": 1, "launcher": "torchrun"}},
        ),
        no_data=make_study(folder / "broken", frequencies=[0]),
    )
    content = yaml.safe_load(studies.no_data.read_text())
    content["data"]["facts"] = str(folder / "missing.tsv")
    studies.no_data.write_text(yaml.safe_dump(content))
    for study in (studies.hostile, studies.no_data, studies.over_nodes, studies.torchrun, studies.wrong):
        assert kis("submit", study) == 0
    for study in (studies.over_nodes, studies.torchrun, studies.wrong):
        cancel_report(cluster, study)
    yield studies
    threads.shutdown(wait=False)


def _stand_in(folder: Path) -> Path:
    """A folder with an ``apptainer`` that goes into no container: it says the image's name and runs the command."""
    programs = folder / "stand in"
    programs.mkdir()
    (programs / "apptainer").write_text(
        '#!/bin/bash\n[ "$1" = exec ] || exit 9\nshift\n'
        'while [ "$1" = --bind ] || [ "$1" = --pwd ]; do [ "$1" = --bind ] || cd "$2"; shift 2; done\n'
        'echo "inside $1" >&2\nshift\nexec "$@"\n'
    )
    (programs / "apptainer").chmod(0o755)
    return programs


def _reach_time_limit(cluster: Cluster, study: Path) -> None:
    """Lets a cell meet its time limit when it has saved, and gives it time again when it was requeued."""
    array = number_of(study, "small")
    runs = study.parent / "out" / "runs"
    wait_for(lambda: list(runs.glob("*/checkpoints/step-*")), SECONDS, "no checkpoint", lambda: logs(study))
    # However fast or slow the machine is, the limit comes when the cell is at work: it is halted until it was asked to
    # stop. SLURM looks at limits every 30 seconds, and tells a job of which less than the grace and 30 more are left.
    claim = read_lease(run_folder(study))
    assert claim is not None and claim.owner.run_process is not None
    cell, _ = claim.owner.run_process
    os.kill(cell, signal.SIGSTOP)
    try:
        minutes, seconds = map(int, re.search(r" RunTime=00:(\d\d):(\d\d) ", show(cluster, array)).groups())
        cluster.run("scontrol", "update", f"jobid={array}_0", f"timelimit={minutes + (2 if seconds else 1)}")
        wait_for(lambda: awaits(cell, signal.SIGTERM), SECONDS, "the cell was not asked to stop", lambda: logs(study))
    finally:
        os.kill(cell, signal.SIGCONT)
    wait_for(lambda: " Restarts=1 " in show(cluster, array), SECONDS, "no requeue", lambda: logs(study), every=1.0)
    cluster.run("scontrol", "update", f"jobid={array}_0", "timelimit=60")


def _preempt(cluster: Cluster, study: Path) -> None:
    """Asks for the node of a cell that has saved, waits until the cell goes on, and ends it."""
    array = number_of(study, "small")
    runs = study.parent / "out" / "runs"
    wait_for(lambda: list(runs.glob("*/checkpoints/step-*")), SECONDS, "no checkpoint", lambda: logs(study))
    place = re.search(r" NodeList=(\S+)", show(cluster, array))[1]
    script = study.parent / "high.sh"
    script.write_text("#!/bin/bash\ntrue\n")
    log = f"--output={study.parent}/high.log"
    urgent = cluster.run("sbatch", "--parsable", "-p", "high", "--exclusive", "-w", place, log, str(script)).strip()
    wait_for(lambda: "JobState=COMPLETED" in show(cluster, urgent), 300, "no room was made", lambda: logs(study))
    folder = run_folder(study)
    wait_for(lambda: len(read_attempts(folder).attempts) == 2, SECONDS, "it does not resume", lambda: logs(study))
    wait_for(
        lambda: json.loads((folder / "run.json").read_text())["sessions"][-1]["from_step"] > 0,
        SECONDS,
        "it does not resume where it was saved",
        lambda: logs(study),
    )
    cluster.run("scancel", array)


def awaits(process: int, number: signal.Signals) -> bool:
    """Whether a signal was sent to a process that has not seen it yet (``SigPnd`` and ``ShdPnd`` of proc(5))."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    pending = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd:", "ShdPnd:"))]
    return any(mask >> (number - 1) & 1 for mask in pending)


def rows_of(study: Path) -> list[dict[str, Any]]:
    """What was recorded of the study's jobs."""
    lines = (study.parent / "out" / "slurm" / "jobs.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["number"]]


def number_of(study: Path, label: str) -> str:
    """Number of a job of the study's first submission."""
    return next(row["number"] for row in rows_of(study) if row["label"] == label)


def cancel_report(cluster: Cluster, study: Path) -> None:
    """Spares the report of a study of which nobody reads it."""
    cluster.run("scancel", number_of(study, "report"))


def show(cluster: Cluster, number: str) -> str:
    return cluster.run("scontrol", "-o", "show", "job", number)


def jobs(cluster: Cluster, study: Path) -> dict[str, str]:
    """State of each of the study's jobs and tasks, by its number."""
    states = {}
    for row in rows_of(study):
        for line in show(cluster, row["number"]).splitlines():
            states[re.search(r"JobId=(\d+)", line)[1]] = re.search(r"JobState=(\w+)", line)[1]
    return states


def wait_for_end(cluster: Cluster, study: Path, seconds: float = SECONDS) -> dict[str, str]:
    """Waits until no job of the study waits or runs, and says how each ended."""
    ended = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
    wait_for(lambda: set(jobs(cluster, study).values()) <= ended, seconds, "jobs go on", lambda: logs(study), every=0.5)
    return jobs(cluster, study)


def logs(study: Path) -> str:
    files = [*(study.parent / "out").glob("slurm/*/logs/*"), *(study.parent / "out").glob("runs/*/log.txt")]
    return "\n".join(f"== {path}\n{path.read_text(errors='replace')[-1500:]}" for path in files)


def run_folder(study: Path, name: str = "*") -> Path:
    (folder,) = (study.parent / "out" / "runs").glob(name)
    return folder


def test_a_cell_in_the_queue_is_not_submitted_again_runs_elsewhere_when_its_node_is_lost_and_is_saved_when_cancelled(
    cluster: Cluster,
    started: Started,
    make_study: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    study = make_study(
        tmp_path / "lost",
        token_budgets=[30000 * BATCH],
        frequencies=[100],
        checkpoints={"moments": {"every": 50}},
        cluster={**SMALL_JOBS, "small": {"cpus": 2, "options": ["--exclusive"]}},
    )
    assert kis("submit", study) == 0
    number = number_of(study, "small")
    capsys.readouterr()
    assert kis("status", "--json", study) == 0
    (cell,) = json.loads(capsys.readouterr().out)["runs"]
    assert cell["state"] == "queued"
    assert cell["where"].startswith(f"job {number}_0 PENDING")  # the reason follows when SLURM has looked at it
    runs = study.parent / "out" / "runs"
    wait_for(lambda: list(runs.glob("*/checkpoints/step-*")), SECONDS, "no checkpoint", lambda: logs(study))
    folder = run_folder(study)
    before = rows_of(study)

    capsys.readouterr()
    assert kis("submit", study) == 0
    said = capsys.readouterr()
    assert "1 queued or running" in said.err
    assert "nothing to submit" in said.out
    assert rows_of(study) == before
    # The cell is reading what that would make again: nobody does.
    data = {path: path.stat().st_mtime_ns for path in (study.parent / "out" / "data").rglob("*")}
    assert kis("submit", study, "data.seed=3") == 2
    assert "other settings of the data (data.seed 0 -> 3)" in capsys.readouterr().err
    for step in ("plan", "run"):
        assert kis(step, study, "data.seed=3") == 2
        said = capsys.readouterr().err
        assert "1 run in progress (" in said
        assert f"1 job in the queue ({number})" in said
    assert {path: path.stat().st_mtime_ns for path in (study.parent / "out" / "data").rglob("*")} == data
    assert kis("plan", study) == 0  # with the data that are there
    assert rows_of(study) == before

    place = re.search(r" NodeList=(\S+)", show(cluster, number))[1]
    cluster.kill_node(place)
    cluster.run("scontrol", "update", f"nodename={place}", "state=down", "reason=power cut")
    saved = max(path.name for path in folder.glob("checkpoints/step-*"))
    wait_for(lambda: len(read_attempts(folder).attempts) == 2, SECONDS, "it does not run again", lambda: logs(study))
    again = re.search(r" NodeList=(\S+)", show(cluster, number))[1]
    assert again != place
    wait_for(
        lambda: max(path.name for path in folder.glob("checkpoints/step-*")) > saved,
        SECONDS,
        "it does not go on",
        lambda: logs(study),
    )
    assert read_attempts(folder).attempts[0].outcome is None  # lost with its node
    assert json.loads((folder / "run.json").read_text())["sessions"][-1]["from_step"] > 0

    capsys.readouterr()
    assert kis("cancel", study) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{row['number']}  {row['name']}  cancelled" for row in before if row["label"] != "data"
    ]
    states = wait_for_end(cluster, study)
    assert sorted(states.values()) == ["CANCELLED", "CANCELLED", "COMPLETED"]
    wait_for(lambda: read_attempts(folder).attempts[-1].outcome, 60, "it was not recorded", lambda: logs(study))
    assert read_attempts(folder).attempts[-1].outcome == "stopped"
    assert not (folder / "DONE").exists()
    assert kis("cancel", study) == 0
    assert "no job of this study" in capsys.readouterr().out
    cluster.start_node(place)


def test_a_cell_that_starts_late_meets_no_other_data_than_it_was_submitted_with(
    cluster: Cluster, started: Started, capsys: pytest.CaptureFixture[str]
) -> None:
    study = started.late
    data, small, _ = (row["number"] for row in rows_of(study))
    out = study.parent / "out"
    wait_for(lambda: jobs(cluster, study)[data] == "COMPLETED", SECONDS, "no data", lambda: logs(study), every=1.0)
    before = json.loads((out / "slurm" / "0001" / "data.json").read_text())["fingerprints"]
    assert json.loads((out / "study.json").read_text())["data"] == before

    (out / "data").rename(out / "taken away")  # by somebody who knows better
    assert kis("plan", study, "data.vocab_size=390") == 0
    (out.parent / ".out.planned" / "data").rename(out / "data")
    cluster.run("scontrol", "release", small)
    wait_for_end(cluster, study)
    (attempt,) = read_attempts(run_folder(study)).attempts  # status 2 is not tried again
    assert attempt.status == 2, logs(study)
    assert before["tokenizer"][:12] in (run_folder(study) / "log.txt").read_text()
    assert not (run_folder(study) / "DONE").exists()

    # The data job of a submission refuses as well what has changed since.
    shutil.rmtree(out / "data")
    (out / "taken away").rename(out / "data")
    content = yaml.safe_load(study.read_text())
    templates = shutil.copy(content["data"]["templates"], study.parent / "templates.yaml")
    content["data"]["templates"] = str(templates)
    study.write_text(yaml.safe_dump(content))
    assert kis("submit", study, "cluster.data.options=[--hold]", "--retry-failed") == 0
    held = next(row["number"] for row in rows_of(study) if row["submission"] == 2 and row["label"] == "data")
    templates.write_text(templates.read_text() + "\n")
    assert kis("submit", study) == 2
    assert f"{templates}: changed since the jobs of submission 2" in capsys.readouterr().err
    cluster.run("scontrol", "release", held)
    states = wait_for_end(cluster, study)
    assert states[held] == "FAILED"
    assert f"{templates}: changed since the study was submitted" in logs(study)


def test_a_study_goes_through_the_queue_to_its_report_and_a_failing_cell_is_tried_again_and_named(
    cluster: Cluster, started: Started, capsys: pytest.CaptureFixture[str]
) -> None:
    study = started.hostile
    states = wait_for_end(cluster, study)
    out = study.parent / "out"
    assert (out / "report.html").exists(), logs(study)
    done = {path.parent.name for path in out.glob("runs/*/DONE")}
    assert done == {"1x16_D5.12k_F0_s0", "1x16_D5.12k_F8_s0"}
    assert sorted(states.values()) == ["COMPLETED"] * 3 + ["FAILED"]  # the last is the task of the cell that fails
    lost = "exploding_D5.12k_F0_s0"
    assert [attempt.outcome for attempt in read_attempts(run_folder(study, lost)).attempts] == ["failed", "failed"]
    assert f"1 of 2 runs failed and were given up: {lost}" in logs(study)  # another cell was in its task, and is done
    assert [row["first"] for row in rows_of(study) if row["label"] == "small"] == [0, 1]  # two arrays of one task each

    assert not list(study.parent.parent.rglob("pwned"))
    capsys.readouterr()
    assert kis("status", "--json", study) == 0
    assert json.loads(capsys.readouterr().out)["states"] == {"done": 2, "given up": 1}
    assert kis("submit", study) == 0  # what is done, and what was given up, is not submitted again
    said = capsys.readouterr()
    assert "nothing to submit" in said.out
    assert f"{lost} was given up; --retry-failed" in said.err
    assert len(list(out.glob("slurm/[0-9]*"))) == 1


def test_four_ranks_on_two_nodes_have_the_losses_of_one_process(
    cluster: Cluster, started: Started, tmp_path: Path
) -> None:
    wait_for_end(cluster, started.over_nodes)
    folder = run_folder(started.over_nodes)
    assert (folder / "DONE").exists(), logs(started.over_nodes)
    record = json.loads((folder / "run.json").read_text())
    assert (record["parallel"]["tensor_size"], record["parallel"]["data_size"]) == (2, 2)
    assert re.search(r" NumNodes=2 .* NumTasks=4 ", show(cluster, rows_of(started.over_nodes)[1]["number"]))

    content = yaml.safe_load((folder / "config.yaml").read_text())
    content |= {"output": str(tmp_path / "alone"), "parallel": {}}
    train(parse_config(RunConfig, content, source="alone"))
    together, alone = losses(folder), losses(tmp_path / "alone")
    assert len(alone) == 10
    assert together == pytest.approx(alone, abs=1e-5)


def test_torchrun_on_each_node_trains_inside_a_container_too(cluster: Cluster, started: Started) -> None:
    wait_for_end(cluster, started.torchrun)
    folder = run_folder(started.torchrun)
    assert (folder / "DONE").exists(), logs(started.torchrun)
    assert json.loads((folder / "run.json").read_text())["parallel"]["data_size"] == 2
    assert (folder / "log.txt").read_text().count("inside an image.sif") == 2
    (data,) = (started.torchrun.parent / "out").glob("slurm/0001/logs/data-*.log")
    assert "inside an image.sif" in data.read_text()


def test_failed_data_end_the_whole_study(cluster: Cluster, started: Started) -> None:
    states = wait_for_end(cluster, started.no_data)
    assert sorted(states.values()) == ["CANCELLED", "CANCELLED", "FAILED"]
    assert "missing.tsv" in logs(started.no_data)
    assert not (started.no_data.parent / "out" / "slurm" / "0001" / "data.json").exists()
    assert not (started.no_data.parent / "out" / "runs").exists()


def test_what_sbatch_refuses_ends_nothing_half_submitted(
    cluster: Cluster, make_study: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {**SMALL_JOBS["small"], "memory": "900G"}
    study = make_study(tmp_path / "refused", cluster={**SMALL_JOBS, "small": small})
    assert kis("submit", study) == 2
    said = capsys.readouterr().err
    assert "sbatch: " in said
    assert "lower memory" in said
    assert list(wait_for_end(cluster, study).values()) == ["CANCELLED"]  # the data job, which had been taken
    elsewhere = ("submit", study, "cluster.partition=nowhere")  # 1 while the cancelled job lets go of the study
    wait_for(lambda: kis(*elsewhere) == 2, 60, "it is not refused", every=0.5)
    assert "sinfo" in capsys.readouterr().err


def test_the_variables_of_the_shell_say_only_what_the_study_leaves_open(
    cluster: Cluster,
    make_study: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study = make_study(
        tmp_path / "shell", cluster={**SMALL_JOBS, "partition": "main", "small": {"cpus": 2, "time_limit": "00:10:00"}}
    )
    shell = {"PARTITION": "high", "TIMELIMIT": "7", "NO_REQUEUE": "1", "ACCOUNT": "lab", "BEGIN": "now+1hour"}
    for name, value in shell.items():
        monkeypatch.setenv(f"SBATCH_{name}", value)
    assert kis("submit", study) == 0
    assert (
        "ignored where the jobs set them: SBATCH_BEGIN, SBATCH_NO_REQUEUE, SBATCH_PARTITION, SBATCH_TIMELIMIT;"
        in capsys.readouterr().err
    )
    shown = {row["label"]: show(cluster, row["number"]) for row in rows_of(study)}
    assert kis("cancel", study) == 0
    for label, limit in (("small", "00:10:00"), ("data", "00:07:00"), ("report", "00:07:00")):
        for asked in ("Partition=main", "Account=lab", f"TimeLimit={limit}"):
            assert f" {asked} " in shown[label], label
    assert " Requeue=1 " in shown["small"]


def test_wrong_input_of_ranks_under_torchrun_is_given_up_at_once_and_its_reason_is_told(
    cluster: Cluster, started: Started, capsys: pytest.CaptureFixture[str]
) -> None:
    study = started.wrong
    wait_for_end(cluster, study)
    (attempt,) = read_attempts(run_folder(study)).attempts
    assert (attempt.status, attempt.outcome) == (2, "failed"), logs(study)
    (told,) = (study.parent / "out").glob("slurm/0001/logs/large*.log")
    assert "    kis: error: training.precision: FP8 needs" in told.read_text()
    capsys.readouterr()
    assert kis("status", "--json", study) == 0
    (cell,) = json.loads(capsys.readouterr().out)["runs"]
    assert cell["state"] == "given up"
    assert cell["log"][0].startswith("kis: error: training.precision")


def test_a_cell_that_is_preempted_makes_room_at_once_and_resumes(cluster: Cluster, started: Started) -> None:
    """With a user signal at preemption: the grace time (600 s here) is what a cell may take, not what it waits."""
    started.preemption.result()
    first, *_ = read_attempts(run_folder(started.preempted)).attempts
    assert (first.outcome, first.status) == ("stopped", 75)
    wait_for_end(cluster, started.preempted)


def test_before_its_time_limit_a_cell_is_saved_and_requeued_and_its_ledger_is_exact(
    cluster: Cluster, started: Started
) -> None:
    study = started.limited
    started.limit.result()
    states = wait_for_end(cluster, study)
    folder = run_folder(study)
    assert (folder / "DONE").exists(), logs(study)
    assert set(states.values()) == {"COMPLETED"}
    assert [attempt.outcome for attempt in read_attempts(folder).attempts] == ["stopped", "done"]
    assert "the time limit is near" in logs(study)
    steps = [
        json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines() if "train" in line
    ]
    assert steps == sorted(set(steps))  # no step is reported twice
    ledger = json.loads((folder / "exposures.json").read_text())
    assert ledger["exact"] is True
    assert (study.parent / "out" / "report.html").exists()  # and the report came after the last start, not the first
