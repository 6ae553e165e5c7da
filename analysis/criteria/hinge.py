"""Collapse by memory, criterion ``hinge``: tau, the hinge of a rise-then-fall curve, with a calibrated interval.

1. Is there a memory at all: the highest rate must beat chance.
2. Does it fall: a sup-likelihood-ratio test against every non-decreasing curve (`unimodal.fall_test`), and a fall of
   the fitted hinge of at least ``delta_min``. It must also be seen without any one run: what a single run decides is
   not called a collapse.
3. Where: tau of the hinge (`hinge_fit`), with all tau whose profile likelihood ratio stays under a cut-off that a
   parametric bootstrap of the fitted curve calibrates, and never less than the bracket of levels that holds tau.

`classify` decides all of it, for R curves of one grid at once. `HingeCollapse.find` is `classify` of one measured curve
with the sentences around it; the law's bootstrap (`law.bootstrap`) is `classify` of a thousand simulated ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from megatron_kis.analysis.criteria.bound import kept_up_to
from megatron_kis.analysis.criteria.counts import Evidence, draw, generator_of, pooled_rates
from megatron_kis.analysis.criteria.dispersion import dispersion_of
from megatron_kis.analysis.criteria.hinge_fit import (
    COARSE,
    FINE,
    HingeFits,
    fit_hinges,
    fit_nodes,
    link,
    plateau_and_fall,
)
from megatron_kis.analysis.criteria.one_run import run_it_rests_on
from megatron_kis.analysis.criteria.tests import cut_off, detectable_drop, non_decreasing_fit, p_above
from megatron_kis.analysis.criteria.tolerance_rule import needed_drop
from megatron_kis.analysis.criteria.unimodal import critical_value, fall_statistic, fall_test, log_likelihood
from megatron_kis.analysis.runs.curves import Array, Curve
from megatron_kis.analysis.runs.transitions import (
    COLLAPSED,
    INCONCLUSIVE,
    LEFT_CENSORED,
    RIGHT_CENSORED,
    Found,
    Transition,
    count,
    make_transition,
    never_known,
    remarks,
    too_few_levels,
)
from megatron_kis.config.analysis import AnalysisConfig

FEWEST_LEVELS = 4  # two on each side of tau
BRACKET_SLACK = 0.05  # of a bracket: an interval wider by less is the bracket's
CALIBRATION = 199  # resamples of a cut-off: its own error moves an interval's end by a few percent
_SAME_LEVEL = 1e-9  # log F: a tau this close to a level is that level

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class HingeShape:
    """A hinge but for its place: the rise, the plateau and the steepness of the fall."""

    x: Array
    """[L] log F; -inf for F = 0."""
    seen: Evidence
    """The measured levels, [L], that the rise is taken from."""
    chance: float
    kappa: int
    """Level from which on the curve is on its plateau."""
    plateau: float
    """M, the plateau on the logit scale."""
    gamma: float
    """Fall of the logit, or of the log of the excess over chance, for each e-fold of F beyond the hinge."""
    power: bool = False
    """Whether it is the latter."""

    def rates(self, tau: Array) -> Array:
        """Returns the rates [R, L] with the hinge at each ``tau`` [R]: isotonic rise, plateau, fall."""
        rates = plateau_and_fall(self.x, tau, np.array(self.plateau), np.array(self.gamma), self.chance, self.power)
        kappa = self.kappa
        if kappa:
            rise = non_decreasing_fit(self.seen.rate[:kappa], self.seen.weight[:kappa])
            fallen = self.x[:kappa] > tau[:, None]
            rates[:, :kappa] = np.where(fallen, np.minimum(rise, rates[:, :kappa]), rise)
        return rates


@dataclass(frozen=True)
class Verdicts:
    """The criterion's verdicts on R curves; every array is [R]."""

    status: npt.NDArray[np.str_]
    """``collapsed``, ``left_censored``, ``right_censored`` or ``inconclusive``."""
    value: Array
    """log F* of a collapsed curve."""
    low: Array
    """Lower end of log F*: of the interval, or the level up to which a right-censored curve stays up; -inf if open."""
    high: Array
    """Upper end of log F*: of the interval, or the level at which a left-censored curve has fallen; inf if open."""
    bracket: Bools
    """Whether the spacing of the levels limits the interval of a collapsed curve, not the profile likelihood."""
    pieces: npt.NDArray[np.int64]
    """Number of intervals whose hull [low, high] is."""
    peak: Array
    """Highest rate of the curve."""
    drop: Array
    """Fall of the fitted hinge from its plateau to the largest F."""
    detectable: Array
    """Smallest drop at the largest F that would have been found with the settings' power."""
    needed: Array
    """Drop that must have been detectable for "no collapse" to be said."""
    memory: Bools
    """Whether the peak is reliably above chance."""
    falls: Bools
    """Whether the fall test rejects every curve that never falls."""
    at_once: Bools
    """Whether a fallen curve falls from its first level on."""
    at_end: Bools
    """Whether tau is at or after the last level but one: the fitted curve falls at the largest F alone."""
    level: npt.NDArray[np.int64]
    """The last level at which a curve without a fall has certainly kept 1 - r of its plateau (`criteria.bound`)."""
    alone: Bools
    """Whether the fall is not reliable without some level of one run."""


