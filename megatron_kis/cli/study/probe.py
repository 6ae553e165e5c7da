"""``kis study probe``: finished runs are asked the questions that the study has by now; nothing is trained."""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_kis.cli.study.common import DATA_FOLDER, add_step, load_study, look_over, warn
from megatron_kis.cli.study.report import analyse, check_report
from megatron_kis.cli.study.run import add_only, selected
from megatron_kis.common.errors import InputError, JobError, KisError, first_of, printable

if TYPE_CHECKING:
    from megatron_kis.config.run import RunConfig
    from megatron_kis.config.study import StudyConfig

logger = logging.getLogger(__name__)

_SHOWN = 3


def add_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_step(
        steps, "probe", "ask finished runs the questions that the study has by now, without training", _probe
    )
    add_only(parser)
    parser.add_argument("--batch-size", type=int, metavar="N", help="options in a forward pass (default: the study's)")


def _probe(options: argparse.Namespace) -> int:
    from megatron_kis.common.asked import check_folder
    from megatron_kis.study.lock import study_lock

    if options.batch_size is not None and options.batch_size < 1:
        raise InputError(f"is {options.batch_size}", where="--batch-size", remedy="use at least 1")
    study = load_study(options)
    check_report(study)
    every = look_over(study)
    named = selected(every, options.only)
    chosen = [run for run in named if (run.output / "DONE").exists()]
    if not chosen and options.only is None:
        raise InputError("no run has ended", where=str(study.output), remedy="kis study run trains them")
    if options.only and (others := [run.name for run in named if run not in chosen]):
        raise InputError(
            f"not ended yet: {first_of(others, _SHOWN)}", where="--only", remedy="kis study run trains them"
        )
    for run in chosen:
        check_folder(run.output)
    logger.info(f"{study.name}: {len(chosen)} of {len(named)} runs have ended")
    with study_lock(study.output):
        questions = _prepare(study, every)
        open_runs = unasked(chosen, questions)
        logger.info(f"{study.name}: {len(chosen) - len(open_runs)} of {len(chosen)} were asked these questions already")
        failed = ask(open_runs, questions, batch_size=options.batch_size)
    if len(failed) < len(chosen):
        analyse(study, as_json=options.json)
    if failed:
        raise JobError(f"{len(failed)} of {len(chosen)} runs could not be asked: {first_of(failed, _SHOWN)}")
    return 0


def _prepare(study: StudyConfig, every: list[RunConfig]) -> Path:
    """Makes the questions, and writes down that they are the study's; returns their file."""
    from megatron_kis.common.files import sha256_file
    from megatron_kis.common.identity import QUESTIONS as FINGERPRINT
    from megatron_kis.common.progress import console_progress
    from megatron_kis.data_tools.preparation.prepare import prepare_questions
    from megatron_kis.data_tools.rendering.templates import load_templates
    from megatron_kis.study.manifest import (
        FILE,
        FILES,
        QUESTIONS,
        data_fingerprints,
        other_data_settings,
        write_manifest,
        write_study,
    )
    from megatron_kis.study.preflight import check_sentences, relations_of_facts

    if changed := other_data_settings(study, but=(*FILES, *QUESTIONS)):
        raise InputError(
            f"the runs were trained on data of other settings: {'; '.join(changed)}",
            where=str(study.output / FILE),
            remedy="restore them; templates and distractors alone may be others",
        )
    facts = study.output / DATA_FOLDER / "facts.jsonl"
    if facts.is_file():
        warn(study, check_sentences(study, load_templates(study.data.templates), relations_of_facts(facts)))
    path = prepare_questions(study.data, study.output / DATA_FOLDER, progress=console_progress())
    prints = {**data_fingerprints(study.output), FINGERPRINT: sha256_file(path)}
    write_study(study, study.output / FILE)
    write_manifest(study.output, study.name, every, prints)
    return path


def unasked(runs: list[RunConfig], questions: Path) -> list[RunConfig]:
    """Returns the finished runs without answers to the questions of a file.

    Args:
        runs: finished runs, with the choice among the questions that they are to be asked.
        questions: the file.
    """
    from megatron_kis.common.asked import asking_of, place_of_answers
    from megatron_kis.common.files import read_json, sha256_file
    from megatron_kis.common.identity import RUN_FILE, RUN_SCHEMA

    sha256, found = sha256_file(questions), []
    for run in runs:
        wanted = asking_of(sha256, {"probes": run.probes.model_dump(mode="json")})
        if place_of_answers(run.output, read_json(run.output / RUN_FILE, RUN_SCHEMA), wanted) is None:
            found.append(run)
    return found


def ask(runs: list[RunConfig], questions: Path, *, batch_size: int | None = None) -> list[str]:
    """Asks finished runs the questions of a file; returns those that could not be asked, each with the reason."""
    failed = []
    for number, run in enumerate(runs, start=1):
        logger.info(f"asking {run.name} ({number} of {len(runs)})")
        try:
            _ask_one(run, questions, batch_size=batch_size)
        except KisError as error:
            logger.warning(printable(f"{run.name} could not be asked: {error}"))
            failed.append(f"{run.name}: {error}")
    return failed


def _ask_one(run: RunConfig, questions: Path, *, batch_size: int | None) -> None:
    """Asks a run in this process, or in as many as its model takes where there are GPUs for them."""
    from megatron_kis.evaluate.ask import ask_again

    ranks = run.parallel.tensor * run.parallel.pipeline
    if ranks == 1 or not _has_gpus(run, ranks):
        ask_again(run.output, questions=questions, probes=run.probes, batch_size=batch_size, device=run.device)
        return
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
    sizes = ["--tensor", str(run.parallel.tensor), "--pipeline", str(run.parallel.pipeline)]
    more = ["--probes", run.probes.model_dump_json()]
    more += [] if batch_size is None else ["--batch-size", str(batch_size)]
    prefix = str(questions).removesuffix(".questions.jsonl")
    command = [*launcher, "megatron_kis", "probe", str(run.output), "--keep", "--exposures", prefix, *sizes, *more]
    ended = subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
    if ended.returncode:
        raise JobError(f"kis probe under torchrun ended with status {ended.returncode}")


def _has_gpus(run: RunConfig, ranks: int) -> bool:
    """Returns whether a run's model can be shared among the GPUs of this machine."""
    import torch

    return run.device != "cpu" and torch.cuda.is_available() and torch.cuda.device_count() >= ranks
