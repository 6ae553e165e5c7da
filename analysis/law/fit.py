"""The law of collapse points over N and D: fitted to every cell, censored ones too, chosen among candidates.

`law.regression` has the likelihood, `law.candidates` the forms. Here transitions become cells, a form is chosen by how
well it predicts the largest N from the others, and a law that the cells cannot support is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from megatron_kis.analysis.law.bend import record_of
from megatron_kis.analysis.law.candidates import (
    ALL,
    AUTO,
    CANDIDATES,
    SIZE,
    SIZE_AND_BUDGET,
    SIZE_AND_HELD,
    Cells,
    bend_of_cells,
    check_law,
    compare,
    declared,
    fit_candidate,
)
from megatron_kis.analysis.law.coefficients import (
    agreed,
    amounts_of,
    coefficients_of,
    cost_of,
    equivalents,
    lack_of_fit,
    nonembedding,
)
from megatron_kis.analysis.law.law import Law
from megatron_kis.analysis.runs.curves import Array
from megatron_kis.analysis.runs.groups import group_key
from megatron_kis.analysis.runs.slices import FREQUENCY, RATIO, USUAL, Slice
from megatron_kis.analysis.runs.transitions import INFORMATIVE, KINDS, LEFT_CENSORED, RIGHT_CENSORED, Transition
from megatron_kis.common.errors import InputError, nearest
from megatron_kis.config.analysis import AnalysisConfig

BEND: float = AnalysisConfig.model_fields["bend"].default
FEWEST_SIZES = 3  # a line through two sizes cannot be wrong
VALIDATED_CELLS = 5  # below it a law is a point estimate (labelled unvalidated)
COLLINEAR = 0.999  # |correlation| of log N and log D beyond which b and c cannot be separated


class LawRefused(InputError):
    """The points cannot support a law.

    ``code`` says why: no_points, all_censored, one_size, few_points, collinear, not_finite, one_slice.
    """

    def __init__(self, code: str, problem: str, *, remedy: str | None = None) -> None:
        super().__init__(problem, where="law", remedy=remedy)
        self.code = code


def fit_law(
    points: Iterable[Transition],
    kind: str = "collapse",
    group: str | None = None,
    *,
    along: Slice | None = None,
    confidence: float = 0.95,
    law: str = "auto",
    compare_laws: bool = True,
    errors: Mapping[tuple[int, int], float] | None = None,
    bend: float = BEND,
    brief: bool = False,
) -> Law:
    """Fits the law to the points of one kind, group and slice; censored ones contribute their limits.

    Args:
        points: transitions, in any order.
        kind: onset, collapse or tolerance.
        group: infused, background or general; optional if the points of that kind have only one group.
        along: axis of the dose and what is held; optional if the points of that kind and group have only one. With
            ``held_by`` and no ``held``: all slices that hold the same thing, together.
        confidence: level of the intervals.
        law: a candidate's name (`megatron_kis.analysis.law.candidates.CANDIDATES`), or ``auto``. Of several slices
            together ``N`` stands for ``N and held``, of one slice the other way round; so does ``N and D``.
        compare_laws: whether to score the other candidates where ``law`` names one.
        errors: standard errors of log F* by (N, D), if they are known better than from the intervals' widths.
        bend: standard deviation of a curvature in log N before the data (`AnalysisConfig.bend`); 0: a straight law.
        brief: leaves out the bend, the test of fit and the law in other units, for callers that fit thousands of laws.

    Raises:
        LawRefused: the points cannot support a law; nothing is fitted.
        InputError: unknown kind or law, or several groups or slices and ``group`` or ``along`` is None.
    """
    chosen, group, along = _chosen(points, kind, group, along)
    check_law(law)
    used = [p for p in chosen if p.informative or _censored(p)]
    pooled = along.held_by is not None and along.held is None
    cells = cells_of(used, errors)
    if pooled:
        cells = replace(cells, log_h=np.log([p.slice.held or 1.0 for p in used]))
    form = None if law == AUTO else declared(law, together=pooled)
    asked = form is not None and form.name == law
    _refuse(chosen, cells, explicit=form is not None, held_explicit=asked, along=along)
    candidates = compare(cells) if compare_laws or form is None else []
    if form is None:
        name, selection = _select(candidates, cells)
    elif asked:
        name, selection = law, "declared"
    else:
        name = form.name
        selection = f"declared as {law}, {'with a' if pooled else 'without the'} term in what is held"
    fitted = fit_candidate(CANDIDATES[name], cells)
    if fitted is None:
        raise LawRefused(
            "few_points",
            f"{int(cells.informative.sum())} bracketed points cannot carry the law " + CANDIDATES[name].written(along),
            remedy=f"at least {CANDIDATES[name].size + 1} bracketed (N, D) that separate its terms",
        )
    informative = [p for p in used if p.informative]
    excluded = [
        _listed(p, reason=f"{p.status}: {p.reason}".rstrip(": ")) for p in chosen if not (p.informative or _censored(p))
    ]
    fitted_mean, _ = fitted.mean(cells.log_n, cells.log_d, cells.log_h)
    lack = None if brief else lack_of_fit(fitted, cells)
    warnings = _warnings(len(informative), used, lack)
    return Law(
        kind=kind,
        group=group,
        slice=along,
        selected_law=fitted.law.written(along),
        law=name,
        selection=selection,
        coefficients=coefficients_of(fitted, confidence),
        sigma=fitted.sigma,
        degrees_of_freedom=fitted.freedom,
        scatter_degrees_of_freedom=fitted.scatter_freedom,
        confidence=confidence,
        unvalidated=len(informative) < VALIDATED_CELLS,
        centre=fitted.centre.tolist(),
        parameters=fitted.parameters.tolist(),
        covariance=fitted.covariance.tolist(),
        range_params=(min(p.params for p in informative), max(p.params for p in informative)),
        range_tokens=(min(p.tokens for p in informative), max(p.tokens for p in informative)),
        range_held=_range([p.slice.held for p in informative if p.slice.held]) if pooled else None,
        tokens_per_frequency=None if along.held_by == RATIO else agreed(cost_of(informative)),
        amounts=amounts_of(informative, along),
        points=[
            _listed(p, residual=math.log(p.value) - float(m) if p.informative and p.value else None)
            | ({"held": p.slice.held} if pooled else {})
            for p, m in zip(used, fitted_mean, strict=True)
        ],
        excluded=excluded,
        candidates=[
            row | {"formula": CANDIDATES[row["law"]].written(along), "selected": row["law"] == name}
            for row in candidates
        ],
        lack_of_fit=lack,
        equivalents={} if brief else equivalents(used, cells, fitted, confidence),
        sensitivity={} if brief else nonembedding(used, cells, fitted, confidence),
        bend=record_of(bend_of_cells(fitted, cells, bend)) if bend > 0 and not brief else None,
        warnings=warnings,
    )


def _chosen(
    points: Iterable[Transition], kind: str, group: str | None, along: Slice | None
) -> tuple[list[Transition], str, Slice]:
    if kind not in KINDS:
        raise InputError(f"unknown kind {kind!r}", where="kind", remedy=nearest(kind, KINDS))
    of_kind = [point for point in points if point.kind == kind]
    groups = sorted({point.group for point in of_kind}, key=group_key)
    if group is None:
        if len(groups) > 1:
            raise InputError(
                f"{kind} points of several groups", where="group", remedy="name one of " + ", ".join(groups)
            )
        group = groups[0] if groups else ""
    of_group = [point for point in of_kind if point.group == group]
    slices = sorted({point.slice for point in of_group}, key=lambda one: one.key)
    if along is not None and along.held_by is not None and along.held is None:
        together = [p for p in of_group if along.covers(p.slice)]
        return sorted(together, key=lambda p: (*_identity(p), p.slice.key)), group, along
    if along is None:
        if len(slices) > 1:
            remedy = "name one of " + ", ".join(f"{one.axis} at {one.label or 'any'}" for one in slices)
            raise InputError(f"{kind} points of {group} of several slices", where="along", remedy=remedy)
        along = slices[0] if slices else USUAL
    return sorted((p for p in of_group if p.slice == along), key=_identity), group, along


def _censored(point: Transition) -> bool:
    return (point.status == RIGHT_CENSORED and bool(point.low)) or (point.status == LEFT_CENSORED and bool(point.high))


def cells_of(points: Sequence[Transition], errors: Mapping[tuple[int, int], float] | None = None) -> Cells:
    """Returns transitions as cells of the regression, in their order (see `measurements`).

    ``errors`` are standard errors of log F* by (N, D), where they are known better than from the intervals' widths.
    """
    logs = np.full((3, len(points)), [[math.nan], [-math.inf], [math.inf]])
    for index, p in enumerate(points):
        for row, end in enumerate((p.value if p.informative else None, p.low, p.high)):
            if end:
                logs[row, index] = math.log(end) if end > 0 else math.nan
    bracket = np.array([p.interval == "bracket" for p in points], dtype=bool)
    status = np.array([p.status for p in points], dtype=str)
    level = np.array([p.confidence for p in points], dtype=float)
    lower, upper, variance = measurements(status, logs[0], logs[1], logs[2], bracket, level)
    if errors is not None:
        known = [errors.get((p.params, p.tokens), math.sqrt(v)) ** 2 for p, v in zip(points, variance, strict=True)]
        variance = np.where(lower == upper, known, 0.0)
    log_n = np.log([max(float(p.params), 0.0) for p in points]) if points else np.empty(0)
    log_d = np.log([max(float(p.tokens), 0.0) for p in points]) if points else np.empty(0)
    return Cells(log_n, log_d, lower, upper, variance)


def measurements(
    status: npt.NDArray[np.str_],
    value: Array,
    low: Array,
    high: Array,
    bracket: npt.NDArray[np.bool_],
    level: Array | float,
) -> tuple[Array, Array, Array]:
    """Returns (lower, upper, variance) of log F* of points, measured or simulated, as the regression takes them.

    A ``bracket`` enters as an interval, a ``profile`` interval as a point with the variance that its width implies; an
    end that is open leaves the other to say how wide. A censored point keeps its one end, an inconclusive one neither.

    Args:
        status: statuses of the points, all arrays [n].
        value: log F* of those that were observed.
        low: log of the lower ends, -inf where open.
        high: log of the upper ends, inf where open.
        bracket: whether an interval is a bracket.
        level: of the intervals that are none.
    """
    low_known, high_known = np.isfinite(low), np.isfinite(high)
    closed = low_known & high_known
    observed = np.isin(status, INFORMATIVE)
    interval = observed & bracket & closed & (high > low)
    point = observed & ~interval
    with np.errstate(invalid="ignore"):  # infinite ends, masked below
        half = np.select([closed, low_known, high_known], [(high - low) / 2, value - low, high - value], 0.0)
    variance = np.where(point, (half / scipy.special.ndtri(0.5 + np.asarray(level) / 2)) ** 2, 0.0)
    lower = np.select([point, interval | (status == RIGHT_CENSORED)], [value, low], -np.inf)
    upper = np.select([point, interval | (status == LEFT_CENSORED)], [value, high], np.inf)
    return lower, upper, variance


def _refuse(chosen: Sequence[Transition], cells: Cells, *, explicit: bool, held_explicit: bool, along: Slice) -> None:
    """Refuses points that support no law; a form that was declared, in H by its own name, may have collinear terms."""
    informative = cells.informative | np.isnan(cells.lower)
    doses = "frequencies" if along.axis == FREQUENCY else "numbers of facts"
    if not informative.any():
        listed = ", ".join(sorted({p.status for p in chosen})) or "none at all"
        code = "all_censored" if chosen else "no_points"
        problem = f"no point was bracketed (statuses: {listed})"
        raise LawRefused(code, problem, remedy=f"add {doses} on both sides of it")
    if not (np.isfinite(cells.log_n).all() and np.isfinite(cells.log_d).all()) or np.isnan(cells.lower).any():
        raise LawRefused("not_finite", f"N, D and {along.symbol} of every point must be finite and positive")
    sizes = len(np.unique(cells.log_n[informative]))
    if sizes < FEWEST_SIZES:
        code, noun = ("one_size", "size") if sizes == 1 else ("few_points", "sizes")
        raise LawRefused(
            code, f"bracketed points of {sizes} {noun} N only", remedy=f"at least {FEWEST_SIZES} distinct N"
        )
    if cells.log_h is not None:
        _refuse_held(cells, informative, explicit=held_explicit)
    if len(np.unique(cells.log_d)) > 1:
        if not explicit and abs(float(np.corrcoef(cells.log_n, cells.log_d)[0, 1])) > COLLINEAR:
            raise LawRefused(
                "collinear",
                "N and D grow together in every point, so their effects cannot be separated",
                remedy="add a size with a second token budget",
            )
        if not explicit and int(informative.sum()) <= SIZE_AND_BUDGET.size:
            raise LawRefused(
                "few_points",
                f"{int(informative.sum())} bracketed points for {SIZE_AND_BUDGET.size} coefficients",
                remedy=f"at least {SIZE_AND_BUDGET.size + 1} bracketed (N, D)",
            )


def _refuse_held(cells: Cells, informative: npt.NDArray[np.bool_], *, explicit: bool) -> None:
    """Refuses a law of several slices where what is held cannot be separated from N."""
    assert cells.log_h is not None
    held = cells.log_h[informative]
    if len(np.unique(held)) == 1:
        raise LawRefused("one_slice", "bracketed points of one slice only", remedy="several values of what is held")
    if not explicit and abs(float(np.corrcoef(cells.log_n[informative], held)[0, 1])) > COLLINEAR:
        raise LawRefused(
            "collinear",
            "N and what is held grow together in every point, so their effects cannot be separated",
            remedy="add a size with a second value of what is held",
        )


def _range(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def _select(candidates: list[dict[str, Any]], cells: Cells) -> tuple[str, str]:
    """Returns (name of the law, reason).

    The law with a term for everything that was varied is used unless another one predicts the largest N better by more
    than one unit of log score: that score comes from a single held-out size, and a law without a term extrapolates with
    more confidence than a few cells can support. Of several such laws within one unit of the best, the one with the
    fewest coefficients is used.
    """
    one_budget = len(np.unique(cells.log_d)) == 1
    full = SIZE if one_budget else SIZE_AND_BUDGET
    if cells.log_h is not None:
        full = SIZE_AND_HELD if one_budget else ALL
    scores = {row["law"]: row["log_score"] for row in candidates if row["log_score"] is not None}
    if full.name not in scores:
        return full.name, "by design: too few cells to hold the largest N out"
    best = max(scores.values())
    if best > scores[full.name] + 1:
        alike = [name for name in scores if scores[name] > max(best - 1, scores[full.name] + 1)]
        chosen = min(alike, key=lambda name: (CANDIDATES[name].size, -scores[name]))
        return chosen, "predicts the largest N, held out, better than the full law"
    return full.name, "no other law predicts the largest N, held out, better by more than one unit of log score"


def _identity(point: Transition) -> tuple[float, ...]:
    return point.params, point.tokens, point.value or 0.0, point.low or 0.0


def _listed(point: Transition, **more: Any) -> dict[str, Any]:
    kept = ("params", "tokens", "status", "value", "low", "high", "interval", "infusion_ratio")
    return {name: getattr(point, name) for name in kept} | more


def _warnings(informative: int, used: Sequence[Transition], lack: dict[str, Any] | None) -> list[str]:
    warnings = []
    if informative < VALIDATED_CELLS:
        warnings.append(
            f"unvalidated: {informative} informative points; a law to rely on needs at least {VALIDATED_CELLS}"
        )
    censored = len(used) - informative
    if 2 * censored > len(used):
        warnings.append(f"{censored} of {len(used)} points are censored: the law rests on few that are not")
    if lack is not None and lack["flag"]:
        warnings.append(f"lack of fit: the points bend in log N (p = {lack['p_value']:.2g}); do not extrapolate far")
    return warnings
