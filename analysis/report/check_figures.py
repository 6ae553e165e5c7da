"""Figures that check the law: residuals, candidates, sizes predicted from smaller ones, error by extrapolation."""

from __future__ import annotations

import math
from dataclasses import dataclass

from megatron_kis.analysis.findings.result import AnalysisResult
from megatron_kis.analysis.law.law import Law
from megatron_kis.analysis.law.looks import percent
from megatron_kis.analysis.law.validate import Score
from megatron_kis.analysis.report import formatting as fmt
from megatron_kis.analysis.report.axes import label_log_axis, label_sizes
from megatron_kis.analysis.report.figures import Drawing
from megatron_kis.analysis.report.theme import COLOURS, kind_colour, panel, to_svg
from megatron_kis.analysis.runs.groups import strength


@dataclass(frozen=True)
class Checks:
    """The figures that check one law."""

    title: str
    drawings: list[Drawing]
    strength: bool
    """Whether the law is of background facts of one of several strengths."""


def check_figures(result: AnalysisResult) -> list[Checks]:
    """Returns the figures of every law that has something to show."""
    found = []
    for law in result.laws:
        scores = result.backtests.get((law.kind, law.group, law.slice), [])
        drawings = [
            residuals(law),
            comparison(law),
            predicted_and_measured(law, scores),
            extrapolation_error(law, scores),
        ]
        kept = [drawing for drawing in drawings if drawing is not None]
        if kept:
            title = fmt.kind_title(law.kind, law.group, law.slice)
            found.append(Checks(title, kept, strength(law.group) is not None))
    return found


def _name(figure: str, law: Law) -> str:
    return fmt.slug(figure, law.kind, law.group, law.slice.name)


def _colour(law: Law) -> str:
    return kind_colour(law.kind, law.group)


def residuals(law: Law) -> Drawing | None:
    """Draws log F* minus the law's mean against N."""
    known = [p for p in law.points if p["residual"] is not None]
    if len(known) < 3:
        return None
    title = "Residuals"
    with panel(_name("residuals", law), f"{title} of the law against model size.") as drawn:
        axes = drawn.axes
        axes.set_xscale("log")
        axes.set_xlabel("model size N (parameters)")
        drawn.figure.subplots_adjust(left=0.18)
        axes.axhline(0, color=COLOURS["muted"], linewidth=1)
        for sign in (-1, 1):
            axes.axhline(sign * 2 * law.sigma, color=COLOURS["muted"], linewidth=0.9, linestyle=(0, (4, 3)))
        bars = [p for p in known if p["low"] and p["high"]]
        lows, highs = ([math.log(p[end] / p["value"]) + p["residual"] for p in bars] for end in ("low", "high"))
        sizes = [p["params"] for p in bars]
        drawn.ranges(sizes, lows, highs, series="seen", colour=_colour(law), linewidth=1.4, alpha=0.6)
        log = f"log {law.slice.symbol_at_transition}"
        tips = [
            f"N = {fmt.size(p['params'])}, D = {fmt.size(p['tokens'])}\nresidual {fmt.number(p['residual'])} in {log}"
            for p in known
        ]
        drawn.points(
            [p["params"] for p in known],
            [p["residual"] for p in known],
            tips,
            series="seen",
            colour=_colour(law),
            marker="o",
            markersize=6,
        )
        label_sizes(drawn, [p["params"] for p in known])
        axes.set_ylabel(f"{log} minus the law")
        axes.set_title(title)
        lack = law.lack_of_fit
        bend = "" if lack is None else f" Test for a bend in log N: p = {fmt.p_value(lack['p_value'])}."
        return Drawing(to_svg(drawn), f"Bars: each point's own interval; dashed: two σ between models.{bend}")


def comparison(law: Law) -> Drawing | None:
    """Draws the log score of the largest N, held out, for each candidate."""
    rows = [row for row in law.candidates if row["log_score"] is not None]
    if len(rows) < 2:
        return None
    rows.sort(key=lambda row: row["log_score"])
    title = "Which law predicts the largest N"
    with panel(_name("candidates", law), f"{title}: log score of each candidate law.") as drawn:
        axes = drawn.axes
        drawn.figure.subplots_adjust(left=0.24)
        floor = max(rows[-1]["log_score"] - 25, rows[0]["log_score"])
        for place, row in enumerate(rows):
            shown = max(row["log_score"], floor)
            colour = _colour(law) if row["selected"] else "muted"
            tip = f"{row['formula']}\nlog score {fmt.number(row['log_score'])}, AICc {fmt.number(row['aicc'])}"
            drawn.points([shown], [place], [tip], series="candidates", colour=colour, marker="D", markersize=7)
        axes.set_yticks(range(len(rows)), [row["law"] for row in rows])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_xlabel("log score of the largest N, held out (right is better)")
        axes.set_title(title)
        chosen = next((row["law"] for row in rows if row["selected"]), law.law)
        return Drawing(to_svg(drawn), f"In colour: the law that is used ({chosen}), {law.selection}.")


