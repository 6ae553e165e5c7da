"""Predictions for models that were not trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from megatron_kis.analysis.law import bend, regression
from megatron_kis.analysis.law.law import Law
from megatron_kis.analysis.law.prediction import Prediction
from megatron_kis.analysis.law.surface import Surface
from megatron_kis.analysis.runs.slices import FACTS, RATIO, Slice, wrong_held
from megatron_kis.common.errors import InputError

LARGEST = 600.0
"""Largest logarithm of a dose, up or down: JSON can hold the dose, and its tokens and bits."""
_FAR = 10.0  # an extrapolation by more than this factor gets a warning
_WIDER = 1.25  # times the headline's log width: a wider bootstrap interval gets a warning


def predict(
    law: Law,
    params: float,
    tokens: float | None = None,
    *,
    held: float | None = None,
    facts: float | None = None,
    fact_tokens: float | None = None,
) -> Prediction:
    """Predicts F* at N = ``params`` and D = ``tokens`` (None: the token budget at which the law was fitted).

    Args:
        law: the fitted law.
        params: N.
        tokens: D.
        held: what is held (K, F or the infusion ratio), for a law of several slices.
        facts: number of facts, if the prediction is for other facts than the study's (`Prediction.domain`).
        fact_tokens: mean tokens per exposure of these facts.

    Raises:
        InputError: N, D or what is held is no such number, or is needed and missing.
    """
    if tokens is None:
        if law.range_tokens[0] != law.range_tokens[1]:
            raise InputError("the law depends on the token budget", where="--tokens", remedy="name the budget D")
        tokens = law.range_tokens[0]
    for name, value in (("--params", params), ("--tokens", tokens)):
        if not (math.isfinite(value) and value >= 1):
            raise InputError(f"{value} is not a positive number", where=name, remedy="for example 7e9")
    one, amounts = _held(law, held)
    mean, error = law.at(params, tokens, held)
    _check_facts(law, facts, fact_tokens)
    factors = {
        "params": _beyond(params, law.range_params),
        "tokens": _beyond(tokens, law.range_tokens),
    }
    if law.range_held is not None and held is not None:
        factors["held"] = _beyond(held, law.range_held)
    told = _from_points(law, mean, error)
    drawn = critical_values(law, max(factors.values()))
    total = math.hypot(error, law.sigma)
    bootstrapped = None if drawn is None else (_exp(mean + drawn[0] * total), _exp(mean + drawn[1] * total))
    straight = told.model
    if law.bend is not None:
        told = _if_bent(law, params, tokens, held, straight)
    if law.all_curves is not None:
        told = replace(_from_curves(law, law.all_curves, params, tokens, held), points=told.model)
    centre, interval = told.centre, told.model
    ratio = None if law.tokens_per_frequency is None else centre * law.tokens_per_frequency / tokens
    if one.held_by == RATIO:
        ratio = one.held
    elif law.range_held is not None and "tokens_per_exposure" in amounts:
        ratio = centre * amounts["exposures_per_dose"] * amounts["tokens_per_exposure"] / tokens
    most = None if ratio is None or one.held_by == RATIO else centre / ratio
    recommended, note = _recommended(law, interval, most)
    exposures, exposures_interval = _exposures(amounts, centre, interval, None if ratio is None else ratio * tokens)
    bits_per_dose = amounts.get("bits_per_dose")
    seen = [point for point in law.points if point["value"]]
    values = [point["value"] for point in seen]
    largest = max(seen, key=lambda point: (point["params"], point["tokens"]))
    return Prediction(
        kind=law.kind,
        group=law.group,
        slice=one,
        params=round(params),
        tokens=round(tokens),
        centre=centre,
        confidence_interval=told.mean,
        prediction_interval=interval,
        recommended=recommended,
        recommended_note=note,
        confidence=law.confidence,
        extrapolation_factor=max(factors.values()),
        extrapolation=factors,
        infusion_ratio=ratio,
        exposure_tokens=None if ratio is None else ratio * tokens,
        exposure_tokens_interval=(
            None
            if law.tokens_per_frequency is None
            else (interval[0] * law.tokens_per_frequency, interval[1] * law.tokens_per_frequency)
        ),
        exposures=exposures,
        exposures_interval=exposures_interval,
        bits=amounts.get("bits") if bits_per_dose is None else bits_per_dose * centre,
        bits_interval=None if bits_per_dose is None else (bits_per_dose * interval[0], bits_per_dose * interval[1]),
        domain=_domain(law, recommended, centre, facts, fact_tokens),
        interval_method="surface" if law.surface is not None else "t" if law.bend is None else "t and bend",
        straight_interval=told.straight,
        points_interval=told.points,
        bootstrap_interval=bootstrapped,
        bootstrap_method=None if law.calibration is None else str(law.calibration["method"]),
        baselines={"constant": float(np.exp(np.mean(np.log(values)))), "largest_model": float(largest["value"])},
        unvalidated=law.unvalidated,
        warnings=(
            *law.warnings,
            *_warnings(law, factors, ratio, straight, bootstrapped),
            *_rare(one, centre, exposures),
        ),
        law={
            "selected_law": law.selected_law,
            "coefficients": {name: c.value for name, c in law.coefficients.items() if c is not None},
            "sigma": law.sigma,
            "fingerprint": law.fingerprint,
        },
    )


def centres(law: Law, sizes: Sequence[float], tokens: float) -> list[float]:
    """Returns the ``centre`` of what `predict` says of each size N, alone: for the line of a figure."""
    if law.all_curves is not None:
        surface, log_d = law.all_curves, math.log(tokens)
        sigma = surface.sigma()
        return [_exp(surface.quantiles(surface.mean(math.log(n), log_d), sigma, (0.5,))[0]) for n in sizes]
    at = law.at if law.bend is None else law.bent_at
    return [_exp(at(n, tokens)[0]) for n in sizes]


def _check_facts(law: Law, facts: float | None, fact_tokens: float | None) -> None:
    """Refuses other facts that the law cannot be asked about."""
    for name, asked in (("--facts", facts), ("--fact-tokens", fact_tokens)):
        if asked is not None and not (math.isfinite(asked) and asked >= 1):
            raise InputError(f"{asked} is not a positive number", where=name, remedy="for example 1e6")
    if (facts is None) != (fact_tokens is None):
        raise InputError(
            "one without the other",
            where="--facts, --fact-tokens",
            remedy="the number of facts and the mean tokens of an exposure",
        )
    if facts is not None and law.slice.axis == FACTS:
        raise InputError(
            "the law is one of the number of facts itself",
            where="--facts",
            remedy="leave out --facts and --fact-tokens, or take a law of F",
        )


@dataclass(frozen=True)
class _Told:
    """What a law says of one model."""

    centre: float
    mean: tuple[float, float]
    """Interval of the law's mean."""
    model: tuple[float, float]
    """Interval of a new model."""
    straight: tuple[float, float] | None = None
    points: tuple[float, float] | None = None


