"""``kis law sensitivity``: the law and its prediction under every scoring rule, split and criterion."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from megatron_kis.cli.law.common import (
    add_choices,
    add_json,
    add_source,
    add_target,
    analysis_config,
    curves_of,
    naming_choices,
    print_json,
    source_of,
)

if TYPE_CHECKING:
    from megatron_kis.analysis.findings.result import Variant
    from megatron_kis.config.analysis import AnalysisConfig


def add_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = steps.add_parser(
        "sensitivity",
        help="compare the law and its prediction under every scoring rule, split and criterion",
        description="Fit the law of the collapse (of the loss, if that is the declared criterion) under the declared "
        "scoring rule, split and criterion. Then replace one of these at a time by each other one that the data have, "
        "and fit the law again. List what each predicts. --cross tries all combinations. Nothing is written.",
    )
    add_source(parser)
    add_target(parser, budget="the largest of each law")
    parser.add_argument("--cross", action="store_true", help="try all combinations (scoring x split x criterion)")
    add_choices(parser)
    add_json(parser)
    parser.set_defaults(handler=_sensitivity)


def _sensitivity(options: argparse.Namespace) -> int:
    from megatron_kis.analysis.findings.sensitivity import sensitivity, variant_record

    settings = analysis_config(options, source_of(options))
    table = curves_of(options, settings)

    def progress(number: int, total: int, one: AnalysisConfig) -> None:
        print(f"kis: {number} of {total}: {one.scoring}, {one.split}, {one.criterion}", file=sys.stderr, flush=True)

    with naming_choices(options):
        rows = sensitivity(
            table,
            settings,
            options.params,
            options.tokens,
            cross=options.cross,
            where=str(source_of(options)),
            progress=progress,
        )
    if options.json:
        content = {"params": options.params, "tokens": options.tokens, "settings": settings.record()}
        print_json({"schema": "kis.sensitivity/1", **content, "rows": [variant_record(row) for row in rows]})
    else:
        _print_rows(rows, options.params)
    return 0


def _print_rows(rows: Sequence[Variant], params: float) -> None:
    from megatron_kis.analysis.report import formatting as w
    from megatron_kis.common.console import print_table

    heads = [
        "",
        "scoring",
        "split",
        "criterion",
        "transition",
        "seen",
        "b (log N)",
        "dose",
        "interval",
        "from",
        "no law",
    ]
    print_table(
        f"The law under {len(rows)} choices, and its prediction for N = {w.size(params)}",
        heads,
        [
            [
                "declared" if row.declared else "",
                row.scoring,
                row.split,
                row.criterion,
                w.kind_title(row.kind, row.group, row.slice),
                f"{row.seen} of {row.models}" if row.models else "-",
                "-" if row.exponent is None else w.estimate(*row.exponent),
                w.dose(row.slice, row.centre),
                w.interval(row.interval),
                row.method or "-",
                row.refused,
            ]
            for row in rows
        ],
    )
    print("the declared choice is the answer: it was made before the data were seen")
