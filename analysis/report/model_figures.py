"""The report's figures of one model each: its curves with their transitions, and the spread of its templates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from megatron_kis.analysis.findings.result import AnalysisResult
from megatron_kis.analysis.report import formatting as fmt
from megatron_kis.analysis.report.axes import DoseAxis, axis_of, draw_rate_axis, ratios_of
from megatron_kis.analysis.report.extent import MOST_MARKS
from megatron_kis.analysis.report.figures import Drawing, Key, cell_label, interval_of, weights_of
from megatron_kis.analysis.report.theme import (
    COLOURS,
    DASHES,
    MARKERS,
    SIZE_MARKERS,
    Panel,
    kind_colour,
    panel,
    size_slot,
    to_svg,
)
from megatron_kis.analysis.runs.curves import Array, Curve, cells_of_table, mean_curves, rows_of, with_outcome
from megatron_kis.analysis.runs.groups import group_key, retained_groups, strength
from megatron_kis.analysis.runs.slices import Slice, rows_of_slice
from megatron_kis.analysis.runs.transitions import COLLAPSED, LEFT_CENSORED, OBSERVED, RIGHT_CENSORED, Transition
from megatron_kis.common.units import plural
from megatron_kis.config.analysis import AnalysisConfig


def split_keys(table: pd.DataFrame) -> list[Key]:
    """Returns the legend of figures whose series are template splits."""
    there = [split for split in ("train", "held_out", "question") if (table["split"] == split).any()]
    keys = [Key(split, fmt.SPLIT_TITLES[split], split, MARKERS[split]) for split in there]
    if (table["group"] == "control").any():
        keys.append(Key("control", "control facts", "control", MARKERS["control"]))
    return keys


def strength_keys(table: pd.DataFrame) -> list[Key]:
    """Returns the legend of figures whose series are background facts of different strengths; empty without any."""
    groups = sorted({group for group in table["group"].unique() if strength(group) is not None}, key=group_key)
    return [
        Key(
            f"strength-{i}",
            f"background, {fmt.strength_title(group)}",
            f"size-{size_slot(i, len(groups))}",
            SIZE_MARKERS[i % len(SIZE_MARKERS)],
        )
        for i, group in enumerate(groups)
    ]


def model_curves(result: AnalysisResult, params: int, tokens: int) -> list[Drawing]:
    """Draws one model: every split, seeds as faint points, brackets as bands, control facts in grey.

    Background facts of several strengths are in one figure, on the primary split.
    """
    assert result.curves is not None
    table, settings = result.curves, result.settings
    table = table[(table["params"] == params) & (table["tokens"] == tokens) & (table["scoring"] == settings.scoring)]
    table = with_outcome(table, settings)
    label = cell_label(params, tokens, cells_of_table(result.curves))
    return [
        drawing
        for one in result.slices
        for drawing in _slice_curves(result, rows_of_slice(table, one), one, (params, tokens), label)
    ]


def _slice_curves(
    result: AnalysisResult, table: pd.DataFrame, one: Slice, cell: tuple[int, int], label: str
) -> list[Drawing]:
    """Draws one model's curves of a slice."""
    settings = result.settings
    series = mean_curves(table)
    drawings = []
    for group in retained_groups(table["group"]):
        mine = table[table["group"] == group]
        if mine.empty or strength(group) is not None:
            continue
        means = series[series["group"] == group]
        title = fmt.group_title(group, one)
        alt = f"{label}: {title.lower()} against the {fmt.dose_name(one)} by template split, with controls."
        with panel(fmt.slug("model", str(cell[0]), str(cell[1]), group, one.name), alt) as drawn:
            axis = axis_of(table, one)
            chance = mine["chance"].dropna()
            draw_rate_axis(drawn, float(chance.mean()) if len(chance) else None, settings.outcome)
            control = table[(table["group"] == "control") & (table["split"] == settings.split)]
            if len(control):
                controls = series[(series["group"] == "control") & (series["split"] == settings.split)]
                _split_series(drawn, axis, control, controls, "control")
            for split in ("question", "train", "held_out"):
                if split in set(mine["split"]):
                    own = means[means["split"] == split]
                    if split == settings.split:
                        _intervals(drawn, axis, result, own, (*cell, one, group))
                    _split_series(drawn, axis, mine[mine["split"] == split], own, split)
            axis.draw(drawn, ratios_of(table, one))
            notes = [
                _band(drawn, axis, point)
                for point in result.points
                if (*point.cell, point.group) == (*cell, one, group)
            ]
            _fitted_line(drawn, axis, result, mine[mine["split"] == settings.split], notes)
            drawn.axes.set_title(title)
            caption = f"{label}. {' '.join(note for note in notes if note)}".strip()
            drawings.append(Drawing(to_svg(drawn), caption))
    keys = strength_keys(result.curves) if result.curves is not None else []
    shown = series[(series["split"] == settings.split) & series["group"].map(lambda group: strength(group) is not None)]
    if len(shown):
        drawings.append(_strengths(result, shown, one, cell, label, keys))
    return drawings


