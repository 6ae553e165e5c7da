"""How often the interval of the loss tolerance holds the truth, and how wide it is.

    python -m benchmarks.loss_tolerance [--studies 100] [--seed 1]

A study has five sizes and a grid of doses that they share. The true excess of the loss is ``tolerance (F / F_t)^p``
with F_t anywhere in the middle of the grid. The loss of a run has an independent relative error, and in some rows one
run of each size has diverged: its loss is 20% higher. A censored point holds the truth where its limit does. "Moved" is
the mean of |log(value / F_t)|.
"""

from __future__ import annotations

import argparse
import itertools
import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from megatron_kis.analysis.criteria import LossTolerance, find_transitions
from megatron_kis.analysis.runs.curves import CURVE_COLUMNS, canonical
from megatron_kis.analysis.runs.transitions import OBSERVED, Transition
from megatron_kis.config.analysis import AnalysisConfig

SIZES = (25_000_000, 50_000_000, 100_000_000, 200_000_000, 400_000_000)
TOKENS = 2_000_000_000


@dataclass(frozen=True)
class Design:
    """One row of the table."""

    power: float
    noise: float
    """Relative standard deviation of a run's loss."""
    seeds: int
    step: float = 2.0
    """Ratio of neighbouring doses."""
    levels: int = 6
    """Doses above 0."""
    zero: float = 1.0
    """How many times as much runs at dose 0 scatter."""
    diverged: bool = False
    tolerance: float = 0.05


def simulate(design: Design, generator: np.random.Generator) -> tuple[pd.DataFrame, dict[int, float]]:
    """Returns a curve table of one study and each size's F_t."""
    doses = np.array([0.0, *(50 * design.step ** np.arange(design.levels))])
    rows, truth = [], {}
    for params in SIZES:
        point = float(doses[2] * (doses[-2] / doses[2]) ** generator.uniform())
        truth[params] = point
        loss = 3.0 * (1 + design.tolerance * (doses / point) ** design.power)
        sd = design.noise * np.where(doses == 0, design.zero, 1.0)
        drawn = loss[:, None] * np.exp(sd[:, None] * generator.standard_normal((len(doses), design.seeds)))
        if design.diverged:
            drawn[generator.integers(len(doses)), generator.integers(design.seeds)] *= 1.2
        for (level, dose), seed in itertools.product(enumerate(doses), range(design.seeds)):
            row = (params, TOKENS, dose, seed, 100, 50.0, 100, 0.25, "control", "held_out", "statement", None)
            rows.append((*row, drawn[level, seed], dose * 1e-4))
    return canonical(pd.DataFrame(rows, columns=CURVE_COLUMNS)), truth


def holds(point: Transition, truth: float) -> bool:
    """Returns whether the point's interval, or its limit, holds the truth."""
    return (point.low or 0.0) <= truth <= (point.high or math.inf)


def row(design: Design, studies: int, seed: int) -> dict[str, float]:
    """Returns coverage, share observed, mean log width of the intervals, mean error and share flagged."""
    generator = np.random.default_rng([seed, *np.frombuffer(repr(design).encode(), dtype=np.uint8)])
    hits, widths, errors, flagged, count = 0, [], [], 0, 0
    for _ in range(studies):
        table, truth = simulate(design, generator)
        settings = AnalysisConfig(tolerance=design.tolerance)
        for point in find_transitions(table, settings, criteria=(LossTolerance(),)):
            count += 1
            hits += holds(point, truth[point.params])
            flagged += "far from the other runs" in point.flags or "rests on" in point.flags
            if point.status == OBSERVED:
                assert point.value is not None and point.low and point.high
                widths.append(math.log(point.high / point.low))
                errors.append(abs(math.log(point.value / truth[point.params])))
    return {
        "coverage": hits / count,
        "observed": len(widths) / count,
        "width": float(np.mean(widths)) if widths else math.nan,
        "moved": float(np.mean(errors)) if errors else math.nan,
        "flagged": flagged / count,
    }


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    designs = [Design(p, sd, n) for p in (1.0, 1.5, 2.0) for sd in (0.004, 0.006, 0.010, 0.013) for n in (1, 3)]
    designs += [Design(p, sd, 3, zero=2.0) for p in (1.0, 2.0) for sd in (0.004, 0.006)]
    designs += [Design(p, sd, n, step=1.5, levels=8) for p in (1.0, 2.0) for sd in (0.006, 0.013) for n in (1, 3)]
    designs += [Design(p, sd, n, diverged=True) for p in (1.0, 1.5, 2.0) for sd in (0.004, 0.010) for n in (1, 3)]
    print("| p | sd | seeds | step | sd at 0 | diverged | coverage | observed | log width | moved | flagged |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for design in designs:
        found = row(design, options.studies, options.seed)
        shown = (
            f"{design.power:g} | {design.noise:g} | {design.seeds} | {design.step:g} | x{design.zero:g} | "
            f"{'one run' if design.diverged else ''} | {found['coverage']:.3f} | {found['observed']:.2f} | "
            f"{found['width']:.2f} | {found['moved']:.3f} | {found['flagged']:.2f}"
        )
        print(f"| {shown} |", flush=True)


if __name__ == "__main__":
    main()
