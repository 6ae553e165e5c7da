"""Onset: the dose at which the infused facts have reached a stated share of their plateau.

1. Are they learned at all: a level must beat chance (exact binomial) *and*, where a run with F = 0 exists, that run's
   rate: an untrained preference for frequent objects can beat 1/k, and is not memory. The levels share alpha.
2. Where: the F at which the rate's excess over chance is the share ``onset_share`` of that of the plateau
   (`decline.card_of` on the mirrored axis), with all F whose likelihood ratio is under the cut-off. It is a point of
   the curve: more facts or seeds narrow its interval, and do not move it.
"""

from __future__ import annotations

import math

import numpy as np

from megatron_kis.analysis.criteria.counts import Evidence
from megatron_kis.analysis.criteria.decline import Card, card_of, mirrored
from megatron_kis.analysis.criteria.hinge import measured
from megatron_kis.analysis.criteria.retention import place_of
from megatron_kis.analysis.criteria.robust import levels_of
from megatron_kis.analysis.criteria.tests import cut_off, p_above, p_greater
from megatron_kis.analysis.runs.curves import Curve
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

_FEWEST_INFUSED = 2  # levels above 0: one does not show where a rise is


def onset_card(curve: Curve, settings: AnalysisConfig) -> Card:
    """Returns the card of an onset; its theta is minus the log of F."""
    levels = levels_of(curve, settings)
    back, rate, weight, failed = mirrored(levels.x, levels.rate, levels.weight, levels.failed)
    return card_of(back, rate, weight, failed, curve.assumed_chance, 1 - settings.onset_share)


class Onset:
    """Criterion of the onset: the module's docstring says how."""

    kind = "onset"
    groups: tuple[str, ...] = ("infused",)

    def find(self, curve: Curve, settings: AnalysisConfig) -> Transition:
        """Returns the onset of ``curve``."""
        infused = curve.dose > 0
        chance = curve.mean_chance
        if not infused.any():
            return make_transition(curve, self.kind, INCONCLUSIVE, "no run with F > 0")
        if chance is None:
            return make_transition(curve, self.kind, INCONCLUSIVE, "the chance level is not known")
        seen = measured(curve, settings)[1]
        alpha = settings.alpha / int(infused.sum())
        p = [
            _p_value(r, n, curve, seen) if f > 0 else 1.0
            for f, r, n in zip(curve.dose, seen.rate[0], seen.weight, strict=True)
        ]
        found: Found = {"peak": float(seen.rate[0].max()), "p_value": min(p)}
        if min(p) > alpha:
            return self._not_learned(curve, seen, found, settings)
        if int(infused.sum()) < _FEWEST_INFUSED:
            largest = count(float(curve.dose[-1]))
            reason = f"rate {found['peak']:.2f} at F = {largest}, the only F > 0: too few to show where it is learned"
            return make_transition(curve, self.kind, INCONCLUSIVE, reason, **found)
        return self._learned(curve, seen, found, settings)

    def _not_learned(self, curve: Curve, seen: Evidence, found: Found, settings: AnalysisConfig) -> Transition:
        """Returns the point of a curve in which no level is reliably above chance."""
        chance, largest = curve.assumed_chance, float(curve.dose[-1])
        # Would a model that half knows the facts have been noticed at the largest F?
        floor = chance if curve.dose[0] > 0 else max(chance, float(seen.rate[0][0]))
        known = floor + settings.reference_loss * (1 - floor)
        if _p_value(known, float(seen.weight[-1]), curve, seen) > settings.alpha / int((curve.dose > 0).sum()):
            reason = f"too few facts to distinguish a rate of {known:.2f} from chance ({chance:.2f})"
            return make_transition(curve, self.kind, INCONCLUSIVE, reason, **found)
        reason = f"not reliably above chance ({chance:.2f}) up to the largest F, {count(largest)}"
        return make_transition(curve, self.kind, RIGHT_CENSORED, reason, **found | {"low": largest})

    def _learned(self, curve: Curve, seen: Evidence, found: Found, settings: AnalysisConfig) -> Transition:
        """Returns the point of a curve that rises: with two open ends, one, or none."""
        share = f"{settings.onset_share:.0%} of the plateau"
        chance, largest = curve.assumed_chance, float(curve.dose[-1])
        with np.errstate(divide="ignore"):
            x = -np.log(curve.dose)[::-1]
        cut = cut_off(settings.confidence, seen.freedom)
        place = place_of(onset_card(curve, settings), x, 1 - settings.onset_share, cut)
        smallest = float(curve.dose[curve.dose > 0][0])
        # A bound is within the doses that were tried; 0 and inf where open.
        low, high = min(math.exp(-place.high), largest), max(math.exp(-place.low), smallest)
        found["steepness"] = place.steepness
        status = INCONCLUSIVE
        if low == 0 and curve.dose[0] > 0:
            reason = "above chance at every F, and no run with F = 0 says what was known without infusion"
        elif low == 0 and high == math.inf:
            reason = f"reliably above chance ({chance:.2f}), but the levels do not show where {share} is reached"
        elif low == 0:
            status, reason = LEFT_CENSORED, f"{share} is reached at the smallest F, {count(smallest)}, or before"
            found["high"] = high
        elif high == math.inf:
            rising = f"above chance ({chance:.2f}), and rising still at the largest F, {count(largest)}: no plateau"
            status, reason = RIGHT_CENSORED, rising
            found["low"] = low
        else:
            value = min(max(math.exp(-place.value), low), high)
            flags = "the interval is disconnected; its hull is given" if place.pieces > 1 else ""
            found |= {"value": value, "low": low, "high": high, "interval": "profile", "flags": flags}
            plateau = chance + place.plateau * (1 - chance)
            status, reason = OBSERVED, f"{share} ({plateau:.2f}) is reached at F = {count(value)}"
            reason += f"; {flags}" if flags else ""
        return make_transition(curve, self.kind, status, reason, **found)


def _p_value(rate: float, n_eff: float, curve: Curve, seen: Evidence) -> float:
    """Returns the p-value that a rate beats chance and, where there is one, the run with F = 0."""
    against_chance = float(p_above(rate, n_eff, curve.assumed_chance, seen.freedom))
    if curve.dose[0] > 0:
        return against_chance
    return max(against_chance, p_greater(rate, n_eff, float(seen.rate[0][0]), float(seen.weight[0]), seen.freedom))
