"""``kis law validate``: a prediction against what was measured later."""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_kis.cli.law.common import add_json, print_json
from megatron_kis.common.units import plural


def add_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = steps.add_parser(
        "validate",
        help="score a prediction against points that were measured later",
        description="Check the prediction's hash and score it: |log ratio|, hit of the interval, interval score.",
    )
    parser.add_argument("prediction", type=Path, metavar="PREDICTION_JSON", help="written by kis law predict --output")
    parser.add_argument("--points", required=True, type=Path, metavar="CSV", help="the points that were measured")
    add_json(parser)
    parser.set_defaults(handler=_validate)


def _validate(options: argparse.Namespace) -> int:
    from megatron_kis.analysis.law.prediction import load_predictions
    from megatron_kis.analysis.law.validate import summary, validate
    from megatron_kis.analysis.report import formatting as w
    from megatron_kis.analysis.runs.load_csv import load_points_csv
    from megatron_kis.common.console import print_table

    scores = validate(load_predictions(options.prediction), load_points_csv(options.points))
    result = summary(scores)
    if options.json:
        print_json(result)
        return 0
    heads = ["transition", "N", "D", "made", "predicted", "interval", "measured", "|log ratio|", "hit"]
    rows = [
        [
            w.kind_title(score.kind, score.group, score.slice),
            w.size(score.params),
            w.size(score.tokens),
            score.created,
            w.frequency(score.centre),
            f"{w.frequency(score.prediction_interval[0])} to {w.frequency(score.prediction_interval[1])}",
            w.frequency(score.measured) if score.measured else score.status,
            w.number(score.abs_log_ratio),
            w.hit(score.hit, decided=score.decided),
        ]
        for score in scores
    ]
    print_table("Predictions against measurements", heads, rows)
    undecided = result["undecided"]
    print(f"{result['hits']} of {plural(result['predictions'] - undecided, 'interval')} hit")
    if undecided:
        print(f"{undecided} more could not have missed: censored measurements inside their intervals")
    return 0
