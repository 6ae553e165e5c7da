"""``kis study prepare``: what the data job of ``kis study submit`` runs on its node."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

from megatron_kis.cli.study.common import (
    DATA_FOLDER,
    check_first,
    data_config,
    done_runs,
    load_study,
    look_over,
    prepare,
    warn,
)
from megatron_kis.common.errors import InputError
from megatron_kis.common.units import plural

logger = logging.getLogger(__name__)


def add_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = steps.add_parser(
        "prepare",
        description="Prepare the data of a submission, check every run against them, and record which data its "
        "runs are trained on. The data job of kis study submit calls it.",
    )
    parser.add_argument("submission", type=Path, metavar="FOLDER", help="folder of the submission")
    parser.set_defaults(handler=_prepare)


def _prepare(options: argparse.Namespace) -> int:
    from megatron_kis.executor.slurm.records import STUDY, changed_source, identities, write_data
    from megatron_kis.study.data import source_files
    from megatron_kis.study.lock import study_lock
    from megatron_kis.study.manifest import FILE, write_manifest, write_study

    folder = options.submission
    if not (folder.name.isdecimal() and (folder / STUDY).is_file()):
        remedy = "give the folder of a submission, such as studies/my_study/slurm/0001"
        raise InputError("is not a submission", where=str(folder), remedy=remedy)
    # Relative paths of the study stay relative in its own record.
    options.study, options.overrides = Path(os.path.relpath(folder / STUDY)), []
    study = load_study(options)
    changed = changed_source(folder, identities(source_files(study.data)))
    if changed is not None:
        raise InputError(
            "changed since the study was submitted",
            where=changed,
            remedy="restore it, or end the jobs with kis study cancel and submit the study again",
        )
    every = look_over(study)
    with study_lock(study.output):
        prepare(study, submission=int(folder.name))
        done, fingerprints = done_runs(study, every)
        warn(study, check_first(study, facts=study.output / DATA_FOLDER / "facts.jsonl"))
        write_study(study, study.output / FILE)
        write_manifest(study.output, study.name, every, fingerprints)
        files = data_config(study)
        write_data(
            folder,
            {name: getattr(files, name) for name in ("corpus", "validation", "exposures", "tokenizer")},
            fingerprints,
        )
    logger.info(f"{study.name}: {plural(len(every), 'run')}, {len(done)} done already; the data are ready")
    return 0
