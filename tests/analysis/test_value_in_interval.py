"""A collapse's value lies within its own interval, and points that were written can be read."""

from __future__ import annotations

import math

import numpy as np
import pytest

from megatron_kis.analysis.criteria import HalfMargin, HingeCollapse, ToleranceRule, find_transitions
from megatron_kis.analysis.runs.curves import curves
from megatron_kis.analysis.runs.load_csv import load_points_csv, write_points_csv
from megatron_kis.analysis.runs.transitions import crossing, make_transition
from megatron_kis.analysis.simulate import Truth, simulate_curve
from megatron_kis.config.analysis import AnalysisConfig
from tests.analysis.synthetic import curve, curve_rows

QUICK = AnalysisConfig(resamples=99)
SLOW_FALL = {
    50: [378, 380, 382],
    100: [378, 380, 382],
    200: [370, 372, 374],
    400: [358, 360, 362],
    800: [334, 336, 338],
}


def test_a_slow_fall_has_its_own_place_within_its_interval(tmp_path):
    points = [p for p in find_transitions(curve_rows(SLOW_FALL, n=400), QUICK) if p.kind == "collapse"]
    (point,) = points
    assert point.status == "collapsed"
    assert point.low <= point.value <= point.high
    assert point.value < 400  # the fall began before the last level but one
    assert "largest F alone" not in point.flags
    write_points_csv(points, tmp_path / "points.csv")
    assert load_points_csv(tmp_path / "points.csv")[0].value == point.value


def test_a_fall_between_the_last_two_levels_is_put_between_them():
    rates = {50: [380] * 3, 100: [381] * 3, 200: [380] * 3, 400: [382] * 3, 800: [379] * 3, 1600: [40] * 3}
    (point,) = [p for p in find_transitions(curve_rows(rates, n=400), QUICK) if p.kind == "collapse"]
    assert "seen at the largest F alone" in point.flags
    assert 700 <= point.low <= 800 < point.value < 1600
    assert point.high == pytest.approx(1600)


@pytest.mark.parametrize("criterion", [HingeCollapse(), ToleranceRule()], ids=["hinge", "tolerance rule"])
def test_every_collapse_lies_within_its_interval(criterion):
    generator, grid = np.random.default_rng(8), [0.0, *np.geomspace(40, 1000, 8).round()]
    found = 0
    for _ in range(25):
        truth = Truth(steepness=float(generator.choice([0.3, 2, 40])), plateau=float(generator.choice([0.6, 0.97])))
        collapse = math.exp(generator.uniform(math.log(60), math.log(900)))
        point = criterion.find(simulate_curve(truth, truth.reference, grid, 3, generator, collapse=collapse), QUICK)
        if point.value is not None:
            found += 1
            assert (point.low or 0) <= point.value <= point.high  # and make_transition did not refuse it
    assert found > 8


def test_the_crossing_of_margins_lies_within_its_interval_to_the_last_digit():
    for levels in ([3.0, 7.0, 13.0, 49.0, 170.3], [11.0, 23.0, 47.0, 95.0, 191.0]):
        margins = dict(zip(levels, ([8.0], [8.0], [8.0], [4.0], [0.5]), strict=True))  # half at a level
        table = curve_rows({level: [50] for level in levels}, n=50)
        values = [margins[row.frequency][0] for row in table.itertuples()]
        (one,) = curves(table.assign(mean_margin=values, mean_margin_sd=0.01))
        point = HalfMargin().find(one, QUICK)
        assert point.low <= point.value <= point.high


def test_a_crossing_at_a_level_is_that_level():
    levels = np.array([3.0, 7.0, 10.1, 49.0, 170.3])
    for index in range(4):
        height = np.where(np.arange(5) > index, 0.0, 1.0)
        assert crossing(levels, height, 1.0, index) >= levels[index]
        assert crossing(levels, height, 0.0, index) <= levels[index + 1]


def test_a_criterion_that_puts_a_value_outside_its_interval_is_stopped():
    one = curve((0, 8, 32), (50, 60, 70))
    make_transition(one, "collapse", "collapsed", "", value=10.0, low=8.0, high=32.0)
    with pytest.raises(AssertionError, match="outside"):
        make_transition(one, "collapse", "collapsed", "", value=566.0, low=50.0, high=352.0)
    with pytest.raises(AssertionError, match="outside"):
        make_transition(one, "collapse", "collapsed", "", value=4.0, low=8.0)
