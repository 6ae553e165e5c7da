"""``kis study work``: what a batch script of ``kis study submit`` runs on its node."""

from __future__ import annotations

import argparse
import logging
import os
import signal
from pathlib import Path

from megatron_kis.cli.study.run import shown_progress, tell
from megatron_kis.common.units import plural

logger = logging.getLogger(__name__)


def add_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = steps.add_parser(
        "work",
        description="Execute the runs of one task of a submission. Batch scripts of kis study submit call it; "
        "SLURM_ARRAY_TASK_ID says which task. Exit status 75: stopped before the time limit, with its checkpoint "
        "saved.",
    )
    parser.add_argument("submission", type=Path, metavar="FOLDER", help="folder of the submission")
    parser.add_argument("job", metavar="JOB", help="job of the submission, such as small or large-2x4")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="task of the job that is task 0 of the array")
    parser.set_defaults(handler=_work)


def _work(options: argparse.Namespace) -> int:
    from megatron_kis.common.configuration import load_config
    from megatron_kis.common.identity import OLDER_TOKENIZER
    from megatron_kis.config.data import DataConfig
    from megatron_kis.config.study import StudyConfig
    from megatron_kis.executor.executor import execute
    from megatron_kis.executor.interface import Progress, local_command
    from megatron_kis.executor.slurm import node
    from megatron_kis.executor.slurm.launch import srun_launcher
    from megatron_kis.executor.slurm.records import STUDY, read_data
    from megatron_kis.study.conflicts import conflicts, refuse, saved_steps
    from megatron_kis.study.data import with_data
    from megatron_kis.study.grid import runs_of

    # The data job has checked every run against the data and says which they are: a thousand workers need not open
    # them, and start without PyTorch. Each run compares them with what it finds.
    with node.early_signals() as told:
        study = load_config(StudyConfig, options.submission / STUDY)
        files, fingerprints = read_data(options.submission)
        task, names = node.own_task(options.submission, options.job, options.first)
        wanted = set(names)
        every = runs_of(study, DataConfig.model_validate(files))
        runs = with_data([run for run in every if run.name in wanted], fingerprints)
        older = fingerprints.pop(OLDER_TOKENIZER, None)
        found = {run.model.init_from: fingerprints for run in runs}
        refuse(study.output, conflicts(runs, found, model_sha256=older))
        done = [run.name for run in runs if (run.output / "DONE").exists()]
        large = options.job.startswith("large")
        host = os.environ.get("SLURMD_NODENAME", os.uname().nodename)
        start = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
        logger.info(
            f"{options.job} task {task} on {host}, requeued {plural(start, 'time')}: {plural(len(runs), 'run')}, "
            f"{len(done)} done already"
        )
        if not study.cluster.gpus_per_task and not large:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the node may have GPUs that are not ours
        if told.number:
            ended = Progress(tuple(done), (), (), len(runs), tuple(wanted - set(done)), signal=told.number)
        else:
            launcher = srun_launcher(study.cluster, output=study.output, folder=Path.cwd()) if large else local_command
            with shown_progress(runs) as report:
                ended = execute(
                    runs,
                    done=done,
                    settings=node.settings_within_task(study.executor, study.cluster),
                    report=report,
                    launcher=launcher,
                    machine=node.batch_machine() if large else None,
                )
    tell(ended, runs)
    if ended.signal:
        logger.info("received %s", signal.Signals(ended.signal).name)
    requeues = node.Requeues(options.submission, options.job, task)
    node.conclude(ended, sum(map(saved_steps, runs)), requeues, at_most=study.cluster.requeues_without_progress)
    return 0
