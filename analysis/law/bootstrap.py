"""Intervals through both stages: curves simulated from the law, their points found again, the law refitted.

Each resample draws log F* of every (N, D) from the fitted law and its scatter, moves that curve's fitted hinge there,
draws the levels' rates, applies the product's own criterion (`criteria.hinge.classify`, with the critical value of the
data's null and the cut-off calibrated at the data's hinge), and refits the law. A curve that comes out inconclusive is
left out of its resample, as the law leaves it out of the data. What is kept is not the spread of the estimates but
their *pivots*, errors in units of their own standard error: a new analysis' interval is its estimate less the pivot's
quantiles. With points known exactly this is Student's t.

Vectorised over resamples: one call fits the hinges of 1000 simulated curves, one call the 1000 laws.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_kis.analysis.criteria.counts import draw, generator_of
from megatron_kis.analysis.criteria.dispersion import dispersion_of, with_dispersion
from megatron_kis.analysis.criteria.hinge import (
    CALIBRATION,
    FEWEST_LEVELS,
    HingeShape,
    Verdicts,
    calibrate,
    classify,
    measured,
    shape_of,
)
from megatron_kis.analysis.criteria.hinge_fit import COARSE, FINE, Precision, fit_hinges, link
from megatron_kis.analysis.criteria.tests import cut_off, non_decreasing_fit
from megatron_kis.analysis.criteria.unimodal import critical_value, fall_test
from megatron_kis.analysis.law.candidates import design
from megatron_kis.analysis.law.fit import cells_of, fit_law, measurements
from megatron_kis.analysis.law.law import Law
from megatron_kis.analysis.law.regression import fit
from megatron_kis.analysis.runs.curves import Array, Curve, Dispersion
from megatron_kis.analysis.runs.transitions import LEFT_CENSORED, RIGHT_CENSORED, Transition
from megatron_kis.common.progress import logged
from megatron_kis.config.analysis import AnalysisConfig

logger = logging.getLogger(__name__)

EXTRAPOLATIONS = (1.0, 4.0, 10.0, 100.0, 1000.0)


@dataclass(frozen=True, kw_only=True)
class SimulatedCell(HingeShape):
    """An (N, D) whose curves are simulated from the shape of its measured one, and how they are judged."""

    facts: Array
    """[L] facts of all runs of each level."""
    runs: npt.NDArray[np.int64]
    """[L] number of runs of each level."""
    dispersion: Dispersion
    """How much the rates of the levels vary."""
    critical: float
    """Fall statistic beyond which a simulated curve falls reliably."""
    cut: float
    """Profile likelihood ratio that bounds the interval of tau."""
    error: float | None = None
    """Root mean square error of log F* in curves simulated from this one; None where it showed no collapse."""


def simulated_cell(
    curve: Curve, point: Transition, gamma: float, settings: AnalysisConfig, resamples: int
) -> SimulatedCell:
    """Returns the cell of a measured curve; ``gamma`` is the steepness to assume where the curve showed no fall."""
    dispersion = dispersion_of(curve, settings)
    x, seen = measured(replace(curve, dispersion=dispersion), settings)
    seen = seen.of(seen.rate[0])
    generator = generator_of(curve, settings, "two-stage")
    _, null = fall_test(seen, min(resamples, 499), generator)
    chance = curve.assumed_chance
    cut, error = cut_off(settings.confidence, seen.freedom), None
    if point.informative:
        fits = fit_hinges(x, seen.rate[None], seen.weight, chance, FINE)
        shape = shape_of(seen, fits)
        cut, error = calibrate(
            shape, float(fits.tau[0]), settings, generator, max(min(resamples // 2, CALIBRATION), 99)
        )
    else:
        # No fall was seen: all levels are the rise and the plateau; or, left-censored, the first level is the plateau.
        rise = non_decreasing_fit(seen.rate, seen.weight)
        kappa = int(np.argmax(rise >= rise[-1] - 1e-12))
        top = rise[-1]
        if point.status == LEFT_CENSORED:
            kappa, top = 0, seen.rate[0]
        shape = HingeShape(x=x, seen=seen, chance=chance, kappa=kappa, plateau=float(link(top, chance)), gamma=gamma)
    critical = critical_value(null, settings.alpha)
    return SimulatedCell(
        **vars(shape),
        facts=curve.facts,
        runs=curve.runs,
        dispersion=dispersion,
        critical=critical,
        cut=cut,
        error=error,
    )


def judge(cell: SimulatedCell, rates: Array, settings: AnalysisConfig, precision: Precision = COARSE) -> Verdicts:
    """Returns what the criterion says of simulated curves [R, L] of one cell."""
    seen = cell.seen.of(rates)
    fits = fit_hinges(cell.x, seen.rate, seen.weight, cell.chance, precision)
    return classify(seen, fits, cell.critical, cell.cut, settings)


def measure(
    cell: SimulatedCell, rates: Array, settings: AnalysisConfig, precision: Precision = COARSE
) -> tuple[Array, Array, Array]:
    """Returns (lower, upper, variance) of log F*, each [R], as the law would take simulated curves [R, L]."""
    found = judge(cell, rates, settings, precision)
    return measurements(found.status, found.value, found.low, found.high, found.bracket, settings.confidence)


def rescaled(variance: Array, estimate: Array, tau: Array) -> Array:
    """Returns variances [R] that simulated curves' intervals imply, rescaled to their errors about the true ``tau``.

    An interval that is to cover says more of its tails than of its middle, and is never narrower than the bracket: as a
    variance its width would count the measurement two or three times, at the cost of the scatter between models.
    """
    profile = variance > 0
    if not profile.any():
        return variance
    return variance * float(np.mean((estimate - tau)[profile] ** 2) / np.mean(variance[profile]))


def bootstrap_law(
    law: Law, curves: Sequence[Curve], points: Sequence[Transition], settings: AnalysisConfig, *, resamples: int
) -> Law:
    """Returns ``law`` refitted with its curves' own errors, and critical values from resamples of both stages.

    The errors of log F* are those of curves simulated from each fitted one; where only points are known, the widths of
    their intervals are used instead (`law.fit.cells_of`). The critical values are the law's ``calibration``. Returns
    the law as it was where the bootstrap has no basis: a law of another kind, with an offset, or with cells that have
    no curve here.
    """
    by_cell = {
        (curve.params, curve.tokens): curve
        for curve in with_dispersion(curves, settings)
        if curve.group == law.group and curve.slice == law.slice
    }
    used = [
        p
        for p in points
        if p.kind == law.kind == "collapse"
        and p.group == law.group
        and p.slice == law.slice
        and (p.informative or p.status in (RIGHT_CENSORED, LEFT_CENSORED))
    ]
    known = all(
        (p.params, p.tokens) in by_cell and len(by_cell[p.params, p.tokens].dose) >= FEWEST_LEVELS for p in used
    )
    steep = [p.steepness for p in used if p.informative and p.steepness]
    if law.candidate.offset or law.range_held is not None or not used or not known or not steep:
        return law
    used.sort(key=lambda p: (p.params, p.tokens))
    gamma = float(np.median(steep))
    described = f"{law.kind} of {law.group} facts, bootstrap: cells calibrated"
    simulated = [
        simulated_cell(by_cell[p.params, p.tokens], p, gamma, settings, resamples)
        for p in logged(logger).track(used, description=described, total=len(used))
    ]
    errors = {(p.params, p.tokens): s.error for p, s in zip(used, simulated, strict=True) if s.error is not None}
    again = fit_law(
        points,
        law.kind,
        law.group,
        along=law.slice,
        confidence=law.confidence,
        law=law.law,
        compare_laws=False,
        errors=errors,
        bend=settings.bend,
    )
    again = replace(again, selection=law.selection, candidates=law.candidates)
    pivots = law_pivots(again, used, simulated, settings, resamples)
    return law if pivots is None else replace(again, calibration=pivots)


def law_pivots(
    law: Law, used: Sequence[Transition], simulated: Sequence[SimulatedCell], settings: AnalysisConfig, resamples: int
) -> dict[str, Any] | None:
    """Returns the calibration of `Law`: critical values of the mean and of a new model at several extrapolations."""
    cells = cells_of(used)
    generator = np.random.default_rng([settings.seed, 2, len(used)])
    centre = np.array(law.centre)
    x = design(law.candidate, centre, cells.log_n, cells.log_d)
    tau = x @ np.array(law.parameters) + law.sigma * generator.standard_normal((resamples, len(used)))
    data = np.empty((3, resamples, len(used)))
    described = f"{law.kind} of {law.group} facts, bootstrap of {resamples} resamples: cells"
    for index, cell in enumerate(logged(logger).track(simulated, description=described, total=len(simulated))):
        rates = draw(generator, cell.rates(tau[:, index]), cell.seen.weight, cell.seen.freedom, resamples)
        lower, upper, implied = measure(cell, rates, settings)
        data[:, :, index] = lower, upper, rescaled(implied, lower, tau[:, index])
    method = "two-stage parametric bootstrap, studentised"
    return pivots(law, x, (data[0], data[1], data[2]), method, generator)


def pivots(
    law: Law, x: Array, data: tuple[Array, Array, Array], method: str, generator: np.random.Generator
) -> dict[str, Any] | None:
    """Returns critical values from studies simulated from ``law`` itself.

    ``data`` is (lower, upper, variance), each [R, n], of log F* in the studies; ``x`` the design [n, p]. None where
    the law cannot be refitted in half of them.
    """
    lower, upper, variance = data
    beta = np.array(law.parameters)
    centre = np.array(law.centre)
    resamples = len(lower)
    closed = np.isfinite(lower) & np.isfinite(upper)
    usable = closed.sum(axis=1) > x.shape[1]
    usable &= np.array(
        [ok and np.linalg.matrix_rank(x[row]) == x.shape[1] for row, ok in zip(closed, usable, strict=True)]
    )
    if usable.sum() < 0.5 * resamples:
        return None
    again = fit(x, lower[usable], upper[usable], variance[usable])
    count = int(usable.sum())
    tail = (1 - law.confidence) / 2
    largest = math.log(law.range_params[1])
    budget = math.log(law.range_tokens[1])
    middle = None if law.range_held is None else np.array([np.mean(np.log(law.range_held))])
    confidence: list[list[float]] = []
    prediction: list[list[float]] = []
    for factor in EXTRAPOLATIONS:
        row = design(law.candidate, centre, np.array([largest + math.log(factor)]), np.array([budget]), middle)[0]
        mean = again.beta @ row
        error = np.sqrt(np.maximum(np.einsum("i,rij,j->r", row, again.covariance, row), 1e-300))
        truth = float(row @ beta)
        new = truth + law.sigma * generator.standard_normal(count)
        for pivot, found in (
            ((mean - truth) / error, confidence),
            ((mean - new) / np.hypot(error, again.sigma), prediction),
        ):
            # rank / (resamples + 1): exceeded by a new pivot as often as it should be, however few were drawn
            low, high = np.quantile(pivot, [tail, 1 - tail], method="weibull")
            found.append([-float(high), -float(low)])
    return {
        "method": method,
        "resamples": resamples,
        "refused": resamples - count,
        "extrapolation": list(EXTRAPOLATIONS),
        "confidence": confidence,
        "prediction": prediction,
    }
