"""The report's figures whose series are models: curves by size, and the validation loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from megatron_kis.analysis.criteria.loss import loss_excess
from megatron_kis.analysis.findings.result import AnalysisResult
from megatron_kis.analysis.report import formatting as fmt
from megatron_kis.analysis.report.axes import axis_of, draw_rate_axis, ratios_of
from megatron_kis.analysis.report.extent import drawn_cells, omission, rows_of_cells
from megatron_kis.analysis.report.theme import COLOURS, SIZE_MARKERS, panel, size_slot, to_svg
from megatron_kis.analysis.runs.curves import Curve, cells_of_table, curves, mean_curves, primary_rows, rows_of
from megatron_kis.analysis.runs.groups import retained_groups, strength
from megatron_kis.analysis.runs.slices import Slice, rows_of_slice


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
    """Draws the primary split of each slice: one line per model, infused and background facts side by side."""
    assert result.curves is not None
    keys, cells = size_keys(result.curves), drawn_cells(result.curves)
    settings = result.settings
    drawings = []
    for one in result.slices:
        table = rows_of_cells(rows_of_slice(result.curves, one), cells)
        means = mean_curves(primary_rows(table, settings))
        for group in retained_groups(means["group"]):
            mine = means[means["group"] == group]
            if mine.empty:
                continue
            title = fmt.group_title(group, one)
            alt = f"{title} against the {fmt.dose_name(one)}, one line per model, {fmt.SPLIT_TITLES[settings.split]}."
            with panel(fmt.slug("overview", group, one.name), alt) as drawn:
                axis = axis_of(table, one)
                draw_rate_axis(drawn, float(mine["chance"].mean()), settings.outcome)
                for key, (n, d) in zip(keys, cells, strict=True):
                    rows = mine[(mine["params"] == n) & (mine["tokens"] == d)]
                    if rows.empty:
                        continue
                    x, y = [axis.at(f) for f in rows["dose"]], rows["rate"].tolist()
                    drawn.line(x, y, series=key.series, colour=key.colour)
                    tips = [
                        f"{key.label} · {fmt.level(one, r.dose, r.infusion_ratio)}\nrate {r.rate:.3f}"
                        + (f" (seeds {r.lowest:.3f} to {r.highest:.3f})" if r.seeds > 1 else " (1 seed)")
                        for r in rows_of(rows)
                    ]
                    drawn.points(x, y, tips, series=key.series, colour=key.colour, marker=key.mark, label=key.label)
                axis.draw(drawn, ratios_of(table, one))
                drawn.axes.set_title(title)
                caption = f"{title}, {fmt.SPLIT_TITLES[settings.split]}, mean of seeds.{omission(result.curves)}"
                drawings.append(Drawing(to_svg(drawn), caption, strength(group) is not None))
    return drawings


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
    views = (
        ("absolute", "Validation loss on general text", "nats per token"),
        ("relative", f"Validation loss relative to {base}", f"excess over {base} (%)"),
    )
    for view, name, unit in views:
        title = name + fmt.along(one)
        alt = f"{title} against the {fmt.dose_name(one)}, one line per model."
        with panel(fmt.slug("loss", view, one.name), alt) as drawn:
            shown = 0
            for key, cell in zip(keys, cells, strict=True):
                if cell not in by_cell:
                    continue
                curve = by_cell[cell]
                values = curve.loss if view == "absolute" else 100 * loss_excess(curve)
                known = np.isfinite(values)
                if not known.any():
                    continue
                shown += 1
                x = [axis.at(f) for f in curve.dose[known]]
                tips = [
                    f"{key.label} · {fmt.level(one, f, r)}\n"
                    + (f"loss {v:.3f} nats per token" if view == "absolute" else f"{v:+.2f}% over {base}")
                    for f, r, v in zip(curve.dose[known], curve.ratio[known], values[known], strict=True)
                ]
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
            axis.draw(drawn, ratios_of(table, one))
            drawn.axes.set_ylabel(unit)
            drawn.axes.set_title(title)
            caption = f"{title}, mean of seeds.{omission(result.curves)}"
            if view == "relative":
                drawn.axes.axhline(
                    100 * settings.tolerance, color=COLOURS["tolerance"], linewidth=1.2, linestyle=(0, (4, 3))
                )
                caption += f" Dashed: the tolerance of {100 * settings.tolerance:g}%."
            drawings.append(Drawing(to_svg(drawn), caption))
    return drawings
