"""``kis study run``: the whole study on this machine."""

from __future__ import annotations

import argparse
import logging
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from megatron_kis.cli.study.asking import ask, unasked
from megatron_kis.cli.study.common import (
    DATA_FOLDER,
    add_step,
    check_first,
    data_config,
    done_runs,
    load_study,
    look_over,
    prepare,
    warn,
)
from megatron_kis.cli.study.report import analyse, check_report
from megatron_kis.common.console import progress_bar
from megatron_kis.common.errors import InputError, JobError, Stopped, nearest, printable
from megatron_kis.common.units import duration, plural

if TYPE_CHECKING:
    from megatron_kis.config.executor import ExecutorConfig
    from megatron_kis.config.run import RunConfig
    from megatron_kis.config.study import StudyConfig
    from megatron_kis.executor.interface import Progress

logger = logging.getLogger(__name__)

_NARROWEST_BAR = 20  # columns of a terminal below which plain lines are clearer


def add_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    run = add_step(
        steps, "run", "prepare the data, train the runs that are not done, analyse them and write the report", _run
    )
    run.description = (
        f"{run.description} Finished runs without answers to the study's questions are asked from their "
        "checkpoints, as kis study probe does."
    )
    run.add_argument(
        "--workers", type=int, metavar="N", help="runs at the same time (default: the study's, or all cores)"
    )
    add_selection(run)


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Adds the options that select runs of a study."""
    add_only(parser)
    parser.add_argument("--retry-failed", action="store_true", help="resume runs that were given up (executor.retries)")
    parser.add_argument(
        "--restart", action="store_true", help="start unfinished runs again at step 0; their checkpoints are lost"
    )


def _run(options: argparse.Namespace) -> int:
    from megatron_kis.executor.executor import execute
    from megatron_kis.study.conflicts import refuse, unfinished_conflicts
    from megatron_kis.study.data import check_sources, with_data
    from megatron_kis.study.lock import study_lock
    from megatron_kis.study.manifest import FILE, write_manifest, write_study
    from megatron_kis.study.preflight import check_device

    study = load_study(options)
    settings = study.executor
    if options.workers is not None:
        if options.workers < 1:
            raise InputError(f"is {options.workers}", where="--workers", remedy="use at least 1")
        settings = settings.model_copy(update={"workers": options.workers})
    check_report(study)
    every = look_over(study)
    runs = selected(every, options.only)
    if not options.restart:
        refuse(study.output, unfinished_conflicts(runs))
    remarks = []
    if not all((run.output / "DONE").exists() for run in runs):
        check_device(study, here=True)
        remarks = check_first(study)
    check_sources(study.data)
    with study_lock(study.output) as lock:  # before the data: a run on another machine may be reading them
        prepare(study, restarted={run.name for run in runs} if options.restart else ())
        done, fingerprints = done_runs(study, every, runs)
        if len(done) < len(runs):
            warn(
                study, dict.fromkeys([*remarks, *check_first(study, facts=study.output / DATA_FOLDER / "facts.jsonl")])
            )
        write_study(study, study.output / FILE)
        write_manifest(study.output, study.name, every, fingerprints)
        runs = with_data(runs, fingerprints)
        another_try([run for run in runs if run.name not in done], study.executor, options)
        logger.info(f"{study.name}: {plural(len(runs), 'run')}, {len(done)} done already")
        with shown_progress(runs) as report:
            ended = execute(runs, done=done, settings=settings, lock=lock, report=report)
        if not ended.signal:
            _ask_those_left(study, runs)
    tell(ended, runs)
    if ended.signal == signal.SIGINT:
        raise KeyboardInterrupt
    if ended.signal:
        raise Stopped(f"stopped by {signal.Signals(ended.signal).name}; run the same command again to resume")
    if ended.done:
        analyse(study, as_json=options.json)
    if ended.failed:
        raise JobError(
            f"{len(ended.failed)} of {plural(ended.total, 'run')} failed and were given up; fix the cause, then add "
            "--retry-failed (they resume from their checkpoints) or --restart (they start again)"
        )
    if ended.elsewhere:
        raise Stopped(
            f"{len(ended.elsewhere)} of {plural(ended.total, 'run')} left to other executors; run the same "
            "command again "
            "when they have ended"
        )
    return 0


def _ask_those_left(study: StudyConfig, runs: list[RunConfig]) -> None:
    """Asks the runs that are done and were asked other questions; the report names those that cannot be asked."""
    questions = data_config(study).questions
    left = unasked([run for run in runs if (run.output / "DONE").exists()], questions)
    if left:
        logger.info(
            f"{study.name}: asking {plural(len(left), 'finished run')} without answers to the study's questions"
        )
        ask(left, questions)


def another_try(runs: list[RunConfig], settings: ExecutorConfig, options: argparse.Namespace) -> None:
    """Applies ``--restart`` and ``--retry-failed`` to unfinished runs, except those of other executors."""
    from megatron_kis.executor.attempts import request_restart, reset_failures
    from megatron_kis.executor.lease import is_live, read_lease

    if not options.restart and not options.retry_failed:
        return
    seconds = 60 * settings.lease_minutes
    leases = {run.output: read_lease(run.output) for run in runs}
    idle = [folder for folder, lease in leases.items() if lease is None or not is_live(lease, seconds=seconds)]
    (request_restart if options.restart else reset_failures)(idle)


def add_only(parser: argparse.ArgumentParser) -> None:
    """Adds the option that names runs of a study; see ``selected``."""
    parser.add_argument(
        "--only",
        nargs="+",
        action="extend",
        metavar="RUN",
        help="only these runs, by the names that kis study status shows",
    )


def selected(runs: list[RunConfig], names: list[str] | None) -> list[RunConfig]:
    """Returns the runs of these names, in their order; all if none are named.

    Raises:
        InputError: a name that no run has.
    """
    if names is None:
        return runs
    known = {run.name for run in runs}
    for name in names:
        if name not in known:
            raise InputError(f"no run {name!r} in this study", where="--only", remedy=nearest(name, known))
    return [run for run in runs if run.name in set(names)]


def tell(ended: Progress, runs: list[RunConfig]) -> None:
    """Names the runs that failed, and why."""
    from megatron_kis.executor.logs import LOG_NAME, failure_reason, for_terminal

    by_name = {run.name: run for run in runs}
    for name in ended.failed:
        logger.warning(f"{name} failed ({printable(str(by_name[name].output / LOG_NAME))}):")
        for line in "\n".join(map(for_terminal, failure_reason(by_name[name].output))).splitlines():
            logger.warning(f"    {line}")
    for name, owner in ended.elsewhere:
        logger.warning(f"{name} was left to another executor ({printable(owner)})")
    if ended.stopped:
        logger.warning(f"{plural(len(ended.stopped), 'run')} stopped or not started")


class shown_progress:
    """Shows a bar over all runs on a terminal, one plain line per change elsewhere."""

    def __init__(self, runs: list[RunConfig]) -> None:
        from megatron_kis.study.status import Overview

        self._runs = {run.name: run for run in runs}
        self._view = Overview(runs)
        self._bar: Any = None
        self._last: tuple[int, int, int, int] | None = None

    def __enter__(self) -> Callable[[Progress], None]:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._bar = progress_bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            narrowest=_NARROWEST_BAR,
        )
        if self._bar:
            self._bar.start()
            self._task = self._bar.add_task("runs", total=1)
        return self._report

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def _report(self, progress: Progress) -> None:
        from megatron_kis.study.forecast import forecast
        from megatron_kis.study.status import status_of

        state = (len(progress.done), len(progress.failed), len(progress.retried), len(progress.running))
        if not self._bar and state == self._last:
            return
        self._last = state
        rows = status_of([self._runs[name] for name in progress.running])
        running = ", ".join(f"{row.name} {row.share:.0%}" if row.share else row.name for row in rows)
        if self._bar:
            description = running if running else "runs"
            self._bar.update(self._task, total=progress.total, completed=len(progress.done), description=description)
            return
        failed = f", {len(progress.failed)} given up" if progress.failed else ""
        failed += f", {plural(len(progress.retried), 'failed attempt')} retried" if progress.retried else ""
        left = forecast(self._view.look()).seconds
        ahead = f"; about {duration(left)} left" if left else ""
        logger.info(
            f"{len(progress.done)} of {plural(progress.total, 'run')} done{failed}; running: {running or 'none'}{ahead}"
        )
