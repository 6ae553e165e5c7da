"""Scores of predictions: those recorded before a large run, and those of a study about its own larger models.

`validate` scores a dated, hashed prediction file against points measured since. `backtest` does the same within a study
(rolling-origin evaluation): it predicts the largest N (or D) from all smaller ones, then the next largest, and so on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from megatron_kis.analysis.law.fit import BEND, LawRefused, fit_law
from megatron_kis.analysis.law.predict import predict
from megatron_kis.analysis.runs.slices import USUAL, Slice, slice_of_record
from megatron_kis.analysis.runs.transitions import LEFT_CENSORED, RIGHT_CENSORED, Transition
from megatron_kis.common.errors import InputError

MOST_ORIGINS = 6
"""Values of N, and of D, that are predicted from the smaller ones; each takes a law, and the choice of its form."""

_SAME = 0.005  # N and D agree to the rounding of a command line


@dataclass(frozen=True, kw_only=True)
class Score:
    """One prediction against one measured transition."""

    kind: str
    group: str
    params: int
    tokens: int
    created: str
    hash: str
    centre: float
    prediction_interval: tuple[float, float]
    status: str
    measured: float | None
    """None where the transition was censored."""
    abs_log_ratio: float | None
    """|log(predicted / measured)|, natural logarithm."""
    hit: bool
    """Whether the prediction interval contains the value; if censored, whether it reaches into the open side."""
    decided: bool = True
    """Whether the measurement could distinguish a hit from a miss: a censored one cannot where the interval reaches
    into both sides of its bound."""
    interval_score: float | None
    """Gneiting and Raftery's interval score in log F (width plus penalty); smaller is better."""
    baselines: dict[str, float]
    """|log ratio| of the constant law and of the largest model's value."""
    axis: str | None = None
    """``params`` or ``tokens``: what was predicted from smaller values in a backtest; None for other predictions."""
    extrapolation_factor: float | None = None
    slice: Slice = USUAL
    """What the dose is, and what is held."""

    def record(self) -> dict[str, Any]:
        """Returns the score as JSON-ready values; ``slice`` by its parts, where it is not the usual one."""
        content = asdict(self)
        del content["slice"]
        return content | ({"slice": self.slice.record()} if self.slice != USUAL else {})


def validate(predictions: Iterable[dict[str, Any]], points: Iterable[Transition]) -> list[Score]:
    """Scores each prediction (`law.prediction.load_predictions`) that has a measured transition of its N and D.

    Raises:
        InputError: no prediction has one.
    """
    predictions, points = list(predictions), list(points)
    scores = [
        _score(prediction, point)
        for prediction in predictions
        for point in points
        if _matches(prediction, point) and _is_evidence(point)
    ]
    if not scores:
        wanted = "; ".join(
            f"{p['kind']} of {p['group']}, params {p['params']}, tokens {p['tokens']}"
            + _held(slice_of_record(p, where="prediction"))
            for p in predictions
        )
        raise InputError("no measured point belongs to a prediction", where="--points", remedy=f"expected {wanted}")
    return scores


def summary(scores: list[Score]) -> dict[str, Any]:
    """Returns the scores as JSON-ready values, with the means over those that were not censored.

    A hit counts only where it could have been a miss; ``undecided`` are the predictions where it could not.
    """
    errors = [score.abs_log_ratio for score in scores if score.abs_log_ratio is not None]
    return {
        "schema": "kis.validation/1",
        "predictions": len(scores),
        "hits": sum(score.hit for score in scores if score.decided),
        "undecided": sum(not score.decided for score in scores),
        "mean_abs_log_ratio": sum(errors) / len(errors) if errors else None,
        "mean_interval_score": _mean([score.interval_score for score in scores]),
        "baselines": {
            name: _mean([score.baselines.get(name) for score in scores]) for name in ("constant", "largest_model")
        },
        "scores": [score.record() for score in scores],
    }


