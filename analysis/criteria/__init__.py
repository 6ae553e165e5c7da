"""Transitions of the curves: onset, collapse by memory, collapse by loss tolerance.

Three criteria behind one interface (`Criterion`), each a file of its own; `find_transitions` applies them to the split
and scoring rule that the settings declare.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pandas as pd

from megatron_kis.analysis.criteria.dispersion import with_dispersion
from megatron_kis.analysis.criteria.half_margin import HalfMargin
from megatron_kis.analysis.criteria.hinge import HingeCollapse
from megatron_kis.analysis.criteria.loss import LossTolerance
from megatron_kis.analysis.criteria.loss_noise import noise_of
from megatron_kis.analysis.criteria.onset import Onset
from megatron_kis.analysis.criteria.retention import Retention
from megatron_kis.analysis.criteria.tolerance_rule import ToleranceRule
from megatron_kis.analysis.runs.curves import curve_table, curves, primary_rows
from megatron_kis.analysis.runs.groups import base_group
from megatron_kis.analysis.runs.load import Runs
from megatron_kis.analysis.runs.slices import FACTS, slices_of
from megatron_kis.analysis.runs.transitions import (
    COLLAPSED,
    INCONCLUSIVE,
    INFORMATIVE,
    KINDS,
    LEFT_CENSORED,
    OBSERVED,
    RIGHT_CENSORED,
    STATUSES,
    Criterion,
    Transition,
    order_of,
)
from megatron_kis.common.errors import InputError, nearest
from megatron_kis.common.progress import logged
from megatron_kis.config.analysis import AnalysisConfig

__all__ = [
    "COLLAPSED",
    "INCONCLUSIVE",
    "INFORMATIVE",
    "KINDS",
    "LEFT_CENSORED",
    "OBSERVED",
    "RIGHT_CENSORED",
    "STATUSES",
    "Criterion",
    "HalfMargin",
    "HingeCollapse",
    "LossTolerance",
    "Onset",
    "Retention",
    "ToleranceRule",
    "Transition",
    "criteria_of",
    "find_transitions",
]

logger = logging.getLogger(__name__)

_COLLAPSE: dict[str, Criterion] = {
    "retention": Retention(),
    "hinge": HingeCollapse(),
    "tolerance_rule": ToleranceRule(),
    "half_margin": HalfMargin(),
}


def criteria_of(settings: AnalysisConfig) -> tuple[Criterion, ...]:
    """Returns what a study looks for: onset, collapse by the declared criterion, and the tolerance on general loss.

    With ``general_loss`` the last is the collapse itself, and no rate is searched for one.
    """
    chosen = _COLLAPSE.get(settings.criterion)
    return (Onset(), *((chosen,) if chosen else ()), LossTolerance())


def find_transitions(
    data: Runs | pd.DataFrame,
    settings: AnalysisConfig | None = None,
    *,
    criteria: tuple[Criterion, ...] | None = None,
) -> list[Transition]:
    """Finds the transitions of every (N, D) and slice, ordered by kind, group, slice, N and D.

    Args:
        data: runs, or a curve table (`analysis.runs.curves.curve_table`, `analysis.runs.load_csv.load_curves_csv`).
        settings: the declared choices; the defaults if None.
        criteria: what to look for; those of the settings if None.

    Raises:
        InputError: no complete run, or no row of the declared split and scoring rule.
    """
    settings = settings or AnalysisConfig()
    table = curve_table(data) if isinstance(data, Runs) else data
    primary = primary_rows(table, settings)
    if primary.empty:
        splits, rules = sorted(set(table["split"])), sorted(set(table["scoring"]))
        for key, value, there in (("split", settings.split, splits), ("scoring", settings.scoring, rules)):
            if value not in there:
                problem = f"no probe row has {key} {value!r}"
                raise InputError(problem, where=f"analysis.{key}", remedy=nearest(value, there))
        pairs = sorted({f"{split}/{scoring}" for split, scoring in zip(table["split"], table["scoring"], strict=True)})
        raise InputError(
            f"no probe row of split {settings.split!r} has scoring {settings.scoring!r}",
            where="analysis.split, analysis.scoring",
            remedy="valid: " + ", ".join(pairs),
        )
    if settings.criterion == "half_margin" and criteria is None and "mean_margin" not in primary:
        raise InputError(
            "no probe row has a mean margin",
            where="analysis.criterion",
            remedy="runs of this version write it; use criterion: hinge for older ones",
        )
    found: dict[tuple[Any, ...], Transition] = {}
    every = curves(primary, slices_of(table, settings.axis))
    every = with_dispersion(every, settings)
    loss_noise = noise_of(every, settings.tolerance)
    every = [replace(curve, loss_noise=loss_noise) for curve in every]
    for criterion in criteria_of(settings) if criteria is None else criteria:
        described = f"{criterion.kind}: curves"
        for curve in logged(logger).track(every, description=described, total=len(every)):
            if base_group(curve.group) not in criterion.groups:
                continue
            if criterion.kind == "onset" and curve.slice.axis == FACTS:
                continue  # a fact is learnt from its own exposures: along K there is no smallest number for it
            transition = replace(criterion.find(curve, settings), confidence=settings.confidence)
            # Every group's rows carry the loss of their run: its tolerance point is the same, and kept once.
            found.setdefault((transition.kind, transition.group, *curve.cell), transition)
    return sorted(found.values(), key=order_of)
