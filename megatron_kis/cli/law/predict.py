"""``kis law predict``: the transition of a model that was not trained."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_kis.cli.law.common import add_json, add_slice, add_target, print_json
from megatron_kis.cli.outputs import new_file, spare_inputs
from megatron_kis.common.errors import InputError, first_of, nearest, printable
from megatron_kis.common.units import quantity

if TYPE_CHECKING:
    from megatron_kis.analysis.law.law import Law
    from megatron_kis.analysis.law.prediction import Prediction

_SHOWN = 6
"""Most other laws that are named."""


def add_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = steps.add_parser(
        "predict",
        help="predict the transition of a model that was not trained",
        description="Predict the F (or number of facts K) at which a model of one size has its transition, with "
        "intervals, and name the dose on its safe side. --output writes a dated, hashed file, which kis "
        "law validate scores when the model has been trained.",
    )
    parser.add_argument("law", type=Path, metavar="LAW_JSON", help="a law written by kis law fit or kis study run")
    add_target(parser, budget="the law's, if it has one")
    which = parser.add_argument_group("which law, in a file with several (default: the first of its kind and group)")
    which.add_argument("--kind", choices=("onset", "collapse", "tolerance"), help="of this kind of transition")
    which.add_argument("--group", metavar="GROUP", help="of this fact group: infused, background@60, ...")
    add_slice(
        which,
        held="the K, F or infusion ratio that the slice holds: its own law, or else the law of several slices, asked "
        "at H",
    )
    which.add_argument(
        "--together", action="store_true", help="use the law of several slices, even where H has its own"
    )
    others = parser.add_argument_group("for other facts than the study's (both, or neither)")
    others.add_argument("--facts", type=quantity, metavar="K", help="number of facts")
    others.add_argument("--fact-tokens", type=quantity, metavar="L", help="mean tokens per exposure")
    parser.add_argument("--output", type=new_file, metavar="JSON", help="write the prediction, dated and hashed")
    parser.add_argument(
        "--curve",
        type=new_file,
        metavar="CSV",
        help="write the whole predicted curve: the rate of right answers against the dose, with its band",
    )
    add_json(parser)
    parser.set_defaults(handler=_predict)


def _predict(options: argparse.Namespace) -> int:
    spare_inputs(options, ("output", "curve"), ("law",))
    from megatron_kis.analysis.law.choice import Choice, words
    from megatron_kis.analysis.law.law_file import load_laws
    from megatron_kis.analysis.law.predict import predict
    from megatron_kis.analysis.law.prediction import prediction_record
    from megatron_kis.analysis.runs.groups import CURVE_GROUPS, is_group
    from megatron_kis.common.files import write_json

    if options.group is not None and not is_group(options.group):
        raise InputError(f"is {options.group!r}", where="--group", remedy=nearest(options.group, CURVE_GROUPS))
    choice = Choice(options.kind, options.group, options.axis, options.held_by, options.held, together=options.together)
    laws = load_laws(options.law)
    law = choice.choose(laws, where=str(options.law))
    held = None if law.range_held is None else options.held
    prediction = predict(
        law,
        options.params,
        options.tokens,
        held=held,
        facts=options.facts,
        fact_tokens=options.fact_tokens,
    )
    record = prediction_record(prediction)
    if options.curve is not None:
        _write_curve(options.curve, law, laws, prediction, held)
    if options.output is not None:
        write_json(options.output, record)
    if options.json:
        print_json(record)
        return 0
    _print_prediction(prediction)
    if choice == Choice() and len(laws) > 1:
        others = first_of([words(other, laws) for other in laws if other is not law], _SHOWN, separator="; ")
        print(f"kis: other laws of the file: {others}", file=sys.stderr)
    for path in (options.output, options.curve):
        if path is not None:
            print(f"written: {path}")
    return 0


def _write_curve(path: Path, law: Law, laws: list[Law], prediction: Prediction, held: float | None) -> None:
    """Writes the curve of ``law`` at the model of its prediction; that of infused facts rises by their onset's law."""
    from megatron_kis.analysis.law.new_model import NewModel
    from megatron_kis.analysis.law.predicted_curve import predicted_curve, rises, write_predicted_curve

    if law.kind == "tolerance":
        problem = "a law of the loss gives no rates of answers"
        raise InputError(problem, where="--curve", remedy="add --kind collapse or --kind onset, or leave --curve out")
    if law.surface is None:
        raise InputError(
            "this law is from points alone, which contain no rates",
            where="--curve",
            remedy="fit one from runs or curves (kis law fit SOURCE) with criterion: retention, or leave --curve out",
        )
    rise = next((other for other in laws if rises(other, law)), None)
    model, own = (
        None if one is None else NewModel(one, prediction.params, prediction.tokens, held) for one in (law, rise)
    )
    assert model is not None
    write_predicted_curve(predicted_curve(model, own, confidence=law.confidence), path)