def predicted_and_measured(law: Law, scores: list[Score]) -> Drawing | None:
    """Draws predicted against measured F*, each predicted from smaller models alone."""
    known = [s for s in scores if s.measured]
    if not known:
        return None
    title = "Predicted from smaller models"
    with panel(_name("backtest", law), f"{title}: predicted against measured {fmt.dose_name(law.slice)}.") as drawn:
        axes = drawn.axes
        axes.set_xscale("log")
        axes.set_yscale("log")
        values = [v for s in known for v in (s.measured, s.centre) if v]
        low, high = min(values) / 1.6, max(values) * 1.6
        axes.plot([low, high], [low, high], color=COLOURS["muted"], linewidth=1)
        for s in known:
            ends = [min(max(end, low / 4), high * 4) for end in s.prediction_interval]
            axes.plot([s.measured or low] * 2, ends, color=COLOURS[_colour(law)], linewidth=1.2, alpha=0.6)
        tips = [
            f"N = {fmt.size(s.params)}, D = {fmt.size(s.tokens)}, from smaller {'N' if s.axis == 'params' else 'D'}\n"
            f"predicted {fmt.frequency(s.centre)} ({fmt.frequency(s.prediction_interval[0])} to "
            f"{fmt.frequency(s.prediction_interval[1])}), measured {fmt.frequency(s.measured)}"
            for s in known
        ]
        drawn.points(
            [s.measured or 0.0 for s in known],
            [s.centre for s in known],
            tips,
            series="predicted",
            colour=_colour(law),
            marker="o",
            markersize=6,
        )
        axes.set_xlim(low, high)
        axes.set_ylim(low / 2, high * 2)
        label_log_axis(axes.xaxis, fmt.frequency)
        label_log_axis(axes.yaxis, fmt.frequency)
        axes.set_xlabel(f"measured {law.slice.symbol_at_transition}")
        axes.set_ylabel(f"predicted {law.slice.symbol_at_transition}")
        axes.set_title(title)
        decided = [s for s in scores if s.decided]
        hits = sum(s.hit for s in decided)
        more = len(scores) - len(decided)
        return Drawing(
            to_svg(drawn),
            f"Bars: {percent(law.confidence)} prediction intervals; {hits} of {len(decided)} contain the measured "
            f"value{f', and {more} could not have missed a censored one' if more else ''}.",
        )


def extrapolation_error(law: Law, scores: list[Score]) -> Drawing | None:
    """Draws |log ratio| against the extrapolation factor, with the two baselines."""
    known = [s for s in scores if s.abs_log_ratio is not None and s.extrapolation_factor]
    if not known:
        return None
    title = "Error against extrapolation"
    with panel(_name("error", law), f"{title}: absolute log ratio by extrapolation factor.") as drawn:
        axes = drawn.axes
        axes.set_xscale("log")
        x = [s.extrapolation_factor or 1.0 for s in known]
        series = (
            ("law", [s.abs_log_ratio or 0.0 for s in known], _colour(law), "o"),
            ("constant", [s.baselines.get("constant", math.nan) for s in known], "muted", "x"),
            ("largest model", [s.baselines.get("largest_model", math.nan) for s in known], "control", "^"),
        )
        for name, y, colour, mark in series:
            tips = [
                f"{name}, N = {fmt.size(s.params)}, D = {fmt.size(s.tokens)}\n|log ratio| {v:.2f}"
                for s, v in zip(known, y, strict=True)
            ]
            drawn.points(x, y, tips, series="errors", colour=colour, marker=mark, markersize=6, label=name)
        axes.legend(loc="upper left", fontsize=10)
        axes.set_ylim(bottom=0)
        label_log_axis(axes.xaxis, lambda value: f"{value:g}×")
        axes.set_xlabel("times beyond the fitted models")
        axes.set_ylabel("|log(predicted / measured)|")
        axes.set_title(title)
        return Drawing(
            to_svg(drawn), "The law and two baselines: the mean of the smaller models, and the largest of them."
        )