def backtest(
    points: Iterable[Transition],
    kind: str,
    group: str,
    *,
    along: Slice = USUAL,
    confidence: float = 0.95,
    law: str = "auto",
    bend: float = BEND,
) -> list[Score]:
    """Scores predictions of each N from the smaller N, and of each D from the smaller D, where a law can be fitted.

    A law of one token budget says nothing about another one, so over D only a law with a term in D is scored. Of many
    values the largest `MOST_ORIGINS` are predicted: the laws of the smallest ones say least.
    """
    mine = [p for p in points if (p.kind, p.group, p.slice) == (kind, group, along)]
    scores = []
    for axis in ("params", "tokens"):
        for value in origins(mine, axis):
            before = [p for p in mine if getattr(p, axis) < value]
            try:
                fitted = fit_law(
                    before,
                    kind,
                    group,
                    along=along,
                    confidence=confidence,
                    law=law,
                    compare_laws=False,
                    bend=bend,
                )
            except LawRefused:
                continue
            if axis == "tokens" and not fitted.in_tokens:
                continue
            for point in mine:
                if getattr(point, axis) != value or not _is_evidence(point):
                    continue
                if not fitted.in_tokens and not fitted.range_tokens[0] <= point.tokens <= fitted.range_tokens[1]:
                    continue
                found = predict(fitted, point.params, point.tokens)
                record = found.record() | {"created": "", "hash": ""}
                score = _score(record, point)
                scores.append(replace(score, axis=axis, extrapolation_factor=found.extrapolation_factor))
    return scores


def origins(points: Iterable[Transition], axis: str) -> list[int]:
    """Returns the values of N (``params``) or D (``tokens``) that `backtest` predicts, rising."""
    return sorted({getattr(p, axis) for p in points if p.informative})[-MOST_ORIGINS:]


def _held(one: Slice) -> str:
    return "" if one == USUAL else f", along {one.axis}" + (f" at {one.label}" if one.label else "")


def _is_evidence(point: Transition) -> bool:
    return point.informative or point.status in (RIGHT_CENSORED, LEFT_CENSORED)


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _matches(prediction: dict[str, Any], point: Transition) -> bool:
    if (prediction["kind"], prediction["group"]) != (point.kind, point.group):
        return False
    if slice_of_record(prediction, where="prediction") != point.slice:
        return False
    return all(abs(math.log(prediction[key] / getattr(point, key))) < _SAME for key in ("params", "tokens"))


def _beside(low: float, high: float, bound: float, *, above: bool) -> tuple[bool, bool]:
    """Returns whether an interval reaches beyond the ``bound`` of a censored value, and whether all or none of it."""
    if above:
        return high > bound, not low <= bound < high
    return low <= bound, not low <= bound < high


def _score(prediction: dict[str, Any], point: Transition) -> Score:
    low, high = prediction["prediction_interval"]
    error = interval_score = None
    baselines = {}
    decided = True
    if point.informative:
        assert point.value is not None
        error = abs(math.log(prediction["centre"] / point.value))
        baselines = {
            name: abs(math.log(value / point.value)) for name, value in prediction.get("baselines", {}).items()
        }
        hit = low <= point.value <= high
        y, lower, upper = math.log(point.value), math.log(low), math.log(high)
        penalty = 2 / (1 - prediction.get("confidence", 0.95))
        interval_score = (upper - lower) + penalty * (max(lower - y, 0.0) + max(y - upper, 0.0))
    elif point.status == RIGHT_CENSORED:
        hit, decided = _beside(low, high, point.low or 0.0, above=True)
    else:
        hit, decided = _beside(low, high, point.high or math.inf, above=False)
    return Score(
        kind=point.kind,
        group=point.group,
        params=point.params,
        tokens=point.tokens,
        created=str(prediction["created"]),
        hash=str(prediction["hash"]),
        centre=prediction["centre"],
        prediction_interval=(low, high),
        status=point.status,
        measured=point.value,
        abs_log_ratio=error,
        hit=hit,
        decided=decided,
        interval_score=interval_score,
        baselines=baselines,
        slice=point.slice,
    )
