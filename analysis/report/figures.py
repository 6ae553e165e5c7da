"""The report's figures whose series are models: curves by size, and the validation loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy

from megatron_kis.analysis.criteria.loss import loss_excess
from megatron_kis.analysis.findings.result import AnalysisResult
from megatron_kis.analysis.law.looks import percent
from megatron_kis.analysis.report import formatting as fmt
from megatron_kis.analysis.report.axes import axis_of, draw_rate_axis, ratio_axis, ratios_of
from megatron_kis.analysis.report.extent import drawn_cells, omission, rows_of_cells
from megatron_kis.analysis.report.theme import COLOURS, SIZE_MARKERS, panel, size_slot, to_svg
from megatron_kis.analysis.runs.curves import Array, Curve, cells_of_table, curves, mean_curves, primary_rows, rows_of
from megatron_kis.analysis.runs.groups import retained_groups, strength
from megatron_kis.analysis.runs.slices import RATIO, Slice, rows_of_slice


@dataclass(frozen=True)
class Drawing:
    """A figure of the report."""

    svg: str
    caption: str
    strength: bool = False
    """Whether it is about background facts of one of several strengths, which the page shows on demand."""


@dataclass(frozen=True)
class Key:
    """An entry of a section's legend, which switches a series on and off."""

    series: str
    label: str
    colour: str
    mark: str


def cell_label(params: int, tokens: int, cells: Sequence[tuple[int, int]]) -> str:
    """Returns a model's name in the report: its size, and its token budget if the study has several."""
    return f"N = {fmt.size(params)}" + (f", D = {fmt.size(tokens)}" if len({d for _, d in cells}) > 1 else "")


def size_keys(table: pd.DataFrame) -> list[Key]:
    """Returns the legend of figures whose series are models: those that are drawn."""
    cells, drawn = cells_of_table(table), drawn_cells(table)
    return [
        Key(
            f"cell-{i}",
            cell_label(n, d, cells),
            f"size-{size_slot(i, len(drawn))}",
            SIZE_MARKERS[i % len(SIZE_MARKERS)],
        )
        for i, (n, d) in enumerate(drawn)
    ]


def overview(result: AnalysisResult) -> list[Drawing]:
    """Draws the primary split of each slice: one line per model, infused and background facts side by side.

    Each against the dose on a logarithmic axis, and then, where it varies, against the infusion ratio on a linear one.
    """
    assert result.curves is not None
    cells, settings = drawn_cells(result.curves), result.settings
    drawings = []
    for one in result.slices:
        table = rows_of_cells(rows_of_slice(result.curves, one), cells)
        means = mean_curves(primary_rows(table, settings))
        groups = [group for group in retained_groups(means["group"]) if (means["group"] == group).any()]
        drawings += [_rates(result, table, means, one, group) for group in groups]
        shown = [group for group in groups if strength(group) is None]
        if one.held_by != RATIO and (means["infusion_ratio"] > 0).any():
            drawings += [_rates(result, table, means, one, group, over_ratio=True) for group in shown]
    return drawings


def _rates(
    result: AnalysisResult,
    table: pd.DataFrame,
    means: pd.DataFrame,
    one: Slice,
    group: str,
    *,
    over_ratio: bool = False,
) -> Drawing:
    """Draws the rates of a group of facts, one line per model, with the intervals of its points."""
    assert result.curves is not None
    keys, cells, settings = size_keys(result.curves), drawn_cells(result.curves), result.settings
    mine = means[means["group"] == group]
    title = fmt.group_title(group, one)
    against = "infusion ratio" if over_ratio else fmt.dose_name(one)
    alt = f"{title} against the {against}, one line per model, {fmt.SPLIT_TITLES[settings.split]}."
    weights = weights_of(result, one, group)
    with panel(fmt.slug("overview", group, one.name, "ratio" if over_ratio else ""), alt) as drawn:
        axis, linear = axis_of(table, one), ratio_axis(table, one)
        draw_rate_axis(drawn, float(mine["chance"].mean()), settings.outcome)
        for key, cell in zip(keys, cells, strict=True):
            rows = mine[(mine["params"] == cell[0]) & (mine["tokens"] == cell[1])]
            if over_ratio:
                rows = rows.dropna(subset=["infusion_ratio"])
            if rows.empty:
                continue
            x = [r.infusion_ratio if over_ratio else axis.at(r.dose) for r in rows_of(rows)]
            y = rows["rate"].tolist()
            ends = [interval_of(r.rate, weights.get((*cell, r.dose)), settings.confidence) for r in rows_of(rows)]
            tips = [
                f"{key.label} · {fmt.level(one, r.dose, r.infusion_ratio)}\nrate {r.rate:.3f}"
                + (f" (seeds {r.lowest:.3f} to {r.highest:.3f})" if r.seeds > 1 else " (1 seed)")
                + (f"\n{percent(settings.confidence)} interval {fmt.rate(ends[i][0])} to {fmt.rate(ends[i][1])}")
                for i, r in enumerate(rows_of(rows))
            ]
            drawn.ranges(x, [low for low, _ in ends], [high for _, high in ends], series=key.series, colour=key.colour)
            drawn.line(x, y, series=key.series, colour=key.colour)
            drawn.points(x, y, tips, series=key.series, colour=key.colour, marker=key.mark, label=key.label)
        if over_ratio:
            linear.draw(drawn)
        else:
            axis.draw(drawn, ratios_of(table, one))
        drawn.axes.set_title(title)
        over = " over the share of the tokens" if over_ratio else ""
        bars = f"bars: {percent(settings.confidence)} intervals"
        caption = f"{title}{over}, {fmt.SPLIT_TITLES[settings.split]}, {_mean_of(mine)}; {bars}."
        caption += omission(result.curves)
        return Drawing(to_svg(drawn), caption, strength(group) is not None)


