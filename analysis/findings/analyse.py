"""The analysis of a study: transitions, laws, predictions and their backtests. Reads and writes no file."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from megatron_kis.analysis.criteria import Transition, find_transitions
from megatron_kis.analysis.criteria.dispersion import with_dispersion
from megatron_kis.analysis.findings.result import AnalysisResult
from megatron_kis.analysis.law.bootstrap import bootstrap_law
from megatron_kis.analysis.law.bootstrap_points import bootstrap_points
from megatron_kis.analysis.law.fit import LawRefused, fit_law
from megatron_kis.analysis.law.law import Law
from megatron_kis.analysis.law.looks import level_after, said_of
from megatron_kis.analysis.law.predict import predict
from megatron_kis.analysis.law.validate import backtest
from megatron_kis.analysis.law.whole import with_surface
from megatron_kis.analysis.runs.curves import Curve, curve_table, curves, primary_rows
from megatron_kis.analysis.runs.groups import base_group, group_key
from megatron_kis.analysis.runs.load import Runs
from megatron_kis.analysis.runs.slices import Slice, slices_of
from megatron_kis.common.progress import logged
from megatron_kis.config.analysis import AnalysisConfig

_OF_MEMORY = ("collapse", "onset")

logger = logging.getLogger(__name__)

# The law at the top of law.json is the first of these that could be fitted: the paper's collapse point before its
# companions. The order is fixed here, before any data are seen.
LAW_ORDER = (("collapse", "infused"), ("collapse", "background"), ("tolerance", "general"), ("onset", "infused"))

MOST_SIMULATED = 20_000
"""Curves that the bootstrap of one law simulates and fits at most: 999 resamples of 20 cells."""
_FEWEST_RESAMPLES = 199


def fit_laws(
    points: Sequence[Transition],
    settings: AnalysisConfig | None = None,
    table: pd.DataFrame | None = None,
    *,
    level: float | None = None,
) -> tuple[list[Law], list[dict[str, str]]]:
    """Returns the laws of every kind, group and slice of the points, in their order, and the refusals.

    Where several slices of one axis have points, a law of all of them follows, with a term in what they hold.

    With the curve ``table``, laws of memory carry the likelihood of all curves (`law.whole.with_surface`), those by the
    hinge are bootstrapped through both stages; the other laws from the intervals of their points.

    ``level`` is that of their intervals; None: ``settings.confidence``, over all looks (`law.looks`).
    """
    settings = settings or AnalysisConfig()
    level = level or level_after(settings.confidence, settings.looked, settings.looks)
    laws, refused = [], []
    by_loss = settings.criterion == "general_loss"
    first = sorted(LAW_ORDER, key=lambda key: key[0] != "tolerance") if by_loss else LAW_ORDER
    drawn_from: list[Curve] = []
    if table is not None and settings.law_resamples:
        groups = {base_group(p.group) for p in points if p.kind in _OF_MEMORY and p.informative}
        every = curves(primary_rows(table, settings), slices_of(table, settings.axis))
        drawn_from = with_dispersion([curve for curve in every if base_group(curve.group) in groups], settings)
    keys = law_keys(points, first)
    for kind, group, one in [*keys, *_together(points, keys)]:
        try:
            law = fit_law(points, kind, group, along=one, confidence=level, law=settings.law, bend=settings.bend)
            if drawn_from:
                law = with_surface(law, drawn_from, settings)
            if drawn_from and settings.criterion == "hinge":
                resamples = resamples_of(len(law.points), settings)
                law = bootstrap_law(law, drawn_from, points, settings, resamples=resamples)
            if settings.law_resamples and law.calibration is None:
                law = bootstrap_points(law, points, settings, resamples=settings.law_resamples)
            laws.append(_with_looks(law, settings))
        except LawRefused as error:
            of_slice = {name: str(value) for name, value in one.record().items() if value is not None}
            refused.append({"kind": kind, "group": group, "code": error.code, "reason": str(error)} | of_slice)
    return laws, refused


def resamples_of(cells: int, settings: AnalysisConfig) -> int:
    """Returns how often the curves of a law of so many cells are simulated: as declared, or `MOST_SIMULATED` in all.

    Its ``calibration`` has the number.
    """
    return min(settings.law_resamples, max(MOST_SIMULATED // max(cells, 1), _FEWEST_RESAMPLES))


def _with_looks(law: Law, settings: AnalysisConfig) -> Law:
    """Returns ``law`` with a remark on the level of its intervals, where the study was looked at before."""
    said = said_of(settings.confidence, settings.looked, settings.looks)
    return replace(law, warnings=[*law.warnings, said]) if said else law


def _together(points: Sequence[Transition], keys: Sequence[tuple[str, str, Slice]]) -> list[tuple[str, str, Slice]]:
    """Returns (kind, group, slices) with observed points at several values of what is held."""
    found: dict[tuple[str, str, Slice], set[float]] = {}
    for kind, group, one in keys:
        if one.held is not None:
            held = found.setdefault((kind, group, replace(one, held=None)), set())
            if any((p.kind, p.group, p.slice) == (kind, group, one) and p.informative for p in points):
                held.add(one.held)
    return [key for key, values in found.items() if len(values) > 1]


def law_keys(
    points: Iterable[Transition], first: Sequence[tuple[str, str]] = LAW_ORDER
) -> list[tuple[str, str, Slice]]:
    """Returns (kind, group, slice) of the points in the order of their laws.

    Kinds and groups of ``first`` come before others.
    """
    places = {key: place for place, key in enumerate(first)}
    found = {(point.kind, point.group, point.slice) for point in points}
    last = len(places)

    def key(item: tuple[str, str, Slice]) -> tuple[Any, ...]:
        kind, group, one = item
        return places.get((kind, group), last), kind, group_key(group), one.key

    return sorted(found, key=key)


def analyse_points(
    points: list[Transition],
    settings: AnalysisConfig,
    *,
    predict_params: Sequence[float] = (),
    predict_tokens: float | None = None,
    runs: Runs | None = None,
    table: pd.DataFrame | None = None,
    title: str = "Knowledge-infusion study",
    study: dict[str, Any] | None = None,
) -> AnalysisResult:
    """Fits the laws of transitions and predicts from them.

    Without ``predict_tokens`` each prediction is for the largest token budget of its law.
    """
    laws, refused = fit_laws(points, settings, table)
    predictions = [
        predict(law, params, predict_tokens or law.range_tokens[1])
        for law in laws
        if law.range_held is None  # a law of several slices is asked about one of them
        for params in predict_params
    ]
    backtests = {
        (law.kind, law.group, law.slice): backtest(
            points,
            law.kind,
            law.group,
            along=law.slice,
            confidence=law.confidence,
            law=settings.law,
            bend=settings.bend,
        )
        for law in logged(logger).track(laws, description="laws tested on their largest models", total=len(laws))
        if law.range_held is None
    }
    return AnalysisResult(settings, runs, table, points, laws, refused, predictions, backtests, title, study or {})


def analyse(
    data: Runs | pd.DataFrame,
    settings: AnalysisConfig | None = None,
    *,
    predict_params: Sequence[float] = (),
    predict_tokens: float | None = None,
    title: str = "Knowledge-infusion study",
    study: dict[str, Any] | None = None,
) -> AnalysisResult:
    """Finds transitions, fits laws and predicts from runs or a curve table."""
    settings = settings or AnalysisConfig()
    runs = data if isinstance(data, Runs) else None
    table = curve_table(data) if isinstance(data, Runs) else data
    return analyse_points(
        find_transitions(table, settings),
        settings,
        predict_params=predict_params,
        predict_tokens=predict_tokens,
        runs=runs,
        table=table,
        title=title,
        study=study,
    )
