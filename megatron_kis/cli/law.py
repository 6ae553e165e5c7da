"""``kis law``: transitions, the law, predictions, their validation, and the report."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_kis.common.errors import InputError, printable
from megatron_kis.common.units import quantity

if TYPE_CHECKING:
    from megatron_kis.analysis.criteria import Transition
    from megatron_kis.analysis.law.fit import Law
    from megatron_kis.analysis.runs.load import Runs
    from megatron_kis.config.analysis import AnalysisSettings


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describes ``kis law`` and its steps."""
    law = commands.add_parser(
        "law",
        help="onset, collapse points, the law over model size, predictions and the report",
        description="From run logs (or curves.csv, points.csv of another trainer) to the law and its predictions.",
    )
    steps = law.add_subparsers(dest="step", metavar="STEP", required=True)
    _add_collapse(steps)
    _add_fit(steps)
    _add_predict(steps)
    _add_validate(steps)
    _add_report(steps)


def _add_collapse(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = steps.add_parser(
        "collapse",
        help="onset, collapse by memory and by loss tolerance of every (N, D)",
        description="Finds the transitions of every (N, D), each with a status, and writes them as points.csv.",
    )
    _source(parser, curves=True)
    parser.add_argument("--output", required=True, type=Path, metavar="CSV", help="where points.csv is written")
    parser.add_argument("--curves-output", type=Path, metavar="CSV", help="also write the curves as curves.csv")
    _settings_arguments(parser)
    _json_argument(parser)
    parser.set_defaults(handler=_collapse)


def _add_fit(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = steps.add_parser(
        "fit",
        help="the law of the transitions over model size (and token budget)",
        description="Fits log F* = a + b log N (+ c log D): every law that the points support, or the one of --kind.",
    )
    _source(parser, points=True)
    parser.add_argument("--output", required=True, type=Path, metavar="JSON", help="where law.json is written")
    parser.add_argument("--kind", choices=("onset", "collapse", "tolerance"), help="fit this kind of transition only")
    parser.add_argument("--group", choices=("infused", "background", "general"), help="fit this fact group only")
    _settings_arguments(parser)
    _json_argument(parser)
    parser.set_defaults(handler=_fit)


def _add_predict(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = steps.add_parser(
        "predict",
        help="the transition of a model that was not trained",
        description="Predicts F for one model size; --output writes a dated, hashed file to be validated later.",
    )
    parser.add_argument("law", type=Path, metavar="LAW_JSON", help="a law written by kis law fit or kis study run")
    parser.add_argument("--params", required=True, type=quantity, metavar="N", help="model size: 7e9 or 7b")
    parser.add_argument("--tokens", type=quantity, metavar="D", help="token budget: 1e12 or 1T (default: the law's)")
    parser.add_argument("--facts", type=quantity, metavar="K", help="what it means for this many facts")
    parser.add_argument("--fact-tokens", type=quantity, metavar="L", help="...of this many tokens an exposure")
    parser.add_argument("--output", type=Path, metavar="JSON", help="write the prediction, dated and hashed")
    _json_argument(parser)
    parser.set_defaults(handler=_predict)


def _add_validate(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = steps.add_parser(
        "validate",
        help="score a prediction written before against points measured after",
        description="Checks the prediction's hash and scores it: |log ratio|, hit of the interval, interval score.",
    )
    parser.add_argument("prediction", type=Path, metavar="PREDICTION_JSON", help="written by kis law predict --output")
    parser.add_argument("--points", required=True, type=Path, metavar="CSV", help="the points measured since")
    _json_argument(parser)
    parser.set_defaults(handler=_validate)


def _add_report(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = steps.add_parser(
        "report",
        help="one self-contained report.html",
        description="Writes the report of a study folder, a runs folder, a curves.csv or a points.csv.",
    )
    parser.add_argument(
        "source", type=Path, metavar="SOURCE", help="study folder, runs folder, curves.csv or points.csv"
    )
    parser.add_argument("--output", required=True, type=Path, metavar="HTML", help="where the report is written")
    parser.add_argument(
        "--params", type=quantity, action="append", default=[], metavar="N", help="predict for this size (repeatable)"
    )
    parser.add_argument(
        "--tokens", type=quantity, metavar="D", help="token budget of the predictions (default: the law's)"
    )
    parser.add_argument("--export", type=Path, metavar="DIR", help="also write figures (SVG, PNG), tables (CSV)")
    _settings_arguments(parser)
    parser.set_defaults(handler=_report)


def _source(parser: argparse.ArgumentParser, *, curves: bool = False, points: bool = False) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("runs", nargs="?", type=Path, metavar="RUNS_DIR", help="a folder of runs, or a study folder")
    if curves:
        source.add_argument("--curves", type=Path, metavar="CSV", help="curves of another trainer")
    if points:
        source.add_argument("--points", type=Path, metavar="CSV", help="transitions, found before or elsewhere")


def _settings_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("declared choices (defaults as in a study)")
    group.add_argument("--split", choices=("train", "held_out", "question"), help="template split of the criteria")
    group.add_argument("--criterion", choices=("hinge", "tolerance_rule", "general_loss"), help="what a collapse is")
    group.add_argument("--law", metavar="NAME", help="the law's form: auto, or N, 'N and D', D/N, C, constant")
    group.add_argument(
        "--law-resamples", type=int, help="resamples of the bootstrap that checks the intervals (999; 0: none)"
    )
    group.add_argument("--scoring", metavar="RULE", help="scoring rule of the criteria, e.g. statement or sum")
    group.add_argument("--r", type=float, help="relative fall below the maximum that marks a collapse (0.10)")
    group.add_argument("--delta-min", type=float, help="smallest fall in rate that may be a collapse (0.05)")
    group.add_argument("--tolerance", type=float, help="relative excess of the validation loss over F = 0 (0.05)")
    group.add_argument("--alpha", type=float, help="level of the tests (0.05)")
    group.add_argument("--confidence", type=float, help="level of the law's intervals (0.95)")


def _json_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _settings(options: argparse.Namespace) -> AnalysisSettings:
    from megatron_kis.analysis.findings.study_file import declared_settings
    from megatron_kis.config.analysis import AnalysisSettings

    names = (
        "split", "criterion", "law", "law_resamples", "scoring", "r", "delta_min", "tolerance", "alpha", "confidence",
    )  # fmt: skip
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    folder = getattr(options, "runs", None) or getattr(options, "source", None)
    if folder is None or not folder.is_dir():
        return AnalysisSettings.from_mapping(given)
    return declared_settings(folder, **given)


def _collapse(options: argparse.Namespace) -> int:
    from megatron_kis.analysis.criteria import find_transitions
    from megatron_kis.analysis.runs.curves import curve_table, write_curves_csv
    from megatron_kis.analysis.runs.load import load_runs
    from megatron_kis.analysis.runs.load_csv import load_curves_csv, points_table, write_points_csv

    settings = _settings(options)
    if options.curves is not None:
        table = load_curves_csv(options.curves)
    else:
        table = curve_table(_counted(load_runs(options.runs)))
    points = find_transitions(table, settings)
    write_points_csv(points, options.output)
    if options.curves_output is not None:
        write_curves_csv(table, options.curves_output)
    if options.json:
        rows = points_table(points).to_dict("records")
        _print_json({"schema": "kis.points/1", "settings": settings.record(), "points": rows})
    else:
        _print_points(points)
        print(f"written: {options.output}")
    return 0


def _counted(runs: Runs) -> Runs:
    """The runs, after those that do not count have been named."""
    for problem in runs.problems.itertuples():
        line = f"not counted: {problem.run} ({problem.status}): {problem.reason}"
        print(printable(line), file=sys.stderr)
    return runs


def _fit(options: argparse.Namespace) -> int:
    from megatron_kis.analysis.criteria import find_transitions
    from megatron_kis.analysis.findings.analyse import fit_laws
    from megatron_kis.analysis.law.fit import fit_law
    from megatron_kis.analysis.outputs import law_record
    from megatron_kis.analysis.runs.curves import curve_table
    from megatron_kis.analysis.runs.load import load_runs
    from megatron_kis.analysis.runs.load_csv import load_points_csv
    from megatron_kis.common.files import write_json

    settings = _settings(options)
    if options.points is not None:
        points, table = load_points_csv(options.points), None
    else:
        table = curve_table(_counted(load_runs(options.runs)))
        points = find_transitions(table, settings)
    refused: list[dict[str, str]] = []
    if options.kind is not None:
        laws = [fit_law(points, options.kind, options.group, confidence=settings.confidence, law=settings.law)]
    else:
        chosen = [point for point in points if options.group in (None, point.group)]
        laws, refused = fit_laws(chosen, settings, table)
        if not laws:
            reasons = "; ".join(f"{item['kind']} of {item['group']}: {item['reason']}" for item in refused)
            raise InputError(
                f"no law can be fitted ({reasons or 'no points'})", where=str(options.points or options.runs)
            )
    record = law_record(laws, refused)
    write_json(options.output, record)
    if options.json:
        _print_json(record)
        return 0
    for law in laws:
        _print_law(law)
    for item in refused:
        print(printable(f"no law for {item['kind']} of {item['group']}: {item['reason']}"))
    print(f"written: {options.output}")
    return 0


def _predict(options: argparse.Namespace) -> int:
    from megatron_kis.analysis.law.fit import load_law
    from megatron_kis.analysis.law.predict import predict, prediction_record
    from megatron_kis.analysis.report import formatting as w
    from megatron_kis.common.files import write_json

    prediction = predict(
        load_law(options.law), options.params, options.tokens, facts=options.facts, fact_tokens=options.fact_tokens
    )
    record = prediction_record(prediction)
    if options.output is not None:
        write_json(options.output, record)
    if options.json:
        _print_json(record)
        return 0
    level = f"{100 * prediction.confidence:g}%"

    def interval(ends: tuple[float, float]) -> str:
        return f"{w.frequency(ends[0])} to {w.frequency(ends[1])}"

    recommended = "none: the law is unvalidated"
    if prediction.recommended is not None:
        recommended = f"F = {w.frequency(prediction.recommended)}"
    rows = [
        ["centre", f"F = {w.frequency(prediction.centre)}"],
        [f"{level} confidence interval of the law", interval(prediction.confidence_interval)],
        [f"{level} prediction interval of a model", interval(prediction.prediction_interval)],
        *(
            []
            if prediction.bootstrap_interval is None
            else [["the same by bootstrap, a check", interval(prediction.bootstrap_interval)]]
        ),
        ["recommended (copies of each fact)", recommended],
        ["tokens of domain data at the centre", _tokens(prediction.exposure_tokens)],
        ["infusion ratio at the centre", w.ratio(prediction.infusion_ratio)],
        ["extrapolation factor", f"{prediction.extrapolation_factor:.3g}"],
    ]
    if prediction.domain is not None:
        domain = prediction.domain
        rows.append(["for these facts, each with its own limit", f"{w.frequency(domain['copies_per_fact'])} copies"])
        if domain["copies_per_fact_by_tokens"] is not None:
            shared = w.frequency(domain["copies_per_fact_by_tokens"])
            rows.append(["for these facts, their tokens limited together", f"{shared} copies"])
    what = w.kind_title(prediction.kind, prediction.group)
    title = f"{what}: N = {w.size(prediction.params)}, D = {w.size(prediction.tokens)}"
    _print_table(title, ["", ""], rows)
    for warning in prediction.warnings:
        print(printable(f"warning: {warning}"))
    if options.output is not None:
        print(f"written: {options.output}")
    return 0


def _tokens(value: float | None) -> str:
    from megatron_kis.analysis.report import formatting as w

    return "unknown (no infusion ratio in the points)" if value is None else w.size(value)


def _validate(options: argparse.Namespace) -> int:
    from megatron_kis.analysis.law.predict import load_predictions
    from megatron_kis.analysis.law.validate import summary, validate
    from megatron_kis.analysis.report import formatting as w
    from megatron_kis.analysis.runs.load_csv import load_points_csv

    scores = validate(load_predictions(options.prediction), load_points_csv(options.points))
    result = summary(scores)
    if options.json:
        _print_json(result)
        return 0
    heads = ["transition", "N", "D", "made", "predicted", "interval", "measured", "|log ratio|", "hit"]
    rows = [
        [
            w.kind_title(s.kind, s.group), w.size(s.params), w.size(s.tokens), s.created, w.frequency(s.centre),
            f"{w.frequency(s.prediction_interval[0])} to {w.frequency(s.prediction_interval[1])}",
            w.frequency(s.measured) if s.measured else s.status, w.number(s.abs_log_ratio), "yes" if s.hit else "no",
        ]
        for s in scores
    ]  # fmt: skip
    _print_table("Predictions against measurements", heads, rows)
    print(f"{result['hits']} of {result['predictions']} intervals hit")
    return 0


def _report(options: argparse.Namespace) -> int:
    from megatron_kis.analysis.report import analyse_source, report

    result = analyse_source(
        options.source, _settings(options), predict_params=options.params, predict_tokens=options.tokens
    )
    if result.runs is not None:
        _counted(result.runs)
    report(result, options.output)
    if options.export is not None:
        from megatron_kis.analysis.report.export import export

        print(f"written: {len(export(result, options.export))} files in {options.export}")
    print(f"written: {options.output}")
    return 0


def _print_json(content: dict[str, Any]) -> None:
    print(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False))


def _print_points(points: list[Transition]) -> None:
    from megatron_kis.analysis.report import formatting as w

    heads = ["transition", "N", "D", "status", "F", "interval", "rho", "why"]
    rows = [
        [
            w.kind_title(p.kind, p.group), w.size(p.params), w.size(p.tokens), w.STATUS_WORDS[p.status],
            w.frequency(p.value), w.bracket(p), w.ratio(p.infusion_ratio), p.reason,
        ]
        for p in points
    ]  # fmt: skip
    _print_table("Transitions", heads, rows)


def _print_law(law: Law) -> None:
    from megatron_kis.analysis.report import formatting as w

    rows = [
        [name, w.number(c.value), f"{w.number(c.low)} to {w.number(c.high)}"]
        for name, c in law.coefficients.items()
        if c is not None
    ]
    rows.append(["sigma", w.number(law.sigma), ""])
    title = f"{w.kind_title(law.kind, law.group)}: {law.selected_law} ({w.plural(len(law.points), 'point')})"
    _print_table(title, ["", "estimate", f"{100 * law.confidence:g}% interval"], rows)
    for warning in law.warnings:
        print(printable(f"warning: {warning}"))


def _print_table(title: str, heads: list[str], rows: list[list[str]]) -> None:
    """A table with lines on a terminal, aligned columns elsewhere: logs are read without a terminal's width."""
    rows = [[printable(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title, title_justify="left", show_header=any(heads))
        for head in heads:
            table.add_column(head)
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))  # Text: a "[64, 128]" is no markup
        Console().print(table)
        return
    print(title)
    lines = [heads, *rows] if any(heads) else rows
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    for line in lines:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
