"""``kis law collapse``: onset and collapse points of every (N, D)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from megatron_kis.cli.law.common import (
    SOURCES,
    add_choices,
    add_json,
    add_source,
    analysis_config,
    curves_of,
    naming_choices,
    print_json,
    source_of,
)
from megatron_kis.cli.outputs import new_file, spare_inputs

if TYPE_CHECKING:
    from megatron_kis.analysis.criteria import Transition


def add_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = steps.add_parser(
        "collapse",
        help="find the onset, and the collapse by memory and by loss, of every (N, D)",
        description="Find the transitions of every (N, D), each with a status, and write them as points.csv.",
    )
    add_source(parser)
    parser.add_argument("--output", required=True, type=new_file, metavar="CSV", help="where points.csv is written")
    parser.add_argument("--curves-output", type=new_file, metavar="CSV", help="also write the curves as curves.csv")
    add_choices(parser)
    add_json(parser)
    parser.set_defaults(handler=_collapse)


def _collapse(options: argparse.Namespace) -> int:
    spare_inputs(options, ("output", "curves_output"), SOURCES)
    from megatron_kis.analysis.criteria import find_transitions
    from megatron_kis.analysis.runs.curves import write_curves_csv
    from megatron_kis.analysis.runs.load_csv import points_table, write_points_csv

    settings = analysis_config(options, source_of(options))
    table = curves_of(options, settings)
    with naming_choices(options):
        points = find_transitions(table, settings)
    write_points_csv(points, options.output)
    if options.curves_output is not None:
        write_curves_csv(table, options.curves_output)
    if options.json:
        rows = points_table(points).to_dict("records")
        print_json({"schema": "kis.points/1", "settings": settings.record(), "points": rows})
    else:
        _print_points(points, settings.alpha)
        print(f"written: {options.output}")
    return 0


def _print_points(points: Sequence[Transition], alpha: float) -> None:
    from megatron_kis.analysis.report import formatting as w
    from megatron_kis.analysis.runs.slices import USUAL
    from megatron_kis.common.console import print_table

    usual = all(point.slice == USUAL for point in points)
    heads = ["transition", "N", "D", "status", "F" if usual else "dose", "interval", "rho", "why"]
    rows = [
        [
            w.kind_title(point.kind, point.group, point.slice),
            w.size(point.params),
            w.size(point.tokens),
            w.STATUS_WORDS[point.status],
            w.frequency(point.value) if usual else w.dose_at_transition(point.slice, point.value),
            w.bracket(point),
            w.ratio(point.infusion_ratio),
            point.reason,
        ]
        for point in points
    ]
    print_table("Transitions", heads, rows)
    if several := w.false_collapses(points, alpha):
        print(several)
