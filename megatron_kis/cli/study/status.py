"""``kis study status``: the states of the runs."""

from __future__ import annotations

import argparse
import json
import logging
from collections import Counter
from typing import TYPE_CHECKING, Any

from megatron_kis.cli.study.common import DATA_FOLDER, add_step, data_config, load_study
from megatron_kis.cli.study.table import headline, tables
from megatron_kis.common.console import output_console
from megatron_kis.common.errors import KisError, printable

if TYPE_CHECKING:
    from megatron_kis.config.study import StudyConfig
    from megatron_kis.executor.slurm.queue import Queue, Queued
    from megatron_kis.study.forecast import Forecast
    from megatron_kis.study.status import Overview, RunStatus

logger = logging.getLogger(__name__)


def add_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    status = add_step(
        steps, "status", "show the state of a study's runs: progress, speed, time left, failures", _status
    )
    status.add_argument("--all", action="store_true", help="list every run, however many there are")


def overview(options: argparse.Namespace) -> tuple[StudyConfig, Overview]:
    """Returns the study and the overview of its runs; refuses a folder that belongs to another study."""
    from megatron_kis.common.identity import QUESTIONS
    from megatron_kis.study.conflicts import check_output
    from megatron_kis.study.grid import runs_of
    from megatron_kis.study.manifest import data_fingerprints
    from megatron_kis.study.owner import check_owner
    from megatron_kis.study.status import Overview

    study = load_study(options)
    check_output(study.output)
    runs = runs_of(study, data_config(study))
    check_owner(study, runs)
    questions = data_fingerprints(study.output).get(QUESTIONS)
    return study, Overview(runs, study.executor.retries, 60 * study.executor.lease_minutes, questions)


def queued(queue: Queue) -> dict[str, Queued]:
    """Returns the states of the submitted runs in SLURM's queue; a queue that cannot be asked is named and skipped."""
    try:
        return queue.runs()
    except KisError as error:
        logger.warning(f"kis: the queue is not shown: {printable(str(error))}")
        return {}


def _status(options: argparse.Namespace) -> int:
    from megatron_kis.executor.slurm.queue import Queue
    from megatron_kis.study.forecast import forecast
    from megatron_kis.study.manifest import FILES, other_data_settings

    study, view = overview(options)
    if changed := other_data_settings(study, but=FILES):
        place = study.output / DATA_FOLDER
        logger.warning(f"kis: the data in {place} were made with other settings: {', '.join(changed)}")
    rows = view.look(queued(Queue(study.output)))
    ahead = forecast(rows)
    if options.json:
        print(json.dumps(record(study.name, rows, ahead), indent=1))
        return 0
    console = output_console()
    console.print(headline(study.name, rows, ahead), highlight=False, markup=False)
    for table in tables(rows, ahead, every=options.all):
        console.print(table, highlight=False)
    return 0


def record(name: str, rows: list[RunStatus], ahead: Forecast) -> dict[str, Any]:
    """Returns the status for JSON."""
    from dataclasses import asdict

    runs = [asdict(row) | {"seconds_left": ahead.runs.get(row.name)} for row in rows]
    states = dict(Counter(row.state for row in rows))
    return {"study": name, "states": states, "seconds_left": ahead.seconds, "work_left": ahead.work, "runs": runs}
