"""Data of others, whose law or corner is published: the analysis finds it, or says that it cannot."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from megatron_kis.analysis.criteria import find_transitions
from megatron_kis.analysis.findings.analyse import fit_laws
from megatron_kis.analysis.law.fit import fit_law
from megatron_kis.analysis.law.predict import predict
from megatron_kis.analysis.runs.curves import CURVE_COLUMNS
from megatron_kis.config.analysis import AnalysisConfig
from tests.analysis.points import point

MINIMA = {
    6e18: (167.5, 153.1, 183.2),
    1e19: (247.3, 231.3, 264.5),
    3e19: (502.9, 468.8, 539.5),
    6e19: (748.8, 665.0, 843.1),
    1e20: (982.9, 818.6, 1180.2),
    3e20: (1675.9, 1561.7, 1798.5),
    6e20: (2244.1, 2092.1, 2407.2),
    1e21: (2833.3, 2636.7, 3044.7),
    3e21: (4044.8, 3314.6, 4935.7),
}
"""Minima of Chinchilla's isoFLOP curves, millions of parameters by FLOP, with 95% intervals of a parabola's minimum.

Read off the figure by Besiroglu et al. (2024, arXiv 2404.10102); exponents published: 0.49 [0.462, 0.534] (Hoffmann et
al., 2022, approach 2), 0.513 (Besiroglu et al.)."""


def minima(upto: float = math.inf):
    return [
        point(round(flop / 1e12), value * 1e6, low=low * 1e6, high=high * 1e6, interval="profile")
        for flop, (value, low, high) in MINIMA.items()
        if flop <= upto
    ]


def test_chinchillas_exponent_and_model_are_in_the_intervals():
    law = fit_law(minima(), "collapse", law="N")
    exponent = law.coefficients["b_log_params"]
    assert 0.462 < exponent.value < 0.534
    assert exponent.low < 0.513 < exponent.high
    low, high = predict(law, 5.76e23 / 1e12).prediction_interval
    assert low < 70e9 < high  # Chinchilla


def test_the_bend_of_chinchillas_minima_is_seen_and_allowed_for():
    """From the budgets up to 6e20 FLOP the straight law misses the minimum at 3e21 (4.0 billion)."""
    law = fit_law(minima(6e20), "collapse", law="N", bend=AnalysisConfig().bend)
    prediction = predict(law, 3e21 / 1e12)
    assert law.lack_of_fit["flag"] and prediction.recommended is None
    straight = prediction.straight_interval
    assert prediction.prediction_interval[0] < 4.0448e9 < prediction.prediction_interval[1]
    assert math.log(straight[1] / straight[0]) < math.log(
        prediction.prediction_interval[1] / prediction.prediction_interval[0]
    )


BIRTHS = [
    *((17.0, 13555, 16), (18.5, 13675, 15), (19.5, 18752, 16), (20.5, 22005, 22), (21.5, 23896, 16)),
    *((22.5, 24667, 12), (23.5, 24807, 17), (24.5, 23986, 22), (25.5, 22860, 15), (26.5, 21450, 14)),
    *((27.5, 19202, 27), (28.5, 17450, 14), (29.5, 15685, 9), (30.5, 13954, 12), (31.5, 11987, 12)),
    *((32.5, 10983, 18), (33.5, 9825, 13), (34.5, 8483, 11), (35.5, 7448, 23), (36.5, 6628, 13)),
    *((37.5, 5780, 17), (38.5, 4834, 15), (39.5, 3961, 30), (40.5, 2952, 31), (41.5, 2276, 33)),
    *((42.4, 1589, 20), (43.5, 1018, 16), (44.5, 596, 22), (45.5, 327, 11), (47.0, 249, 7)),
]
"""Mother's age, births, and births with Down's syndrome (Geyer 1991, data of British Columbia; `boot::downs.bc` in R).

