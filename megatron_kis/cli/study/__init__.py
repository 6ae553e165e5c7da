"""``kis study``: a whole study, from its sources to its report. Each step has a module."""

from __future__ import annotations

import argparse

from megatron_kis.cli.study import cancel, logs, next_, plan, prepare, probe, report, run, status, submit, watch, work


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    summary = "train a ladder of models, find the curves and the law, and write the report"
    parser = commands.add_parser("study", help=summary, description=f"{summary}. All steps take the study file.")
    steps = parser.add_subparsers(dest="step", metavar="STEP", required=True)
    for module in (plan, run, probe, submit, status, watch, logs, cancel, next_, report, prepare, work):
        module.add_parser(steps)
