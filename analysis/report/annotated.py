"""One model's curves with its three transitions named: how to read all the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from megatron_kis.analysis.findings.result import AnalysisResult
from megatron_kis.analysis.report import formatting as fmt
from megatron_kis.analysis.report.answer import main_slice
from megatron_kis.analysis.report.axes import DoseAxis, RatioAxis, draw_rate_axis
from megatron_kis.analysis.report.figures import Drawing, cell_label, interval_of, weights_of
from megatron_kis.analysis.report.theme import COLOURS, Panel, kind_colour, panel, to_svg
from megatron_kis.analysis.runs.curves import Curve, cells_of_table
from megatron_kis.analysis.runs.slices import RATIO, Slice
from megatron_kis.analysis.runs.transitions import Transition

_NAMED = (("onset", "infused"), ("tolerance", "general"), ("collapse", "background"))
_GROUPS = {"infused": ("new facts", "o"), "background": ("earlier knowledge", "s")}
_TOP = 1.36  # of the axis of rates: room for three names above 1


@dataclass(frozen=True)
class _Place:
    """Where doses lie on the axis of the figure."""

    at: Callable[[float, float | None], float]
    """Of a dose and its ratio."""
    draw: Callable[[Panel], None]


def annotated(result: AnalysisResult) -> Drawing | None:
    """Draws the model that shows most transitions, the largest of them; None where no curve has two doses."""
    if result.curves is None:
        return None
    one = main_slice(result)
    groups = [c for c in result.primary_curves if c.slice == one and c.group in _GROUPS and len(c.dose) > 1]
    if not groups:
        return None
    points = [p for p in result.points if p.slice == one and (p.kind, p.group) in _NAMED]

    def shows(cell: tuple[int, int]) -> tuple[int, tuple[int, int]]:
        return sum(p.informative for p in points if (p.params, p.tokens) == cell), cell

    params, tokens = max({(curve.params, curve.tokens) for curve in groups}, key=shows)
    curves = [curve for curve in groups if (curve.params, curve.tokens) == (params, tokens)]
    mine = {(p.kind, p.group): p for p in points if (p.params, p.tokens) == (params, tokens)}
    label = cell_label(params, tokens, cells_of_table(result.curves))
    alt = f"{label}: rates of new and of earlier facts, with the doses at which something changes."
    with panel(fmt.slug("annotated", one.name), alt, height=4.0) as drawn:
        place = _place(curves, one)
        draw_rate_axis(drawn, curves[0].mean_chance, result.settings.outcome)
        drawn.axes.set_ylim(-0.02, _TOP)
        for curve in curves:
            _series(drawn, result, curve, place)
        rows = [_mark(drawn, mine[key], row, result, place) for row, key in enumerate(_NAMED) if key in mine]
        place.draw(drawn)
        low = drawn.figure.subplotpars.bottom * drawn.figure.get_figheight()
        drawn.make_room(below=low + 0.3)
        drawn.figure.legend(loc="lower center", ncols=2, fontsize=10, handlelength=1.8)
        drawn.axes.set_title(f"{label}: how to read a curve")
        shown = "" if any(rows) else " None of the three transitions was seen in this model."
        bars = "Bars: intervals of the rates; bands: intervals of the transitions."
        return Drawing(to_svg(drawn), f"{bars}{shown}")


def _place(curves: list[Curve], one: Slice) -> _Place:
    """Returns the linear axis of the infusion ratio, where it is known and grows with the dose, or that of the dose."""
    curve = curves[0]
    ratios = curve.ratio.tolist()
    if one.held_by != RATIO and all(b > a for a, b in pairwise(ratios)):
        axis = RatioAxis(dict(zip(ratios, curve.dose.tolist(), strict=True)), one)
        return _Place(lambda dose, ratio: 0.0 if ratio is None else ratio, axis.draw)
    levels = DoseAxis(tuple(sorted({float(dose) for c in curves for dose in c.dose})), one)
    return _Place(lambda dose, ratio: levels.at(dose), levels.draw)


def _series(drawn: Panel, result: AnalysisResult, curve: Curve, place: _Place) -> None:
    weights = weights_of(result, curve.slice, curve.group)
    name, mark = _GROUPS[curve.group]
    x = [place.at(float(dose), float(ratio)) for dose, ratio in zip(curve.dose, curve.ratio, strict=True)]
    y = curve.rate.tolist()
    ends = [
        interval_of(rate, weights.get((curve.params, curve.tokens, float(dose))), result.settings.confidence)
        for rate, dose in zip(y, curve.dose, strict=True)
    ]
    tips = [
        f"{name} · {fmt.level(curve.slice, dose, ratio)}\nrate {rate:.3f} ({low:.2f} to {high:.2f})"
        for dose, ratio, rate, (low, high) in zip(curve.dose, curve.ratio, y, ends, strict=True)
    ]
    drawn.ranges(x, [low for low, _ in ends], [high for _, high in ends], series=curve.group, colour=curve.group)
    drawn.line(x, y, series=curve.group, colour=curve.group)
    drawn.points(x, y, tips, series=curve.group, colour=curve.group, marker=mark, label=name)


def _mark(drawn: Panel, point: Transition, row: int, result: AnalysisResult, place: _Place) -> bool:
    """Names a transition above the curves, with its interval as a band; returns whether it was seen."""
    if not point.informative or point.value is None:
        return False
    colour = COLOURS[kind_colour(point.kind, point.group)]
    at = place.at(point.value, point.infusion_ratio)
    low = place.at(point.low or 0.0, point.ratio_low if point.low else 0.0)
    high = at if point.high is None else place.at(point.high, point.ratio_high)
    top = (1.28 - 0.095 * row + 0.02) / _TOP
    drawn.axes.axvspan(low, high, ymax=top, color=colour, alpha=0.13, linewidth=0)
    drawn.axes.axvline(at, ymax=top, color=colour, linewidth=1.4)
    name = {
        "onset": "learned",
        "tolerance": f"general loss +{100 * result.settings.tolerance:g}%",
        "collapse": "earlier facts lost",
    }[point.kind]
    left, right = drawn.axes.get_xlim()
    inward = (at - left) / (right - left) > 0.5 if right > left else False
    drawn.axes.annotate(
        f"{name}: {point.slice.symbol} ≈ {fmt.frequency(point.value)}",
        (at, 1.27 - 0.095 * row),
        xytext=(-4 if inward else 4, 0),
        textcoords="offset points",
        ha="right" if inward else "left",
        va="center",
        fontsize=10,
        color=colour,
        zorder=6,
        bbox={"facecolor": COLOURS["panel"], "edgecolor": "none", "alpha": 0.8, "pad": 1},
    )
    return True
