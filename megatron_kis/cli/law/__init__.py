"""``kis law``: transitions, the law, predictions, their validation, and the report. Each step has a module."""

from __future__ import annotations

import argparse

from megatron_kis.cli.law import collapse, decide, fit, import_, predict, report, sensitivity, survival, validate


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    law = commands.add_parser(
        "law",
        help="find onsets and collapse points, fit the law over model size, predict, report",
        description="Find the law and its predictions from run logs (or curves.csv, points.csv of another trainer).",
    )
    steps = law.add_subparsers(dest="step", metavar="STEP", required=True)
    for module in (collapse, fit, predict, decide, sensitivity, validate, report, survival, import_):
        module.add_parser(steps)
