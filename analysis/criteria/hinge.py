"""Collapse by memory, the primary criterion: tau, the hinge of a rise-then-fall curve, with a calibrated interval.

1. Is there a memory at all: the highest rate must beat chance.
2. Does it fall: a sup-likelihood-ratio test against every non-decreasing curve (`unimodal.fall_test`), and a fall of
the
   fitted hinge of at least ``delta_min`` or two seed standard deviations.
3. Where: tau of the hinge (`hinge_model`), all tau whose profile likelihood ratio stays under a cut-off that a
parametric
   bootstrap of the fitted curve calibrates, and never less than the bracket of levels that holds tau.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import chi2

from megatron_kis.analysis.criteria.counts import Evidence, draw, evidence, seed_matrix
from megatron_kis.analysis.criteria.hinge_fit import HingeFits, fit_hinges, fit_nodes, link, polish, rate_of
from megatron_kis.analysis.criteria.tests import detectable_drop, non_decreasing_fit, p_above
from megatron_kis.analysis.criteria.tolerance_rule import fall
from megatron_kis.analysis.criteria.unimodal import fall_test, log_likelihood
from megatron_kis.analysis.runs.curves import Array, Curve
from megatron_kis.analysis.runs.transitions import (
    COLLAPSED,
    INCONCLUSIVE,
    LEFT_CENSORED,
    RIGHT_CENSORED,
    Transition,
    count,
    make,
)  # fmt: skip
from megatron_kis.config.analysis import AnalysisConfig

FEWEST_LEVELS = 4  # two on each side of tau
HAIR = 0.05  # of a bracket: an interval wider by less is the bracket's
_CALIBRATION = 199  # resamples of a cut-off: its own error moves an interval's end by a few percent


@dataclass(frozen=True)
class Hinge:
    """A fitted rise and fall of one curve."""

    x: Array
    """[L] log F; -inf for F = 0."""
    seen: Evidence
    fits: HingeFits
    chance: float

    @property
    def tau(self) -> float:
        """Log F*."""
        return float(self.fits.tau[0])

    def fitted(self, tau: float | None = None) -> Array:
        """[L] fitted rates, with the hinge moved to ``tau`` if one is given."""
        kappa, m, gamma = int(self.fits.kappa[0]), float(self.fits.plateau[0]), float(self.fits.gamma[0])
        return shape(self.x, self.seen, kappa, m, gamma, self.tau if tau is None else tau, self.chance)

    @property
    def plateau(self) -> float:
        """The rate on the plateau."""
        return float(rate_of(np.array(self.fits.plateau[0]), self.chance))


def shape(x: Array, seen: Evidence, kappa: int, m: float, gamma: float, tau: float, chance: float) -> Array:
    """[L] rates of a hinge at ``tau``: the isotonic rise below level ``kappa``, the plateau, the fall."""
    with np.errstate(invalid="ignore"):
        beyond = np.where(np.isfinite(x), np.maximum(x - tau, 0.0), 0.0)
    rates = rate_of(m - gamma * beyond, chance)
    if kappa:
        rise = non_decreasing_fit(seen.rate[:kappa], seen.weight[:kappa])
        rates[:kappa] = np.where(beyond[:kappa] > 0, np.minimum(rise, rates[:kappa]), rise)
    return rates


def chance_of(curve: Curve) -> float:
    """The curve's chance level; 0 where it is not known."""
    return float(np.nanmean(curve.chance)) if np.isfinite(curve.chance).any() else 0.0


def log_frequency(curve: Curve) -> Array:
    """[L] log F, -inf for F = 0."""
    with np.errstate(divide="ignore"):
        return np.log(curve.frequency)


def generator_of(curve: Curve, settings: AnalysisConfig, purpose: str) -> np.random.Generator:
    """Random numbers that depend on the settings' seed and on what the curve is, never on the order of curves."""
    identity = f"{purpose}/{curve.params}/{curve.tokens}/{curve.group}/{curve.split}/{curve.scoring}"
    return np.random.default_rng([settings.seed, zlib.crc32(identity.encode())])


def fit_hinge(curve: Curve, settings: AnalysisConfig) -> Hinge:
    """The hinge of ``curve``, which has at least `FEWEST_LEVELS` levels."""
    x = log_frequency(curve)
    rates, facts = seed_matrix(curve)
    seen = evidence(rates, facts, settings.overdispersion)
    chance = chance_of(curve)
    rate, weight = seen.rate[None], seen.weight[None]
    fits = polish(x, rate, weight, chance, fit_hinges(x, rate, weight, chance, steps=8, rounds=25))
    return Hinge(x, seen, fits, chance)


