"""Transition points against model size, with the law's line and bands and the predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from megatron_kis.analysis.findings.analyse import law_keys
from megatron_kis.analysis.findings.result import AnalysisResult
from megatron_kis.analysis.law.law import Law
from megatron_kis.analysis.law.looks import percent
from megatron_kis.analysis.law.predict import centres, predict
from megatron_kis.analysis.law.prediction import Prediction
from megatron_kis.analysis.report import formatting as fmt
from megatron_kis.analysis.report.axes import label_log_axis, label_sizes
from megatron_kis.analysis.report.figures import Drawing
from megatron_kis.analysis.report.theme import COLOURS, Panel, kind_colour, panel, to_svg
from megatron_kis.analysis.runs.groups import strength
from megatron_kis.analysis.runs.slices import Slice
from megatron_kis.analysis.runs.transitions import LEFT_CENSORED, RIGHT_CENSORED, Transition

_SPREAD = 30.0  # bands are shown up to this factor beyond the points; wider ones are cut off
_NEXT = 1.06  # a prediction for a size that was trained is drawn to the right of its point by this factor


def law_figures(result: AnalysisResult) -> list[Drawing]:
    """Draws one panel per kind, group and slice of transitions that has a value or a limit to show."""
    drawings = []
    for kind, group, one in law_keys(result.points):
        key = kind, group, one
        points = [p for p in result.points if (p.kind, p.group, p.slice) == key and (p.value or p.low or p.high)]
        if not points:
            continue
        law = next((law for law in result.laws if (law.kind, law.group, law.slice) == key), None)
        predictions = [p for p in result.predictions if (p.kind, p.group, p.slice) == key]
        drawings.append(_law_panel(kind, group, one, points, law, predictions))
    return drawings


def _law_panel(
    kind: str,
    group: str,
    one: Slice,
    points: Sequence[Transition],
    law: Law | None,
    predictions: Sequence[Prediction],
) -> Drawing:
    colour = kind_colour(kind, group)
    title = fmt.kind_title(kind, group, one)
    with panel(
        fmt.slug("law", kind, group, one.name), f"{title}: {fmt.dose_name(one)} of the transition against model size."
    ) as drawn:
        axes = drawn.axes
        drawn.figure.subplots_adjust(left=0.17)  # for a dose of five digits
        axes.set_xscale("log")
        axes.set_yscale("log")
        heights = [v for p in points for v in (p.value, p.low, p.high) if v]
        sizes = [p.params for p in points] + [p.params for p in predictions]
        if law is not None:
            _draw_law(drawn, law, min(sizes), max(sizes), colour)
            heights += [p.centre for p in predictions]
        _draw_points(drawn, points, colour)
        for p in predictions:
            low, high = p.prediction_interval
            place = p.params * (_NEXT if p.params in {point.params for point in points} else 1)
            axes.plot([place] * 2, [low, high], color=COLOURS["ink"], linewidth=1.2)
            axes.plot([place] * 2, p.confidence_interval, color=COLOURS["ink"], linewidth=3.2, solid_capstyle="butt")
            tip = (
                f"prediction, N = {fmt.size(p.params)}, D = {fmt.size(p.tokens)}\n"
                f"{one.symbol} ≈ {fmt.frequency(p.centre)}, {percent(p.confidence)} prediction interval "
                f"{fmt.frequency(low)} to {fmt.frequency(high)}"
            )
            drawn.points(
                [place], [p.centre], [tip], series="prediction", colour="ink", marker="*", markersize=12, zorder=5
            )
        axes.set_ylim(min(heights) / 2.2, max(heights) * 2.2)
        if law is not None:
            bands = [v for p in predictions for v in p.prediction_interval]
            bottom, top = min([*heights, *bands]), max([*heights, *bands])
            axes.set_ylim(max(bottom, min(heights) / _SPREAD) / 2.2, min(top, max(heights) * _SPREAD) * 2.2)
        axes.set_xlim(min(sizes) / 1.5, max(sizes) * 1.5)
        label_sizes(drawn, sizes)
        label_log_axis(axes.yaxis, fmt.frequency)
        axes.set_xlabel("model size N (parameters)")
        axes.set_ylabel(f"{one.symbol} ({one.unit})")
        axes.set_title(title)
        return Drawing(to_svg(drawn), _caption(law, predictions), strength(group) is not None)


def _draw_law(drawn: Panel, law: Law, smallest: float, largest: float, colour: str) -> None:
    sizes = np.geomspace(smallest / 1.4, largest * 1.4, 60)
    for index, tokens in enumerate(sorted({point["tokens"] for point in law.points})):
        shade = COLOURS[colour]
        if index == 0:
            line = [predict(law, n, tokens) for n in sizes.tolist()]
            low, high = np.array([p.prediction_interval for p in line]).T
            drawn.axes.fill_between(sizes, low, high, color=shade, alpha=0.10, linewidth=0)
            low, high = np.array([p.confidence_interval for p in line]).T
            drawn.axes.fill_between(sizes, low, high, color=shade, alpha=0.18, linewidth=0)
        middle = centres(law, sizes.tolist(), tokens)
        drawn.line(sizes.tolist(), middle, series="law", colour=colour, linewidth=1.6)
        if not law.in_tokens:
            return


def _draw_points(drawn: Panel, points: Sequence[Transition], colour: str) -> None:
    """Draws points with their intervals; all of a kind at once, as each drawn alone takes twice the bytes."""
    seen = [p for p in points if p.informative]
    if seen:
        sizes, ends = [p.params for p in seen], [(p.low or _place(p), p.high or _place(p)) for p in seen]
        lows, highs = [low for low, _ in ends], [high for _, high in ends]
        drawn.ranges(sizes, lows, highs, series="seen", colour=colour, linewidth=1.6, alpha=1)
        drawn.axes.plot([*sizes, *sizes], [*lows, *highs], "_", color=COLOURS[colour], markersize=7)
        _marks(drawn, seen, series="seen", colour=colour, marker="o", markersize=6)
    open_ = [p for p in points if not p.informative]
    for marker in ("^", "v", "x"):
        mine = [p for p in open_ if _OPEN.get(p.status, "x") == marker]
        if mine:
            face = COLOURS["panel"]
            _marks(drawn, mine, series="censored", colour=colour, marker=marker, markersize=7, markerfacecolor=face)
    for p in open_:
        step = {RIGHT_CENSORED: 1.7, LEFT_CENSORED: 1 / 1.7}.get(p.status)
        if step:
            drawn.axes.annotate(
                "",
                (p.params, _place(p) * step),
                (p.params, _place(p)),
                arrowprops={"arrowstyle": "->", "color": COLOURS[colour], "linewidth": 1.1},
            )


_OPEN = {RIGHT_CENSORED: "^", LEFT_CENSORED: "v"}
"""Markers of censored points; others have a cross."""


def _place(point: Transition) -> float:
    place = point.value or point.low or point.high
    assert place is not None
    return place


def _marks(drawn: Panel, points: Sequence[Transition], **style: Any) -> None:
    tips = [
        f"N = {fmt.size(p.params)}, D = {fmt.size(p.tokens)}\n{fmt.finding(p)}; {fmt.STATUS_WORDS[p.status]}"
        for p in points
    ]
    drawn.points([p.params for p in points], [_place(p) for p in points], tips, zorder=4, **style)


def _caption(law: Law | None, predictions: Sequence[Prediction]) -> str:
    if law is None:
        return "Points only; they do not support a law. Bars are intervals, arrows are censored points."
    text = (
        f"Law {law.selected_law} with {percent(law.confidence)} confidence band (inner) and prediction band (outer); "
        "bars are the points’ own intervals, arrows are censored points."
    )
    budgets = {point["tokens"] for point in law.points}
    if law.in_tokens and len(budgets) > 1:
        rising = sorted(budgets, key=lambda tokens: law.at(law.range_params[1], tokens)[0])
        lines = fmt.listed([fmt.size(tokens) for tokens in rising])
        text += f" Lines, from below: D = {lines}; bands: D = {fmt.size(min(budgets))}."
    return text + (" Star: prediction for a size that was not trained." if predictions else "")