def classify(
    seen: Evidence, fits: HingeFits, critical: Array | float, cut: Array | float, settings: AnalysisConfig
) -> Verdicts:
    """Applies the criterion to R curves of one grid.

    Args:
        seen: rates [R, L] and effective facts [L] of the curves.
        fits: the hinges fitted to them.
        critical: fall statistic beyond which a curve falls reliably (`unimodal.critical_value`); one, or [R].
        cut: profile likelihood ratio that bounds the interval of tau (`calibrate`); one, or [R].
        settings: the declared choices.
    """
    x, rate, weight = fits.x, seen.rate, seen.weight
    row = np.arange(len(rate))
    top = rate.argmax(axis=1)
    peak = rate[row, top]
    memory = p_above(peak, weight[top], fits.chance, seen.freedom) <= settings.alpha / len(x)
    detectable = detectable_drop(peak, weight[top], weight[-1], settings.alpha, settings.power, seen.freedom)
    needed = needed_drop(peak, fits.chance, settings)

    # 1e-9 as in the test's p-value: a resample that is equal but for rounding counts as reaching the statistic.
    falls = fall_statistic(rate, weight) - 1e-9 > critical
    alone = _rests_on_one_run(seen, critical, falls)
    fitted, plateau = fits.rates(), fits.plateau_rate
    drop = plateau - fitted[:, -1]
    # A curve that falls from its first level on has no plateau that the hinge, from the second on, could be at.
    drop = np.where(top == 0, np.maximum(drop, peak - rate[:, -1]), drop)
    fallen = memory & falls & ~alone & (drop >= settings.delta_min)

    at_once = _falls_at_once(seen, fits, fallen, settings.confidence)
    # Where the plateau is the first levels themselves, it is not seen where it began to fall, or whether before.
    no_rise = (fits.tau <= x[1] + _SAME_LEVEL) & (rate[:, 0] >= plateau - settings.delta_min)
    low, high, bracket, pieces = _intervals(fits, cut)
    at_end = fits.tau >= x[-2] - _SAME_LEVEL

    # A fall that is reliable but small, or one run's, is no bound: F* may be anywhere.
    unfallen = memory & ~falls & (detectable <= needed)
    level = np.zeros(len(rate), dtype=np.int64)
    one_sided = cut_off(2 * settings.confidence - 1, seen.freedom)
    level[unfallen] = kept_up_to(rate[unfallen], weight, settings.r, one_sided)
    unfallen &= np.isfinite(x[level])

    left = fallen & (at_once | no_rise)
    collapsed = fallen & ~left
    status = np.select([collapsed, left, unfallen], [COLLAPSED, LEFT_CENSORED, RIGHT_CENSORED], INCONCLUSIVE)
    return Verdicts(
        status=status,
        value=fits.tau,
        low=np.select([collapsed, unfallen], [low, x[level]], -np.inf),
        high=np.select([collapsed, left], [high, np.where(at_once, x[1], high)], np.inf),
        bracket=bracket,
        pieces=pieces,
        peak=peak,
        drop=drop,
        detectable=detectable,
        needed=needed,
        memory=memory,
        falls=falls,
        at_once=at_once,
        at_end=at_end,
        level=level,
        alone=alone,
    )