def calibrated(
    hinge: Hinge, facts: Array, settings: AnalysisConfig, generator: np.random.Generator
) -> tuple[float, float]:
    """(cut, error) of a fitted curve, by parametric bootstrap.

    ``cut`` is the profile likelihood ratio that the curve's own tau exceeds with probability 1 - confidence, and never
    below the chi-square's: a bootstrap around an abrupt drop knows too little of the tau beside it. ``error`` is the
    root mean square error of tau.
    """
    rates = draw(generator, hinge.fitted(), facts, float(hinge.seen.icc), _CALIBRATION)
    again = evidence(rates, facts, settings.overdispersion)
    fits = fit_hinges(hinge.x, again.rate, again.weight, hinge.chance, steps=4)
    ratios = np.array([np.interp(hinge.tau, fits.taus, row) for row in fits.ratio])
    cut = max(float(np.quantile(ratios, settings.confidence)), float(chi2.ppf(settings.confidence, 1)))
    return cut, float(np.sqrt(np.mean((fits.tau - hinge.tau) ** 2)))


@dataclass(frozen=True)
class Interval:
    """All tau that a cut-off leaves, in F."""

    low: float | None
    """None where open: no level below tau says otherwise."""
    high: float
    source: str
    """``bracket`` where the levels' own spacing is what limits it, else ``profile``."""
    pieces: int
    """More than one where the set is disconnected; low and high are its hull."""


def interval(hinge: Hinge, frequency: Array, cut: float) -> Interval:
    """The likelihood-ratio set of tau, floored at the bracket of levels that holds tau."""
    fits = hinge.fits
    ratio, taus = fits.ratio[0], fits.taus
    kept = ratio <= cut
    kept[int(np.abs(taus - hinge.tau).argmin())] = True
    pieces = int(np.sum(np.diff(np.concatenate([[0], kept.astype(int)])) == 1))
    first, last = int(np.argmax(kept)), len(kept) - 1 - int(np.argmax(kept[::-1]))

    def between(inner: int, outer: int) -> float:  # the tau at which the ratio crosses the cut
        rise = float(ratio[outer] - ratio[inner])
        share = 1.0 if rise <= 0 else min(max((cut - float(ratio[inner])) / rise, 0.0), 1.0)
        return float(taus[inner] + share * (taus[outer] - taus[inner]))

    low = between(first, first - 1) if first > 0 else float(taus[0])
    high = between(last, last + 1) if last < len(taus) - 1 else float(math.log(frequency[-1]))
    floor_low, floor_high = bracket(hinge, frequency)
    hair = HAIR * (floor_high - floor_low)
    source = "profile" if low < floor_low - hair or high > floor_high + hair else "bracket"
    open_below = first == 0 and hinge.x[0] == -np.inf
    if first == 0 and not open_below:
        low = float(hinge.x[0])
    low, high = min(low, floor_low), max(high, floor_high)
    return Interval(None if open_below else math.exp(low), math.exp(high), source, pieces)


def bracket(hinge: Hinge, frequency: Array) -> tuple[float, float]:
    """(low, high) of log F: the neighbouring levels between which tau lies; behind it where tau is a level."""
    logs = hinge.x
    index = int(np.searchsorted(logs, hinge.tau + 1e-9, side="right")) - 1
    index = min(max(index, 0), len(frequency) - 2)
    return float(logs[index]), float(logs[index + 1])


def falls_at_once(hinge: Hinge, settings: AnalysisConfig) -> bool:
    """Whether the curve is lower at its second level already and falls on: tau lies before that level."""
    fits, seen, x = hinge.fits, hinge.seen, hinge.x
    if seen.rate[0] <= seen.rate[1]:
        return False
    # Level 0 on its own, and a hinge that starts at level 1, against the best hinge of the whole curve.
    k, n = (seen.weight * seen.rate)[None, 1:], seen.weight[None, 1:]
    _, _, rest = fit_nodes(x[1:], x[1:2], k, n, hinge.chance, 40)
    alone = float(log_likelihood(seen.rate[:1], seen.rate[:1], seen.weight[:1]).sum())
    steep = 2 * (float(rest[0, 0]) + alone - float(fits.best[0]))
    return steep > float(chi2.ppf(settings.confidence, 1))


def companion(hinge: Hinge, r: float) -> float:
    """Log of the largest F at which the fitted rate is at least (1 - r) of its maximum."""
    gamma = max(float(hinge.fits.gamma[0]), 1e-9)
    edge = link(np.array((1 - r) * hinge.plateau), hinge.chance)
    return hinge.tau + max(float(hinge.fits.plateau[0]) - float(edge), 0.0) / gamma


def _still_up(seen: Evidence, settings: AnalysisConfig) -> int:
    """The last level that a fall cannot have begun before, where none was found.

    Levels at the end may be down without being reliably down: nothing is said about them. Nor about the bracket before
    the last one that is up, for a fall that begins in it shows there by less than the margin.
    """
    return max(int(fall(seen.rate, seen.weight, settings, float(seen.spread) or None).last) - 1, 0)


