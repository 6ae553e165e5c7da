"""Intervals through both stages: curves drawn anew from the law, their points found again, the law refitted.

Each resample draws log F* of every cell from the fitted law and its scatter, moves that cell's fitted hinge there,
draws the seeds' counts, applies the criterion (the fall test with the critical value of the data's own null, the
profile interval with its calibrated cut-off, the bracket floor, censoring), and refits the law. What is kept is not
the spread of the estimates but their *pivots*, errors in units of their own standard error: a new analysis' interval
is its estimate less the pivot's quantiles. With points known exactly this is Student's t again.

Vectorised over resamples: one call fits the hinges of 1000 drawn curves, one call the 1000 laws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import chi2

from megatron_kis.analysis.criteria.counts import Evidence, draw, evidence, seed_matrix
from megatron_kis.analysis.criteria.hinge import (
    FEWEST_LEVELS,
    HAIR,
    calibrated,
    chance_of,
    fit_hinge,
    generator_of,
    log_frequency,
)  # fmt: skip
from megatron_kis.analysis.criteria.hinge_fit import fit_hinges, link, rate_of
from megatron_kis.analysis.criteria.tests import non_decreasing_fit
from megatron_kis.analysis.criteria.tolerance_rule import fall
from megatron_kis.analysis.criteria.unimodal import fall_statistic, fall_test
from megatron_kis.analysis.law.candidates import design
from megatron_kis.analysis.law.fit import Law, cells_of, fit_law
from megatron_kis.analysis.law.regression import fit
from megatron_kis.analysis.runs.curves import Array, Curve
from megatron_kis.analysis.runs.transitions import LEFT_CENSORED, RIGHT_CENSORED, Transition
from megatron_kis.config.analysis import AnalysisConfig

EXTRAPOLATIONS = (1.0, 4.0, 10.0, 100.0, 1000.0)
_Z = 1.959964


@dataclass(frozen=True)
class Source:
    """What a cell's curves are drawn from, and how a drawn one is judged."""

    x: Array
    """[L] log F."""
    facts: Array
    """[L, S]"""
    seen: Evidence
    chance: float
    kappa: int
    plateau: float
    gamma: float
    critical: float
    """Fall statistic beyond which a drawn curve is called collapsed."""
    cut: float
    """Profile likelihood ratio that bounds its interval."""
    error: float | None = None
    """Root mean square error of log F* in curves drawn from this one; None where it showed no collapse."""

    def rates(self, tau: Array) -> Array:
        """[R, L] rates with the hinge at each ``tau`` [R]."""
        with np.errstate(invalid="ignore"):
            beyond = np.where(np.isfinite(self.x), np.maximum(self.x - tau[:, None], 0.0), 0.0)
        rates = rate_of(self.plateau - self.gamma * beyond, self.chance)
        if self.kappa:
            rise = non_decreasing_fit(self.seen.rate[: self.kappa], self.seen.weight[: self.kappa])
            rates[:, : self.kappa] = np.where(
                beyond[:, : self.kappa] > 0, np.minimum(rise, rates[:, : self.kappa]), rise
            )
        return rates


def source_of(curve: Curve, point: Transition, gamma: float, settings: AnalysisConfig, resamples: int) -> Source:
    """The source of one cell; ``gamma`` is the steepness to assume where the cell itself showed no fall."""
    x, chance = log_frequency(curve), chance_of(curve)
    rates, facts = seed_matrix(curve)
    seen = evidence(rates, facts, settings.overdispersion)
    generator = generator_of(curve, settings, "two-stage")
    _, null = fall_test(seen, facts, settings.overdispersion, min(resamples, 499), generator)
    critical = float(np.quantile(null, 1 - settings.alpha))
    if point.informative:
        hinge = fit_hinge(curve, settings)
        fits = hinge.fits
        cut, error = calibrated(hinge, facts, settings, generator)
        return Source(
            x, facts, seen, chance, int(fits.kappa[0]), float(fits.plateau[0]), float(fits.gamma[0]), critical, cut,
            error,
        )  # fmt: skip
    cut = float(chi2.ppf(settings.confidence, 1))
    if point.status == LEFT_CENSORED:
        return Source(x, facts, seen, chance, 0, float(link(seen.rate[:1], chance)[0]), gamma, critical, cut)
    rise = non_decreasing_fit(seen.rate, seen.weight)
    kappa = int(np.argmax(rise >= rise[-1] - 1e-12))
    return Source(x, facts, seen, chance, kappa, float(link(rise[-1:], chance)[0]), gamma, critical, cut)