def _from_points(law: Law, mean: float, error: float) -> _Told:
    return _around(mean, half_width(law, error, 0.0), half_width(law, error, law.sigma))


def _if_bent(law: Law, params: float, tokens: float, held: float | None, straight: tuple[float, float]) -> _Told:
    """Returns what the law says that may bend."""
    mean, errors = law.bent_at(params, tokens, held)
    freedom = law.degrees_of_freedom, law.scatter_degrees_of_freedom, law.confidence
    half_of_mean, half = (float(bend.half_width(errors, sigma, *freedom)) for sigma in (0.0, law.sigma))
    return replace(_around(mean, half_of_mean, half), straight=straight)


def _around(mean: float, half_of_mean: float, half: float) -> _Told:
    """Returns what half widths of the intervals of log F* say."""
    return _Told(
        centre=_exp(mean),
        mean=(_exp(mean - half_of_mean), _exp(mean + half_of_mean)),
        model=(_exp(mean - half), _exp(mean + half)),
    )


def _recommended(law: Law, interval: tuple[float, float], most: float | None) -> tuple[float | None, str | None]:
    """Returns (the recommended dose, why it is not the safe end of the interval); ``most``: dose of all tokens."""
    if law.unvalidated:
        return None, "the law is unvalidated"
    if law.lack_of_fit is not None and law.lack_of_fit["flag"]:
        return None, "the law does not fit the points, which bend in log N"
    safe = interval[1] if law.kind == "onset" else interval[0]
    if most is not None and safe > most:
        return most, f"all tokens of the budget; the interval's safe end, {safe:.3g}, would take more"
    return safe, None


def _from_curves(law: Law, surface: Surface, params: float, tokens: float, held: float | None) -> _Told:
    tail = (1 - law.confidence) / 2
    levels = (tail, 0.5, 1 - tail)
    at = math.log(params), math.log(tokens), None if held is None else math.log(held)
    mean = surface.mean(*at)
    low, middle, high = surface.quantiles(mean, surface.sigma(), levels)
    least, _, most = np.quantile(mean, levels)
    straight = surface.quantiles(surface.mean(*at, straight=True), surface.sigma(straight=True), levels)
    return _Told(
        centre=_exp(middle),
        mean=(_exp(max(float(least), low)), _exp(min(float(most), high))),  # draws are noisier than their mixture
        model=(_exp(low), _exp(high)),
        straight=(_exp(straight[0]), _exp(straight[2])),
    )


