"""``kis law decide``: how much to infuse into a model that was not trained."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_kis.cli.law.common import add_json, add_slice, add_target, print_json
from megatron_kis.cli.outputs import new_file, spare_inputs
from megatron_kis.common.errors import InputError, printable

if TYPE_CHECKING:
    from megatron_kis.analysis.law.decision import Decision
    from megatron_kis.analysis.law.law import Law
    from megatron_kis.analysis.law.utility import Best
    from megatron_kis.analysis.runs.curves import Curve


def add_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = steps.add_parser(
        "decide",
        help="say how much to infuse into a model that was not trained",
        description="Name the largest dose at which nothing is lost with the probability --confidence: no collapse "
        "that has a law has begun, and the loss is within its tolerance where that has a law. With --recall, "
        "--retention or --loss-price, also find the dose of the largest expected utility. --output writes a dated, "
        "hashed file.",
    )
    parser.add_argument("law", type=Path, metavar="LAW_JSON", help="laws written by kis law fit or kis study run")
    add_target(parser, budget="the laws', if they have one")
    parser.add_argument(
        "--confidence",
        type=_share,
        default=0.95,
        metavar="X",
        help="probability with which nothing is to be lost (default: 0.95)",
    )
    which = parser.add_argument_group("which laws, in a file with several slices")
    add_slice(
        which,
        held="the K, F or infusion ratio that the slice holds: its own laws, or else those of several slices, asked "
        "at H",
    )
    utility = parser.add_argument_group("a utility: the worth of each outcome (only the ratios matter)")
    utility.add_argument("--recall", type=_weight, default=0.0, metavar="W", help="worth of knowing all infused facts")
    utility.add_argument(
        "--retention", type=_weight, default=0.0, metavar="W", help="worth of keeping all background knowledge"
    )
    utility.add_argument(
        "--loss-price", type=_weight, default=0.0, metavar="P", help="price of one percent of loss on general text"
    )
    utility.add_argument(
        "--curves", type=Path, metavar="CSV", help="the study's curves.csv, which shows how the loss rises"
    )
    parser.add_argument("--output", type=new_file, metavar="JSON", help="write the decision, dated and hashed")
    add_json(parser)
    parser.set_defaults(handler=_decide)


def _decide(options: argparse.Namespace) -> int:
    spare_inputs(options, ("output",), ("law", "curves"))
    stated = [name for name in ("recall", "retention", "loss_price") if getattr(options, name)]
    if options.curves is not None and not options.loss_price:
        raise InputError("is used only with --loss-price", where="--curves", remedy="add --loss-price")
    from megatron_kis.analysis.law.decision import decide, decision_record
    from megatron_kis.analysis.law.law_file import load_laws
    from megatron_kis.analysis.law.utility import Weights
    from megatron_kis.common.files import write_json

    weights = Weights(options.recall, options.retention, options.loss_price) if stated else None
    laws = load_laws(options.law)
    decision = decide(
        laws,
        options.params,
        options.tokens,
        axis=options.axis,
        held_by=options.held_by,
        held=options.held,
        confidence=options.confidence,
        weights=weights,
        curves=None if options.curves is None else _curves(options.curves, laws),
        where=str(options.law),
    )
    record = decision_record(decision)
    if options.output is not None:
        write_json(options.output, record)
    if options.json:
        print_json(record)
        return 0
    _print_decision(decision)
    if options.output is not None:
        print(f"written: {options.output}")
    return 0


def _curves(path: Path, laws: Sequence[Law]) -> list[Curve]:
    """Returns the curves of a table along the axes that the laws have."""
    from megatron_kis.analysis.runs.curves import curves
    from megatron_kis.analysis.runs.load_csv import load_curves_csv
    from megatron_kis.analysis.runs.slices import slices_of

    table = load_curves_csv(path)
    axes = sorted({law.slice.axis for law in laws})
    try:
        return curves(table, [one for axis in axes for one in slices_of(table, axis)])
    except InputError as error:  # a law over K, and runs without their number of facts
        raise InputError(error.problem, where=str(path), remedy="add a column infused_facts") from None


def _print_decision(decision: Decision) -> None:
    from megatron_kis.analysis.law.decision import INDEPENDENT
    from megatron_kis.analysis.law.looks import percent
    from megatron_kis.analysis.report import formatting as w
    from megatron_kis.common.console import print_table

    at = f"N = {w.size(decision.params)}, D = {w.size(decision.tokens)}"
    level = percent(decision.confidence)
    rows = [
        [f"largest dose, nothing lost with {level}", w.decided(decision)],
        ["limited by", decision.limited_by],
    ]
    rows += [[f"  {text}", value] for text, value in w.amounts(decision.amounts)]
    if decision.learned is not None:
        rows.append(["probability that facts are learned there", f"{decision.learned.probability:.1%}"])
        rows.append([f"smallest dose, learned with {level}", w.dose(decision.slice, decision.learned.dose)])
    if decision.best is not None:
        rows += _of_utility(decision, decision.best, level)
    print_table(f"How much to infuse: {at}{w.along(decision.slice)}", ["", ""], rows)
    symbol = decision.slice.symbol
    print_table(
        "What is lost beyond which dose",
        ["", f"not yet at {w.dose(decision.slice, decision.dose)}", f"{symbol} by it alone, {level}", "from"],
        [
            [
                w.kind_title(limit.kind, limit.group, decision.slice),
                "-" if decision.dose is None else f"{limit.probability:.1%}",
                w.frequency(limit.alone),
                "all curves" if limit.method == "surface" else "points",
            ]
            for limit in decision.limits
        ],
    )
    print(INDEPENDENT)
    for warning in decision.warnings:
        print(printable(f"warning: {warning}"))


def _of_utility(decision: Decision, best: Best, level: str) -> list[list[str]]:
    from megatron_kis.analysis.report import formatting as w

    low, high = best.interval
    rows = [
        ["dose of the largest expected utility", w.dose(decision.slice, best.dose)],
        [f"{level} interval of the best dose", f"{w.frequency(low)} to {w.frequency(high)}"],
        ["expected utility there, and without infusion", f"{w.number(best.utility)}, {w.number(best.without)}"],
    ]
    parts = (("recall", best.recall), ("retention", best.retention))
    rows += [[f"  {name} there", f"{value:.1%}"] for name, value in parts if value is not None]
    if best.loss_percent is not None:
        rows.append(["  loss on general text there", f"{best.loss_percent:+.2g}%"])
    rows.append(["regret: expected utility lost because the truth is not known", w.number(best.regret, 2)])
    for name, value in (
        (f"utility lost by a dose {best.step:g} times lower", best.lower),
        ("utility lost by a dose as many times higher", best.higher),
    ):
        rows.append([name, "no such dose" if value is None else w.number(value, 2)])
    return rows


def _share(text: str) -> float:
    value = _number(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"is {text!r}; write a probability above 0 and below 1, such as 0.95")
    return value


def _weight(text: str) -> float:
    value = _number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a weight; write a number of at least 0")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
