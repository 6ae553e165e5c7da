"""``kis study cancel``: ends a study's jobs, and its ``kis study run`` on this machine."""

from __future__ import annotations

import argparse
import json

from megatron_kis.cli.study.common import add_step, data_config, load_study


def add_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    add_step(
        steps,
        "cancel",
        "cancel the study's jobs in the queue, and stop its kis study run on this machine; runs save a checkpoint",
        _cancel,
    )


def _cancel(options: argparse.Namespace) -> int:
    from megatron_kis.executor.slurm.client import scancel
    from megatron_kis.executor.slurm.queue import live_tasks
    from megatron_kis.executor.slurm.records import submitted
    from megatron_kis.study.grid import runs_of
    from megatron_kis.study.lock import end_study_run
    from megatron_kis.study.owner import check_owner

    study = load_study(options)
    check_owner(study, runs_of(study, data_config(study)))
    local = end_study_run(study.output, seconds=study.executor.grace_seconds + 10)
    jobs = [] if not submitted(study.output) else live_tasks(study.output)
    names = {task.number.partition("_")[0]: task.job.name for task in jobs}  # an array is ended as a whole
    numbers = list(names)
    scancel(numbers)
    if options.json:
        print(json.dumps({"jobs": numbers, "processes": local}, indent=1))
        return 0
    if local:
        print(f"kis study run was ended (process {', '.join(map(str, local))})")
    for number in numbers:
        print(f"{number}  {names[number]}  cancelled")
    if not local and not numbers:
        print("no job of this study waits, and no process of it runs here")
    return 0
