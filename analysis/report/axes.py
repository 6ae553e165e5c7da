"""The axes that figures share: F, with a place for F = 0 and the infusion ratio above, and shares answered right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from megatron_kis.analysis.report import wording as w
from megatron_kis.analysis.report.theme import COLOURS, Panel

_LABEL_WIDTH = 0.0155
"""Of a character of the second axis, as a share of the axis: 6 points at size 9 in 4.6 inches, and some room."""


@dataclass(frozen=True)
class FrequencyAxis:
    """F on a logarithmic axis, with a place of its own for F = 0 left of a break."""

    levels: tuple[float, ...]
    even: bool = False
    """Levels side by side instead of on a logarithmic scale, where each needs room for many marks."""

    @property
    def _zero(self) -> float:
        positive = [math.log2(level) for level in self.levels if level > 0]
        steps = np.diff(positive)
        return positive[0] - (float(np.median(steps)) if len(steps) else 1.0) * 1.25 if positive else 0.0

    def at(self, value: float) -> float:
        """Place of F on the axis."""
        if self.even:
            return float(self.levels.index(value))
        return math.log2(value) if value > 0 else self._zero

    def draw(self, drawn: Panel, ratios: dict[float, float] | None = None, *, margin: float = 0.0) -> None:
        """Ticks at the levels tried; above them the infusion ratio, the second axis.

        ``margin`` is the least room beside the outer levels, in the axis' units (doublings of F).
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
        axes.set_xlabel(f"infusion frequency F (exposures a fact, {scale})")
        axes.grid(False, axis="x")
        if 0 in self.levels and len(self.levels) > 1:
            gap = (self.at(0) + self.at(self.levels[1])) / 2
            axes.axvline(gap, color=COLOURS["control"], linewidth=0.8, linestyle=(0, (1, 3)))
        if ratios:
            drawn.figure.subplots_adjust(top=0.79)
            top = axes.secondary_xaxis("top")
            places = [self.at(level) for level in kept if level in ratios]
            labels = [w.ratio(ratios[level]) for level in kept if level in ratios]
            shown = apart(places, labels, reach * _LABEL_WIDTH)
            top.set_xticks([places[i] for i in shown])
            top.set_xticklabels([labels[i] for i in shown])
            top.tick_params(axis="x", length=2, labelsize=9)
            top.spines["top"].set_visible(False)
            top.set_xlabel("infusion ratio ρ", fontsize=9)


def apart(places: Sequence[float], labels: Sequence[str], width: float) -> list[int]:
    """Which labels to show so that none runs into another; ``width`` is that of a character, in units of the axis."""
    shown: list[int] = []
    for i, (place, label) in enumerate(zip(places, labels, strict=True)):
        if not shown or place - places[shown[-1]] > (len(label) + len(labels[shown[-1]])) / 2 * width:
            shown.append(i)
    return shown


def axis_of(table: pd.DataFrame) -> FrequencyAxis:
    """The axis with every level of a table."""
    return FrequencyAxis(tuple(sorted(float(value) for value in table["frequency"].unique())))


def ratios_of(table: pd.DataFrame) -> dict[float, float]:
    """The infusion ratio of each level; none where it is not one function of F."""
    known = table.dropna(subset=["infusion_ratio"])
    grouped = known.groupby("frequency")["infusion_ratio"]
    if len(grouped) and bool((grouped.max() - grouped.min() > 0.05 * grouped.max()).any()):
        return {}  # other budgets
    return {float(level): float(value) for level, value in grouped.mean().items()}


def draw_rate_axis(drawn: Panel, chance: float | None) -> None:
    """Shares from 0 to 1, and a line at chance."""
    axes = drawn.axes
    axes.set_ylim(-0.02, 1.12)  # room for the marks above a rate of 1
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.set_ylabel("share answered right")
    if chance is not None and math.isfinite(chance):
        axes.axhline(chance, color=COLOURS["muted"], linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            "chance", (1, chance), xycoords=("axes fraction", "data"), xytext=(-2, -10), textcoords="offset points",
            ha="right", fontsize=9, color=COLOURS["muted"],
        )  # fmt: skip