def _print_prediction(prediction: Prediction) -> None:
    from megatron_kis.analysis.law.looks import percent
    from megatron_kis.analysis.report import formatting as w
    from megatron_kis.analysis.runs.slices import FREQUENCY
    from megatron_kis.common.console import print_table

    def interval(ends: tuple[float, float]) -> str:
        return f"{w.frequency(ends[0])} to {w.frequency(ends[1])}"

    level = percent(prediction.confidence)
    recommended = f"none: {prediction.recommended_note}"
    if prediction.recommended is not None:
        recommended = w.dose(prediction.slice, prediction.recommended)
        if prediction.recommended_note is not None:
            recommended += f" ({prediction.recommended_note})"
    tokens = "unknown (no infusion ratio in the points)"
    if prediction.exposure_tokens is not None:
        tokens = w.size(prediction.exposure_tokens)
    rows = [
        ["law", str(prediction.law["selected_law"])],
        ["centre", w.dose(prediction.slice, prediction.centre)],
        [f"{level} confidence interval of the law", interval(prediction.confidence_interval)],
        [f"{level} prediction interval of a model", interval(prediction.prediction_interval)],
    ]
    if prediction.straight_interval is not None:
        rows.append(["the same if the law stays straight", interval(prediction.straight_interval)])
    if prediction.points_interval is not None:
        rows.append(["the same from the points alone, a check", interval(prediction.points_interval)])
    if prediction.bootstrap_interval is not None:
        rows.append(["the same by bootstrap, a check", interval(prediction.bootstrap_interval)])
    rows += [
        [f"recommended ({'copies of each fact' if prediction.slice.axis == FREQUENCY else 'facts'})", recommended],
        ["tokens of domain data at the centre", tokens],
        ["infusion ratio at the centre", w.ratio(prediction.infusion_ratio)],
        ["extrapolation factor", f"{prediction.extrapolation_factor:.3g}"],
    ]
    if prediction.exposures is not None:
        rows.append(["exposures of all facts at the centre", w.size(prediction.exposures)])
    if prediction.bits_per_param is not None:
        rows.append(["bits of the facts for each parameter, at the centre", w.number(prediction.bits_per_param)])
    if prediction.domain is not None:
        domain = prediction.domain
        rows.append(["for these facts, each with its own limit", f"{w.frequency(domain['copies_per_fact'])} copies"])
        if domain["copies_per_fact_by_tokens"] is not None:
            shared = w.frequency(domain["copies_per_fact_by_tokens"])
            rows.append(["for these facts, their tokens limited together", f"{shared} copies"])
    what = w.kind_title(prediction.kind, prediction.group, prediction.slice)
    print_table(f"{what}: N = {w.size(prediction.params)}, D = {w.size(prediction.tokens)}", ["", ""], rows)
    for warning in prediction.warnings:
        print(printable(f"warning: {warning}"))