def _rests_on_one_run(seen: Evidence, critical: Array | float, falls: Bools) -> Bools:
    """Returns [R] whether curves that fall do not without one of the levels that are a single run each."""
    found = np.zeros(len(falls), dtype=bool)
    (rows,) = np.nonzero(falls)
    critical = np.broadcast_to(critical, len(falls))[rows]
    for level in () if seen.single is None else np.flatnonzero(seen.single):
        rest = np.arange(len(seen.weight)) != level
        statistic = fall_statistic(seen.rate[np.ix_(rows, rest)], seen.weight[rest])
        found[rows] |= statistic - 1e-9 <= critical
    return found


def _falls_at_once(seen: Evidence, fits: HingeFits, fallen: Bools, confidence: float) -> Bools:
    """Returns [R] whether a curve is lower at its second level already and continues to fall: tau is before that level.

    Compares level 0 on its own, and a hinge that starts at level 1, with the best hinge of the whole curve.
    """
    at_once = fallen & (seen.rate[:, 0] > seen.rate[:, 1])
    (index,) = np.nonzero(at_once)
    if len(index):
        rate, weight = seen.rate[index], np.broadcast_to(seen.weight, (len(index), len(seen.weight)))
        k = weight * rate
        after = fits.x[1:], fits.x[1:2], k[:, 1:], weight[:, 1:], fits.chance, 40
        rest = np.maximum(*(fit_nodes(*after, power=power)[2] for power in (False, True)))
        alone = log_likelihood(rate[:, 0], rate[:, 0], weight[:, 0])
        at_once[index] = 2 * (rest[:, 0] + alone - fits.best[index]) > cut_off(confidence, seen.freedom)
    return at_once


def _intervals(fits: HingeFits, cut: Array | float) -> tuple[Array, Array, Bools, npt.NDArray[np.int64]]:
    """Returns (low, high, whether it is the bracket's, pieces), each [R], of the likelihood-ratio sets of tau.

    Each set is all tau with a ratio of at most ``cut``, floored at the bracket of levels that holds the best tau.
    ``low`` is -inf where no level below tau contradicts it and F = 0 is the level before.
    """
    x, taus, ratio = fits.x, fits.taus, fits.ratio
    row, end = np.arange(len(ratio)), len(taus) - 1
    cut = np.broadcast_to(cut, len(ratio))
    kept = ratio <= cut[:, None]
    kept[row, np.abs(taus - fits.tau[:, None]).argmin(axis=1)] = True
    pieces = kept[:, 0] + (kept[:, 1:] & ~kept[:, :-1]).sum(axis=1)
    first, last = kept.argmax(axis=1), end - kept[:, ::-1].argmax(axis=1)

    def crossing(inner: npt.NDArray[np.int64], outer: npt.NDArray[np.int64]) -> Array:
        """Returns the tau between two nodes at which the ratio, linear between them, crosses the cut-off."""
        near, rise = ratio[row, inner], ratio[row, outer] - ratio[row, inner]
        share = np.where(rise > 0, np.clip((cut - near) / np.where(rise > 0, rise, 1.0), 0.0, 1.0), 1.0)
        return taus[inner] + share * (taus[outer] - taus[inner])

    low = np.where(first > 0, crossing(first, np.maximum(first - 1, 0)), taus[0])
    high = np.where(last < end, crossing(last, np.minimum(last + 1, end)), x[-1])
    # The neighbouring levels between which tau is; the bracket after it where tau is a level.
    index = np.clip(np.searchsorted(x, fits.tau + _SAME_LEVEL, side="right") - 1, 0, len(x) - 2)
    floor_low, floor_high = x[index], x[index + 1]
    slack = BRACKET_SLACK * (floor_high - floor_low)
    bracket = (low >= floor_low - slack) & (high <= floor_high + slack)
    low = np.where(first > 0, low, x[0])  # no node below it: open down to the first level, which may be F = 0
    return np.minimum(low, floor_low), np.maximum(high, floor_high), bracket, pieces


def measured(curve: Curve, settings: AnalysisConfig) -> tuple[Array, Evidence]:
    """Returns (x [L], evidence [1, L]) of a measured curve: what `fit_hinges` and `classify` take."""
    with np.errstate(divide="ignore"):
        x = np.log(curve.dose)
    dispersion = dispersion_of(curve, settings)
    weight = dispersion.effective(curve.facts, curve.runs)
    return x, Evidence(pooled_rates(curve)[None], weight, dispersion.freedom, curve.runs == 1)


