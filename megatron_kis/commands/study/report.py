"""``kis study report``: the analysis of the runs that are done."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from megatron_kis.commands.study.common import add_step, load_study

if TYPE_CHECKING:
    from analysis.settings import AnalysisSettings
    from megatron_kis.study.config import StudyConfig


def add_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describes the step."""
    add_step(steps, "report", "analyse the runs that are done and write the report", _report)


def _report(options: argparse.Namespace) -> int:
    study, _, analysis = load_study(options)
    analyse(study, analysis, as_json=options.json)
    return 0


def analyse(study: StudyConfig, settings: AnalysisSettings, *, as_json: bool) -> None:
    """Analyses the runs that are done, writes the report, and prints what was seen."""
    from analysis.report.summary import seen
    from analysis.study import analyse_study

    result = analyse_study(study.output, settings, predict_params=study.predict)
    outputs = {name: str(study.output / name) for name in ("report.html", "points.csv", "law.json", "curves.csv")}
    if as_json:
        print(json.dumps({"study": study.name, **outputs}, indent=1))
        return
    for line in seen(result):
        print(f"- {line}")
    print(outputs["report.html"])
