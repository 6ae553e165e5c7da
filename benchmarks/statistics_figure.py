"""The picture of docs/statistics.md: one simulated study, its points, and its law.

    python -m benchmarks.statistics_figure     # writes docs/statistics.png and docs/statistics-narrow.png

Left, one model: infused and background facts against F, with the onset, the collapse and the loss tolerance that are
read off. Right, the law over six sizes with the intervals of a new model, if the law is straight and if it may bend.
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.page_figures import write
from megatron_kis.analysis.criteria import find_transitions
from megatron_kis.analysis.findings.analyse import fit_laws
from megatron_kis.analysis.law.law import Law
from megatron_kis.analysis.law.predict import predict
from megatron_kis.analysis.report.theme import COLOURS
from megatron_kis.analysis.runs.curves import Curve, curves
from megatron_kis.analysis.runs.transitions import Transition
from megatron_kis.analysis.simulate import Truth, simulate_table
from megatron_kis.config.analysis import AnalysisConfig

TOKENS = 20_000_000_000
SIZES = [round(n) for n in np.geomspace(25e6, 3.2e9, 6)]
TARGET = 32_000_000_000
SETTINGS = AnalysisConfig(law="N")


def draw_model(axes: Axes, mine: list[Curve], points: list[Transition]) -> None:
    """Draws the curves of one model and the points that are read off."""
    for curve in mine:
        colour = COLOURS[curve.group]
        axes.plot(curve.dose, curve.rate, "o-", ms=4, lw=1.4, color=colour)
        end = (curve.dose[-1] * 1.3, curve.rate[-1])
        axes.annotate(f"{curve.group}\nfacts", end, color=colour, fontsize=8.5, va="bottom")
    axes.axhline(mine[0].assumed_chance, color=COLOURS["muted"], lw=0.8, ls=":")
    axes.text(2, mine[0].assumed_chance - 0.05, "chance", color=COLOURS["muted"], fontsize=8)
    words = {
        "onset": "onset: half of the\nplateau is learned",
        "collapse": "collapse: a tenth of\nwhat was known is lost",
        "tolerance": "loss 5% above\nthat of F = 0",
    }
    for point in points:
        if point.value is None or (point.kind == "collapse" and point.group != "background"):
            continue
        colour = COLOURS[{"onset": "infused", "collapse": "background", "tolerance": "tolerance"}[point.kind]]
        axes.axvline(point.value, color=colour, lw=1.0, ls="--")
        axes.axvspan(point.low or point.value, point.high or point.value, color=colour, alpha=0.15, lw=0)
        side, align = (1.08, "left") if point.kind == "collapse" else (0.92, "right")
        axes.text(point.value * side, 1.2, words[point.kind], color=colour, fontsize=8, ha=align, va="top")
    axes.set_xscale("symlog", linthresh=20)
    axes.set_xlim(0, max(curve.dose.max() for curve in mine) * 12)
    axes.set_ylim(0.15, 1.22)
    axes.set_yticks(np.arange(0.2, 1.01, 0.2))
    axes.set_xlabel("F, exposures of each infused fact")
    axes.set_ylabel("share answered right")
    axes.set_title("Points of one model", fontsize=10)


def draw_law(axes: Axes, points: list[Transition], law: Law) -> None:
    """Draws the points over sizes, the law, and the intervals of a new model."""
    colour = COLOURS["background"]
    for point in points:
        if point.value and point.low and point.high:
            axes.plot([point.params] * 2, [point.low, point.high], color=colour, lw=1.2)
            axes.plot(point.params, point.value, "o", ms=5, color=colour)
    sizes = np.geomspace(SIZES[0] / 1.5, TARGET * 1.5, 40)
    told = [predict(law, float(n), TOKENS) for n in sizes]
    axes.plot(sizes, [p.centre for p in told], color=colour, lw=1.5, label="law")
    low, high = np.array([p.prediction_interval for p in told]).T
    axes.fill_between(sizes, low, high, color=colour, alpha=0.12, lw=0, label="new model, the law may bend")
    low, high = np.array([p.straight_interval or p.prediction_interval for p in told]).T
    axes.fill_between(sizes, low, high, color=colour, alpha=0.2, lw=0, label="new model, the law is straight")
    axes.axvline(TARGET, color=COLOURS["muted"], lw=0.8, ls=":")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("N, parameters")
    axes.set_ylabel("F* of the collapse")
    axes.set_title("The law, and two intervals", fontsize=10)
    axes.legend(fontsize=8, loc="upper left", frameon=False)


def main() -> None:
    """Writes the picture."""
    truth = Truth(size_exponent=0.3, facts=200, steepness=4.0)
    cells = [(n, TOKENS) for n in SIZES]
    grid = [0.0, *np.geomspace(8, 2600, 10).round()]
    groups = ("infused", "background")
    table, _ = simulate_table(truth, cells, grid, 3, np.random.default_rng(4), groups=groups)
    points = find_transitions(table, SETTINGS)
    laws, _ = fit_laws(points, SETTINGS, table)
    law = next(law for law in laws if (law.kind, law.group) == ("collapse", "background"))
    model = SIZES[2]

    def draw(figure: Figure, narrow: bool) -> None:
        left, right = figure.subplots(2, 1) if narrow else figure.subplots(1, 2)
        draw_model(left, [c for c in curves(table) if c.params == model], [p for p in points if p.params == model])
        draw_law(right, [p for p in points if (p.kind, p.group) == ("collapse", "background")], law)

    write("statistics", draw, wide=(11, 4.3), narrow=(4.4, 7.4))


if __name__ == "__main__":
    main()
