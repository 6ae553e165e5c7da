"""The transition of a curve with its status and interval, and the interface of the criteria that find it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, TypedDict, Unpack

import numpy as np

from megatron_kis.analysis.runs.curves import Array, Curve
from megatron_kis.analysis.runs.groups import group_key
from megatron_kis.analysis.runs.slices import FREQUENCY, RATIO, USUAL, Slice
from megatron_kis.config.analysis import AnalysisConfig

KINDS = ("onset", "collapse", "tolerance")
COLLAPSED, OBSERVED = "collapsed", "observed"
RIGHT_CENSORED, LEFT_CENSORED, INCONCLUSIVE = "right_censored", "left_censored", "inconclusive"
INFORMATIVE = (COLLAPSED, OBSERVED)
LEVEL = 0.95
"""Level of intervals that do not state another one."""
STATUSES = (COLLAPSED, OBSERVED, RIGHT_CENSORED, LEFT_CENSORED, INCONCLUSIVE)


@dataclass(frozen=True, kw_only=True)
class Transition:
    """A transition of one (N, D) along one axis: onset, collapse by memory, or collapse by loss tolerance.

    ``slice`` says what the dose is (F or K), and what is held along it.

    Status: ``collapsed`` (collapse) or ``observed`` (onset, tolerance) with a value in [low, high];
    ``right_censored``: after ``low`` or never; ``left_censored``: at or before ``high``; ``inconclusive``: the data
    cannot decide.
    """

    params: int
    tokens: int
    nonembedding_params: int | None = None
    kind: str
    group: str
    split: str | None = None
    scoring: str | None = None
    status: str
    value: float | None = None
    """Dose of the transition; None unless it was observed."""
    low: float | None = None
    """Lower end of the interval of the dose; None if open."""
    high: float | None = None
    """Upper end of the interval of the dose; None if open."""
    infusion_ratio: float | None = None
    """Infusion ratio at ``value``, interpolated between the levels."""
    ratio_low: float | None = None
    ratio_high: float | None = None
    exposure_tokens: float | None = None
    """Tokens spent on exposures of infused facts at ``value``: infusion_ratio * D."""
    peak: float | None = None
    """Highest rate of the curve (tolerance: the loss without infusion)."""
    drop: float | None = None
    """Fall from the peak to the levels after the collapse point (tolerance: largest relative excess of the loss)."""
    detectable: float | None = None
    """Smallest drop at the largest dose that would have been detected with the power in the settings."""
    p_value: float | None = None
    steepness: float | None = None
    """Criterion ``retention`` and the onset: g, the power of the dose with which the excess over chance falls after the
    plateau, or rises before it (`criteria.decline`). ``hinge``: gamma, the fall of the logit, or of the log of the
    excess over chance where the rate falls as a power of the dose, per e-fold of the dose beyond the collapse point.
    None by others."""
    companion: float | None = None
    """Criterion ``hinge`` alone: the collapse point by the tolerance rule, the last dose at which the fitted rate is
    (1 - r) of its maximum."""
    interval: str | None = None
    """Kind of [low, high]: ``bracket`` (neighbouring levels, with nothing known between them) or ``profile`` (a
    confidence interval wider than the bracket)."""
    confidence: float = LEVEL
    """Level of a ``profile`` interval."""
    flags: str = ""
    """Remarks that a reader needs in addition to the status."""
    levels: int | None = None
    seeds: int | None = None
    reason: str = ""
    """Reason for the status, in words."""
    slice: Slice = USUAL
    """Axis of the dose, and what is held."""
    exposures: float | None = None
    """Exposures of all infused facts at ``value``: K * F."""
    infused_bits: float | None = None
    """Bits of the infused facts at ``value``: the sum of log2 of the possible objects of each."""

    @property
    def cell(self) -> tuple[int, int, Slice]:
        """N, D and the slice."""
        return self.params, self.tokens, self.slice

    @property
    def bits_per_param(self) -> float | None:
        """Bits of the infused facts at ``value`` for each parameter."""
        return None if self.infused_bits is None else self.infused_bits / self.params

    @property
    def informative(self) -> bool:
        """Whether the point can enter the law as an observed value."""
        return self.status in INFORMATIVE and self.value is not None


class Criterion(Protocol):
    """Finds one kind of transition in a curve. Pure: the same curve and settings give the same transition."""

    kind: str
    groups: tuple[str, ...]
    """The fact groups whose curves it reads; ``background`` also stands for background facts of one strength."""

    def find(self, curve: Curve, settings: AnalysisConfig) -> Transition:
        """Returns the transition of ``curve``; every curve has one, with a status."""
        ...


class Found(TypedDict, total=False):
    """The attributes of a `Transition` that a criterion may find out; what it leaves out is not known."""

    value: float | None
    low: float | None
    high: float | None
    peak: float | None
    drop: float | None
    detectable: float | None
    p_value: float | None
    steepness: float | None
    companion: float | None
    interval: str | None
    flags: str


def order_of(point: Transition) -> tuple[Any, ...]:
    """Sort key of transitions: kind, group, slice, N and D."""
    return KINDS.index(point.kind), group_key(point.group), point.slice.key, point.params, point.tokens


def make_transition(
    curve: Curve, kind: str, status: str, reason: str, *, group: str | None = None, **found: Unpack[Found]
) -> Transition:
    """Returns a transition of ``curve``, with the amounts (infusion ratio, tokens, exposures, bits) of its dose.

    A value is within [low, high]: a criterion that returns another one is wrong.
    """
    value, low, high = found.get("value"), found.get("low"), found.get("high")
    if value is not None:
        assert (low or 0.0) <= value <= (math.inf if high is None else high), f"{value} outside [{low}, {high}]"
    ratio = ratio_at(curve, value)
    general = group == "general"  # the loss has neither templates nor a scoring rule
    found.setdefault("interval", "bracket" if value is not None else None)
    return Transition(
        params=curve.params,
        tokens=curve.tokens,
        nonembedding_params=curve.nonembedding_params,
        kind=kind,
        group=group or curve.group,
        split=None if general else curve.split,
        scoring=None if general else curve.scoring,
        status=status,
        infusion_ratio=ratio,
        ratio_low=ratio_at(curve, low),
        ratio_high=ratio_at(curve, high),
        exposure_tokens=None if ratio is None else ratio * curve.tokens,
        levels=len(curve.dose),
        seeds=curve.seeds,
        reason=reason,
        slice=curve.slice,
        exposures=amount_at(curve, curve.exposures, value, jumps=curve.slice.held_by == RATIO),
        infused_bits=amount_at(curve, curve.bits, value, jumps=curve.slice.axis == FREQUENCY),
        **found,
    )


def too_few_levels(curve: Curve, levels: int, fewest: int) -> str:
    """Returns why a ``curve`` of so few ``levels`` has no transition; empty where they are enough."""
    return "" if levels >= fewest else f"{levels} levels of {curve.symbol}; at least {fewest} are needed"


def never_known(curve: Curve, peak: float) -> str:
    """Returns why a ``curve`` whose highest rate is no more than chance has no collapse."""
    chance = curve.assumed_chance
    return f"never reliably above chance ({chance:.2f}; highest rate {peak:.2f}): no memory that could collapse"


def remarks(curve: Curve, *found: str) -> str:
    """Returns the `flags` of a collapse: those that were ``found``, and whether chance had to be assumed."""
    assumed = "" if curve.mean_chance is not None else "the chance level is not known and was taken as 0"
    return "; ".join(flag for flag in (assumed, *found) if flag)


def ratio_at(curve: Curve, dose: float | None) -> float | None:
    """Returns the infusion ratio at a dose, linear between the levels that have one (rho = K F mean length / D)."""
    return amount_at(curve, curve.ratio, dose, jumps=curve.slice.held_by == RATIO)


def amount_at(curve: Curve, amounts: Array | None, dose: float | None, *, jumps: bool) -> float | None:
    """Returns an amount at a dose, linear between the levels [L] that have one; None where none has.

    ``jumps`` says that the amount is held along the axis: dose 0 has none of it, and every other dose the same.
    """
    if amounts is None or dose is None or not math.isfinite(dose):
        return None
    known = np.isfinite(amounts)
    if jumps and dose > 0:
        known &= curve.dose > 0
    return float(np.interp(dose, curve.dose[known], amounts[known])) if known.any() else None


def crossing(dose: Array, height: Array, level: float, index: int) -> float:
    """Returns the dose between levels ``index`` and ``index + 1`` at which the height crosses ``level``.

    Linear in the logarithm of the dose.
    """
    before, after = float(height[index]), float(height[index + 1])
    share = 0.5 if after == before else min(max((level - before) / (after - before), 0.0), 1.0)
    low, high = math.log(dose[index]), math.log(dose[index + 1])
    # Within the levels to the last digit: exp(log(x)) may not be x.
    return float(np.clip(math.exp(low + share * (high - low)), dose[index], dose[index + 1]))


def count(dose: float) -> str:
    """Formats a dose for a sentence."""
    return f"{dose:.4g}" if dose < 10_000 else f"{dose:,.0f}"