def _mean_of(rows: pd.DataFrame) -> str:
    return "mean of seeds" if len(rows) and rows["seeds"].max() > 1 else "one seed"


def weights_of(result: AnalysisResult, one: Slice, group: str) -> dict[tuple[int, int, float], float]:
    """Returns the effective number of independent facts of each level of the primary curves: by N, D and dose."""
    found = {}
    for curve in result.primary_curves:
        if curve.slice == one and curve.group == group and curve.dispersion is not None:
            effective = curve.dispersion.effective(curve.facts, curve.runs)
            for dose, weight in zip(curve.dose, effective, strict=True):
                found[curve.params, curve.tokens, float(dose)] = float(weight)
    return found


def interval_of(rate: float, weight: float | None, confidence: float) -> tuple[float, float]:
    """Returns Wilson's interval of a rate of ``weight`` independent facts; the rate alone where that is not known."""
    if weight is None or weight <= 0:
        return rate, rate
    z = float(scipy.special.ndtri(0.5 + confidence / 2))
    middle = (rate + z * z / (2 * weight)) / (1 + z * z / weight)
    half = z / (1 + z * z / weight) * math.sqrt(rate * (1 - rate) / weight + (z / (2 * weight)) ** 2)
    return max(min(middle - half, rate), 0.0), min(max(middle + half, rate), 1.0)


def losses(result: AnalysisResult) -> list[Drawing]:
    """Draws the validation loss against the dose, absolute and relative to dose 0 with the tolerance."""
    assert result.curves is not None
    if result.curves["validation_loss"].isna().all():
        return []
    return [drawing for one in result.slices for drawing in _slice_losses(result, one)]


def _slice_losses(result: AnalysisResult, one: Slice) -> list[Drawing]:
    assert result.curves is not None
    keys, cells, settings = size_keys(result.curves), drawn_cells(result.curves), result.settings
    table = rows_of_cells(rows_of_slice(result.curves, one), cells)
    axis = axis_of(table, one)
    by_cell: dict[tuple[int, int], Curve] = {}
    for curve in curves(table, [one]):
        by_cell.setdefault((curve.params, curve.tokens), curve)
    base = f"{one.symbol} = 0"
    drawings = []
    absolute = ("absolute", "Validation loss on general text", "nats per token", False)
    excess = ("relative", f"Validation loss relative to {base}", f"excess over {base} (%)")
    views = [absolute, (*excess, False)]
    if one.held_by != RATIO and (table["infusion_ratio"] > 0).any():
        views.append((*excess, True))
    for view, name, unit, over_ratio in views:
        title = name + fmt.along(one)
        alt = f"{title} against the {'infusion ratio' if over_ratio else fmt.dose_name(one)}, one line per model."
        with panel(fmt.slug("loss", view, one.name, "ratio" if over_ratio else ""), alt) as drawn:
            shown = 0
            for key, cell in zip(keys, cells, strict=True):
                if cell not in by_cell:
                    continue
                curve = by_cell[cell]
                values = curve.loss if view == "absolute" else 100 * loss_excess(curve)
                known = np.isfinite(values) & (np.isfinite(curve.ratio) | (not over_ratio))
                if not known.any():
                    continue
                shown += 1
                x = curve.ratio[known].tolist() if over_ratio else [axis.at(f) for f in curve.dose[known]]
                tips = [
                    f"{key.label} · {fmt.level(one, f, r)}\n"
                    + (f"loss {v:.3f} nats per token" if view == "absolute" else f"{v:+.2f}% over {base}")
                    for f, r, v in zip(curve.dose[known], curve.ratio[known], values[known], strict=True)
                ]
                low, high = _seed_range(curve, relative=view == "relative")
                drawn.ranges(x, low[known].tolist(), high[known].tolist(), series=key.series, colour=key.colour)
                drawn.line(x, values[known].tolist(), series=key.series, colour=key.colour)
                drawn.points(
                    x,
                    values[known].tolist(),
                    tips,
                    series=key.series,
                    colour=key.colour,
                    marker=key.mark,
                    label=key.label,
                )
            if not shown:
                continue
            if over_ratio:
                ratio_axis(table, one).draw(drawn)
            else:
                axis.draw(drawn, ratios_of(table, one))
            drawn.axes.set_ylabel(unit)
            drawn.axes.set_title(title)
            over = ", over the share of the tokens" if over_ratio else ""
            several = any(curve.seeds > 1 for curve in by_cell.values())
            seeds = "mean and range of seeds" if several else "one seed"
            caption = f"{title}, {seeds}{over}.{omission(result.curves)}"
            if view == "relative":
                drawn.axes.axhline(
                    100 * settings.tolerance, color=COLOURS["tolerance"], linewidth=1.2, linestyle=(0, (4, 3))
                )
                caption += f" Dashed: the tolerance of {100 * settings.tolerance:g}%."
            drawings.append(Drawing(to_svg(drawn), caption))
    return drawings


def _seed_range(curve: Curve, *, relative: bool) -> tuple[Array, Array]:
    """Returns the lowest and the highest loss of each level's seeds [L], relative ones in % over dose 0's mean."""
    low = np.array([min(losses.values(), default=math.nan) for losses in curve.seed_losses])
    high = np.array([max(losses.values(), default=math.nan) for losses in curve.seed_losses])
    if not relative:
        return low, high
    base = float(curve.loss[0]) if curve.dose[0] == 0 else math.nan
    return 100 * (low / base - 1), 100 * (high / base - 1)
