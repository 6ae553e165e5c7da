"""One law under every scoring rule, split and criterion that the data have: does the answer depend on a choice?

The declared choice stays the answer, whatever the others say: it was made before the data were seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import product
from typing import Any

import pandas as pd

from megatron_kis.analysis.criteria import find_transitions
from megatron_kis.analysis.findings.analyse import LAW_ORDER, fit_laws, law_keys
from megatron_kis.analysis.findings.result import AnalysisResult, Variant
from megatron_kis.analysis.law.predict import predict
from megatron_kis.analysis.runs.curves import primary_rows
from megatron_kis.analysis.runs.slices import Slice
from megatron_kis.analysis.runs.transitions import Transition
from megatron_kis.common.errors import InputError
from megatron_kis.config.analysis import CRITERIA, AnalysisConfig

Key = tuple[str, str, Slice]
"""Kind, group and slice of a law."""
_BY_LOSS = "general_loss"
_NEEDS = {_BY_LOSS: "validation_loss", "half_margin": "mean_margin"}
"""Columns of the curve table that a criterion needs."""
_IN_WORDS = {
    "no_points": "no points",
    "all_censored": "seen in no model",
    "one_size": "seen at one size only",
    "few_points": "seen in too few models",
    "collinear": "N and D not separable",
    "not_finite": "points that are not numbers",
}
_LARGEST_OF_REPORT = 24
"""Most models of a law whose choices a report tries."""
_RESAMPLES_OF_REPORT = 199


def choices(table: pd.DataFrame, settings: AnalysisConfig, *, cross: bool = False) -> list[AnalysisConfig]:
    """Returns the settings that are tried: the declared ones, then those that differ in one choice.

    Args:
        table: the curves.
        settings: the declared settings.
        cross: also those that differ in several.
    """
    splits = _first(settings.split, table["split"])
    rules = _first(settings.scoring, table["scoring"])
    there = [
        name for name in CRITERIA if name not in _NEEDS or (_NEEDS[name] in table and table[_NEEDS[name]].notna().any())
    ]
    criteria = _first(settings.criterion, pd.Series(there))
    known = set(zip(table["split"], table["scoring"], strict=True)) | {(settings.split, settings.scoring)}
    found = []
    for rule, split, criterion in product(rules, splits, criteria):
        others = (rule != settings.scoring) + (split != settings.split) + (criterion != settings.criterion)
        if (split, rule) not in known or (others > 1 and not cross):
            continue
        if criterion == _BY_LOSS and (rule, split) != (settings.scoring, settings.split):
            continue  # the loss has neither
        found.append((others, settings.model_copy(update={"scoring": rule, "split": split, "criterion": criterion})))
    return [one for _, one in sorted(found, key=lambda item: item[0])]


def sensitivity(
    table: pd.DataFrame,
    settings: AnalysisConfig,
    params: float | None = None,
    tokens: float | None = None,
    *,
    cross: bool = False,
    where: str = "curves",
    progress: Callable[[int, int, AnalysisConfig], None] = lambda *_: None,
) -> list[Variant]:
    """Returns the law at the top of law.json, and what it predicts, under every choice; the declared one first.

    Args:
        table: the curves.
        settings: the declared settings.
        params: N of the target; no prediction if None.
        tokens: D of the target; the largest of each law if None.
        cross: all combinations, and not only those that differ from the declared settings in one choice.
        where: names the table in errors.
        progress: is called before each of them with its number, how many there are, and the settings.

    Raises:
        InputError: the declared choice has no collapse or loss.
    """
    tried = choices(table, settings, cross=cross)
    found: list[Variant] = []
    key: Key | None = None
    for number, one in enumerate(tried, start=1):
        progress(number, len(tried), one)
        if key is None:
            key = _key(find_transitions(table, one), one)
            if key is None:
                remedy = "curves of infused or background facts of the declared split and scoring rule"
                raise InputError("no point of a collapse or of the loss", where=where, remedy=remedy)
        found.append(_variant(table, settings, one, key, (params, tokens)))
    return found


def with_sensitivity(result: AnalysisResult) -> AnalysisResult:
    """Returns a result with the law of its points under other choices, for a report: quickly, and of points alone.

    Without curves or a law of what is lost, or with too many models, it stays as it is.
    """
    law = result.law
    if result.curves is None or law is None or law.kind == "onset" or len(law.points) > _LARGEST_OF_REPORT:
        return result
    settings = result.settings
    fewer = min(settings.resamples, _RESAMPLES_OF_REPORT)
    brief = settings.model_copy(update={"law_resamples": 0, "resamples": fewer})
    mine = [p for p in result.predictions if (p.kind, p.group, p.slice) == (law.kind, law.group, law.slice)]
    target = max(mine, key=lambda p: (p.params, p.tokens), default=None)
    at = (None, None) if target is None else (target.params, target.tokens)
    return replace(result, variants=sensitivity(result.curves, brief, *at))


def variant_record(variant: Variant) -> dict[str, Any]:
    """Returns a row as JSON-ready values."""
    content = asdict(variant)
    del content["slice"]
    return content | variant.slice.record()


def _first(declared: str, there: pd.Series[str]) -> list[str]:
    return [declared, *sorted(set(there) - {declared})]


def _key(points: Sequence[Transition], settings: AnalysisConfig) -> Key | None:
    """Returns the law that is compared: the first whose points were seen, in the order of law.json."""
    order = [key for key in LAW_ORDER if key[0] != "onset"]
    wanted = [p for p in points if p.kind == ("tolerance" if settings.criterion == _BY_LOSS else "collapse")]
    seen = [p for p in wanted if p.informative]
    return next(iter(law_keys(seen or wanted, order)), None)


def _variant(
    table: pd.DataFrame,
    declared: AnalysisConfig,
    settings: AnalysisConfig,
    key: Key,
    target: tuple[float | None, float | None],
) -> Variant:
    _, group, one = key
    by_loss = settings.criterion == _BY_LOSS
    wanted = ("tolerance", "general", one) if by_loss else ("collapse", key[1] if key[0] == "collapse" else "", one)
    row = Variant(
        scoring=settings.scoring,
        split=settings.split,
        criterion=settings.criterion,
        declared=settings == declared,
        kind=wanted[0],
        group=wanted[1],
        slice=one,
    )
    mine = table if by_loss or not wanted[1] else table[table["group"] == group]
    if primary_rows(mine, settings).empty:
        return replace(row, refused="no such answers")
    try:
        points = [p for p in find_transitions(mine, settings) if p.kind == wanted[0] and p.slice == one]
        if not wanted[1]:
            first = _key(points, settings)
            row = replace(row, group="" if first is None else first[1])
        points = [p for p in points if p.group == row.group]
        row = replace(row, seen=sum(p.informative for p in points), models=len(points))
        laws, refused = fit_laws(points, settings, mine)
        if not laws:
            code = refused[0]["code"] if refused else "no_points"
            return replace(row, refused=f"{_IN_WORDS.get(code, code)} ({row.seen} of {row.models})")
        law = laws[0]
        exponent = law.coefficients["b_log_params"]
        row = replace(
            row,
            law=law.selected_law,
            exponent=None if exponent is None else (exponent.value, exponent.low, exponent.high),
            unvalidated=law.unvalidated,
            method="points" if law.surface is None else "all curves",
        )
        params, tokens = target
        if params is None:
            return row
        told = predict(law, params, tokens or law.range_tokens[1])
        return replace(row, centre=told.centre, interval=told.prediction_interval)
    except InputError as error:
        return replace(row, refused=error.problem)
