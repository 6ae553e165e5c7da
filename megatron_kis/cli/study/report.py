"""``kis study report``: the analysis of the runs that are done."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from megatron_kis.cli.outputs import check_written
from megatron_kis.cli.study.common import add_step, load_study
from megatron_kis.common.errors import InputError, printable

if TYPE_CHECKING:
    from megatron_kis.config.study import StudyConfig


_WRITTEN = ("curves.csv", "points.csv", "law.json", "prediction.json", "report.html")


def add_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    add_step(steps, "report", "analyse the runs that are done and write the report", _report)


def _report(options: argparse.Namespace) -> int:
    study = load_study(options)
    check_report(study)
    analyse(study, as_json=options.json)
    return 0


def check_report(study: StudyConfig) -> None:
    """Refuses a study whose report cannot be written, before any work.

    Raises:
        InputError: names the file.
    """
    from megatron_kis.study.conflicts import check_output

    check_output(study.output)
    for name in _WRITTEN:
        check_written(study.output / name)


def analyse(study: StudyConfig, *, as_json: bool) -> None:
    """Analyses the runs that are done, writes the report, and prints the findings."""
    from megatron_kis.analysis.outputs import analyse_study
    from megatron_kis.analysis.report.answer import answer
    from megatron_kis.analysis.report.summary import not_asked, not_counted, not_of_this_study

    result = analyse_study(study.output, study.analysis, predict_params=study.predict, belongs=belonging(study))
    assert result.runs is not None
    outputs = {name: str(study.output / name) for name in ("report.html", "points.csv", "law.json", "curves.csv")}
    if as_json:
        apart = result.runs.problems.to_dict("records")
        print(json.dumps({"study": study.name, **outputs, "not_counted": apart}, indent=1))
        return
    told = answer(result)
    for line in (*told.measured, *told.target, told.more, *told.changes):
        if line:
            print(f"- {printable(line)}")
    for line in (not_of_this_study(result.runs), not_asked(result.runs), not_counted(result.runs)):
        if line:
            print(f"- {printable(line)}")
    print(outputs["report.html"])


def belonging(study: StudyConfig) -> dict[str, Any]:
    """Returns which runs belong to the study as its file is now, as ``study.json`` says it.

    The data are those that the runs were made with: their fingerprints are of the study's own ``study.json``.

    Raises:
        InputError: no run of the study was begun, or the file asks for other data than the study's are made from.
    """
    from megatron_kis.config.data import DataConfig
    from megatron_kis.study.grid import runs_of
    from megatron_kis.study.manifest import data_fingerprints, manifest_of
    from megatron_kis.study.owner import check_owner

    if not (study.output / "runs").is_dir():
        raise InputError("has no runs yet", where=str(study.output), remedy="kis study run trains them")
    place = study.output / "data"  # a run's settings do not depend on the places of its files
    runs = runs_of(study, DataConfig(corpus=place, validation=place, exposures=place, tokenizer=place))
    check_owner(study, runs)
    _same_data(study)
    return manifest_of(study.name, runs, data_fingerprints(study.output))


def _same_data(study: StudyConfig) -> None:
    """Refuses to report on data that do not exist yet, or on questions that no run was asked."""
    from megatron_kis.data_tools.preparation.prepare import other_questions
    from megatron_kis.study.manifest import FILE, QUESTIONS, other_data_settings
    from megatron_kis.study.owner import other_data

    asked = other_data_settings(study, but=("data.text", "data.facts", "data.tokenizer"))
    alone = [one for one in asked if one.startswith(tuple(f"{key} " for key in QUESTIONS))]
    there = study.data.templates.is_file()  # a study that was moved is reported without its sources
    if len(alone) == len(asked) and there and (changed := other_questions(study.data, study.output / "data")):
        raise InputError(
            f"the study now asks other questions: {'; '.join(changed)}",
            where=str(study.output / FILE),
            remedy="kis study probe asks finished runs, without training; or restore them",
        )
    if changed := other_data(study):
        raise InputError(
            f"the data of this study were made with other settings: {'; '.join(changed)}",
            where=str(study.output / FILE),
            remedy="run kis study run to make them again, or choose another output",
        )
