"""Onset: the dose at which the infused facts have reached a stated share of their plateau.

1. Are they learned at all: a level must beat chance (exact binomial) *and*, where a run with F = 0 exists, that run's
   rate: an untrained preference for frequent objects can beat 1/k, and is not memory. The levels share alpha.
2. Where: the F at which the rate's excess over chance is the share ``onset_share`` of that of the plateau
   (`decline.card_of` on the mirrored axis), with all F whose likelihood ratio is under the cut-off. It is a point of
   the curve: more facts or seeds narrow its interval, and do not move it.
"""

from __future__ import annotations

import math

from megatron_kis.analysis.criteria.decline import Card, card_of, mirrored
from megatron_kis.analysis.criteria.hinge import cut_off, measured
from megatron_kis.analysis.criteria.retention import place_of
from megatron_kis.analysis.criteria.tests import p_above, p_greater
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


def onset_card(curve: Curve, settings: AnalysisConfig) -> Card:
    """Returns the card of an onset; its theta is minus the log of F."""
    x, seen = measured(curve, settings)
    chance = curve.mean_chance or 0.0
    return card_of(*mirrored(x, seen.rate[0], seen.weight), chance, 1 - settings.onset_share)


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
        x, seen = measured(curve, settings)
        rate, weight, freedom = seen.rate[0], seen.weight, seen.freedom
        baseline = 0 if curve.dose[0] == 0 else None
        alpha = settings.alpha / int(infused.sum())

        def p_value(rate_there: float, n_eff: float) -> float:
            against_chance = float(p_above(rate_there, n_eff, chance, freedom))
            if baseline is None:
                return against_chance
            without = float(rate[baseline]), float(weight[baseline])
            return max(against_chance, p_greater(rate_there, n_eff, *without, freedom))

        p = [p_value(r, n) if f > 0 else 1.0 for f, r, n in zip(curve.dose, rate, weight, strict=True)]
        largest, peak = float(curve.dose[-1]), float(rate.max())
        found: Found = {"peak": peak, "p_value": min(p)}
        if min(p) > alpha:
            # Would a model that half knows the facts have been noticed at the largest F?
            floor = chance if baseline is None else max(chance, float(rate[baseline]))
            known = floor + settings.reference_loss * (1 - floor)
            if p_value(known, float(weight[-1])) > alpha:
                reason = f"too few facts to tell a rate of {known:.2f} from chance ({chance:.2f})"
                return make_transition(curve, self.kind, INCONCLUSIVE, reason, **found)
            reason = f"not reliably above chance ({chance:.2f}) up to the largest F, {count(largest)}"
            return make_transition(curve, self.kind, RIGHT_CENSORED, reason, **found | {"low": largest})
        share = f"{settings.onset_share:.0%} of the plateau"
        if int(infused.sum()) < 2:
            reason = f"rate {peak:.2f} at F = {count(largest)}, the only F > 0: too few to tell where it is learned"
            return make_transition(curve, self.kind, INCONCLUSIVE, reason, **found)
        place = place_of(onset_card(curve, settings), -x[::-1], 1 - settings.onset_share, cut_off(settings.confidence, freedom))
        low, high = math.exp(-place.high), math.exp(-place.low)  # 0 and inf where open
        found["steepness"] = place.steepness
        if low == 0 and baseline is None:
            reason = "above chance at every F, and no run with F = 0 says what was known without infusion"
            return make_transition(curve, self.kind, INCONCLUSIVE, reason, **found)
        if low == 0 and high == math.inf:
            reason = f"reliably above chance ({chance:.2f}), but the levels do not tell where {share} is reached"
            return make_transition(curve, self.kind, INCONCLUSIVE, reason, **found)
        if low == 0:
            reason = f"{share} is reached at the smallest F, {count(float(curve.dose[infused][0]))}, or before"
            return make_transition(curve, self.kind, LEFT_CENSORED, reason, **found | {"high": high})
        if high == math.inf:
            reason = f"above chance ({chance:.2f}), and rising still at the largest F, {count(largest)}: no plateau"
            return make_transition(curve, self.kind, RIGHT_CENSORED, reason, **found | {"low": low})
        value = min(max(math.exp(-place.value), low), high)
        flags = "the interval is disconnected; its hull is given" if place.pieces > 1 else ""
        reason = f"{share} is reached at F = {count(value)} (plateau {chance + place.plateau * (1 - chance):.2f})"
        found |= {"value": value, "low": low, "high": high, "interval": "profile", "flags": flags}
        return make_transition(curve, self.kind, OBSERVED, f"{reason}; {flags}" if flags else reason, **found)
