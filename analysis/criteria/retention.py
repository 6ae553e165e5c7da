"""Collapse by memory, criterion ``retention``: the dose at which a stated share of what was known is lost.

1. Is there a memory at all: the highest rate must beat chance.
2. Does it fall: a sup-likelihood-ratio test against every non-decreasing curve (`unimodal.fall_test`), and a fall of
   at least ``delta_min``.
3. Where: the dose at which the rate's excess over chance has fallen by the share ``r`` from its plateau
   (`decline.card_of`), with all doses whose likelihood ratio is under the cut-off.

The dose means the same for a curve with a corner and for one without, and for any form of the fall. Its interval ends
where the data do: a fall from the first level on bounds it from above alone, and where no fall was shown it is bounded
from below alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from megatron_kis.analysis.criteria.bound import kept_up_to
from megatron_kis.analysis.criteria.counts import generator_of
from megatron_kis.analysis.criteria.decline import STEEPNESS, Card, card_of, retention, shapes_of
from megatron_kis.analysis.criteria.dispersion import dispersion_of
from megatron_kis.analysis.criteria.hinge import measured
from megatron_kis.analysis.criteria.one_run import run_it_rests_on
from megatron_kis.analysis.criteria.robust import levels_of
from megatron_kis.analysis.criteria.tests import cut_off, detectable_drop, p_above
from megatron_kis.analysis.criteria.tolerance_rule import needed_drop
from megatron_kis.analysis.criteria.unimodal import critical_value, fall_statistic, fall_test
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

FEWEST_LEVELS = 4
_GAP = 3  # of the grid of places: a smaller one between likely places is the grid's own


@dataclass(frozen=True)
class Place:
    """Where a card puts a decline, as log doses."""

    value: float
    """Mean of [low, high], weighted by the likelihood: steadier than the most likely place."""
    low: float
    """-inf where the data leave it open."""
    high: float
    """inf where the data leave it open."""
    steepness: float
    """g at ``value``, geometric mean."""
    plateau: float
    """Excess over chance on the plateau, as a share of what is possible."""
    kept: float
    """Share of the excess on the plateau that is left at the largest dose."""
    pieces: int
    """Number of intervals whose hull [low, high] is."""


def place_of(card: Card, x: Array, share: float, cut: float) -> Place:
    """Returns the best place, and the hull of all places whose likelihood ratio is at most ``cut``.

    Args:
        card: of the curve.
        x: [L] log doses; nothing is known of places before the first finite one.
        share: of the card.
        cut: see `tests.cut_off`.
    """
    marginal = card.marginal()
    best = int(marginal.argmax())
    kept = np.flatnonzero(marginal >= -0.5 * cut)

    def crossing(inner: int, outer: int) -> float:
        part = (-0.5 * cut - marginal[inner]) / min(marginal[outer] - marginal[inner], -1e-12)
        return float(card.theta[inner] + np.clip(part, 0.0, 1.0) * (card.theta[outer] - card.theta[inner]))

    low = crossing(kept[0], kept[0] - 1) if kept[0] > 0 else -math.inf
    high = crossing(kept[-1], kept[-1] + 1) if kept[-1] < len(marginal) - 1 else math.inf
    ends = x[np.isfinite(x)]
    weight = np.exp(card.log_likelihood[best])
    forms = np.array([retention(ends[-1], card.theta[best], STEEPNESS, *form, share) for form in shapes_of(share)])
    likely = np.exp(marginal[kept]) * card.spacing[kept]
    return Place(
        value=float(np.average(card.theta[kept], weights=likely)),
        low=low if low > ends[0] else -math.inf,
        high=high,
        steepness=float(np.exp(np.average(np.log(STEEPNESS), weights=weight))),
        plateau=float(np.average(card.plateau[best], weights=weight)),
        kept=float(((card.shapes[best] * forms.T).sum(axis=1) * weight).sum() / weight.sum()),
        pieces=1 + int((np.diff(kept) > _GAP).sum()),
    )


def collapse_card(curve: Curve, settings: AnalysisConfig) -> Card:
    """Returns the card of a collapse."""
    levels = levels_of(curve, settings)
    return card_of(levels.x, levels.rate, levels.weight, levels.failed, curve.assumed_chance, settings.r)


def remembers(curve: Curve, settings: AnalysisConfig) -> bool:
    """Returns whether a level of a curve is reliably above chance."""
    seen = measured(curve, settings)[1]
    p_values = p_above(seen.rate[0], seen.weight, curve.assumed_chance, seen.freedom)
    return bool((p_values <= settings.alpha / len(curve.dose)).any())


class Retention:
    """Criterion ``retention``: the module's docstring says how."""

    kind = "collapse"
    groups: tuple[str, ...] = ("infused", "background")

    def find(self, curve: Curve, settings: AnalysisConfig) -> Transition:
        """Returns the collapse of ``curve``."""
        levels = len(curve.dose)
        if reason := too_few_levels(curve, levels, FEWEST_LEVELS):
            return make_transition(curve, self.kind, INCONCLUSIVE, reason)
        x, seen = measured(curve, settings)
        rate, weight, chance = seen.rate[0], seen.weight, curve.assumed_chance
        top = int(rate.argmax())
        peak = float(rate[top])
        detectable = float(detectable_drop(peak, weight[top], weight[-1], settings.alpha, settings.power, seen.freedom))
        found: Found = {"peak": peak, "detectable": detectable, "flags": remarks(curve)}
        if not remembers(curve, settings):
            return make_transition(curve, self.kind, INCONCLUSIVE, never_known(curve, peak), **found)
        p_value, null = fall_test(seen.of(rate), settings.resamples, generator_of(curve, settings, "fall"))
        found["p_value"] = p_value
        place = place_of(collapse_card(curve, settings), x, settings.r, cut_off(settings.confidence, seen.freedom))
        if p_value > settings.alpha:
            one_sided = cut_off(2 * settings.confidence - 1, seen.freedom)
            share = settings.r * max(peak - chance, 0.0) / peak  # r of the excess, as a share of the rate
            level = int(kept_up_to(seen.rate, weight, share, one_sided)[0])
            return self._no_fall(curve, float(curve.dose[level]), found, settings)
        found |= {"drop": (1 - place.kept) * place.plateau * (1 - chance), "steepness": place.steepness}
        run = run_it_rests_on(
            curve, dispersion_of(curve, settings), critical_value(null, settings.alpha), fall_statistic
        )
        return self._fall(curve, place, found, run, settings)

    def _no_fall(self, curve: Curve, bound: float, found: Found, settings: AnalysisConfig) -> Transition:
        """Returns the point of a curve whose rates never fall reliably; at the dose ``bound`` less than r is lost."""
        detectable = found["detectable"] or 0.0
        peak, chance = found["peak"] or 0.0, curve.assumed_chance
        largest = f"{curve.symbol} = {count(float(curve.dose[-1]))}"
        said = f"no reliable fall up to {largest} (p = {found['p_value']:.2g})"
        needed = float(needed_drop(peak, chance, settings))
        if detectable > needed:
            reason = f"{said}; only one of {detectable:.2f} or more would have shown (needed: {needed:.2f})"
            return make_transition(curve, self.kind, INCONCLUSIVE, reason, **found)
        if bound == 0:
            reason = f"{said}, though a loss of {settings.r:.0%} from the first level on is not excluded"
            return make_transition(curve, self.kind, INCONCLUSIVE, reason, **found)
        reason = f"no fall larger than {detectable:.2f} shown up to {largest}"
        return make_transition(curve, self.kind, RIGHT_CENSORED, reason, **found | {"low": bound})

    def _fall(
        self, curve: Curve, place: Place, found: Found, run: float | None, settings: AnalysisConfig
    ) -> Transition:
        """Returns the point of a curve that falls; ``run`` is the dose of the one run that the fall rests on."""
        drop = found["drop"] or 0.0
        largest = f"{curve.symbol} = {count(float(curve.dose[-1]))}"
        if drop < settings.delta_min:
            reason = f"falls by {drop:.3f} up to {largest}: less than delta_min, {settings.delta_min:g}"
            return make_transition(curve, self.kind, INCONCLUSIVE, reason, **found)
        down = f"falls by {drop:.2f} up to {largest}"
        if run is not None:
            flag = f"rests on one run at {curve.symbol} = {count(run)}"
            reason = f"{down}, but {flag}: no reliable fall without it"
            return make_transition(curve, self.kind, INCONCLUSIVE, reason, **found | {"flags": remarks(curve, flag)})
        # A bound is within the doses that were tried.
        smallest, last = float(curve.dose[curve.dose > 0][0]), float(curve.dose[-1])
        low, high = min(math.exp(place.low), last), max(math.exp(place.high), smallest)  # 0 and inf where open
        late = high == math.inf or place.value > math.log(last)
        if low == 0 and late:
            reason = f"{down}, but the levels do not show where {settings.r:.0%} of what was known is lost"
            return make_transition(curve, self.kind, INCONCLUSIVE, reason, **found)
        if late:
            reason = f"{down}; {settings.r:.0%} of what was known may be lost beyond it"
            return make_transition(curve, self.kind, RIGHT_CENSORED, reason, **found | {"low": low})
        if low == 0:
            reason = f"{down}: {settings.r:.0%} of what was known is lost from the first level on"
            return make_transition(curve, self.kind, LEFT_CENSORED, reason, **found | {"high": high})
        value = min(max(math.exp(place.value), low), high)
        flags = remarks(curve, "the interval is disconnected; its hull is given" if place.pieces > 1 else "")
        found |= {"value": value, "low": low, "high": high, "interval": "profile", "flags": flags}
        reason = f"{settings.r:.0%} of what was known is lost at {curve.symbol} = {count(value)}; {down}"
        return make_transition(curve, self.kind, COLLAPSED, f"{reason}; {flags}" if flags else reason, **found)
