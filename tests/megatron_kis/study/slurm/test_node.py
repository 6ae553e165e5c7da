"""What the worker does on its node: its share, the room that it has, and whether a requeue is worth it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_kis.common.configuration import load_config
from megatron_kis.common.errors import InputError, JobError, Stopped
from megatron_kis.config.executor import ExecutorConfig
from megatron_kis.config.run import RunConfig
from megatron_kis.config.study import StudyConfig
from megatron_kis.executor.interface import Progress
from megatron_kis.executor.slurm.node import Requeues, conclude, early_signals, own_task, settings_within_task
from megatron_kis.executor.slurm.records import write_tasks
from megatron_kis.study.conflicts import saved_steps
from tests.sources import Sources
from tests.studies import write_study


def test_a_task_finds_its_runs_also_in_a_jobs_second_array(tmp_path: Path) -> None:
    write_tasks(tmp_path, [("small", task, [f"c{task}"]) for task in range(5)] + [("large-2x2", 0, ["big"])])
    assert own_task(tmp_path, "small", 3, {"SLURM_ARRAY_TASK_ID": "1"}) == (4, ["c4"])
    assert own_task(tmp_path, "large-2x2", 0, {}) == (0, ["big"])
    with pytest.raises(InputError, match="has no task 5"):
        own_task(tmp_path, "small", 3, {"SLURM_ARRAY_TASK_ID": "2"})


@pytest.fixture
def study(tmp_path: Path, tiny_sources: Sources) -> Callable[..., StudyConfig]:
    return lambda **changes: load_config(StudyConfig, write_study(tmp_path, tiny_sources, **changes))


def within(study: StudyConfig, environment: dict[str, str]) -> ExecutorConfig:
    return settings_within_task(study.executor, study.cluster, environment)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores, to be given one of them")
def test_where_nothing_binds_a_task_to_its_cores_it_takes_no_more_than_its_share(
    study: Callable[..., StudyConfig],
) -> None:
    settings = within(study(executor={"threads": 1}), {"SLURM_CPUS_PER_TASK": "1"})
    assert (settings.workers, settings.pin) == (1, False)
    settings = within(study(executor={"workers": 3}), {"SLURM_CPUS_PER_TASK": "1"})
    assert settings.workers == 3  # somebody has chosen


def test_runs_have_most_of_the_grace_to_save(study: Callable[..., StudyConfig]) -> None:
    assert within(study(cluster={"grace_seconds": 100}), {}).grace_seconds == 80


def checkpoint(run: RunConfig, step: int) -> None:
    (run.output / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)


def test_requeues_end_when_they_bring_no_run_further(tiny_run: Callable[..., RunConfig], tmp_path: Path) -> None:
    runs = [tiny_run(name="a"), tiny_run(name="b")]
    ended = Progress((), (), (), 2, ("a", "b"), signal=signal.SIGUSR1)

    def start() -> None:
        conclude(ended, sum(map(saved_steps, runs)), Requeues(tmp_path, "small", 7), at_most=1)

    checkpoint(runs[0], 5)
    for _ in range(2):  # progress, and one start in vain
        with pytest.raises(Stopped) as stopped:
            start()
        assert stopped.value.exit_status == 75
    checkpoint(runs[1], 3)
    for _ in range(2):  # progress lets the count begin again
        with pytest.raises(Stopped):
            start()
    with pytest.raises(JobError, match=r"2 times without a new checkpoint of a, b; raise cluster\.time_limit"):
        start()


def test_what_is_saved_counts_whole_checkpoints_and_whole_runs(tiny_run: Callable[..., RunConfig]) -> None:
    run = tiny_run()
    assert saved_steps(run) == 0
    checkpoint(run, 12)
    checkpoint(run, 9)
    (run.output / "checkpoints" / ".step-00000019.partial").mkdir()
    assert saved_steps(run) == 12
    (run.output / "DONE").touch()
    assert saved_steps(run) == run.training.steps == 20


def test_only_the_time_limit_asks_for_a_requeue(tmp_path: Path) -> None:
    requeues = Requeues(tmp_path, "small", 0)
    with pytest.raises(Stopped, match="submitted again"):
        conclude(Progress((), (), (), 1, ("a",), signal=signal.SIGTERM), 0, requeues, at_most=2)
    with pytest.raises(JobError, match="given up: b"):
        conclude(Progress(("a",), ("b",), (), 2), 0, requeues, at_most=2)
    # Told when all had just ended: nothing is left to go on with.
    conclude(Progress(("a",), (), (), 1, signal=signal.SIGUSR1), 0, requeues, at_most=2)
    assert not list(tmp_path.iterdir())


def test_a_signal_before_the_runs_are_started_is_kept() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with early_signals() as told:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
    assert told.number == signal.SIGUSR1
    assert signal.getsignal(signal.SIGUSR1) is before
