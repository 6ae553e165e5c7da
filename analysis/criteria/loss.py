"""Collapse by loss tolerance: the dose at which the general validation loss exceeds that of dose 0 by the tolerance.

The companion of the critical mixture ratio (arXiv 2407.17467): it watches general ability, not the facts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from megatron_kis.analysis.criteria.isotonic import isotonic_fit
from megatron_kis.analysis.criteria.loss_noise import (
    level_means,
    loss_matrix,
    outliers,
    prior_noise,
    without_seeds,
)
from megatron_kis.analysis.runs.curves import Array, Curve
from megatron_kis.analysis.runs.noise import LossNoise
from megatron_kis.analysis.runs.transitions import (
    INCONCLUSIVE,
    LEFT_CENSORED,
    OBSERVED,
    RIGHT_CENSORED,
    Found,
    Transition,
    count,
    make_transition,
)
from megatron_kis.config.analysis import AnalysisConfig

_FEW_RUNS = 2  # a level of no more runs is left out in turn, to see what rests on it
_POWER = 1.5  # between two levels the excess is linear in this power of the dose
_POWERS = (0.5, 2.5)  # the ends of the interval allow for these
_STEPS = np.linspace(0.0, 1.0, 33)


def loss_excess(curve: Curve) -> Array:
    """Returns [L] mean loss / mean loss at dose 0 - 1; NaN where unknown."""
    if curve.dose[0] != 0:
        return np.full(len(curve.dose), math.nan)
    excess: Array = curve.loss / curve.loss[0] - 1
    return excess


Place = npt.NDArray[Any]
"""[2] level and seed of a run."""


@dataclass(frozen=True)
class Excess:
    """Log loss over that of dose 0, at the levels where it is known."""

    dose: Array
    """[L] rising from 0."""
    rising: Array
    """[L] the excess, made to rise with the dose; 0 at dose 0."""
    variance: Array
    """[L] of the levels' means by themselves; the first is that of dose 0."""


@dataclass(frozen=True)
class Crossing:
    """Where the excess crosses the tolerance: the estimate and the ends of its interval, 0 or inf where open."""

    value: float
    low: float
    high: float


def excess_of(dose: Array, y: Array, noise: LossNoise) -> Excess:
    """Returns the excess of log losses [L, S] at rising doses [L]; the first level must have a run.

    The levels' means are compared with that of dose 0, and then made to rise (weighted by their runs).
    """
    mean, runs = level_means(y)
    known = runs > 0
    mean, runs = mean[known], runs[known]
    rising = np.concatenate([[0.0], isotonic_fit(mean[1:] - mean[0], runs[1:])])
    sd = np.full(len(mean), noise.infused)
    sd[0] = noise.zero
    return Excess(dose[known], rising, sd**2 / runs)


def find_crossing(excess: Excess, target: float, quantile: float) -> Crossing:
    """Returns where the excess crosses ``target``, with the doses at which it is not ``quantile`` errors away from it.

    Inverting the pointwise band of a rising curve gives an interval for the dose with the band's level. Between two
    levels the excess is linear in dose^1.5; the lower end takes dose^0.5 and the upper one dose^2.5, for nothing is
    known there of the curve's form.
    """
    weight = np.concatenate([_STEPS[:-1] + i for i in range(len(excess.dose) - 1)] + [[len(excess.dose) - 1.0]])
    level = np.minimum(weight.astype(int), len(excess.dose) - 2)
    share = weight - level
    height = (1 - share) * excess.rising[level] + share * excess.rising[level + 1]
    part = excess.variance * np.concatenate([[0.0], np.ones(len(excess.dose) - 1)])
    # Within the first gap the mean of dose 0 enters with 1 - share, and is subtracted whole.
    base = excess.variance[0] * np.where(level == 0, share**2, 1.0)
    error = np.sqrt((1 - share) ** 2 * part[level] + share**2 * part[level + 1] + base)

    def reached(band: Array, power: float, *, last: bool) -> float:
        """Dose at which a band reaches the target: for the first time, or for the last time from below."""
        above = band >= target
        if last:
            step = len(above) - int(np.argmin(above[::-1])) if not above.all() else 0
        else:
            step = int(np.argmax(above)) if above.any() else len(above)
        if step == len(above):
            return math.inf
        if step == 0:
            return 0.0
        before, after = band[step - 1], band[step]
        place = weight[step - 1] + (target - before) / (after - before) * (weight[step] - weight[step - 1])
        index = min(int(place), len(excess.dose) - 2)
        ends = excess.dose[index : index + 2] ** power
        return float((ends[0] + (place - index) * (ends[1] - ends[0])) ** (1 / power))

    return Crossing(
        reached(height, _POWER, last=False),
        reached(height + quantile * error, _POWERS[0], last=False),
        reached(height - quantile * error, _POWERS[1], last=True),
    )