def _strengths(
    result: AnalysisResult,
    series: pd.DataFrame,
    one: Slice,
    cell: tuple[int, int],
    label: str,
    keys: Sequence[Key],
) -> Drawing:
    """Draws the ``series`` of one model's background facts, one line per strength."""
    assert result.curves is not None
    groups = sorted({group for group in result.curves["group"] if strength(group) is not None}, key=group_key)
    title = f"Background facts by exposures{fmt.along(one)}"
    alt = f"{label}: retention against the {fmt.dose_name(one)}, one line per number of exposures of a background fact."
    with panel(fmt.slug("model", str(cell[0]), str(cell[1]), "strengths", one.name), alt) as drawn:
        axis = axis_of(series, one)
        chance = series["chance"].dropna()
        draw_rate_axis(drawn, float(chance.mean()) if len(chance) else None, result.settings.outcome)
        notes = []
        for key, group in zip(keys, groups, strict=True):
            rows = series[series["group"] == group]
            if rows.empty:
                continue
            x, y = [axis.at(f) for f in rows["dose"]], rows["rate"].tolist()
            tips = [
                f"{key.label} · {fmt.level(one, r.dose, r.infusion_ratio)}\nrate {r.rate:.3f}" for r in rows_of(rows)
            ]
            drawn.line(x, y, series=key.series, colour=key.colour)
            drawn.points(x, y, tips, series=key.series, colour=key.colour, marker=key.mark, label=key.label)
            notes += [
                f"{fmt.strength_title(group)}: {fmt.finding(point)}"
                for point in result.points
                if (*point.cell, point.group, point.kind) == (*cell, one, group, "collapse")
            ]
        axis.draw(drawn, ratios_of(series, one))
        drawn.axes.set_title(title)
        caption = f"{label}, {fmt.SPLIT_TITLES[result.settings.split]}, mean of seeds."
        return Drawing(to_svg(drawn), caption + (f" Collapse: {'; '.join(notes)}." if notes else ""))


def _fitted_line(drawn: Panel, axis: DoseAxis, result: AnalysisResult, rows: pd.DataFrame, notes: list[str]) -> None:
    """Draws the fitted plateau and fall where a collapse was found."""
    settings = result.settings
    if settings.criterion not in _FITTED or rows.empty:
        return
    first = rows.iloc[0]
    key = int(first["params"]), int(first["tokens"]), axis.slice, str(first["group"])
    if not any(p.kind == "collapse" and p.informative and (*p.cell, p.group) == key for p in result.points):
        return
    curve = next(c for c in result.primary_curves if (*c.cell, c.group) == key)
    levels, rates = _FITTED[settings.criterion](curve, settings)
    drawn.line(
        [axis.at(f) for f in levels],
        rates.tolist(),
        series="fitted",
        colour="ink",
        linewidth=1.3,
        linestyle=(0, (6, 2)),
        label="fitted plateau and fall",
    )
    notes.append("Dashed: the fitted plateau and fall.")


