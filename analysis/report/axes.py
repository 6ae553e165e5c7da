"""The axes that figures share: the dose with a place for 0, the infusion ratio above it, the share answered right."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axis import Axis, XAxis
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, LogLocator, NullLocator

from megatron_kis.analysis.report import formatting as fmt
from megatron_kis.analysis.report.theme import COLOURS, Panel
from megatron_kis.analysis.runs.slices import FREQUENCY, RATIO, USUAL, Slice

_LABEL_WIDTH = 0.0245
"""Width of a character of a tick, and of the margin of a label, as a share of the axis: of four characters with an M,
31 points wide, in 3.7 inches."""
_BELOW, _ABOVE, _ROW = 0.56, 0.74, 0.165
"""Inches for an axis below with one row of ticks, for one above with the title, and for each further row."""
_MOST_ROWS = 3
"""Rows in which ticks that are close to each other are written."""


@dataclass(frozen=True)
class DoseAxis:
    """F or K on a logarithmic axis, with a place of its own for 0 left of a break."""

    levels: tuple[float, ...]
    slice: Slice = USUAL
    """What the dose is, and what is held."""
    even: bool = False
    """Whether levels are evenly spaced instead of logarithmic, for figures with many marks per level."""

    @property
    def _zero(self) -> float:
        positive = [math.log2(level) for level in self.levels if level > 0]
        steps = np.diff(positive)
        return positive[0] - (float(np.median(steps)) if len(steps) else 1.0) * 1.25 if positive else 0.0

    def at(self, value: float) -> float:
        """Returns the place of a dose on the axis."""
        if self.even:
            return float(self.levels.index(value))
        return math.log2(value) if value > 0 else self._zero

    def draw(self, drawn: Panel, ratios: dict[float, float] | None = None, *, margin: float = 0.0) -> None:
        """Draws ticks at the levels tried, and the infusion ratio on a second axis above.

        ``margin`` is the least room outside the outer levels, in units of the axis (doublings of the dose).
        """
        axes = drawn.axes
        places = [self.at(level) for level in self.levels]
        reach = max(places) - min(places) or 1.0
        margin = max(margin, 0.05 * reach)
        width = (reach + 2 * margin) * _LABEL_WIDTH
        labels = [fmt.frequency(level) for level in self.levels]
        rows = in_rows(places, labels, width)
        kept = [(place, label, row) for place, label, row in zip(places, labels, rows, strict=True) if row is not None]
        axes.set_xticks([place for place, _, _ in kept], ["\n" * row + label for _, label, row in kept])
        axes.xaxis.set_minor_locator(FixedLocator(places))  # `set_xticks` would make them twice
        axes.tick_params(axis="x", which="minor", length=2)
        drawn.make_room(below=_BELOW + _ROW * max((row for _, _, row in kept), default=0))
        axes.set_xlim(min(places) - margin, max(places) + margin)
        name = "exposures per fact F" if self.even else "infusion frequency F (exposures per fact, log scale)"
        if self.slice.axis != FREQUENCY:
            name = "number of infused facts K" + ("" if self.even else " (log scale)")
        axes.set_xlabel(f"{name}, evenly spaced" if self.even else name)
        axes.grid(False, axis="x")
        if 0 in self.levels and len(self.levels) > 1:
            gap = (self.at(0) + self.at(self.levels[1])) / 2
            axes.axvline(gap, color=COLOURS["control"], linewidth=0.8, linestyle=(0, (1, 3)))
        if ratios:
            there = [level for level in self.levels if level in ratios]
            top = [self.at(level) for level in there]
            draw_above(drawn, top, [fmt.ratio(ratios[level]) for level in there], "infusion ratio ρ", width)


@dataclass(frozen=True)
class RatioAxis:
    """The infusion ratio on a linear axis: where much of the text is displaced, levels are far apart."""

    doses: dict[float, float]
    """Doses by their ratio, for the axis above; empty where a ratio is of several doses."""
    slice: Slice = USUAL

    def draw(self, drawn: Panel) -> None:
        """Draws the shares of the tokens below, and the doses above."""
        axes = drawn.axes
        last = max(self.doses, default=1.0)
        end = 1.0 if last > 0.5 or last <= 0 else 1.1 * last
        step = next(step for step in (0.2, 0.1, 0.05, 0.02, 0.01, 0.001, end) if end / step >= 4 or step == end)
        shares = [step * i for i in range(int(end / step + 1e-9) + 1)]
        axes.set_xlim(-0.03 * end, 1.03 * end)
        axes.set_xticks(shares, ["0", *(f"{100 * share:.3g}%" for share in shares[1:])])
        axes.set_xlabel("infusion ratio ρ (share of the training tokens)")
        drawn.make_room(below=_BELOW)
        axes.grid(False, axis="x")
        if self.doses:
            ratios = sorted(self.doses)
            labels = [fmt.frequency(self.doses[ratio]) for ratio in ratios]
            draw_above(drawn, ratios, labels, f"{self.slice.symbol} ({self.slice.unit})", 1.06 * end * _LABEL_WIDTH)


def draw_above(drawn: Panel, places: Sequence[float], labels: Sequence[str], title: str, width: float) -> None:
    """Draws a second axis above the first; ``width`` of a character is in units of the axis."""
    rows = in_rows(places, labels, width)
    kept = [(place, label, row) for place, label, row in zip(places, labels, rows, strict=True) if row is not None]
    drawn.make_room(above=_ABOVE + _ROW * max((row for _, _, row in kept), default=0))
    top = drawn.axes.secondary_xaxis("top")
    top.set_xticks([place for place, _, _ in kept], [label + "\n" * row for _, label, row in kept])
    top.tick_params(axis="x", length=2, labelsize=10)
    top.spines["top"].set_visible(False)
    top.set_xlabel(title, fontsize=10)


def in_rows(places: Sequence[float], labels: Sequence[str], width: float) -> list[int | None]:
    """Returns for each label the row in which it overlaps no other; None where `_MOST_ROWS` rows are not enough.

    Args:
        places: of the labels' middles, rising.
        labels: of the ticks.
        width: of a character, in units of the places.
    """
    ends: list[float] = []
    found: list[int | None] = []
    for place, label in zip(places, labels, strict=True):
        half = (len(label) + 1) / 2 * width
        row = next((i for i, end in enumerate(ends) if place - half >= end), None)
        if row is None and len(ends) < _MOST_ROWS:
            ends.append(0.0)
            row = len(ends) - 1
        if row is not None:
            ends[row] = place + half
        found.append(row)
    return found


def axis_of(rows: pd.DataFrame, one: Slice) -> DoseAxis:
    """Returns the axis with every level of the rows of a slice."""
    return DoseAxis(tuple(sorted(float(value) for value in rows["dose"].unique())), one)


def ratios_of(rows: pd.DataFrame, one: Slice) -> dict[float, float]:
    """Returns the infusion ratio of each level; empty where it is held, or not a function of the dose alone."""
    if one.held_by == RATIO:
        return {}
    known = rows.dropna(subset=["infusion_ratio"])
    grouped = known.groupby("dose")["infusion_ratio"]
    if len(grouped) and bool((grouped.max() - grouped.min() > 0.05 * grouped.max()).any()):
        return {}  # several token budgets
    means = grouped.mean()
    return dict(zip(means.index.astype(float).tolist(), means.astype(float).tolist(), strict=True))


def ratio_axis(rows: pd.DataFrame, one: Slice) -> RatioAxis:
    """Returns the linear axis of the infusion ratio of the rows of a slice."""
    return RatioAxis({ratio: dose for dose, ratio in ratios_of(rows, one).items()}, one)


RATE_TITLES = {"accuracy": "share answered right", "pairwise": "share of wrong options below the right one"}
"""Titles of the axis of rates by outcome."""


def draw_rate_axis(drawn: Panel, chance: float | None, outcome: str = "accuracy") -> None:
    """Draws the axis of rates from 0 to 1, and a line at chance."""
    axes = drawn.axes
    axes.set_ylim(-0.02, 1.12)  # room for the marks above a rate of 1
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.set_ylabel(RATE_TITLES[outcome])
    if chance is not None and math.isfinite(chance):
        axes.axhline(chance, color=COLOURS["muted"], linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            "chance",
            (1, chance),
            xycoords=("axes fraction", "data"),
            xytext=(-2, -10),
            textcoords="offset points",
            ha="right",
            fontsize=10,
            color=COLOURS["muted"],
        )


def label_sizes(drawn: Panel, sizes: Sequence[float]) -> None:
    """Labels a logarithmic axis of model sizes at the sizes themselves; at round ones where they are too many."""
    axis = drawn.axes.xaxis
    places = sorted(set(sizes))
    logs = [math.log(size) for size in places]
    low, high = (math.log(end) for end in drawn.axes.get_xlim())
    labels = [fmt.size(size) for size in places]
    rows = in_rows(logs, labels, (high - low) * _LABEL_WIDTH)
    if None in rows:
        label_log_axis(axis, fmt.size)
        return
    axis.set_major_locator(FixedLocator(places))
    axis.set_major_formatter(
        FixedFormatter(["\n" * (row or 0) + label for row, label in zip(rows, labels, strict=True)])
    )
    axis.set_minor_locator(NullLocator())
    drawn.make_room(below=_BELOW + _ROW * max(row or 0 for row in rows))


def label_log_axis(axis: Axis, text: Callable[[float], str]) -> None:
    """Labels a logarithmic axis, whose limits are known, at 1, 2 and 5 times the powers of ten.

    Powers of ten alone are labelled where adjacent labels would overlap. ``text`` formats a value.
    """
    subs = [1.0, 2.0, 5.0]
    if isinstance(axis, XAxis):
        low, high = axis.axes.get_xlim()
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
        ticks = [tick for power in powers for sub in subs if low <= (tick := sub * 10.0**power) <= high]
        width = math.log(high / low) * _LABEL_WIDTH
        if any(in_rows([math.log(tick) for tick in ticks], [text(tick) for tick in ticks], width)):
            subs = [1.0]
    axis.set_major_locator(LogLocator(base=10, subs=subs, numticks=9))
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axis.set_minor_locator(NullLocator())