class LossTolerance:
    """Criterion of the loss tolerance: the dose at which the excess of the loss over that of dose 0 reaches it.

    The excess rises with the dose: the levels' means are made to rise, and the value is where their line crosses the
    tolerance. The interval holds every dose at which the excess may be the tolerance, given the scatter of runs
    (`criteria.loss_noise`), that at dose 0 included. It is not bounded by the levels around the crossing, and is
    narrower than these where the runs scatter little. Runs are compared within a seed only where the study's seeds
    shift the losses of all their levels alike.

    A run outside the noise is left out and named. Where a level of one or two runs moves the value out of the
    interval when one of them is left out, the interval is widened to hold both answers, and the run is named.
    Where the excess crosses the tolerance below the first dose, the point is left-censored; where it does not reliably
    exceed it at the largest dose, right-censored from where it may.
    """

    kind = "tolerance"
    groups: tuple[str, ...] = ("infused", "background", "control")  # every group's rows carry the loss of their run

    def find(self, curve: Curve, settings: AnalysisConfig) -> Transition:
        """Returns the tolerance point of the runs of ``curve``."""
        noise, symbol = curve.loss_noise or prior_noise(), curve.symbol
        every, seeds = loss_matrix(curve.seed_losses)
        runs = np.isfinite(every).sum(axis=1)
        base = float(curve.loss[0]) if curve.dose[0] == 0 and runs[0] else None
        if base is None or not runs[1:].any():
            missing = (
                f" at {symbol} > 0" if base is not None else f" at {symbol} = 0 to compare with" * bool(runs.any())
            )
            return self._unknown(curve, f"no validation loss{missing}", peak=base)
        out = outliers(every, noise)
        y = np.where(out, math.nan, every)
        flags = [
            f"{_named(curve, seeds, place)} is far from the other runs and is left out" for place in np.argwhere(out)
        ]
        if not np.isfinite(y[0]).any() or not np.isfinite(y[1:]).any():
            named = _named(curve, seeds, np.argwhere(out)[0])
            reason = f"{named} is far from the other runs: another run must show which is right"
            return self._unknown(curve, reason, peak=base, flags="; ".join(flags))
        if noise.paired:
            y = without_seeds(y)
        if noise.assumed:
            flags.append(f"scatter of a run's loss assumed ({noise.source})")

        quantile = float(scipy.special.stdtrit(noise.freedom, (1 + settings.confidence) / 2))
        target = math.log1p(settings.tolerance)
        excess = excess_of(curve.dose, y, noise)
        seen = find_crossing(excess, target, quantile)
        if excess.dose[1] < seen.value < excess.dose[-1]:
            seen, resting = self._without_each(curve, y, noise, target, quantile, seen)
            flags += [f"rests on {_named(curve, seeds, place)}" for place in resting]
        most = math.expm1(float(excess.rising[-1]))
        found: Found = {"peak": base, "drop": most, "flags": "; ".join(flags)}
        return self._transition(curve, excess, seen, settings, found)

    def _transition(
        self, curve: Curve, excess: Excess, seen: Crossing, settings: AnalysisConfig, found: Found
    ) -> Transition:
        symbol = curve.symbol
        smallest, largest = float(excess.dose[1]), float(excess.dose[-1])
        first, most = (100 * math.expm1(float(excess.rising[i])) for i in (1, -1))
        percent, over = f"{100 * settings.tolerance:g}%", f"over the loss at {symbol} = 0"
        if math.isinf(seen.value) or math.isinf(seen.high):
            low = min(seen.low, largest)
            reason = f"at most {percent} {over} up to {count(low)}; {most:+.1f}% at {count(largest)}"
            if math.isfinite(seen.value):
                reason += ", not reliably beyond it"
            return make_transition(curve, self.kind, RIGHT_CENSORED, reason, group="general", **found | {"low": low})
        if seen.value <= smallest:
            reason = f"{first:+.1f}% {over} at {symbol} = {count(smallest)} (tolerance {percent}), the smallest tried"
            high = max(seen.high, smallest)
            return make_transition(curve, self.kind, LEFT_CENSORED, reason, group="general", **found | {"high": high})
        reason = f"{percent} {over} at {symbol} = {count(seen.value)}; {most:+.1f}% at {count(largest)}"
        found |= {"value": seen.value, "low": seen.low, "high": seen.high, "interval": "profile"}
        return make_transition(curve, self.kind, OBSERVED, reason, group="general", **found)

    def _unknown(self, curve: Curve, reason: str, *, peak: float | None = None, flags: str = "") -> Transition:
        return make_transition(curve, self.kind, INCONCLUSIVE, reason, group="general", peak=peak, flags=flags)

    @staticmethod
    def _without_each(
        curve: Curve, y: Array, noise: LossNoise, target: float, quantile: float, seen: Crossing
    ) -> tuple[Crossing, list[Place]]:
        """Returns the crossing, its interval wide enough for those without a run that it rests on, and these runs."""
        runs = np.isfinite(y).sum(axis=1)
        low, high, resting = seen.low, seen.high, []
        for place in np.argwhere(np.isfinite(y) & (runs <= _FEW_RUNS)[:, None]):
            if place[0] == 0 and runs[0] == 1:
                continue
            rest = y.copy()
            rest[tuple(place)] = math.nan
            if not np.isfinite(rest[1:]).any():
                continue
            other = find_crossing(excess_of(curve.dose, rest, noise), target, quantile)
            if math.isinf(other.value):
                resting.append(place)  # the tolerance is exceeded in this run alone
            elif not seen.low <= other.value <= seen.high:
                resting.append(place)
                low, high = min(low, other.low), max(high, min(other.high, float(curve.dose[-1])))
        return Crossing(seen.value, low, high), resting


def _named(curve: Curve, seeds: list[int], place: Place) -> str:
    """Names a run by its seed and dose."""
    return f"the run of seed {seeds[int(place[1])]} at {curve.symbol} = {count(float(curve.dose[int(place[0])]))}"
