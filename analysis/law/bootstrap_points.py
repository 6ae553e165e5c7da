"""Intervals from points alone: where no curve is known, each point's own interval says how it would have been measured.

Each resample draws log F* of every cell from the fitted law and its scatter, measures it as the cell's own point was
measured, and refits the law. A bracket is drawn as the bracket of a grid of the same spacing and phase, a profile
interval as a point with an error of its width, a censored cell as censored wherever the drawn F* is beyond the limit
that it states; where it is before, it would have been seen, with the error that is typical of the others. Unlike the
bootstrap of curves (`law.bootstrap`) this takes the points' intervals at their word, and it cannot know what the
criterion would have missed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from megatron_kis.analysis.law.bootstrap import pivots
from megatron_kis.analysis.law.candidates import Cells, design
from megatron_kis.analysis.law.fit import cells_of
from megatron_kis.analysis.law.law import Law
from megatron_kis.analysis.runs.curves import Array
from megatron_kis.analysis.runs.transitions import LEFT_CENSORED, RIGHT_CENSORED, Transition
from megatron_kis.config.analysis import AnalysisConfig

METHOD = "parametric bootstrap of the points, studentised"


def bootstrap_points(law: Law, points: Sequence[Transition], settings: AnalysisConfig, *, resamples: int) -> Law:
    """Returns ``law`` with critical values from ``resamples`` resamples of its points (its ``calibration``).

    As it was where the law has an offset, or where it could not be refitted in half of the resamples.
    """
    used = [
        p
        for p in points
        if p.kind == law.kind
        and p.group == law.group
        and law.slice.covers(p.slice)
        and (p.informative or (p.status == RIGHT_CENSORED and p.low) or (p.status == LEFT_CENSORED and p.high))
    ]
    if law.candidate.offset or not used:
        return law
    used.sort(key=lambda p: (p.params, p.tokens, p.value or 0.0, p.low or 0.0, p.slice.key))
    cells = cells_of(used)
    if law.range_held is not None:
        cells = replace(cells, log_h=np.log([p.slice.held or 1.0 for p in used]))
    generator = np.random.default_rng([settings.seed, 3, len(used)])
    x = design(law.candidate, np.array(law.centre), cells.log_n, cells.log_d, cells.log_h)
    tau = x @ np.array(law.parameters) + law.sigma * generator.standard_normal((resamples, len(used)))
    found = pivots(law, x, resample_measurements(cells, tau, generator), METHOD, generator)
    return law if found is None else replace(law, calibration=found)


def resample_measurements(cells: Cells, tau: Array, generator: np.random.Generator) -> tuple[Array, Array, Array]:
    """Returns (lower, upper, variance), each [R, n]: the true ``tau`` [R, n] measured as ``cells`` were."""
    closed = cells.informative
    width = np.where(closed, cells.upper, 0.0) - np.where(closed, cells.lower, 0.0)
    spread = np.sqrt(np.where(width > 0, width**2 / 12, cells.variance))
    typical = float(np.median(spread[closed]))
    lower = np.empty_like(tau)
    upper = np.empty_like(tau)
    variance = np.zeros_like(tau)
    for i in range(tau.shape[1]):
        true = tau[:, i]
        if width[i] > 0:
            lower[:, i] = cells.lower[i] + width[i] * np.floor((true - cells.lower[i]) / width[i])
            upper[:, i] = lower[:, i] + width[i]
            continue
        error = math.sqrt(cells.variance[i]) if closed[i] else typical
        seen = true + error * generator.standard_normal(len(true))
        beyond = np.zeros(len(true), dtype=bool)
        if not closed[i]:
            beyond = true > cells.lower[i] if np.isfinite(cells.lower[i]) else true < cells.upper[i]
        lower[:, i] = np.where(beyond, cells.lower[i], seen)
        upper[:, i] = np.where(beyond, cells.upper[i], seen)
        variance[:, i] = np.where(beyond, 0.0, error**2)
    return lower, upper, variance
