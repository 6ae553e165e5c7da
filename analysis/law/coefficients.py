"""Descriptions of a fitted law: its coefficients, the same law in other units, and a test of its fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import scipy

from megatron_kis.analysis.law.candidates import SIZE_AND_BUDGET, Cells, Fitted, design, fit_candidate
from megatron_kis.analysis.law.regression import fit, student
from megatron_kis.analysis.runs.curves import Array
from megatron_kis.analysis.runs.slices import FACTS, RATIO, Slice
from megatron_kis.analysis.runs.transitions import Transition

AMOUNTS = ("exposures_per_dose", "tokens_per_exposure", "bits_per_dose", "bits")
"""Names of `amounts_of`."""


@dataclass(frozen=True)
class Coefficient:
    """An estimate with its standard error and confidence interval."""

    value: float
    standard_error: float
    low: float
    high: float


def coefficients_of(fitted: Fitted, confidence: float) -> dict[str, Coefficient | None]:
    """Returns a, b and c, which are linear in the parameters of the centred fit, with their errors."""
    law = fitted.law
    k = len(law.rows)
    quantile = float(student(fitted.freedom, confidence))
    p = len(fitted.parameters)

    def of(row: Array) -> Coefficient:
        value = float(row @ fitted.parameters)
        error = math.sqrt(max(float(row @ fitted.covariance @ row), 0.0))
        return Coefficient(value, error, value - quantile * error, value + quantile * error)

    origin = np.zeros(p)
    origin[: k + 1] = design(law, fitted.centre, np.zeros(1), np.zeros(1), np.zeros(1))[0]
    found: dict[str, Coefficient | None] = {"a": of(origin), "b_log_params": None, "c_log_tokens": None}
    for name, axis in (("b_log_params", 0), ("c_log_tokens", 1), ("d_log_held", 2)):
        row = np.zeros(p)
        row[1 : k + 1] = [(*weights, 0.0)[axis] for weights in law.rows]
        if row.any():
            found[name] = of(row)
    if law.offset:
        found["log_f_inf"] = of(np.eye(p)[-1])
    return found


def lack_of_fit(fitted: Fitted, cells: Cells) -> dict[str, Any] | None:
    """Tests an added term in (log N)^2 by Student's t; returns None if there are too few cells for it."""
    known = cells.informative
    if fitted.law.offset or len(np.unique(cells.log_n[known])) < 4 or int(known.sum()) < fitted.law.size + 2:
        return None
    x = design(fitted.law, fitted.centre, cells.log_n, cells.log_d, cells.log_h)
    bend = (cells.log_n - cells.log_n.mean()) ** 2
    more = np.column_stack([x, bend - bend.mean()])
    if not fitted.law.rows:
        more = np.column_stack([x, cells.log_n - cells.log_n.mean(), bend - bend.mean()])
    if np.linalg.matrix_rank(more[known]) < more.shape[1] or int(known.sum()) <= more.shape[1]:
        return None
    bent = fit(more, cells.lower, cells.upper, cells.variance)
    value = float(bent.beta[-1])
    error = math.sqrt(float(bent.covariance[-1, -1]))
    freedom = max(float(bent.freedom), 1e-3)
    p_value = float(2 * scipy.special.stdtr(freedom, -abs(value) / error)) if error > 1e-9 * abs(value) + 1e-12 else 1.0
    return {"term": "(log N)^2", "coefficient": value, "p_value": p_value, "flag": p_value < 0.05}


def equivalents(used: list[Transition], cells: Cells, fitted: Fitted, confidence: float) -> dict[str, dict[str, Any]]:
    """Fits the law of the infusion ratio (cost F / D) and of exposure tokens (cost F) by shifting log F*."""
    cost = cost_of(used)
    if cost is None or cells.log_h is not None or used[0].slice.held_by == RATIO:  # a held ratio has no transition
        return {}
    found = {}
    for name, shift in (("infusion_ratio", np.log(cost) - cells.log_d), ("exposure_tokens", np.log(cost))):
        law = fitted.law
        if law.offset or (name == "infusion_ratio" and len(np.unique(cells.log_d)) > 1 and law is not SIZE_AND_BUDGET):
            continue  # a tied law of F does not have the same form in rho
        moved = replace(cells, lower=cells.lower + shift, upper=cells.upper + shift)
        again = fit_candidate(law, moved)
        if again is not None:
            found[name] = _estimates(again, confidence)
    return found


def _estimates(fitted: Fitted, confidence: float) -> dict[str, Any]:
    coefficients = coefficients_of(fitted, confidence)
    return {
        "coefficients": {key: None if c is None else asdict(c) for key, c in coefficients.items()},
        "sigma": fitted.sigma,
    }


def nonembedding(used: list[Transition], cells: Cells, fitted: Fitted, confidence: float) -> dict[str, Any]:
    """Fits the law with N counted without embeddings; returns an empty mapping if that number is not known."""
    if fitted.law.offset or not fitted.law.rows or any(not p.nonembedding_params for p in used):
        return {}
    moved = replace(cells, log_n=np.log([float(p.nonembedding_params or 1) for p in used]))
    if np.allclose(moved.log_n, cells.log_n):
        return {}
    again = fit_candidate(fitted.law, moved)
    return {} if again is None else {"nonembedding_params": _estimates(again, confidence)}


def agreed(values: Array | None) -> float | None:
    """Returns the mean of values [n] that agree to 5%; None if they are not known or do not."""
    if values is None or not len(values) or not np.isfinite(values).all() or values.max() > 1.05 * values.min():
        return None
    return float(values.mean())


def amounts_of(used: Sequence[Transition], one: Slice) -> dict[str, float]:
    """Returns what the observed points of a slice agree on (`Law.amounts`)."""
    dose = np.array([p.value for p in used], dtype=float)
    exposures = np.array([p.exposures for p in used], dtype=float)
    tokens = np.array([p.exposure_tokens for p in used], dtype=float)
    bits = np.array([p.infused_bits for p in used], dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = {
            "exposures_per_dose": None if one.held_by == RATIO else agreed(exposures / dose),
            "tokens_per_exposure": agreed(tokens / exposures),
            "bits_per_dose": agreed(bits / dose) if one.axis == FACTS else None,
            "bits": agreed(bits) if one.axis != FACTS else None,
        }
    return {name: value for name, value in found.items() if value}


def cost_of(used: Sequence[Transition]) -> Array | None:
    """Returns the tokens that one unit of the dose costs in each cell, [n]; None if it is unknown for one of them."""
    costs = []
    for p in used:
        if p.exposure_tokens and p.value:
            costs.append(p.exposure_tokens / p.value)
        elif p.ratio_low and p.low:
            costs.append(p.ratio_low * p.tokens / p.low)
        elif p.ratio_high and p.high:
            costs.append(p.ratio_high * p.tokens / p.high)
        else:
            return None
    return np.array(costs) if costs else None