def _hinge(curve: Curve, settings: AnalysisConfig) -> tuple[Array, Array]:
    from megatron_kis.analysis.criteria.hinge import fit_curve
    from megatron_kis.analysis.criteria.hinge_fit import plateau_and_fall

    fits = fit_curve(curve, settings)
    start = max(float(curve.dose[int(fits.kappa[0])]), float(curve.dose[curve.dose > 0][0]))
    levels = np.geomspace(start, float(curve.dose[-1]), 80)
    rates = plateau_and_fall(np.log(levels), fits.tau, fits.plateau, fits.gamma, fits.chance, fits.power)
    return levels, np.asarray(rates[0])


def _retention(curve: Curve, settings: AnalysisConfig) -> tuple[Array, Array]:
    from megatron_kis.analysis.criteria.decline import fitted
    from megatron_kis.analysis.criteria.retention import collapse_card

    start = max(float(curve.dose[int(curve.rate.argmax())]), float(curve.dose[curve.dose > 0][0]))
    levels = np.geomspace(start, float(curve.dose[-1]), 80)
    card = collapse_card(curve, settings)
    return levels, fitted(card, np.log(levels), curve.assumed_chance, settings.r)


_FITTED = {"hinge": _hinge, "retention": _retention}
"""Fitted curves by criterion: doses and rates."""


def _split_series(drawn: Panel, axis: DoseAxis, rows: pd.DataFrame, means: pd.DataFrame, name: str) -> None:
    """Draws the ``means`` of a series' runs, and the ``rows`` of single seeds where there are several.

    Of more than `MOST_MARKS` runs, a line per level from the lowest to the highest.
    """
    x = [axis.at(f) for f in means["dose"]]
    faint = name == "control"
    drawn.line(
        x, means["rate"].tolist(), series=name, colour=name, linestyle=DASHES[name], linewidth=1.2 if faint else 1.9
    )
    label = "control facts" if faint else fmt.SPLIT_TITLES[name]
    several, many = int(means["seeds"].max()) > 1, len(rows) > MOST_MARKS
    if several and many:
        drawn.ranges(x, means["lowest"].tolist(), means["highest"].tolist(), series=name, colour=name)
    elif several:
        single = rows.sort_values(["dose", "seed"])
        rates = (single["correct"] / single["n"]).tolist()
        tips = [
            f"{label} · {axis.slice.symbol} = {r.dose:g} · seed {r.seed}\n{r.correct:g} of {r.n} right"
            for r in rows_of(single)
        ]
        places = [axis.at(f) for f in single["dose"]]
        drawn.points(places, rates, tips, series=name, colour=name, marker="o", markersize=2.6, alpha=0.55)
    tips = [
        f"{label} · {fmt.level(axis.slice, r.dose, r.infusion_ratio)}\nrate {r.rate:.3f}, {plural(r.seeds, 'seed')}"
        + (f" ({r.lowest:.3f} to {r.highest:.3f})" if several and many else "")
        for r in rows_of(means)
    ]
    drawn.points(
        x,
        means["rate"].tolist(),
        tips,
        series=name,
        colour=name,
        marker=MARKERS[name],
        markersize=4 if faint else 5,
        label=label,
    )


def _intervals(
    drawn: Panel, axis: DoseAxis, result: AnalysisResult, means: pd.DataFrame, key: tuple[int, int, Slice, str]
) -> None:
    """Draws the intervals of the ``means`` of the primary split of one curve, by N, D, slice and group."""
    params, tokens, one, group = key
    weights, level = weights_of(result, one, group), result.settings.confidence
    ends = [interval_of(r.rate, weights.get((params, tokens, r.dose)), level) for r in rows_of(means)]
    split = result.settings.split
    x = [axis.at(dose) for dose in means["dose"]]
    drawn.ranges(x, [low for low, _ in ends], [high for _, high in ends], series=split, colour=split)