class HingeCollapse:
    """Criterion ``hinge``: the module's docstring says how."""

    kind = "collapse"
    groups: tuple[str, ...] = ("infused", "background")

    def find(self, curve: Curve, settings: AnalysisConfig) -> Transition:
        """The collapse of ``curve``."""
        levels = len(curve.frequency)
        if levels < FEWEST_LEVELS:
            reason = f"{levels} levels of F; at least {FEWEST_LEVELS} are needed"
            return make(curve, self.kind, INCONCLUSIVE, reason)
        rates, facts = seed_matrix(curve)
        seen = evidence(rates, facts, settings.overdispersion)
        chance, top = chance_of(curve), int(np.argmax(seen.rate))
        peak, largest = float(seen.rate[top]), count(float(curve.frequency[-1]))
        detectable = detectable_drop(
            peak, float(seen.weight[top]), float(seen.weight[-1]), settings.alpha, settings.power
        )
        if p_above(peak, float(seen.weight[top]), chance) > settings.alpha / levels:
            reason = (
                f"never reliably above chance ({chance:.2f}; highest rate {peak:.2f}): no memory that could collapse"
            )
            return make(curve, self.kind, INCONCLUSIVE, reason, peak=peak, detectable=detectable)
        p_value, _ = fall_test(
            seen, facts, settings.overdispersion, settings.resamples, generator_of(curve, settings, "fall")
        )
        least = max(settings.delta_min, 2 * float(seen.spread))
        hinge = fit_hinge(curve, settings) if p_value <= settings.alpha else None
        drop = 0.0 if hinge is None else hinge.plateau - float(hinge.fitted()[-1])
        if hinge is None or drop < least:
            said = (
                f"no reliable fall (p = {p_value:.2g})" if hinge is None else f"falls by {drop:.2f} only"
            ) + f" up to F = {largest}"
            return self._not_seen(curve, settings, seen, said, peak, chance, detectable, p_value)
        return self._seen(curve, settings, hinge, facts, drop, peak, detectable, p_value)

    def _seen(
        self, curve: Curve, settings: AnalysisConfig, hinge: Hinge, facts: Array, drop: float, peak: float,
        detectable: float, p_value: float,
    ) -> Transition:  # fmt: skip
        cut, _ = calibrated(hinge, facts, settings, generator_of(curve, settings, "cut"))
        found = interval(hinge, curve.frequency, cut)
        gamma = float(hinge.fits.gamma[0])
        down = f"falls by {drop:.2f} from {hinge.plateau:.2f}"
        common: dict[str, Any] = {
            "peak": peak,
            "drop": drop,
            "detectable": detectable,
            "p_value": p_value,
            "steepness": gamma,
        }
        first = hinge.x[1]
        if falls_at_once(hinge, settings):
            high = float(curve.frequency[1])
            reason = f"{down}: falling from the first level"
            return make(curve, self.kind, LEFT_CENSORED, reason, high=high, **common)
        if hinge.tau <= first + 1e-9 and hinge.seen.rate[0] >= hinge.plateau - settings.delta_min:
            # The plateau is the first levels themselves: where it began to fall, or whether before, is not seen.
            _, high = bracket(hinge, curve.frequency)
            reason = f"{down} from the first levels on"
            return make(curve, self.kind, LEFT_CENSORED, reason, high=max(found.high, math.exp(high)), **common)
        flags = []
        value = math.exp(hinge.tau)
        if hinge.plateau - float(hinge.fitted()[-2]) <= settings.r * hinge.plateau:
            flags.append("seen at the largest F alone")
            value = math.sqrt(float(curve.frequency[-2]) * float(curve.frequency[-1]))
        if found.pieces > 1:
            flags.append("the interval is disconnected; its hull is given")
        rule = max(companion(hinge, settings.r), math.log(value))
        step = float(np.median(np.diff(hinge.x[np.isfinite(hinge.x)])))
        if rule - math.log(value) > step:
            flags.append("the tolerance rule lies more than a grid step beyond the hinge")
        reason = f"{down} beyond F = {count(value)}" + "".join(f"; {flag}" for flag in flags)
        return make(
            curve, self.kind, COLLAPSED, reason, value=value, low=found.low, high=found.high,
            interval=found.source, companion=math.exp(rule), flags="; ".join(flags), **common,
        )  # fmt: skip

    def _not_seen(
        self, curve: Curve, settings: AnalysisConfig, seen: Evidence, said: str, peak: float, chance: float,
        detectable: float, p_value: float,
    ) -> Transition:  # fmt: skip
        known: dict[str, Any] = {"peak": peak, "detectable": detectable, "p_value": p_value}
        reference = settings.reference(peak, chance, float(seen.spread))
        if detectable > reference:
            reason = f"{said}, but only a fall of {detectable:.2f} or more would have shown (needed: {reference:.2f})"
            return make(curve, self.kind, INCONCLUSIVE, reason, **known)
        low = float(curve.frequency[_still_up(seen, settings)])
        if low == 0:
            reason = f"{said}, though lower than at F = 0 from the first level on"
            return make(curve, self.kind, INCONCLUSIVE, reason, **known)
        reason = f"{said}; a fall of {detectable:.2f} would have shown"
        return make(curve, self.kind, RIGHT_CENSORED, reason, low=low, **known)
