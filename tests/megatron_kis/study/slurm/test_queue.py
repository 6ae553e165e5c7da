"""What SLURM prints, as the study understands it."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_kis.common.errors import InputError, JobError
from megatron_kis.executor.slurm import client, queue
from megatron_kis.executor.slurm.queue import Queue, live_tasks, runs_in
from megatron_kis.executor.slurm.records import (
    JOBS,
    Submitted,
    read_tasks,
    record,
    submission_folder,
    submitted,
    write_tasks,
)

LINE = (
    "JobId={job} ArrayJobId=7 ArrayTaskId={task} JobName={name} UserId=u(1) GroupId=g(1) JobState={state} "
    "Reason={reason} Dependency=(null) Requeue=1 Restarts={restarts} Command=/a JobName=other JobState=COMPLETED"
)


def line(task: str, state: str, *, name: str = "kis-s-small-1", reason: str = "None", restarts: int = 0) -> str:
    return LINE.format(job=8, task=task, state=state, name=name, reason=reason, restarts=restarts)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A study with one array of four tasks, numbers 2 to 5 of its job."""
    submission_folder(tmp_path, 1).mkdir(parents=True)
    write_tasks(submission_folder(tmp_path, 1), [("small", task, [f"c{task}", f"d{task}"]) for task in range(6)])
    record(tmp_path, Submitted(1, "small", "kis-s-small-1", 2, 4))
    record(tmp_path, Submitted(1, "small", "kis-s-small-1", 2, 4, "7"))
    return tmp_path


def answer(monkeypatch: pytest.MonkeyPatch, lines: list[str], accounting: list[list[str]] | None = None) -> list[str]:
    asked: list[str] = []
    monkeypatch.setattr(client, "show_job", lambda number: asked.append(number) or lines)
    monkeypatch.setattr(client, "account_of", lambda number: accounting or [])
    return asked


def test_a_run_has_the_state_of_its_task(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        line("2-3%4", "PENDING", reason="QOSMaxJobsPerUserLimit"),
        line("1", "RUNNING", restarts=2),
        line("0", "COMPLETED"),
    ]
    answer(monkeypatch, lines)
    cells = Queue(output).runs()
    assert {name: (cell.state, cell.job, cell.reason) for name, cell in cells.items()} == {
        "c4": ("PENDING", "7_2", "QOSMaxJobsPerUserLimit"),
        "d4": ("PENDING", "7_2", "QOSMaxJobsPerUserLimit"),
        "c5": ("PENDING", "7_3", "QOSMaxJobsPerUserLimit"),
        "d5": ("PENDING", "7_3", "QOSMaxJobsPerUserLimit"),
        "c3": ("RUNNING, requeued 2 times", "7_1", ""),
        "d3": ("RUNNING, requeued 2 times", "7_1", ""),
    }
    assert runs_in(output, live_tasks(output)) == set(cells)


