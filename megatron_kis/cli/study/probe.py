"""``kis study probe``: finished runs are asked the study's present questions; nothing is trained."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_kis.cli.study.asking import ask, unasked
from megatron_kis.cli.study.common import DATA_FOLDER, add_step, load_study, look_over, warn
from megatron_kis.cli.study.report import analyse, check_report
from megatron_kis.cli.study.run import add_only, selected
from megatron_kis.common.errors import InputError, JobError, first_of
from megatron_kis.common.units import plural

if TYPE_CHECKING:
    from megatron_kis.config.run import RunConfig
    from megatron_kis.config.study import StudyConfig

logger = logging.getLogger(__name__)

_SHOWN = 3


def add_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_step(steps, "probe", "ask finished runs the study's present questions, without training", _probe)
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
        raise InputError("no run is finished", where=str(study.output), remedy="kis study run trains them")
    if options.only and (others := [run.name for run in named if run not in chosen]):
        raise InputError(
            f"not finished: {first_of(others, _SHOWN)}", where="--only", remedy="kis study run trains them"
        )
    for run in chosen:
        check_folder(run.output)
    logger.info(f"{study.name}: {len(chosen)} of {plural(len(named), 'run')} finished")
    with study_lock(study.output):
        questions = _prepare(study, every)
        open_runs = unasked(chosen, questions)
        logger.info(f"{study.name}: {len(chosen) - len(open_runs)} of {len(chosen)} were asked these questions already")
        failed = ask(open_runs, questions, batch_size=options.batch_size)
    if len(failed) < len(chosen):
        analyse(study, as_json=options.json)
    if failed:
        raise JobError(f"{len(failed)} of {plural(len(chosen), 'run')} could not be asked: {first_of(failed, _SHOWN)}")
    return 0


def _prepare(study: StudyConfig, every: list[RunConfig]) -> Path:
    """Makes the questions, and records that they are the study's; returns their file."""
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
            remedy="restore them; only templates and distractors may change",
        )
    facts = study.output / DATA_FOLDER / "facts.jsonl"
    if facts.is_file():
        warn(study, check_sentences(study, load_templates(study.data.templates), relations_of_facts(facts)))
    path = prepare_questions(study.data, study.output / DATA_FOLDER, progress=console_progress())
    prints = {**data_fingerprints(study.output), FINGERPRINT: sha256_file(path)}
    write_study(study, study.output / FILE)
    write_manifest(study.output, study.name, every, prints)
    return path