The log-odds rise from a corner on: at 31.1 years (Muggeo 2003, standard error 0.7)."""


def table(rows: list[dict[str, object]]) -> pd.DataFrame:
    constant = {"tokens": 10**9, "seed": 0, "group": "background", "split": "held_out", "scoring": "statement"}
    return pd.DataFrame([constant | row for row in rows]).reindex(columns=CURVE_COLUMNS)


def test_the_corner_of_a_known_piecewise_curve_is_in_the_interval_of_the_hinge():
    births = table(
        [
            # the age is the logarithm of the dose, and births without the syndrome are those answered right
            {"params": 10**8, "frequency": math.exp(age), "n": n, "facts": n, "correct": n - k, "chance": 0.0}
            for age, n, k in BIRTHS
        ]
    )
    settings = AnalysisConfig(criterion="hinge", delta_min=0.01, overdispersion=0.0)
    (found,) = [p for p in find_transitions(births, settings) if p.kind == "collapse"]
    assert found.status == "collapsed"
    assert math.log(found.value) == pytest.approx(31.1, abs=1.5)
    assert math.log(found.low) < 31.1 < math.log(found.high)
    assert found.steepness == pytest.approx(0.2655, abs=0.03)


RECALL = {
    6248: (1, 1, 1, 1, 0.487, 0.062, 0.037, 0.037, 0.039, 0.038, 0.035, 0.035, 0.034, 0.035, 0.035),
    23300: (1, 1, 1, 1, 1, 1, 1, 0.894, 0.283, 0.094, 0.05, 0.044, 0.042, 0.042, 0.041),
    49568: (1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0.534, 0.113, 0.051, 0.043, 0.041),
    85052: (1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0.582, 0.138, 0.056, 0.043),
    129752: (1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0.349, 0.106, 0.048),
    183668: (1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0.742, 0.188, 0.057),
    246800: (1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0.985, 0.31, 0.079),
    400712: (1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0.719, 0.137),
    591488: (1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0.949, 0.217),
}
"""Recall in weights by parameters, of 2, 4, ... 32,768 facts: means of ten seeds (arXiv 2508.20755, its repository)."""


def capacity(least: int = 0, most: int = 10**9) -> pd.DataFrame:
    return table(
        [
            {
                "params": params,
                "frequency": 2.0 ** (index + 1),
                "n": 2 ** (index + 1),
                "facts": 2 ** (index + 1),
                "correct": round(rate * 2 ** (index + 1)),
                "chance": 0.04,
            }
            for params, rates in RECALL.items()
            if least <= params <= most
            for index, rate in enumerate(rates)
        ]
    )


def test_a_capacity_that_grows_with_the_model_has_a_law_that_does():
    settings = AnalysisConfig(law="N", law_resamples=99)
    points = [p for p in find_transitions(capacity(), settings) if p.kind == "collapse"]
    values = [p.value for p in points]
    assert [p.status for p in points] == ["collapsed"] * len(RECALL)
    assert values == sorted(values), "a model that knows strictly more collapses later"
    for found, rates in zip(points, RECALL.values(), strict=True):
        known = 2.0 ** sum(rate == 1 for rate in rates)
        assert known < 1.15 * found.value, "not where everything is known"
        assert found.value < 4 * known
    (law,) = [law for law in fit_laws(points, settings, capacity())[0] if law.kind == "collapse"]
    assert 0.9 < law.coefficients["b_log_params"].value < 1.6


def test_among_the_larger_sizes_the_next_one_is_in_the_interval():
    settings = AnalysisConfig(law="N", law_resamples=99)
    smaller = capacity(45_000, 260_000)
    (law,) = [
        law for law in fit_laws(find_transitions(smaller, settings), settings, smaller)[0] if law.kind == "collapse"
    ]
    assert law.surface is not None
    # Of the whole study: the largest model has two levels below one, which alone do not tell how much runs vary.
    large = next(p for p in find_transitions(capacity(), settings) if (p.kind, p.params) == ("collapse", 591_488))
    low, high = predict(law, 591_488).prediction_interval
    assert low < large.value < high
