"""The picture of docs/exposure-plan.md: sequences with the exposures in them, and how the token budget is spent.

    python -m benchmarks.plan_figure     # writes docs/exposure-plan.png and docs/exposure-plan-narrow.png

Both parts are read from real plans. Left, the first sequences of a small plan, token by token. Right, the shares of
general text, background exposures and infused exposures in the budget as F grows, under both background policies.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from benchmarks.page_figures import write
from megatron_kis.analysis.report.theme import COLOURS
from megatron_kis.common.errors import InputError
from megatron_kis.data.exposure_plan import BackgroundFacts, ExposurePlan, InfusedFacts, TokenBudget
from megatron_kis.data.plan_inputs import POLICIES

TEXT, FILL = "#e6ebf0", {"background": "#a9cde6", "infused": "#f3bd93"}
LABELS = {"text": "general text", "background": "background facts", "infused": "infused facts"}
STRIP = 16
"""Sequences that are drawn."""

FOLLOWED = 3
"""Infused fact whose exposures are marked."""

FREQUENCIES = (0, 100, 200, 300, 400, 500, 600, 700, 800)

BACKGROUND_FREQUENCY = 240


def small_plan() -> ExposurePlan:
    """Returns a plan of 64 sequences of 64 tokens, with 8 infused and 6 background facts."""
    lengths = np.random.default_rng(0).integers(9, 15, size=(14, 1))
    return ExposurePlan(
        InfusedFacts(lengths[:8], frequency=16),
        BackgroundFacts(lengths[8:], frequency=12, policy="displaced"),
        budget=TokenBudget(64 * 64, sequence_length=64),
    )


def draw_strip(axes: Axes, plan: ExposurePlan) -> None:
    """Draws one row per sequence, with its exposures in their places."""
    for row, layout in zip(range(STRIP), plan, strict=False):
        axes.barh(row, plan.sequence_length, height=0.78, color=TEXT)
        for exposure in layout.exposures:
            marked = exposure.group == "infused" and exposure.fact == FOLLOWED
            axes.barh(
                row,
                exposure.length,
                left=exposure.offset,
                height=0.78,
                color=COLOURS["infused"] if marked else FILL[exposure.group],
                edgecolor="white",
                lw=1.2,
            )
            axes.text(
                exposure.offset + exposure.length / 2,
                row,
                f"{'i' if exposure.group == 'infused' else 'b'}{exposure.fact}",
                ha="center",
                va="center_baseline",
                fontsize=7.5,
                color="white" if marked else COLOURS["ink"],
            )
    axes.set_ylim(STRIP - 0.4, -0.6)
    axes.set_xlim(0, plan.sequence_length)
    axes.set_xticks(range(0, plan.sequence_length + 1, 16))
    axes.set_yticks(range(0, STRIP, 3))
    axes.set_xlabel("token of the sequence")
    axes.set_ylabel("sequence of the run")
    axes.set_title(f"Exposures in sequences; those of fact i{FOLLOWED} are dark", fontsize=10, loc="left")


def budgets(policy: str) -> Iterator[tuple[float, float] | None]:
    """Yields the shares of background and of infused exposures for each frequency; None where they do not fit."""
    lengths = np.random.default_rng(1).integers(13, 24, size=(120, 1))
    for frequency in FREQUENCIES:
        try:
            plan = ExposurePlan(
                InfusedFacts(lengths[:60], frequency=frequency),
                BackgroundFacts(lengths[60:], frequency=BACKGROUND_FREQUENCY, policy=policy),
                budget=TokenBudget(1_000_000, sequence_length=128),
            )
        except InputError:
            yield None
        else:
            yield plan.background_tokens / plan.token_budget, plan.infusion_ratio


def draw_budget(axes: Axes, policy: str) -> None:
    """Draws one stacked bar per frequency."""
    for place, shares in enumerate(budgets(policy)):
        if shares is None:
            axes.text(place, 0.5, "does not fit", rotation=90, ha="center", va="center", fontsize=8)
            continue
        background, infused = shares
        parts = ((infused, FILL["infused"]), (background, FILL["background"]), (1 - infused - background, TEXT))
        bottom = 0.0
        for share, colour in parts:
            axes.bar(place, share, bottom=bottom, width=0.8, color=colour)
            bottom += share
    axes.set_xticks(range(len(FREQUENCIES)), [str(frequency) for frequency in FREQUENCIES], fontsize=8.5)
    axes.set_yticks([0, 0.5, 1], ["0", "50%", "100%"])
    axes.set_ylim(0, 1)
    axes.set_xlim(-0.6, len(FREQUENCIES) - 0.4)
    axes.set_title(f"policy: {policy}", fontsize=10, loc="left")
    axes.set_ylabel("share of the tokens")


def draw(figure: Figure, narrow: bool) -> None:
    """Draws the sequences and both policies."""
    if narrow:
        strip, *bars = figure.subplots(3, 1, height_ratios=(2, 1, 1))
    else:
        grid = figure.add_gridspec(2, 2, width_ratios=(1.1, 1))
        strip = figure.add_subplot(grid[:, 0])
        bars = [figure.add_subplot(grid[row, 1]) for row in range(2)]
    draw_strip(strip, small_plan())
    for axes, policy in zip(bars, POLICIES, strict=True):
        draw_budget(axes, policy)
    bars[-1].set_xlabel("F, exposures of each infused fact")
    for axes in (strip, *bars):
        axes.spines[["top", "right"]].set_visible(False)
    patches = [Patch(color=TEXT, label=LABELS["text"])]
    patches += [Patch(color=FILL[group], label=LABELS[group]) for group in ("background", "infused")]
    figure.legend(handles=patches, loc="outside lower center", ncols=3, frameon=False, fontsize=9)


def main() -> None:
    """Draws and writes."""
    write("exposure-plan", draw, wide=(11, 4.6), narrow=(4.6, 9))


if __name__ == "__main__":
    main()
