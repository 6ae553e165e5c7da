"""The transition of a curve with its status and interval, and the interface of the criteria that find it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, TypedDict, Unpack

import numpy as np

from megatron_kis.analysis.runs.curves import Array, Curve
from megatron_kis.common.terms import GROUPS
from megatron_kis.config.analysis import AnalysisConfig

KINDS = ("onset", "collapse", "tolerance")
CURVE_GROUPS = (*GROUPS, "general")
"""Groups of curves: the fact groups, and ``general`` for the loss on general text."""
COLLAPSED, OBSERVED = "collapsed", "observed"
RIGHT_CENSORED, LEFT_CENSORED, INCONCLUSIVE = "right_censored", "left_censored", "inconclusive"
INFORMATIVE = (COLLAPSED, OBSERVED)
STATUSES = (COLLAPSED, OBSERVED, RIGHT_CENSORED, LEFT_CENSORED, INCONCLUSIVE)


@dataclass(frozen=True, kw_only=True)
class Transition:
    """A transition of one (N, D): onset, collapse by memory, or collapse by loss tolerance.

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
    """F of the transition; None unless it was observed."""
    low: float | None = None
    """Lower end of the interval of F; None if open."""
    high: float | None = None
    """Upper end of the interval of F; None if open."""
    infusion_ratio: float | None = None
    """Infusion ratio at ``value``, interpolated between the levels."""
    ratio_low: float | None = None
    ratio_high: float | None = None
    exposure_tokens: float | None = None
    """Tokens spent on exposures of infused facts at ``value``: infusion_ratio * D."""
    peak: float | None = None
    """Highest rate of the curve (tolerance: the loss at F = 0)."""
    drop: float | None = None
    """Fall from the peak to the levels after the collapse point (tolerance: largest relative excess of the loss)."""
    detectable: float | None = None
    """Smallest drop at the largest F that would have been detected with the power in the settings."""
    p_value: float | None = None
    steepness: float | None = None
    """gamma of the hinge: fall of the logit per e-fold of F beyond the collapse point."""
    companion: float | None = None
    """Collapse point by the tolerance rule: the last F at which the fitted rate is (1 - r) of its maximum."""
    interval: str | None = None
    """Kind of [low, high]: ``bracket`` (neighbouring levels, with nothing known between them) or ``profile`` (a
    confidence interval wider than the bracket)."""
    flags: str = ""
    """Remarks that a reader needs in addition to the status."""
    levels: int | None = None
    seeds: int | None = None
    reason: str = ""
    """Reason for the status, in words."""

    @property
    def informative(self) -> bool:
        """Whether the point can enter the law as an observed value."""
        return self.status in INFORMATIVE and self.value is not None


class Criterion(Protocol):
    """Finds one kind of transition in a curve. Pure: the same curve and settings give the same transition."""

    kind: str
    groups: tuple[str, ...]
    """The fact groups whose curves it reads."""

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


def make_transition(
    curve: Curve, kind: str, status: str, reason: str, *, group: str | None = None, **found: Unpack[Found]
) -> Transition:
    """Returns a transition of ``curve``, with the infusion ratio and the exposure tokens that belong to its F."""
    value = found.get("value")
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
        ratio_low=ratio_at(curve, found.get("low")),
        ratio_high=ratio_at(curve, found.get("high")),
        exposure_tokens=None if ratio is None else ratio * curve.tokens,
        levels=len(curve.frequency),
        seeds=curve.seeds,
        reason=reason,
        **found,
    )


def ratio_at(curve: Curve, frequency: float | None) -> float | None:
    """Returns the infusion ratio at F, linear between the levels that have one (rho = K * F * mean length / D)."""
    known = np.isfinite(curve.ratio)
    if frequency is None or not math.isfinite(frequency) or not known.any():
        return None
    return float(np.interp(frequency, curve.frequency[known], curve.ratio[known]))


def crossing(frequency: Array, height: Array, level: float, index: int) -> float:
    """Returns F between levels ``index`` and ``index + 1`` where the height crosses ``level``, linear in log F."""
    before, after = float(height[index]), float(height[index + 1])
    share = 0.5 if after == before else min(max((level - before) / (after - before), 0.0), 1.0)
    low, high = math.log(frequency[index]), math.log(frequency[index + 1])
    return math.exp(low + share * (high - low))


def count(frequency: float) -> str:
    """Formats F for a sentence."""
    return f"{frequency:.4g}" if frequency < 10_000 else f"{frequency:,.0f}"
