"""``kis study``: a whole study, from its sources to its report. Each step has a module."""

from __future__ import annotations

import argparse

from megatron_kis.commands.study import logs, next_, plan, report, run, status, watch


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describes ``kis study`` and its steps."""
    parser = commands.add_parser(
        "study", help="a ladder of runs, their curves, the law and the report", description=__doc__
    )
    steps = parser.add_subparsers(dest="step", metavar="STEP", required=True)
    for module in (plan, run, status, watch, logs, next_, report):
        module.add_parser(steps)