def fit_curve(curve: Curve, settings: AnalysisConfig) -> HingeFits:
    """Fits the hinge of one ``curve``, which has at least `FEWEST_LEVELS` levels."""
    x, seen = measured(curve, settings)
    return fit_hinges(x, seen.rate, seen.weight, curve.assumed_chance, FINE)


def shape_of(seen: Evidence, fits: HingeFits) -> HingeShape:
    """Returns the shape of the hinge ``fits`` of one curve with levels ``seen`` [L]."""
    return HingeShape(
        x=fits.x,
        seen=seen,
        chance=fits.chance,
        kappa=int(fits.kappa[0]),
        plateau=float(fits.plateau[0]),
        gamma=float(fits.gamma[0]),
        power=bool(fits.power[0]),
    )


def calibrate(
    shape: HingeShape,
    tau: float,
    settings: AnalysisConfig,
    generator: np.random.Generator,
    resamples: int = CALIBRATION,
) -> tuple[float, float]:
    """Returns (cut, error) of a hinge at ``tau``, by a parametric bootstrap of its curve.

    ``cut`` is the profile likelihood ratio that the curve's own tau exceeds with probability 1 - confidence, and never
    below `cut_off`: a bootstrap around an abrupt drop knows too little of the tau next to it. ``error`` is the
    root mean square error of tau.
    """
    seen = shape.seen
    rates = draw(generator, shape.rates(np.array([tau]))[0], seen.weight, seen.freedom, resamples)
    fits = fit_hinges(shape.x, rates, seen.weight, shape.chance, COARSE)
    ratios = np.array([np.interp(tau, fits.taus, row) for row in fits.ratio])
    cut = max(float(np.quantile(ratios, settings.confidence)), cut_off(settings.confidence, seen.freedom))
    return cut, float(np.sqrt(np.mean((fits.tau - tau) ** 2)))


def tolerance_point(fits: HingeFits, r: float) -> float:
    """Returns log of the largest F at which the fitted rate of one curve is at least (1 - r) of its plateau."""
    if fits.power[0]:
        top = float(fits.plateau_rate[0])
        left = max((1 - r) * top - fits.chance, 1e-9)
        return float(fits.tau[0]) + math.log((top - fits.chance) / left) / max(float(fits.gamma[0]), 1e-9)
    edge = float(link((1 - r) * fits.plateau_rate, fits.chance)[0])
    return float(fits.tau[0]) + max(float(fits.plateau[0]) - edge, 0.0) / max(float(fits.gamma[0]), 1e-9)