def _band(drawn: Panel, axis: DoseAxis, point: Transition) -> str:
    """Shades a transition's interval, or marks its open side; returns the sentence for the caption."""
    colour = COLOURS[kind_colour(point.kind, point.group)]
    axes, word = drawn.axes, point.kind
    title, symbol = fmt.kind_title(point.kind, point.group), point.slice.symbol
    if point.status in (COLLAPSED, OBSERVED):
        low, high = axis.at(point.low or 0), axis.at(point.high or 0)
        axes.axvspan(low, high, color=colour, alpha=0.13, linewidth=0)
        assert point.value is not None
        axes.axvline(axis.at(point.value), color=colour, linewidth=1.2)
        place = axis.at(point.value)
        left, right = axes.get_xlim()
        inward = place > left + 0.8 * (right - left)  # the word would leave the axes
        axes.annotate(
            word,
            (place, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(-3 if inward else 3, -8),
            textcoords="offset points",
            ha="right" if inward else "left",
            fontsize=10,
            color=colour,
        )
        return f"{title}: {symbol} ≈ {fmt.frequency(point.value)}, interval {fmt.bracket(point)}."
    if point.status == LEFT_CENSORED:
        axes.axvspan(axis.at(0), axis.at(point.high or 0), color=colour, alpha=0.10, linewidth=0, hatch="//")
        return f"{title}: at or before {symbol} = {fmt.frequency(point.high)}."
    if point.status == RIGHT_CENSORED:
        return f"{title}: {fmt.finding(point)} ({point.reason})."
    return f"{title}: cannot be determined ({point.reason})."


def template_spread(result: AnalysisResult, params: int, tokens: int) -> list[Drawing]:
    """Draws every template's rate by dose, so that a single template is not mistaken for the memory of a fact."""
    if result.runs is None or result.runs.templates.empty or result.curves is None:
        return []
    runs = result.runs.runs[["run", "params", "tokens", "frequency", "seed", "infused_facts", "configured_ratio"]]
    table = result.runs.templates.merge(runs, on="run")
    mine = table[
        (table["params"] == params) & (table["tokens"] == tokens) & (table["scoring"] == result.settings.scoring)
    ]
    mine = mine.dropna(subset=["n", "correct"])
    mine = mine[mine["n"] > 0]
    label = cell_label(params, tokens, cells_of_table(result.curves))
    drawings = []
    for one in result.slices:
        of_slice = rows_of_slice(mine, one)
        for group in retained_groups(of_slice["group"]):
            rows = of_slice[of_slice["group"] == group]
            if rows.empty:
                continue
            words = fmt.group_words(group)
            facts = f"{words}{fmt.along(one)}"
            alt = f"{label}: rate of every single template of {words} against the {fmt.dose_name(one)}, by split."
            with panel(fmt.slug("spread", str(params), str(tokens), group, one.name), alt) as drawn:
                axis = DoseAxis(axis_of(of_slice, one).levels, one, even=True)
                draw_rate_axis(drawn, None)
                for offset, split in ((-1.6, "train"), (0.0, "held_out"), (1.6, "question")):
                    _template_marks(drawn, axis, rows[rows["split"] == split], split, offset * _SPREAD_WIDTH)
                axis.draw(drawn, margin=2.2 * _SPREAD_WIDTH)
                drawn.axes.set_title(f"{facts[0].upper()}{facts[1:]}, by template")
                drawings.append(Drawing(to_svg(drawn), f"{label}, {facts}: one mark per template and relation."))
    return drawings


_SPREAD_WIDTH = 0.16  # of the distance between levels, which is 1


def _template_marks(drawn: Panel, axis: DoseAxis, rows: pd.DataFrame, split: str, offset: float) -> None:
    """Draws a mark per template and relation of a split."""
    part = rows.groupby(["dose", "relation", "template"])[["n", "correct"]].sum()
    if part.empty:
        return
    part = part.reset_index()
    tips = [
        f"{r.relation} · {fmt.SPLIT_TITLES[split]} {int(r.template) + 1} · {axis.slice.symbol} = {r.dose:g}\n"
        f"{int(r.correct)} of {int(r.n)} right"
        for r in rows_of(part)
    ]
    drawn.points(
        [axis.at(f) + offset for f in part["dose"]],
        (part["correct"] / part["n"]).tolist(),
        tips,
        series=split,
        colour=split,
        marker=MARKERS[split],
        markersize=3.4,
        alpha=0.6,
        markeredgewidth=0,
        label=fmt.SPLIT_TITLES[split],
    )
