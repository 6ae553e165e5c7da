"""Common parts of the steps of ``kis study``: options, the study file, its data and runs."""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_kis.common.errors import InputError, JobError, printable

if TYPE_CHECKING:
    from megatron_kis.config.data import DataConfig
    from megatron_kis.config.run import RunConfig
    from megatron_kis.config.study import StudyConfig
    from megatron_kis.study.preflight import Remark

logger = logging.getLogger(__name__)

DATA_FOLDER = "data"
"""Name of the folder of the data in a study's output."""


def add_step(
    steps: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    summary: str,
    handler: Callable[[argparse.Namespace], int],
    *,
    run: bool = False,
    json: bool = True,
) -> argparse.ArgumentParser:
    """Adds a step that takes a study file, perhaps a run, and overrides, and may print JSON."""
    parser = steps.add_parser(name, help=summary, description=summary)
    parser.add_argument("study", type=Path, metavar="STUDY.yaml", help="the study's configuration")
    if run:
        parser.add_argument("run_name", metavar="RUN", help="the run's name, as kis study status shows it")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help="settings that replace the file's, e.g. seeds=[0,1]",
    )
    if json:
        parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(handler=_naming_the_file(handler))
    return parser


def _naming_the_file(handler: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """Returns a step whose errors about a key name the study file, unless a setting on the command line has the key."""

    def step(options: argparse.Namespace) -> int:
        try:
            return handler(options)
        except InputError as error:
            raise _in_file(error, options) from error

    return step


def _as_list(found: re.Match[str]) -> str:
    return f"data.facts_columns: [{', '.join(found[1].split())}]"


_FLAGS: dict[str, str | Callable[[re.Match[str]], str]] = {
    r"--from (\w+)": r"data.facts_format: \1",
    r"--columns ((?:\w+=\w+ ?)+)(?:\.\.\.)?": _as_list,
}
"""Options of ``kis data`` in the remedies of errors, and the keys of a study that stand for them."""


def _in_file(error: InputError, options: argparse.Namespace) -> InputError:
    from megatron_kis.common.complaints import is_key, override_of
    from megatron_kis.config.study import StudyConfig

    where, remedy = error.where, error.remedy
    key = re.match(r"[\w.]+(?=[:,]|$)", where or "")
    if key and is_key(StudyConfig, key[0]):
        if override_of(key[0], options.overrides) is None:
            where = f"{options.study}: {where}"
        elif remedy:
            remedy = remedy.replace("the folder of the study file", "the current folder")
    for flag, written in _FLAGS.items():
        remedy = re.sub(flag, written, remedy) if remedy else remedy
    return InputError(error.problem, where=where, remedy=remedy)


def load_study(options: argparse.Namespace) -> StudyConfig:
    """Returns the study that the options name, checked; relative paths begin at the study file's folder."""
    from megatron_kis.common.configuration import load_config
    from megatron_kis.common.identity import STUDY_FILE
    from megatron_kis.config.study import StudyConfig
    from megatron_kis.study.manifest import FILE

    if options.study.is_dir():
        resolved = options.study / FILE
        like = f", such as {resolved}" if resolved.is_file() else ""
        raise InputError("is a folder", where=str(options.study), remedy=f"give the study file{like}")
    study = load_config(StudyConfig, options.study, options.overrides)
    record = study.output / FILE
    if record.exists() and record.samefile(options.study) and not (study.output / STUDY_FILE).exists():
        raise InputError(
            f"is the folder of the study file, and kis keeps a {FILE} of its own there, which would replace it",
            where="output",
            remedy="choose another output, or rename the study file",
        )
    return study


def data_config(study: StudyConfig, folder: Path | None = None) -> DataConfig:
    """Returns the places of a study's prepared data.

    Args:
        study: the study.
        folder: folder of the data, if they are not in the study's own.
    """
    from megatron_kis.config.data import DataConfig
    from megatron_kis.data_tools.preparation.prepare import tokenizer_path

    if not study.data.validation_share:
        raise InputError("is 0", where="data.validation_share", remedy="a study needs text set aside, such as 0.02")
    folder = folder or study.output / DATA_FOLDER
    return DataConfig(
        corpus=folder / "corpus",
        validation=folder / "corpus.validation",
        exposures=folder / "exposures",
        tokenizer=tokenizer_path(study.data, folder),
    )


def look_over(study: StudyConfig) -> list[RunConfig]:
    """Returns the runs of a study, if no complete run conflicts with them; reads records alone.

    Raises:
        InputError: the output holds another study, or runs of other settings.
    """
    from megatron_kis.study.conflicts import check_output, conflicts, refuse, unnamed_line
    from megatron_kis.study.grid import runs_of
    from megatron_kis.study.owner import check_owner

    check_output(study.output)
    runs = runs_of(study, data_config(study))
    check_owner(study, runs)
    refuse(study.output, conflicts(runs))
    if line := unnamed_line(study, runs):
        logger.warning(f"{study.name}: {line}")
    return runs


def check_first(study: StudyConfig, *, facts: Path | None = None) -> list[Remark]:
    """Checks, before anything is trained, that a study can be analysed as it declares.

    Args:
        study: the study.
        facts: its ``facts.jsonl``, once it is there.

    Returns:
        Remarks on what makes the analysis weak.

    Raises:
        InputError: what makes it impossible.
    """
    from megatron_kis.analysis.design.outline import outline_of, sketch
    from megatron_kis.analysis.design.requirements import requirements
    from megatron_kis.study.preflight import check_study, relations_of_facts

    found = check_study(study, None if facts is None else relations_of_facts(facts))
    return [*found, *requirements(outline_of(study, sketch(study)), study.analysis, study.predict)]


def warn(study: StudyConfig, remarks: Iterable[Remark]) -> None:
    """Logs what makes the analysis of a study weak."""
    for remark in remarks:
        logger.warning(printable(f"{study.name}: {remark}"))


def prepare(study: StudyConfig, *, submission: int | None = None, restarted: Collection[str] = ()) -> None:
    """Prepares the data of a study in its folder; what ``kis study plan`` has made is taken over.

    Args:
        study: the study, whose lock is held.
        submission: the submission of SLURM's that asks; its own jobs hold no data.
        restarted: runs that are to begin again; their checkpoints hold none.

    Raises:
        InputError: wrong sources or settings; or the data there would be made again while somebody holds them.
    """
    import shutil

    from megatron_kis.common.progress import console_progress
    from megatron_kis.data_tools.preparation.prepare import prepare_data
    from megatron_kis.study.data import fingerprints_of
    from megatron_kis.study.holders import refusal

    there = fingerprints_of(data_config(study))
    lease = 60 * study.executor.lease_minutes
    held = refusal(study.output, there, lease=lease, submission=submission, restarted=restarted)
    with _planned(study.output) as spare:
        target = study.output / DATA_FOLDER
        prepare_data(study.data, target, progress=console_progress(), spare=spare and spare / DATA_FOLDER, held=held)
        if spare is not None:
            shutil.rmtree(spare, ignore_errors=True)


@contextmanager
def _planned(output: Path) -> Iterator[Path | None]:
    """Yields the folder of ``kis study plan``, if it exists and no plan is using it."""
    from megatron_kis.common.files import locked
    from megatron_kis.study.data import planned_folder

    folder = planned_folder(output)
    with ExitStack() as stack:
        free = folder.is_dir()
        if free:
            try:
                stack.enter_context(locked(folder, "kis study plan"))
            except JobError:
                free = False
        yield folder if free else None


def done_runs(
    study: StudyConfig, every: list[RunConfig], runs: list[RunConfig] | None = None
) -> tuple[list[str], dict[str, str]]:
    """Returns which runs are complete, and the fingerprints of their data; the plans of all others are checked.

    Args:
        study: the study, whose keys errors name.
        every: its runs; none may be complete on other data.
        runs: those that are to be trained; all if not given.

    Returns:
        Names of complete runs among ``runs``, and fingerprints by ``identity.DATA`` (and ``OLDER_TOKENIZER``).

    Raises:
        InputError: missing or wrong data, complete runs on other data, or a plan that does not fit.
    """
    from megatron_kis.common.identity import DATA, OLDER_TOKENIZER
    from megatron_kis.study.conflicts import conflicts, refuse
    from megatron_kis.study.doses import check_ratio
    from megatron_kis.study.written import naming_keys
    from megatron_kis.training.inputs import InputsOfMany, plan_key

    opened = InputsOfMany()
    data: dict[Path | None, dict[str, str]] = {}
    model_sha256 = ""
    checked = set()
    runs = every if runs is None else runs
    for run in (*runs, *every):
        if run.model.init_from not in data:
            with naming_keys(study, run.name):
                inputs = opened.open(run)
                check_ratio(run, inputs.plan)
            data[run.model.init_from], model_sha256 = inputs.fingerprints, inputs.tokenizer.model_sha256
            checked.add(plan_key(run))
    refuse(every[0].output.parent.parent, conflicts(every, data, model_sha256=model_sha256))
    names = []
    for run in runs:
        if (run.output / "DONE").exists():
            names.append(run.name)
        elif (key := plan_key(run)) not in checked:  # sizes share their plans
            checked.add(key)
            with naming_keys(study, run.name):
                check_ratio(run, opened.open(run).plan)
    prints = next(iter(data.values()))
    older = {OLDER_TOKENIZER: model_sha256} if model_sha256 != prints["tokenizer"] else {}
    return names, {name: prints[name] for name in DATA} | older
