"""The axes that figures share: the dose with a place for 0, the infusion ratio above it, the share answered right."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from megatron_kis.analysis.report import formatting as fmt
from megatron_kis.analysis.report.theme import COLOURS, Panel
from megatron_kis.analysis.runs.slices import FREQUENCY, RATIO, USUAL, Slice

_LABEL_WIDTH = 0.0155
"""Width of a character of the second axis, as a share of the axis: 6 points at size 9 in 4.6 inches, and a margin."""


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
        kept: list[float] = []  # labels that do not run into each other
        for level in self.levels:
            if not kept or self.at(level) - self.at(kept[-1]) >= 0.068 * reach:
                kept.append(level)
        axes.set_xticks([self.at(level) for level in kept], [f"{level:g}" for level in kept])
        axes.set_xticks(places, minor=True)
        axes.tick_params(axis="x", which="minor", length=2)
        margin = max(margin, 0.05 * reach)
        axes.set_xlim(min(places) - margin, max(places) + margin)
        scale = "levels evenly spaced" if self.even else "log scale"
        axes.set_xlabel(
            f"infusion frequency F (exposures per fact, {scale})"
            if self.slice.axis == FREQUENCY
            else f"number of infused facts K ({scale})"
        )
        axes.grid(False, axis="x")
        if 0 in self.levels and len(self.levels) > 1:
            gap = (self.at(0) + self.at(self.levels[1])) / 2
            axes.axvline(gap, color=COLOURS["control"], linewidth=0.8, linestyle=(0, (1, 3)))
        if ratios:
            drawn.figure.subplots_adjust(top=0.79)
            top = axes.secondary_xaxis("top")
            places = [self.at(level) for level in kept if level in ratios]
            labels = [fmt.ratio(ratios[level]) for level in kept if level in ratios]
            shown = apart(places, labels, reach * _LABEL_WIDTH)
            top.set_xticks([places[i] for i in shown])
            top.set_xticklabels([labels[i] for i in shown])
            top.tick_params(axis="x", length=2, labelsize=9)
            top.spines["top"].set_visible(False)
            top.set_xlabel("infusion ratio ρ", fontsize=9)


def apart(places: Sequence[float], labels: Sequence[str], width: float) -> list[int]:
    """Returns the labels to show so that none overlaps another; ``width`` of a character is in units of the axis."""
    shown: list[int] = []
    for i, (place, label) in enumerate(zip(places, labels, strict=True)):
        if not shown or place - places[shown[-1]] > (len(label) + len(labels[shown[-1]])) / 2 * width:
            shown.append(i)
    return shown


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
            fontsize=9,
            color=COLOURS["muted"],
        )


def label_log_axis(axis: Axis, text: Callable[[float], str], *, subs: Sequence[float] = (1.0, 2.0, 5.0)) -> None:
    """Labels a logarithmic axis at ``subs`` times the powers of ten; ``text`` formats a value."""
    axis.set_major_locator(LogLocator(base=10, subs=subs, numticks=9))
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axis.set_minor_locator(NullLocator())
