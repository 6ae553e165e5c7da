"""The picture of the README: what models lose as more facts are infused, and the law of where they do.

    python -m benchmarks.cliff_figure     # writes docs/cliff.png and docs/cliff-narrow.png

From the committed results of docs/study/amount.md. Left, background facts that are answered right against the number of
infused facts K at half of the tokens, for four of the eight sizes. Right, the point K* of all eight, with the law of
the six smaller ones and the predictions that were registered before the two larger ones were trained.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.page_figures import DOCS, write
from megatron_kis.analysis.law.law_file import load_laws
from megatron_kis.analysis.law.predict import predict
from megatron_kis.analysis.law.prediction import load_predictions
from megatron_kis.analysis.report import formatting as fmt
from megatron_kis.analysis.report.theme import COLOURS
from megatron_kis.analysis.runs.curves import mean_curves
from megatron_kis.analysis.runs.load_csv import load_curves_csv, load_points_csv
from megatron_kis.analysis.runs.slices import FACTS, RATIO, Slice, rows_of_slice

RESULTS = DOCS / "study" / "results"
HALF = Slice(FACTS, RATIO, 0.5)
SHOWN = (9_660, 26_232, 80_112, 362_544)
SHADES = ("#9ec9e8", "#5aa0d2", "#2a6fac", "#123d6b")


def draw_curves(axes: Axes, table: pd.DataFrame) -> None:
    """Draws retention against K, each size with its point."""
    means = mean_curves(rows_of_slice(table, HALF))
    for params, shade in zip(SHOWN, SHADES, strict=True):
        curve = means[means["params"] == params].sort_values("dose")
        axes.plot(curve["dose"].clip(lower=12), curve["rate"], "o-", ms=4, lw=1.8, color=shade)
        last = curve.iloc[-1]
        axes.annotate(
            f"N = {fmt.size(params)}",
            (last["dose"], last["rate"]),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=shade,
        )
    axes.axhline(0.25, color=COLOURS["muted"], lw=0.8, ls=":")
    axes.text(11, 0.205, "chance", color=COLOURS["muted"], fontsize=8)
    axes.set_xscale("log")
    axes.set_xlim(10, 60_000)
    axes.set_ylim(0.15, 1.05)
    axes.set_xticks([12, 50, 200, 800, 3_200, 12_000], ["0", "50", "200", "800", "3,200", "12,000"], fontsize=8.5)
    axes.minorticks_off()
    axes.set_xlabel("K, infused facts that share half of the tokens")
    axes.set_ylabel("earlier knowledge answered right")
    axes.set_title("Memory collapses, later in larger models", fontsize=10, loc="left")


def draw_law(axes: Axes) -> None:
    """Draws the points over sizes, the law, and the registered predictions."""
    colour = COLOURS["ink"]
    law = next(
        law
        for law in load_laws(RESULTS / "amount" / "law.json")
        if (law.kind, law.group, law.slice) == ("collapse", "background", HALF)
    )
    slope = law.coefficients["b_log_params"]
    exponent = slope.value if slope else 0.0
    sizes = np.geomspace(7_000, 600_000, 60)
    told = [predict(law, float(n)) for n in sizes]
    axes.plot(sizes, [p.centre for p in told], color=colour, lw=1.4, label=f"law of six sizes: K* ∝ N^{exponent:.2f}")
    registered = [
        p
        for p in load_predictions(RESULTS / "amount" / "prediction.json")
        if (p["kind"], p["group"], p.get("axis"), p.get("held_by")) == ("collapse", "background", FACTS, RATIO)
    ]
    for index, one in enumerate(registered):
        low, high = one["prediction_interval"]
        label = "registered before training, 95%" if index == 0 else None
        axes.plot([one["params"]] * 2, [low, high], color=COLOURS["background"], lw=7, alpha=0.25, label=label)
    points = [
        p
        for name in ("amount", "amount_large")
        for p in load_points_csv(RESULTS / name / "points.csv")
        if (p.kind, p.group, p.slice) == ("collapse", "background", HALF) and p.value
    ]
    for index, point in enumerate(points):
        axes.plot([point.params] * 2, [point.low or 0, point.high or 0], color=colour, lw=1)
        axes.plot(point.params, point.value or 0, "o", ms=5, color=colour, label="measured" if index == 0 else None)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks([10_000, 100_000, 500_000], ["10k", "100k", "500k"])
    axes.set_yticks([100, 1_000, 10_000], ["100", "1,000", "10,000"])
    axes.minorticks_off()
    axes.set_xlabel("N, parameters")
    axes.set_ylabel("K*, facts at which memory collapses")
    axes.set_title("The law, and its test", fontsize=10, loc="left")
    axes.legend(fontsize=8, frameon=False, loc="upper left")


def draw(table: pd.DataFrame, figure: Figure, narrow: bool) -> None:
    """Draws both panels."""
    left, right = figure.subplots(2, 1) if narrow else figure.subplots(1, 2, width_ratios=(1.35, 1))
    draw_curves(left, table)
    draw_law(right)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)


def main() -> None:
    """Draws and writes."""
    table = pd.concat([load_curves_csv(RESULTS / name / "curves.csv") for name in ("amount", "amount_large")])
    mine = (table["group"] == "background") & (table["split"] == "train") & (table["scoring"] == "statement")
    write("cliff", partial(draw, table[mine]), wide=(11, 4), narrow=(4.4, 7.4))


if __name__ == "__main__":
    main()
