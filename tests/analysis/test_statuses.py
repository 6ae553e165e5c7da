"""What a status says was shown: bounds that hold, falls that are small, and falls that one run decides."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from megatron_kis.analysis.criteria import HingeCollapse, find_transitions
from megatron_kis.analysis.criteria.bound import fallen_ratios, kept_up_to
from megatron_kis.analysis.criteria.one_run import run_it_rests_on
from megatron_kis.analysis.criteria.unimodal import fall_statistic
from megatron_kis.analysis.runs.curves import Dispersion, curves
from megatron_kis.analysis.simulate import draw_seeds, measured_curve
from megatron_kis.config.analysis import AnalysisConfig
from tests.analysis.synthetic import curve_rows

QUICK = AnalysisConfig(resamples=199)
DOSE = np.array([0, 50, 100, 200, 400, 800, 1600, 3200.0])


def collapse(table: pd.DataFrame, settings: AnalysisConfig = QUICK):
    (point,) = [p for p in find_transitions(table, settings) if p.kind == "collapse"]
    return point


def rows(rates, *, seeds: int, facts: int, step: int = 1) -> pd.DataFrame:
    """A table whose seeds differ from the rates by at most ``step`` answers."""
    wobble = [(-1) ** seed * step * (seed % 3 > 0) for seed in range(seeds)]
    return curve_rows(
        {dose: [round(rate * facts) + w for w in wobble] for dose, rate in zip(DOSE, rates, strict=True)}, n=facts
    )


def test_a_fall_that_is_certain_and_large_enough_is_a_collapse_however_few_the_facts():
    # 0.08 of 60 facts is less than two standard deviations of a seed, and twenty seeds show it
    point = collapse(rows([0.5, 0.8, 0.8, 0.8, 0.8, 0.78, 0.75, 0.72], seeds=20, facts=60, step=3))
    assert point.status == "collapsed"
    assert point.drop == pytest.approx(0.08, abs=0.02)
    assert point.low <= 600 <= point.high


def test_a_fall_that_is_certain_and_small_is_no_bound():
    table = rows([0.5, 0.8, 0.8, 0.8, 0.8, 0.78, 0.77, 0.765], seeds=10, facts=400)
    point = collapse(table)
    assert (point.status, point.low, point.high) == ("inconclusive", None, None)
    assert point.p_value <= 0.05
    assert "falls by 0.04" in point.reason
    assert "less than delta_min = 0.05" in point.reason
    assert collapse(table, QUICK.replace(delta_min=0.01)).status == "collapsed"


def test_no_fall_is_said_with_the_fall_that_would_have_been_shown():
    point = collapse(rows([0.5, *[0.8] * 7], seeds=3, facts=100))
    assert point.status == "right_censored"
    assert point.low >= 800
    assert point.reason.startswith(f"no fall larger than {point.detectable:.2f} shown up to F = 3200 (p = ")


def test_a_fall_from_the_first_level_on_is_one_though_the_rest_is_level():
    point = collapse(curve_rows({2: [2, 2, 2], 4: [1, 1, 2], 8: [0, 0, 0], 16: [0, 0, 0], 32: [0, 0, 0]}, n=2))
    assert point.status != "right_censored"
    point = collapse(curve_rows({2: [97, 98], 4: [50, 51], 8: [0, 0], 16: [0, 0], 32: [0, 0]}))
    assert (point.status, point.high) == ("left_censored", 4)
    assert "from 0.97" in point.reason or "from 0.98" in point.reason


def test_what_one_run_decides_is_no_collapse():
    steady = {dose: [70, 71, 69] for dose in DOSE}
    diverged = collapse(curve_rows(steady | {3200: [70, 71, 5]}))
    assert diverged.status == "inconclusive"
    alone = collapse(curve_rows({dose: [70] for dose in DOSE} | {3200: [20]}))
    assert alone.status == "inconclusive"
    assert alone.p_value <= 0.05
    assert alone.flags == "rests on one run at F = 3200"
    assert "rests on one run at F = 3200" in alone.reason
    twice = collapse(curve_rows({dose: [70] for dose in DOSE} | {1600: [24], 3200: [20]}))
    assert twice.status == "collapsed"
    seeds = collapse(curve_rows(steady | {3200: [21, 19, 20]}))
    assert seeds.status == "collapsed"


def test_the_tolerance_rule_leaves_runs_out_too():
    settings = QUICK.replace(criterion="tolerance_rule")
    alone = collapse(curve_rows({dose: [70] for dose in DOSE} | {3200: [20]}), settings)
    assert (alone.status, alone.low) == ("inconclusive", None)
    assert alone.flags == "rests on one run at F = 3200"
    twice = collapse(curve_rows({dose: [70] for dose in DOSE} | {1600: [24], 3200: [20]}), settings)
    assert twice.status == "collapsed"


def test_bounds_of_the_tolerance_rule_are_levels_that_exclude_a_fall():
    settings = QUICK.replace(criterion="tolerance_rule")
    few = collapse(rows([0.5, *[0.8] * 6, 0.74], seeds=2, facts=60, step=4), settings)
    many = collapse(rows([0.5, *[0.8] * 7], seeds=2, facts=2000), settings)
    assert many.low == 3200
    assert few.status == "inconclusive" or few.low < 3200


def test_every_run_is_left_out_in_turn():
    (one,) = curves(curve_rows({0: [50], 50: [70, 70], 100: [70, 70], 200: [70, 70], 400: [60, 20]}))
    known = Dispersion(1.0, 0.0, 1e9, "")
    assert run_it_rests_on(one, known, 5.0, fall_statistic) == 400  # without the run of 20 answers little is left
    assert run_it_rests_on(one, known, 0.5, fall_statistic) is None


def test_a_bound_is_the_last_level_at_which_a_fall_by_r_is_excluded():
    weight = np.full(8, 2000.0)
    flat, late = np.full(8, 0.8), np.array([0.8] * 6 + [0.78, 0.70])
    assert kept_up_to(np.stack([flat, late]), weight, 0.1, 2.7).tolist() == [7, 6]
    assert kept_up_to(flat[None], np.full(8, 3.0), 0.1, 2.7).tolist() == [0]  # six answers exclude nothing
    ratios = fallen_ratios(np.stack([flat, late]), weight, 0.1)
    assert (np.diff(ratios, axis=1) <= 1e-6).all()  # fallen at a level is fallen at the next
    assert ratios[1, -1] == pytest.approx(0, abs=1.5)
    assert (ratios[0] > 20).all()


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["slow", "rounded"])
@pytest.mark.parametrize("seeds", [3, 20])
def test_bounds_are_not_beyond_the_loss_of_a_tenth(shape, seeds):
    """A plateau that declines slowly, or a rounded peak: no bound may lie where a tenth is lost already."""
    generator, false, trials = np.random.default_rng(seeds), 0, 60
    dose, matrix = np.geomspace(25, 3200, 8), np.full((8, seeds), 60.0)
    away = np.log(dose / 200)
    eta = math.log(4) - (0.3 * np.maximum(away, 0) if shape == "slow" else 0.1 * away**2)
    p = 1 / (1 + np.exp(-eta))
    lost = dose[1:][(p[1:] <= 0.9 * p.max()) & (dose[1:] > 200)]
    true = float(lost[0]) if len(lost) else math.inf
    for rates in draw_seeds(generator, p, matrix, 0.01, trials):
        point = HingeCollapse().find(measured_curve((100_000, 1_000_000), dose, rates, matrix, 0.0), QUICK)
        false += point.status == "right_censored" and point.low >= true
    assert false <= 0.12 * trials
