"""Predictions for a model that was not trained, and their dated, hashed record."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from analysis.law import Law
from megatron_kis.errors import InputError
from megatron_kis.files import fingerprint, read_json

SCHEMA = "kis.prediction/1"
_FAR = 10.0  # an extrapolation by more than this factor is said to be far


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """F* of one (N, D): intervals at the law's level of confidence, F in exposures a fact."""

    kind: str
    group: str
    params: int
    tokens: int
    centre: float
    confidence_interval: tuple[float, float]
    """Of the law's mean at this (N, D)."""
    prediction_interval: tuple[float, float]
    """Of a new model: the headline."""
    recommended: float
    """Lower end of the prediction interval: overshooting collapses, undershooting only under-specialises. For an onset
    the upper end: what is above it is learnt."""
    confidence: float
    extrapolation_factor: float
    """How many times beyond the fitted range N (or D) lies; 1 inside."""
    extrapolation: dict[str, float]
    infusion_ratio: float | None
    """The infusion ratio at the centre, if facts cost as many tokens as in the study."""
    baselines: dict[str, float]
    """What the constant law (geometric mean) and the largest model's value would say."""
    unvalidated: bool
    warnings: tuple[str, ...]
    law: dict[str, Any]
    """The law's formula, coefficients and fingerprint."""


def predict(law: Law, params: float, tokens: float | None = None) -> Prediction:
    """Predicts F* at N = ``params`` and D = ``tokens`` (left out: the budget the law was fitted at).

    Raises:
        InputError: N or D is not positive, or D is needed and missing.
    """
    if tokens is None:
        if law.range_tokens[0] != law.range_tokens[1]:
            raise InputError("the law depends on the token budget", where="--tokens", remedy="name the budget D")
        tokens = law.range_tokens[0]
    for name, value in (("--params", params), ("--tokens", tokens)):
        if not (math.isfinite(value) and value >= 1):
            raise InputError(f"{value} is not a positive number", where=name, remedy="for example 7e9")
    logs = np.log([params, tokens][: len(law.centre)])
    row = np.concatenate([[1.0], logs - np.array(law.centre)])
    mean = float(row @ law.slopes())
    variance = max(float(row @ np.array(law.covariance) @ row), 0.0)
    quantile = float(stats.t.ppf(0.5 + law.confidence / 2, law.degrees_of_freedom))
    near, far = quantile * math.sqrt(variance), quantile * math.sqrt(variance + law.sigma**2)
    factors = {
        "params": _beyond(params, law.range_params),
        "tokens": _beyond(tokens, law.range_tokens),
    }
    centre, interval = _exp(mean), (_exp(mean - far), _exp(mean + far))
    ratio = None if law.tokens_per_frequency is None else centre * law.tokens_per_frequency / tokens
    values = [point["value"] for point in law.points]
    largest = max(law.points, key=lambda point: (point["params"], point["tokens"]))
    return Prediction(
        kind=law.kind,
        group=law.group,
        params=round(params),
        tokens=round(tokens),
        centre=centre,
        confidence_interval=(_exp(mean - near), _exp(mean + near)),
        prediction_interval=interval,
        recommended=interval[1] if law.kind == "onset" else interval[0],
        confidence=law.confidence,
        extrapolation_factor=max(factors.values()),
        extrapolation=factors,
        infusion_ratio=ratio,
        baselines={"constant": float(np.exp(np.mean(np.log(values)))), "largest_model": float(largest["value"])},
        unvalidated=law.unvalidated,
        warnings=(*law.warnings, *_warnings(law, factors, ratio)),
        law={
            "selected_law": law.selected_law,
            "coefficients": {name: c.value for name, c in law.coefficients.items() if c is not None},
            "sigma": law.sigma,
            "fingerprint": fingerprint(law.record()),
        },
    )


def _exp(value: float) -> float:
    """exp, kept within what JSON can carry: an interval from one degree of freedom can be astronomically wide."""
    return math.exp(min(max(value, -700.0), 700.0))


def _beyond(value: float, span: tuple[int, int]) -> float:
    return max(1.0, value / span[1], span[0] / value)


def _warnings(law: Law, factors: dict[str, float], ratio: float | None) -> list[str]:
    warnings = []
    if not law.in_tokens and factors["tokens"] > 1:
        warnings.append("the law was fitted at one token budget and says nothing about another D")
    for name, symbol in (("params", "N"), ("tokens", "D")):
        if factors[name] > _FAR:
            warnings.append(f"far extrapolation: {symbol} lies {factors[name]:.3g} times beyond the fitted range")
    if ratio is not None and ratio > 1:
        warnings.append(
            f"cannot be reached: with the study's facts it would take {ratio:.2f} times the token budget in exposures"
        )
    return warnings


def prediction_record(prediction: Prediction, created: datetime | None = None) -> dict[str, Any]:
    """The prediction as a file: its content, the date it was made, and the hash of both."""
    content: dict[str, Any] = {"schema": SCHEMA, **asdict(prediction)}
    # As JSON will read it back, so that the hash does not depend on tuples and lists.
    content = {key: list(value) if isinstance(value, tuple) else value for key, value in content.items()}
    content["created"] = (created or datetime.now(UTC)).isoformat(timespec="seconds")
    return content | {"hash": fingerprint(content)}


def load_predictions(path: Path | str) -> list[dict[str, Any]]:
    """Reads a prediction file (one prediction, or a list of them under ``predictions``) and checks every hash.

    Raises:
        InputError: not a prediction file, or one that was changed after it was written.
    """
    record = read_json(Path(path), SCHEMA)
    items = record.get("predictions", [record])
    if not isinstance(items, list) or not items:
        raise InputError("holds no prediction", where=str(path))
    for index, item in enumerate(items):
        where = str(path) if len(items) == 1 else f"{path} prediction {index + 1}"
        if not isinstance(item, dict) or "hash" not in item:
            raise InputError(
                "a prediction without a hash", where=where, remedy="write it with kis law predict --output"
            )
        if fingerprint({key: value for key, value in item.items() if key != "hash"}) != item["hash"]:
            raise InputError("was changed after it was written: its hash does not fit", where=where)
    return items
