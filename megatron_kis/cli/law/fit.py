"""``kis law fit``: the law of the transitions over model size and token budget."""

from __future__ import annotations

import argparse
import sys
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
from megatron_kis.common.errors import InputError, first_of, nearest, printable
from megatron_kis.common.units import plural

if TYPE_CHECKING:
    from megatron_kis.analysis.criteria import Transition
    from megatron_kis.analysis.law.law import Law

_POINTS_ALONE = (
    "points contain no curves: each point counts by its interval, and inconclusive points are left out; "
    "kis law fit with a study folder, a runs folder or a curves.csv uses every run"
)
_SHOWN = 6
"""Most reasons, or kinds of points, that an error lists."""


def add_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = steps.add_parser(
        "fit",
        help="fit the law of the transitions over model size (and token budget)",
        description="Fit log F* = a + b log N (+ c log D): every law that the points support, or those of --kind. "
        "Print why there is none for the others, and fail if there is none at all.",
    )
    add_source(parser, points="transitions that were found before or elsewhere; only their intervals are used")
    parser.add_argument("--output", required=True, type=new_file, metavar="JSON", help="where law.json is written")
    parser.add_argument("--kind", choices=("onset", "collapse", "tolerance"), help="fit only this kind of transition")
    parser.add_argument(
        "--group",
        metavar="GROUP",
        help="fit this fact group only: infused, background, general, or background@<exposures>",
    )
    add_choices(parser)
    add_json(parser)
    parser.set_defaults(handler=_fit)


def _fit(options: argparse.Namespace) -> int:
    spare_inputs(options, ("output",), SOURCES)
    from megatron_kis.analysis.criteria import find_transitions
    from megatron_kis.analysis.findings.analyse import fit_laws
    from megatron_kis.analysis.outputs import law_record
    from megatron_kis.analysis.report import formatting as w
    from megatron_kis.analysis.runs.groups import CURVE_GROUPS, is_group
    from megatron_kis.analysis.runs.load_csv import is_points_csv, load_points_csv
    from megatron_kis.common.files import write_json

    if options.group is not None and not is_group(options.group):
        raise InputError(f"is {options.group!r}", where="--group", remedy=nearest(options.group, CURVE_GROUPS))
    source = source_of(options)
    settings = analysis_config(options, source)
    table = None
    if options.points is not None or (options.source is not None and source.is_file() and is_points_csv(source)):
        points = load_points_csv(source)
    else:
        table = curves_of(options, settings)
        with naming_choices(options):
            points = find_transitions(table, settings)
    with naming_choices(options):
        laws, refused = fit_laws(_chosen(points, options), settings, table)
    reasons = [f"{w.refused_title(item)}: {w.refused_reason(item)}" for item in refused]
    if not laws:
        raise InputError(f"no law can be fitted ({first_of(reasons, _SHOWN, separator='; ')})", where=str(source))
    if table is None and any(law.kind != "tolerance" for law in laws):
        print(f"kis: {_POINTS_ALONE}", file=sys.stderr)
    record = law_record(laws, refused)
    write_json(options.output, record)
    if options.json:
        print_json(record)
        return 0
    for law in laws:
        _print_law(law)
    for reason in reasons:
        print(printable(f"no law: {reason}"))
    print(f"written: {options.output}")
    return 0


def _chosen(points: Sequence[Transition], options: argparse.Namespace) -> list[Transition]:
    """Returns the points of --kind and --group.

    Raises:
        InputError: there are none.
    """
    chosen = [p for p in points if options.kind in (None, p.kind) and options.group in (None, p.group)]
    if not chosen:
        asked = " ".join(f"--{name} {value}" for name in ("kind", "group") if (value := getattr(options, name)))
        there = sorted({f"--kind {p.kind} --group {p.group}" for p in points})
        raise InputError(
            "no law can be fitted (no points)" if not points else "no points of these",
            where=asked if points else str(source_of(options)),
            remedy="there are " + first_of(there, _SHOWN) if there else None,
        )
    return chosen


def _print_law(law: Law) -> None:
    from megatron_kis.analysis.law.looks import percent
    from megatron_kis.analysis.report import formatting as w
    from megatron_kis.common.console import print_table

    rows = [
        [name, w.number(estimate.value), f"{w.number(estimate.low)} to {w.number(estimate.high)}"]
        for name, estimate in law.coefficients.items()
        if estimate is not None
    ]
    rows.append(["sigma", w.number(law.sigma), ""])
    if law.all_curves is not None:
        found = law.all_curves.estimates(law.confidence)
        rows += [
            [f"{name}, from all curves", w.number(middle), f"{w.number(low)} to {w.number(high)}"]
            for name, (middle, low, high) in found.items()
        ]
    title = f"{w.kind_title(law.kind, law.group, law.slice)}: {law.selected_law} ({plural(len(law.points), 'point')})"
    print_table(title, ["", "estimate", f"{percent(law.confidence)} interval"], rows)
    for warning in law.warnings:
        print(printable(f"warning: {warning}"))