def _held(law: Law, held: float | None) -> tuple[Slice, dict[str, float]]:
    """Returns the slice of a prediction and the amounts of its dose.

    Raises:
        InputError: a law of several slices needs ``held``, and another one has its own.
    """
    if law.range_held is None:
        if held is not None:
            said = f"the law holds {law.slice.label}" if law.slice.label else "the law holds nothing"
            raise InputError(said, where="--held", remedy="leave it out, or take a law of several slices")
        return law.slice, law.amounts
    low, high = law.range_held
    example = f"for example {low:.15g} or {high:.15g}"
    if held is None:
        said = f"the law depends on the {law.slice.held_by} held"
        raise InputError(said, where="--held", remedy=f"name it, {example}")
    if (right := wrong_held(law.slice.held_by, held)) is not None:
        raise InputError(f"is {held:.15g}", where="--held", remedy=f"{right}, {example}")
    each = {} if law.slice.held_by == RATIO else {"exposures_per_dose": float(held)}
    return replace(law.slice, held=float(held)), law.amounts | each


def _exposures(
    amounts: dict[str, float], centre: float, interval: tuple[float, float], tokens: float | None
) -> tuple[float | None, tuple[float, float] | None]:
    """Returns the exposures of all facts at the centre and at the ends of the prediction interval."""
    each, cost = amounts.get("exposures_per_dose"), amounts.get("tokens_per_exposure")
    if each is not None:
        return each * centre, (each * interval[0], each * interval[1])
    if tokens is not None and cost is not None:
        return tokens / cost, None
    return None, None


def _rare(one: Slice, centre: float, exposures: float | None) -> list[str]:
    """Warns of facts that the held share of the tokens shows less than once each."""
    if one.axis != FACTS or exposures is None or exposures >= centre:
        return []
    return [f"{centre:.3g} facts would be shown {exposures / centre:.2g} times each: name a larger token budget"]


def half_width(law: Law, error: float, sigma: float) -> float:
    """Returns half of a new model's interval of log F*, given the standard error of the law's mean and the scatter."""
    freedom = law.degrees_of_freedom, law.scatter_degrees_of_freedom
    return float(regression.half_width(error, sigma, *freedom, law.confidence))


def critical_values(law: Law, extrapolation: float, kind: str = "prediction") -> tuple[float, float] | None:
    """Returns the bootstrap's lower and upper critical value for a new model (or the mean: ``confidence``).

    They are in standard errors, interpolated linearly in the logarithm of the extrapolation. They check Student's t and
    are not the headline: the bootstrap draws from one estimated scatter as if it were known, and its intervals alone
    cover too seldom (docs/statistics.md). None if there was no bootstrap.
    """
    if law.calibration is None:
        return None
    x, at = math.log(max(extrapolation, 1.0)), np.log(law.calibration["extrapolation"])
    low, high = np.array(law.calibration[kind]).T
    return float(np.interp(x, at, low)), float(np.interp(x, at, high))


def _domain(
    law: Law, copies: float | None, centre: float, facts: float | None, fact_tokens: float | None
) -> dict[str, float | None] | None:
    if facts is None or fact_tokens is None or copies is None:
        return None
    cost = facts * fact_tokens
    shared = None if law.tokens_per_frequency is None else copies * law.tokens_per_frequency / cost
    return {
        "facts": facts,
        "fact_tokens": fact_tokens,
        "copies_per_fact": copies,
        "tokens": copies * cost,
        "tokens_at_centre": centre * cost,
        "copies_per_fact_by_tokens": shared,
        "copies_safe": copies if shared is None else min(copies, shared),
    }


def _exp(value: float) -> float:
    """Returns exp(value), limited to `LARGEST`: with one degree of freedom an interval can be enormous."""
    return math.exp(min(max(value, -LARGEST), LARGEST))


def _width(interval: tuple[float, float]) -> float:
    return math.log(max(interval[1], 1e-300) / max(interval[0], 1e-300))


def _beyond(value: float, span: tuple[float, float]) -> float:
    return max(1.0, value / span[1], span[0] / value)


def _warnings(
    law: Law,
    factors: dict[str, float],
    ratio: float | None,
    straight: tuple[float, float],
    bootstrapped: tuple[float, float] | None,
) -> list[str]:
    warnings = []
    if bootstrapped is not None and _width(bootstrapped) > _WIDER * _width(straight):
        warnings.append(
            f"the bootstrap asks for a wider interval, {bootstrapped[0]:.3g} to {bootstrapped[1]:.3g}: the points are "
            "not measured as Student's t assumes"
        )
    if not law.in_tokens and factors["tokens"] > 1:
        warnings.append("the law was fitted at one token budget and says nothing about another D")
    for name, symbol in (("params", "N"), ("tokens", "D"), ("held", law.slice.held_symbol)):
        if factors.get(name, 1.0) > _FAR:
            warnings.append(f"far extrapolation: {symbol} is {factors[name]:.3g} times beyond the fitted range")
    if ratio is not None and ratio > 1:
        warnings.append(
            f"cannot be reached: with the study's facts it would take {ratio:.2f} times the token budget in exposures"
        )
    return warnings