def detect(
    source: Source, rates: Array, settings: AnalysisConfig, *, steps: int = 4, rounds: int = 7
) -> tuple[Array, Array, Array]:
    """(lower, upper, variance) of log F*, each [R], as the criterion would find them in drawn curves [R, L, S]."""
    x = source.x
    again = evidence(rates, source.facts, settings.overdispersion)
    fits = fit_hinges(x, again.rate, again.weight, source.chance, steps=steps, rounds=rounds)
    top = rate_of(fits.plateau, source.chance)
    end = rate_of(fits.plateau - fits.gamma * np.maximum(x[-1] - fits.tau, 0.0), source.chance)
    least = np.maximum(settings.delta_min, 2 * again.spread)
    collapsed = (fall_statistic(again.rate, again.weight) > source.critical) & (top - end >= least)

    kept = fits.ratio <= source.cut
    kept[np.arange(len(kept)), np.abs(fits.taus - fits.tau[:, None]).argmin(axis=1)] = True
    first, last = kept.argmax(axis=1), kept.shape[1] - 1 - kept[:, ::-1].argmax(axis=1)
    row = np.arange(len(kept))

    def crossing(inner: Array, outer: Array) -> Array:
        near, far = fits.ratio[row, inner], fits.ratio[row, outer]
        share = np.clip((source.cut - near) / np.maximum(far - near, 1e-9), 0.0, 1.0)
        place: Array = fits.taus[inner] + share * (fits.taus[outer] - fits.taus[inner])
        return place

    low = np.where(first > 0, crossing(first, np.maximum(first - 1, 0)), x[0])
    high = np.where(last < len(fits.taus) - 1, crossing(last, np.minimum(last + 1, len(fits.taus) - 1)), x[-1])
    index = np.clip(np.searchsorted(x, fits.tau + 1e-9, side="right") - 1, 0, len(x) - 2)
    floor_low, floor_high = x[index], x[index + 1]
    hair = HAIR * (floor_high - floor_low)
    profile = (low < floor_low - hair) | (high > floor_high + hair)
    low, high = np.minimum(low, floor_low), np.maximum(high, floor_high)
    before = rate_of(fits.plateau - fits.gamma * np.maximum(x[-2] - fits.tau, 0.0), source.chance)
    tau = np.where(top - before <= settings.r * top, (x[-2] + x[-1]) / 2, fits.tau)
    with np.errstate(invalid="ignore"):
        width = np.where(np.isfinite(low), (high - low) / (2 * _Z), (high - tau) / _Z)
    lower, upper = np.where(profile, tau, low), np.where(profile, tau, high)
    variance = np.where(profile, width**2, 0.0)

    at_once = collapsed & (fits.tau <= x[1] + 1e-9) & (again.rate[:, 0] >= top - settings.delta_min)
    lower = np.where(at_once, -np.inf, lower)
    upper = np.where(at_once, high, upper)
    variance = np.where(at_once, 0.0, variance)

    reached = np.maximum(_last_level(again, settings) - 1, 0)
    lower = np.where(collapsed, lower, x[reached])
    upper = np.where(collapsed, upper, np.inf)
    return lower, upper, np.where(collapsed, variance, 0.0)


def levelled(variance: Array, estimate: Array, tau: Array) -> Array:
    """[R] variances that drawn curves' intervals imply, brought to the level of their errors about the true ``tau``.

    An interval that is to cover says more of its tails than of its middle, and is never narrower than the bracket: as a
    variance its width would count the measurement two or three times, at the cost of the scatter between models.
    """
    profile = variance > 0
    if not profile.any():
        return variance
    return variance * float(np.mean((estimate - tau)[profile] ** 2) / np.mean(variance[profile]))


def _last_level(seen: Evidence, settings: AnalysisConfig) -> npt.NDArray[np.int64]:
    weight = seen.weight.mean(axis=0)
    return fall(seen.rate, weight, settings, float(seen.spread.mean()) or None).last


