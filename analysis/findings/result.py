"""The record of what a study found."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd

from megatron_kis.analysis.criteria.dispersion import with_dispersion
from megatron_kis.analysis.law.decision import Decision, decide
from megatron_kis.analysis.law.law import Law
from megatron_kis.analysis.law.prediction import Prediction
from megatron_kis.analysis.law.validate import Score
from megatron_kis.analysis.runs.curves import Curve, curves, primary_rows
from megatron_kis.analysis.runs.load import Runs
from megatron_kis.analysis.runs.slices import Slice, slices_of
from megatron_kis.analysis.runs.transitions import Transition
from megatron_kis.config.analysis import AnalysisConfig


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The law and its prediction under one scoring rule, split and criterion (`findings.sensitivity`)."""

    scoring: str
    split: str
    criterion: str
    declared: bool
    """Whether this is the choice that was declared before the data were seen."""
    kind: str
    group: str
    slice: Slice
    seen: int = 0
    """Models whose transition was observed."""
    models: int = 0
    law: str | None = None
    """Formula; None where there is no law."""
    exponent: tuple[float, float, float] | None = None
    """b of log N, and the ends of its interval; None where the law has none."""
    unvalidated: bool = False
    method: str = ""
    """``all curves`` or ``points``: what the law and its prediction rest on."""
    centre: float | None = None
    """Dose at the target."""
    interval: tuple[float, float] | None = None
    """Prediction interval of the dose at the target."""
    refused: str = ""
    """Why there is no law, in a few words."""


@dataclass(frozen=True)
class AnalysisResult:
    """Everything the report shows. Parts that the input does not have are None or empty."""

    settings: AnalysisConfig
    runs: Runs | None
    curves: pd.DataFrame | None
    points: list[Transition]
    laws: list[Law]
    refused: list[dict[str, str]]
    """Laws that the points cannot support: kind, group, code, reason; axis, held_by and held of a slice."""
    predictions: list[Prediction]
    backtests: dict[tuple[str, str, Slice], list[Score]] = field(default_factory=dict)
    """Predictions of the study's own larger N and D from its smaller ones, by kind, group and slice of the law."""
    title: str = "Knowledge-infusion study"
    study: dict[str, Any] = field(default_factory=dict)
    """Content of study.yaml; empty where there is none."""
    variants: list[Variant] = field(default_factory=list)
    """The law at the top under other choices (`findings.sensitivity`); empty where none was tried."""

    @cached_property
    def slices(self) -> list[Slice]:
        """The slices that were analysed, in their order."""
        if self.curves is not None:
            return slices_of(self.curves, self.settings.axis)
        return sorted({point.slice for point in self.points}, key=lambda one: one.key)

    @cached_property
    def primary_curves(self) -> list[Curve]:
        """The curves that transitions are sought in, with the dispersion of the study; none of points alone."""
        if self.curves is None:
            return []
        return with_dispersion(curves(primary_rows(self.curves, self.settings), self.slices), self.settings)

    @cached_property
    def decisions(self) -> list[Decision]:
        """How much to infuse into every size that is predicted for, in each slice that has a law of what is lost."""
        targets = sorted({(p.params, p.tokens) for p in self.predictions})
        losing = [law for law in self.laws if law.kind != "onset" and law.range_held is None]
        slices = sorted({law.slice for law in losing}, key=lambda one: one.key)
        return [
            decide(self.laws, params, tokens, axis=one.axis, held_by=one.held_by or "nothing", held=one.held)
            for params, tokens in targets
            for one in slices
        ]

    @property
    def law(self) -> Law | None:
        """The law at the top of law.json."""
        return self.laws[0] if self.laws else None
