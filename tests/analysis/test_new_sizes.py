from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from megatron_kis.analysis.criteria import Transition
from megatron_kis.analysis.design.new_sizes import new_sizes
from megatron_kis.analysis.law.fit import fit_law
from megatron_kis.analysis.law.predict import predict
from megatron_kis.config.analysis import AnalysisConfig

SIZES = (1_000_000, 2_000_000, 4_000_000, 8_000_000)
TOKENS, TARGET = 10_000_000, 64e6
LINE = AnalysisConfig(law="N")
CURVES = pd.DataFrame(
    [("infused", n, TOKENS, f, s) for n in SIZES for f in (0, 50, 100, 200, 400) for s in (0, 1)],
    columns=["group", "params", "tokens", "frequency", "seed"],
)


def points_of(generator, sizes=SIZES, cost=None):
    """Points of a law with a slope of 0.2 and a scatter of 0.15, each known to 2%."""
    found = []
    for size in sizes:
        value = 100 * (size / 1e6) ** 0.2 * math.exp(0.15 * generator.normal())
        found.append(
            Transition(
                params=size,
                tokens=TOKENS,
                kind="collapse",
                group="infused",
                status="collapsed",
                value=value,
                low=value / 1.02,
                high=value * 1.02,
                interval="profile",
                exposure_tokens=cost and cost * value,
            )
        )
    return found


def width(points):
    law = fit_law(points, law="N", compare_laws=False, bend=LINE.bend)
    low, high = predict(law, TARGET, TOKENS).prediction_interval
    return math.log(high / low)


@pytest.mark.slow
def test_a_size_more_narrows_as_much_as_predicted():
    generator = np.random.default_rng(3)
    now, predicted, then = [], [], []
    for _ in range(150):
        more = points_of(generator, (*SIZES, 16_000_000))
        four = more[:-1]
        largest = new_sizes(CURVES, TARGET, TOKENS, LINE, points=four)[-1]
        assert largest.params == 16_000_000
        now.append(width(four))
        predicted.append(now[-1] * (1 - largest.narrower))
        then.append(width(more))
    assert sum(then) < 0.7 * sum(now)  # two degrees of freedom become three
    assert sum(predicted) / sum(then) == pytest.approx(1, abs=0.1)


def test_sizes_lie_between_and_beyond_and_cost_as_many_runs_as_the_others_have():
    points = points_of(np.random.default_rng(0))
    found = new_sizes(CURVES, TARGET, TOKENS, LINE, points=points)
    assert [size.params for size in found] == [500_000, 1_414_214, 2_828_427, 5_656_854, 16_000_000]
    assert {size.runs for size in found} == {10}
    assert all(size.flops == 6.0 * size.params * TOKENS * 10 for size in found)
    assert all(0 < size.narrower < 1 for size in found)
    assert found[-1].narrower > found[2].narrower  # nearer to the target and further from the middle
    assert found[-1].frequency > found[0].frequency


def test_a_size_whose_collapse_no_run_could_reach_is_not_named():
    points = points_of(np.random.default_rng(0), cost=5_000.0)
    all_sizes = new_sizes(CURVES, TARGET, TOKENS, LINE, points=points)
    reach = all_sizes[-1].frequency * 5_000 / TOKENS
    fewer = new_sizes(CURVES, TARGET, TOKENS, LINE, points=points, largest_ratio=0.99 * reach)
    assert fewer == all_sizes[:-1]


def test_without_a_law_no_size_is_named():
    assert new_sizes(CURVES, TARGET, TOKENS, LINE, points=points_of(np.random.default_rng(0), SIZES[:2])) == []


def test_points_without_a_width_tell_nothing_of_a_further_one():
    points = [
        Transition(params=size, tokens=TOKENS, kind="collapse", group="infused", status="collapsed", value=100.0 + size)
        for size in SIZES
    ]
    assert new_sizes(CURVES, TARGET, TOKENS, LINE, points=points) == []