def bootstrap_law(
    law: Law, curves: Sequence[Curve], points: Sequence[Transition], settings: AnalysisConfig, *, resamples: int,
) -> Law:  # fmt: skip
    """``law`` refitted with its curves' own errors, and critical values from ``resamples`` resamples of both stages.

    The errors of log F* are those of curves drawn from each fitted one; where only points are known, their intervals'
    widths have to stand in (`law.fit.cells_of`). The critical values are the law's ``calibration``. The law comes
    back as it was where the bootstrap has no basis: a law of another kind, with an offset, or with cells that have no
    curve here.
    """
    by_cell = {(curve.params, curve.tokens): curve for curve in curves if curve.group == law.group}
    used = [
        p for p in points
        if p.kind == law.kind == "collapse" and p.group == law.group
        and (p.informative or p.status in (RIGHT_CENSORED, LEFT_CENSORED))
    ]  # fmt: skip
    known = all(
        (p.params, p.tokens) in by_cell and len(by_cell[p.params, p.tokens].frequency) >= FEWEST_LEVELS for p in used
    )
    steep = [p.steepness for p in used if p.informative and p.steepness]
    if law.candidate.offset or not used or not known or not steep:
        return law
    used.sort(key=lambda p: (p.params, p.tokens))
    gamma = float(np.median(steep))
    sources = [source_of(by_cell[p.params, p.tokens], p, gamma, settings, resamples) for p in used]
    errors = {(p.params, p.tokens): s.error for p, s in zip(used, sources, strict=True) if s.error is not None}
    again = fit_law(
        points, law.kind, law.group, confidence=law.confidence, law=law.law, compare_laws=False, errors=errors
    )
    again = replace(again, selection=law.selection, candidates=law.candidates)
    pivots = law_pivots(again, used, sources, settings, resamples)
    return law if pivots is None else replace(again, calibration=pivots)


def law_pivots(
    law: Law, used: Sequence[Transition], sources: Sequence[Source], settings: AnalysisConfig, resamples: int
) -> dict[str, Any] | None:
    """The calibration of `Law`: critical values of the mean and of a new model at several extrapolations."""
    cells = cells_of(used)
    generator = np.random.default_rng([settings.seed, 2, len(used)])
    centre = np.array(law.centre)
    x = design(law.candidate, centre, cells.log_n, cells.log_d)
    beta, sigma = np.array(law.parameters), law.sigma
    tau = x @ beta + sigma * generator.standard_normal((resamples, len(used)))
    data = np.empty((3, resamples, len(used)))
    for index, source in enumerate(sources):
        rates = draw(generator, source.rates(tau[:, index]), source.facts, float(source.seen.icc), resamples)
        low, high, implied = detect(source, rates, settings)
        data[:, :, index] = low, high, levelled(implied, low, tau[:, index])
    method = "two-stage parametric bootstrap, studentised"
    return pivots(law, x, (data[0], data[1], data[2]), method, generator)


def pivots(
    law: Law, x: Array, data: tuple[Array, Array, Array], method: str, generator: np.random.Generator
) -> dict[str, Any] | None:
    """Critical values from studies drawn from ``law`` itself: ``data`` (lower, upper, variance) [R, n], design [n, p].

    None where the law cannot be refitted in half of them.
    """
    lower, upper, variance = data
    beta, sigma, centre = np.array(law.parameters), law.sigma, np.array(law.centre)
    resamples = len(lower)
    closed = np.isfinite(lower) & np.isfinite(upper)
    usable = closed.sum(axis=1) > x.shape[1]
    usable &= np.array([np.linalg.matrix_rank(x[row]) == x.shape[1] if ok else False
                        for row, ok in zip(closed, usable, strict=True)])  # fmt: skip
    if usable.sum() < 0.5 * resamples:
        return None
    again = fit(x, lower[usable], upper[usable], variance[usable])
    count = int(usable.sum())
    tail = (1 - law.confidence) / 2
    largest, budget = math.log(law.range_params[1]), math.log(law.range_tokens[1])
    confidence: list[list[float]] = []
    prediction: list[list[float]] = []
    for factor in EXTRAPOLATIONS:
        row = design(law.candidate, centre, np.array([largest + math.log(factor)]), np.array([budget]))[0]
        mean = again.beta @ row
        error = np.sqrt(np.maximum(np.einsum("i,rij,j->r", row, again.covariance, row), 1e-300))
        truth = float(row @ beta)
        new = truth + sigma * generator.standard_normal(count)
        for pivot, found in (
            ((mean - truth) / error, confidence), ((mean - new) / np.hypot(error, again.sigma), prediction),
        ):  # fmt: skip
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
