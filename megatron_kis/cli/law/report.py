"""``kis law report``: one self-contained HTML file."""

from __future__ import annotations

import argparse

from megatron_kis.cli.law.common import (
    SOURCES,
    add_choices,
    add_source,
    analysis_config,
    counted,
    naming_choices,
    source_of,
)
from megatron_kis.cli.outputs import new_file, new_folder, spare_inputs
from megatron_kis.common.units import plural, quantity


def add_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = steps.add_parser(
        "report",
        help="write one self-contained report.html",
        description="Write the report of a study folder, a runs folder, a curves.csv or a points.csv.",
    )
    add_source(parser, points="transitions that were found before or elsewhere")
    parser.add_argument("--output", required=True, type=new_file, metavar="HTML", help="where the report is written")
    parser.add_argument(
        "--params", type=quantity, action="append", default=[], metavar="N", help="predict for this size (repeatable)"
    )
    parser.add_argument(
        "--tokens", type=quantity, metavar="D", help="token budget of the predictions (default: the law's)"
    )
    parser.add_argument(
        "--export", type=new_folder, metavar="DIR", help="also write figures (SVG, PNG) and tables (CSV)"
    )
    add_choices(parser)
    parser.set_defaults(handler=_report)


def _report(options: argparse.Namespace) -> int:
    spare_inputs(options, ("output",), SOURCES)
    from megatron_kis.analysis.report import analyse_source, report

    source = source_of(options)
    settings = analysis_config(options, source)
    with naming_choices(options):
        result = analyse_source(source, settings, predict_params=options.params, predict_tokens=options.tokens)
    if result.runs is not None:
        counted(result.runs)
    report(result, options.output)
    if options.export is not None:
        from megatron_kis.analysis.report.export import export  # draws with matplotlib, which takes a while

        print(f"written: {plural(len(export(result, options.export)), 'file')} in {options.export}")
    print(f"written: {options.output}")
    return 0
