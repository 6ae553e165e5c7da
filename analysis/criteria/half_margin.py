"""Criterion ``half_margin``: the dose at which the mean margin has fallen to a share of its highest level.

The margin of a question is the score of the right option less the mean score of the wrong ones, in nats. It falls long
before the first answer changes, and it does not saturate where all answers are right; but a margin can also shrink
without any answer changing. docs/statistics.md says what that means for a conclusion.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy

from megatron_kis.analysis.criteria.counts import generator_of
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
    too_few_levels,
)
from megatron_kis.config.analysis import AnalysisConfig

_FEW_SEEDS = 3  # degrees of freedom below which a variance between seeds says nothing
_FEWEST_LEVELS = 3  # a highest level, and a fall that stays
_LEAST_SHARE = 0.01  # of the highest margin: smaller and negative margins count as this much on the log scale
_SLACK = 1e-9


@dataclass(frozen=True)
class Margins:
    """Mean margins of the levels at which they are known."""

    dose: Array
    """[L] rising."""
    mean: Array
    """[L] nats, mean of seeds."""
    error: Array
    """[L] standard errors of the means."""
    seeds_known: bool
    """Whether the spread between seeds is part of the errors."""


def margins_of(curve: Curve) -> Margins | None:
    """Returns the margins of a curve; None if it has none with their spread over facts.

    The variance of a level's mean is that of its facts, sd^2 / facts for each run, and of its seeds: a coefficient of
    variation that all levels share, for the spread between seeds grows with the margin. It is estimated where the seeds
    leave at least three degrees of freedom.
    """
    if curve.seed_margins is None or curve.seed_margin_sds is None:
        return None
    levels = []
    squares, scale, freedom = 0.0, 0.0, 0
    for dose, margins, sds, facts in zip(
        curve.dose, curve.seed_margins, curve.seed_margin_sds, curve.seed_facts, strict=True
    ):
        known = np.isfinite(margins) & np.isfinite(sds)
        if not known.any():
            continue
        margin, runs = margins[known], int(known.sum())
        mean, of_facts = float(margin.mean()), float(np.mean(sds[known] ** 2 / facts[known]))
        levels.append((float(dose), mean, of_facts / runs, runs))
        # What the facts alone would show between runs is not counted again. Levels weigh by their margins: near 0 a
        # relative spread says nothing.
        squares += float(((margin - mean) ** 2).sum()) - (runs - 1) * of_facts
        scale += (runs - 1) * mean**2
        freedom += runs - 1
    if not levels:
        return None
    dose, mean, of_facts, runs = np.array(levels).T
    variation = max(squares / scale, 0.0) if freedom >= _FEW_SEEDS and scale > 0 else 0.0
    error = np.sqrt(of_facts + variation * mean**2 / runs)
    return Margins(dose, mean, error, freedom >= _FEW_SEEDS)


def last_up(margins: Array, share: float) -> npt.NDArray[np.int64]:
    """Returns [...] the last level at which margins [..., L] are above ``share`` of the highest."""
    above = margins > share * margins.max(axis=-1, keepdims=True)
    last: npt.NDArray[np.int64] = margins.shape[-1] - 1 - np.argmax(above[..., ::-1], axis=-1)
    return last


def crossings(x: Array, margins: Array, share: float) -> Array:
    """Returns [R] the log dose at which margins [R, L] have fallen to ``share`` of their highest level for good.

    Linear in the log margin over the log dose ``x`` [L] between two levels; inf where the last level is still above,
    -inf where the fall is between dose 0 and the first dose.
    """
    peak = margins.max(axis=1)
    last = last_up(margins, share)
    row, end = np.arange(len(margins)), margins.shape[1] - 1
    after = np.minimum(last + 1, end)
    floor = _LEAST_SHARE * np.maximum(peak, 1e-12)
    high = np.log(np.maximum(margins[row, last], floor))
    low = np.log(np.maximum(margins[row, after], floor))
    target = np.log(np.maximum(share * peak, floor))
    with np.errstate(invalid="ignore", divide="ignore"):
        part = np.clip((high - target) / (high - low), 0.0, 1.0)
        found = x[last] + part * (x[after] - x[last])
    found = np.where(np.isfinite(x[last]), found, -np.inf)
    return np.where(last == end, np.inf, found)


class HalfMargin:
    """The collapse point is where the mean margin has fallen to ``margin_share`` of its highest level, for good.

    Its interval holds the middle ``confidence`` of the crossings of curves drawn around the measured means with their
    standard errors, and at least the bracket of levels around the crossing: between two levels nothing is known of the
    curve's form. Where the interval reaches beyond the largest dose with a margin the point is right-censored, where it
    reaches below the first one left-censored; the end that is left is no tighter than the bracket either.
    """

    kind = "collapse"
    groups: tuple[str, ...] = ("infused", "background")

    def find(self, curve: Curve, settings: AnalysisConfig) -> Transition:
        """Returns the collapse of ``curve``."""
        margins, symbol = margins_of(curve), curve.symbol
        if margins is None:
            reason = "no mean margins with their standard deviation over facts in its probe rows"
            return make_transition(curve, self.kind, INCONCLUSIVE, reason)
        if reason := too_few_levels(curve, len(margins.dose), _FEWEST_LEVELS):
            return make_transition(curve, self.kind, INCONCLUSIVE, f"margins at {reason}")
        top = int(np.argmax(margins.mean))
        peak, share = float(margins.mean[top]), settings.margin_share
        found: Found = {"peak": peak}
        if peak <= float(scipy.special.ndtri(1 - settings.alpha / len(margins.dose))) * float(margins.error[top]):
            reason = f"never a margin reliably above 0 (highest {peak:.2g} nats): no memory that could collapse"
            return make_transition(curve, self.kind, INCONCLUSIVE, reason, **found)

        with np.errstate(divide="ignore"):
            x = np.log(margins.dose)
        generator = generator_of(curve, settings, "margin")
        noise = generator.standard_normal((settings.resamples, len(x)))
        drawn = np.sort(crossings(x, margins.mean + margins.error * noise, share))
        tail = (1 - settings.confidence) / 2
        low, high = _quantile(drawn, tail), _quantile(drawn, 1 - tail)
        value = float(crossings(x, margins.mean[None], share)[0])
        last = int(last_up(margins.mean, share))
        found |= {
            "drop": peak - float(margins.mean[-1]),
            "p_value": (1 + int(np.isinf(drawn[drawn > 0]).sum())) / (1 + settings.resamples),
            "flags": "" if margins.seeds_known else "too few seeds for their spread to be in the interval",
        }
        what = f"{share:g} of the highest margin ({peak:.2g} nats)"
        if math.inf in (high, value):
            return self._not_seen(curve, margins, low, last, what, found)
        if -math.inf in (low, value):
            return self._fallen_before(curve, margins, high, last, what, found)
        # The bracket of levels around the crossing is the least interval.
        before, after = float(x[last]), float(x[last + 1])
        inside = low >= before - _SLACK, high <= after + _SLACK
        ends = (
            float(margins.dose[last]) if inside[0] else math.exp(low),
            float(margins.dose[last + 1]) if inside[1] else math.exp(high),
        )
        found |= {
            "value": float(np.clip(math.exp(value), *ends)),  # to the last digit: exp(log(x)) may not be x
            "low": ends[0],
            "high": ends[1],
            "interval": "bracket" if all(inside) else "profile",
        }
        reason = f"the margin has fallen to {what} at {symbol} = {count(math.exp(value))} and stays below"
        return make_transition(curve, self.kind, COLLAPSED, reason, **found)

    def _not_seen(self, curve: Curve, margins: Margins, low: float, last: int, what: str, found: Found) -> Transition:
        reached = min(math.exp(low), float(margins.dose[last]))  # math.exp(-inf) is 0
        if not reached:
            reason = f"the margins are too uncertain to say where they fall to {what}"
            return make_transition(curve, self.kind, INCONCLUSIVE, reason, **found)
        largest = f"{curve.symbol} = {count(float(margins.dose[-1]))}"
        reason = f"the margin does not reliably fall to {what} up to {largest}"
        return make_transition(curve, self.kind, RIGHT_CENSORED, reason, **found | {"low": reached})

    def _fallen_before(
        self, curve: Curve, margins: Margins, high: float, last: int, what: str, found: Found
    ) -> Transition:
        reached = max(math.exp(high), float(margins.dose[last + 1]))
        reason = f"the margin has fallen to {what} at {curve.symbol} = {count(reached)} already, perhaps before"
        return make_transition(curve, self.kind, LEFT_CENSORED, reason, **found | {"high": reached})


def _quantile(ordered: Array, share: float) -> float:
    """Returns the quantile of ordered values that may be infinite, without interpolation: the wider neighbour."""
    place = (len(ordered) - 1) * share
    return float(ordered[math.floor(place) if share < 0.5 else math.ceil(place)])