def test_however_many_tasks_run_the_list_of_their_runs_is_read_once(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(monkeypatch, [line(str(task), "RUNNING") for task in range(4)])
    read: list[Path] = []
    monkeypatch.setattr(queue, "read_tasks", lambda folder: read.append(folder) or read_tasks(folder))
    assert len(Queue(output).runs()) == 8
    assert read == [submission_folder(output, 1)]


def test_another_job_that_has_the_number_now_is_not_ours(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, [line("0-3", "RUNNING", name="somebody-elses")])
    assert Queue(output).runs() == {}
    assert live_tasks(output) == []


@pytest.mark.parametrize(("state", "live"), [("RUNNING", 1), ("TIMEOUT", 0), ("CANCELLED by 0", 0)])
def test_what_the_controller_has_forgotten_is_asked_of_accounting(
    output: Path, monkeypatch: pytest.MonkeyPatch, state: str, live: int
) -> None:
    answer(monkeypatch, [], [["7_0", "kis-s-small-1", state], ["7_1", "another", "RUNNING"]])
    assert len(live_tasks(output)) == live


def test_a_job_that_is_over_is_asked_for_once(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answer(monkeypatch, [line("0-3", "FAILED")])
    seen = Queue(output, every=0.0)
    seen.runs()
    seen.runs()
    assert asked == ["7"]


def test_what_was_refused_or_never_answered_is_no_job(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(output, Submitted(2, "small", "kis-s-small-2", 0, 1, refused=True))
    record(output, Submitted(3, "small", "kis-s-small-3", 0, 1))  # a crash between the row and sbatch
    (output / "slurm" / JOBS).open("ab").write(b'{"submission": 4, "la')
    record(output, Submitted(5, "report", "kis-s-report-5", number="9"))  # the torn line does not swallow it
    assert [job.submission for job in submitted(output)] == [1, 2, 3, 5]
    asked = answer(monkeypatch, [])
    assert live_tasks(output) == []
    assert asked == ["7", "9"]


def test_without_slurm_the_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InputError, match=r"scontrol is not installed here; submit on a machine of the cluster"):
        client.max_array_size()


def program(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    path = folder / "sbatch"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


@pytest.mark.parametrize(
    ("said", "kind", "remedy"),
    [
        (
            "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified",
            InputError,
            "cluster.account",
        ),
        ("sbatch: error: invalid partition specified: nowhere", InputError, "sinfo"),
        ("sbatch: error: Batch job submission failed: Invalid job array specification", InputError, "max_array_size"),
        (
            "sbatch: error: AssocMaxSubmitJobLimit\nsbatch: error: Batch job submission failed: Job violates "
            "accounting/QOS policy (job submit limit, user's size and/or time limits)",
            InputError,
            "cells_per_task",
        ),
        (
            "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
            JobError,
            "try again later",
        ),
        (
            "sbatch: error: fetch_config: failed\nsbatch: fatal: Could not establish a configuration source",
            InputError,
            r"sbatch: SLURM is not configured on this machine \(sbatch: error: fetch_config.*\); submit on a",
        ),
        ("sbatch: error: something new", InputError, "change cluster"),
    ],
)
def test_what_sbatch_refuses_comes_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, kind: type[Exception], remedy: str
) -> None:
    program(tmp_path, monkeypatch, f"cat >&2 <<'END'\n{said}\nEND\nexit 1")
    (tmp_path / "a.sbatch").write_text("#!/bin/bash\n")
    with pytest.raises(kind, match=remedy):
        client.sbatch(tmp_path / "a.sbatch", options=[])


def test_a_job_is_submitted_from_its_folder_without_the_variables_of_a_job_around(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(
        tmp_path,
        monkeypatch,
        f'pwd > {tmp_path}/seen; env >> {tmp_path}/seen; echo "$@" >> {tmp_path}/seen; echo "12;here"',
    )
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "64")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    for name in ("PARTITION", "TIMELIMIT", "NO_REQUEUE", "ACCOUNT", "QOS", "MEM_PER_NODE"):
        monkeypatch.setenv(f"SBATCH_{name}", "the-shells")
    folder = tmp_path / "a folder"
    folder.mkdir()
    (folder / "x.sbatch").write_text(SCRIPT)
    assert client.sbatch(folder / "x.sbatch", options=["--array=0-3"], arguments=["5"]) == "12"
    seen = (tmp_path / "seen").read_text()
    assert seen.startswith(str(folder))
    assert "--parsable --array=0-3 x.sbatch 5" in seen
    assert "SLURM_CPUS_PER_TASK" not in seen
    assert "SLURM_CONF=/etc/slurm.conf" in seen
    # What the script does not say, the shell may.
    assert [line for line in sorted(seen.splitlines()) if line.startswith("SBATCH_")] == [
        "SBATCH_ACCOUNT=the-shells",
        "SBATCH_QOS=the-shells",
    ]


SCRIPT = """#!/bin/bash
# A job.
#SBATCH --time=5
#SBATCH -p main --mem 3G

echo
#SBATCH --account=too-late
"""


@pytest.mark.parametrize(
    ("lines", "used"),
    [
        ("", {"ACCOUNT", "PARTITION", "QOS", "CONSTRAINT", "RESERVATION", "CLUSTERS", "TIMELIMIT"}),
        ("#SBATCH --account=lab", {"PARTITION", "QOS", "CONSTRAINT", "RESERVATION", "CLUSTERS", "TIMELIMIT"}),
        ("#SBATCH -Alab -pmain", {"QOS", "CONSTRAINT", "RESERVATION", "CLUSTERS", "TIMELIMIT"}),
        ("#SBATCH --acc lab\n#SBATCH --qos=q --constraint x", {"PARTITION", "RESERVATION", "CLUSTERS", "TIMELIMIT"}),
        ("#SBATCH --time-min=3", {"ACCOUNT", "PARTITION", "QOS", "CONSTRAINT", "RESERVATION", "CLUSTERS", "TIMELIMIT"}),
        ("#SBATCH --reservation=r\n#SBATCH -t 5 -M other -C x -q y", {"ACCOUNT", "PARTITION"}),
    ],
)
def test_the_shells_wishes_count_where_the_script_says_nothing(lines: str, used: set[str]) -> None:
    script = f"#!/bin/bash\n{lines}\necho\n"
    every = ("ACCOUNT", "PARTITION", "QOS", "CONSTRAINT", "RESERVATION", "CLUSTERS", "TIMELIMIT", "NO_REQUEUE", "GRES")
    environment = {f"SBATCH_{name}": "x" for name in every} | {"SBATCHED": "x"}
    assert client.used_variables(script, environment) == {f"SBATCH_{name}" for name in used}
    assert client.unused_variables([script], environment) == sorted(f"SBATCH_{name}" for name in set(every) - used)


def test_a_wish_that_some_jobs_leave_open_is_named_for_the_others() -> None:
    open_, said = "#!/bin/bash\n", "#!/bin/bash\n#SBATCH --partition=main\n"
    environment = {"SBATCH_PARTITION": "x", "SBATCH_QOS": "y"}
    assert client.unused_variables([open_, said], environment) == ["SBATCH_PARTITION"]
    assert client.unused_variables([open_], environment) == []
    assert client.unused_variables([open_], {}) == []
