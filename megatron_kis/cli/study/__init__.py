"""``kis study``: a whole study, from its sources to its report. Each step has a module."""

from __future__ import annotations

import argparse

from megatron_kis.cli.study import cancel, logs, next_, plan, prepare, probe, report, run, status, submit, watch, work


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "study", help="a ladder of runs, their curves, the law and the report", description=__doc__
    )
    steps = parser.add_subparsers(dest="step", metavar="STEP", required=True)
    for module in (plan, run, probe, submit, status, watch, logs, cancel, next_, report, prepare, work):
        module.add_parser(steps)