class HingeCollapse:
    """Criterion ``hinge``: the module's docstring says how."""

    kind = "collapse"
    groups: tuple[str, ...] = ("infused", "background")

    def find(self, curve: Curve, settings: AnalysisConfig) -> Transition:
        """Returns the collapse of ``curve``."""
        if reason := too_few_levels(curve, len(curve.dose), FEWEST_LEVELS):
            return make_transition(curve, self.kind, INCONCLUSIVE, reason)
        x, seen = measured(curve, settings)
        p_value, null = fall_test(seen.of(seen.rate[0]), settings.resamples, generator_of(curve, settings, "fall"))
        critical = critical_value(null, settings.alpha)
        fits = fit_hinges(x, seen.rate, seen.weight, curve.assumed_chance, FINE)
        verdict = classify(seen, fits, critical, cut_off(settings.confidence, seen.freedom), settings)
        run = None
        if verdict.falls[0]:
            run = run_it_rests_on(curve, dispersion_of(curve, settings), critical, fall_statistic)
        if verdict.status[0] in (RIGHT_CENSORED, INCONCLUSIVE) or run is not None:
            return self._no_collapse(curve, verdict, p_value, run, settings)
        # Only a fall needs its cut-off.
        generator = generator_of(curve, settings, "cut")
        cut, _ = calibrate(shape_of(seen.of(seen.rate[0]), fits), float(fits.tau[0]), settings, generator)
        return self._collapse(curve, classify(seen, fits, critical, cut, settings), fits, p_value, settings)

    def _no_collapse(
        self, curve: Curve, verdict: Verdicts, p_value: float, run: float | None, settings: AnalysisConfig
    ) -> Transition:
        """Returns the point of a curve in which no collapse was found, with the reason in words.

        ``run`` is the dose of the run that a fall rests on, if it rests on one.
        """
        peak, detectable, needed = float(verdict.peak[0]), float(verdict.detectable[0]), float(verdict.needed[0])
        found: Found = {"peak": peak, "detectable": detectable}
        if not verdict.memory[0]:
            return make_transition(curve, self.kind, INCONCLUSIVE, never_known(curve, peak), **found)
        found["p_value"] = p_value
        up_to = f"up to {curve.symbol} = {count(float(curve.dose[-1]))}"
        if verdict.falls[0]:
            found["drop"] = float(verdict.drop[0])
            fall = f"falls by {verdict.drop[0]:.2f} (p = {p_value:.2g}) {up_to}"
            if verdict.drop[0] < settings.delta_min:
                reason = f"{fall}, by less than delta_min = {settings.delta_min:g}"
            else:
                found["flags"] = f"rests on one run at {curve.symbol} = {count(run or 0.0)}"
                reason = f"{fall}, but {found['flags']}: no reliable fall without it"
            return make_transition(curve, self.kind, INCONCLUSIVE, reason, **found)
        if detectable > needed:
            reason = (
                f"no reliable fall (p = {p_value:.2g}) {up_to}, but only a fall of {detectable:.2f} or more would have "
                f"shown (needed: {needed:.2f})"
            )
            return make_transition(curve, self.kind, INCONCLUSIVE, reason, **found)
        reason = f"no fall larger than {detectable:.2f} shown {up_to} (p = {p_value:.2g})"
        if verdict.status[0] == INCONCLUSIVE:
            reason += f", but from {curve.symbol} = 0 on a smaller one is possible"
            return make_transition(curve, self.kind, INCONCLUSIVE, reason, **found)
        found["low"] = float(curve.dose[verdict.level[0]])
        return make_transition(curve, self.kind, RIGHT_CENSORED, reason, **found)

    def _collapse(
        self, curve: Curve, verdict: Verdicts, fits: HingeFits, p_value: float, settings: AnalysisConfig
    ) -> Transition:
        """Returns the point of a curve that falls, with remarks on its interval."""
        found: Found = {
            "peak": float(verdict.peak[0]),
            "drop": float(verdict.drop[0]),
            "detectable": float(verdict.detectable[0]),
            "p_value": p_value,
            "steepness": float(fits.gamma[0]),
        }
        down = f"falls by {verdict.drop[0]:.2f} from {fits.plateau_rate[0]:.2f}"
        if verdict.at_once[0]:
            reason = f"falls by {verdict.drop[0]:.2f} from {verdict.peak[0]:.2f}: falling from the first level"
            return make_transition(curve, self.kind, LEFT_CENSORED, reason, **found | {"high": float(curve.dose[1])})
        high = math.exp(verdict.high[0])
        if verdict.status[0] == LEFT_CENSORED:
            reason = f"{down} from the first levels on"
            return make_transition(curve, self.kind, LEFT_CENSORED, reason, **found | {"high": high})
        flags = []
        value = math.exp(verdict.value[0])
        if verdict.at_end[0]:
            flags.append(f"seen at the largest {curve.symbol} alone")
        if verdict.pieces[0] > 1:
            flags.append("the interval is disconnected; its hull is given")
        rule = max(tolerance_point(fits, settings.r), math.log(value))
        step = float(np.median(np.diff(fits.x[np.isfinite(fits.x)])))
        if rule - math.log(value) > step:
            flags.append("the tolerance rule is more than a grid step beyond the hinge")
        found |= {
            "value": value,
            "low": math.exp(verdict.low[0]) if np.isfinite(verdict.low[0]) else None,
            "high": high,
            "interval": "bracket" if verdict.bracket[0] else "profile",
            "companion": math.exp(rule),
            "flags": remarks(curve, *flags),
        }
        reason = f"{down} beyond {curve.symbol} = {count(value)}" + "".join(f"; {flag}" for flag in flags)
        return make_transition(curve, self.kind, COLLAPSED, reason, **found)
