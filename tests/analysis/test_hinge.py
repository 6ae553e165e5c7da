"""The hinge, its test and its interval: recovery, size, coverage, seeds as the unit of evidence."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import isotonic_regression

from megatron_kis.analysis.criteria import HingeCollapse, Retention, ToleranceRule, criteria_of, find_transitions
from megatron_kis.analysis.criteria.counts import Evidence, draw
from megatron_kis.analysis.criteria.hinge_fit import FINE, fit_hinges, fit_nodes, rate_of
from megatron_kis.analysis.criteria.isotonic import isotonic_prefixes, prefix_fits
from megatron_kis.analysis.criteria.unimodal import (
    fall_statistic,
    fall_test,
    log_likelihood,
)
from megatron_kis.analysis.simulate import Truth, simulate_curve
from megatron_kis.common.errors import InputError
from megatron_kis.config.analysis import AnalysisConfig
from tests.analysis.synthetic import curve_rows

LEVELS = np.array([0, 50, 100, 200, 400, 600, 800, 1000, 1300, 1600.0])
X = np.log(np.maximum(LEVELS, 1e-300))
X[0] = -np.inf
QUICK = AnalysisConfig(criterion="hinge", resamples=199)
REFERENCE = Truth().reference


def hinge(collapse=700.0, gamma=4.0, plateau=0.9, chance=0.25):
    tau = math.log(collapse)
    rates = rate_of(plateau - gamma * np.maximum(X - tau, 0.0), chance)
    rates[:3] = [0.45, 0.50, 0.60]
    return rates


def test_a_noise_free_hinge_is_recovered():
    rate, weight = hinge()[None], np.full((1, len(X)), 1e6)
    fits = fit_hinges(X, rate, weight, 0.25, FINE)
    assert fits.tau[0] == pytest.approx(math.log(700), abs=1e-6)
    assert fits.gamma[0] == pytest.approx(4.0, abs=1e-5)
    assert fits.plateau[0] == pytest.approx(0.9, abs=1e-6)


def test_the_score_of_a_node_vanishes_at_its_fit():
    generator = np.random.default_rng(0)
    k, n = generator.binomial(80, hinge()[3:], size=(5, 7)).astype(float), np.full((5, 7), 80.0)
    taus = np.array([math.log(500), math.log(750)])
    m, gamma, best = fit_nodes(X[3:], taus, k, n, 0.25, 60)
    h = np.maximum(X[3:] - taus[:, None], 0.0)

    def likelihood(m, u):
        p = rate_of(m[..., None] - np.exp(u)[..., None] * h, 0.25)
        return (k[:, None] * np.log(p) + (n - k)[:, None] * np.log1p(-p)).sum(-1)

    u, step = np.log(gamma), 1e-5
    assert likelihood(m, u) == pytest.approx(best, rel=1e-9)
    by_m = (likelihood(m + step, u) - likelihood(m - step, u)) / (2 * step)
    by_u = (likelihood(m, u + step) - likelihood(m, u - step)) / (2 * step)
    assert np.abs(by_m).max() < 1e-4
    assert np.abs(by_u).max() < 1e-4


def test_isotonic_fits_of_many_curves_are_those_of_each():
    rate = np.random.default_rng(0).binomial(9, 0.5, size=(40, 3, 7)) / 9  # with ties
    weight = np.linspace(1.0, 5.0, 7)
    together, fits = isotonic_prefixes(rate, weight), prefix_fits(rate, weight)
    for i, j in np.ndindex(40, 3):
        assert together[i, j] == pytest.approx(isotonic_prefixes(rate[i, j], weight))
        assert fits[i, j] == pytest.approx(prefix_fits(rate[i, j], weight))


@given(st.lists(st.tuples(st.floats(0.01, 0.99), st.floats(1, 300)), min_size=2, max_size=9))
@settings(max_examples=60, deadline=None)
def test_isotonic_fits_are_those_of_scipy(levels):
    rate, weight = np.array(levels).T
    likelihood, fits = isotonic_prefixes(rate, weight), prefix_fits(rate, weight)
    for size in range(1, len(rate) + 1):
        fit = isotonic_regression(rate[:size], weights=weight[:size]).x
        assert fits[size, :size] == pytest.approx(fit, abs=1e-9)
        assert likelihood[size] == pytest.approx(log_likelihood(fit, rate[:size], weight[:size]).sum(), abs=1e-6)


def test_a_curve_that_never_falls_has_no_fall_statistic():
    assert fall_statistic(np.array([0.2, 0.2, 0.5, 0.9]), np.full(4, 50.0)) == pytest.approx(0, abs=1e-9)
    assert fall_statistic(np.array([0.2, 0.9, 0.5, 0.2]), np.full(4, 50.0)) > 10


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape",
    [[0.6] * 8, [0.9] * 8, [0.25, 0.25, 0.3, 0.5, 0.7, 0.8, 0.85, 0.88], [0.25] * 3 + [0.9] * 5],
    ids=["flat", "high", "rising", "step"],
)
@pytest.mark.parametrize(("facts", "freedom"), [(40.0, np.inf), (200.0, 5.0)])
def test_the_test_rejects_curves_that_never_fall_at_its_level(shape, facts, freedom):
    generator, trials = np.random.default_rng(5), 160
    weight = np.full(len(shape), facts)
    rejected = sum(
        fall_test(Evidence(rates, weight, freedom), 199, generator)[0] <= 0.05
        for rates in draw(generator, np.array(shape), weight, freedom, trials)
    )
    assert rejected <= 17  # 10.6%: three standard errors above 5%


@pytest.mark.slow
def test_intervals_hold_the_true_collapse_point():
    generator, truth = np.random.default_rng(3), Truth()
    grid = [0.0, *np.geomspace(40, 640, 9).round()]
    inside = seen = 0
    for _ in range(24):
        collapse = 400 * math.exp(generator.uniform(-0.5, 0.2))
        point = HingeCollapse().find(simulate_curve(truth, REFERENCE, grid, 3, generator, collapse=collapse), QUICK)
        if point.status == "collapsed":
            seen += 1
            inside += (point.low or 0) <= collapse <= point.high
    assert seen >= 20
    assert inside >= seen - 4  # 24 draws at 95%: five misses once in two hundred


def test_the_interval_is_never_narrower_than_the_bracket_of_an_abrupt_drop():
    generator = np.random.default_rng(1)
    truth = Truth(steepness=200.0, facts=2000, correlation=0.0)
    point = HingeCollapse().find(
        simulate_curve(truth, REFERENCE, [0, 50, 100, 200, 400, 800, 1600], 3, generator, collapse=300.0),
        AnalysisConfig(criterion="hinge", resamples=199, overdispersion=0.0),
    )
    assert (point.status, point.interval) == ("collapsed", "bracket")
    assert point.low <= 200.0
    assert point.high >= 400 * (1 - 1e-9)
    assert point.low == pytest.approx(200, rel=0.02)
    assert point.high == pytest.approx(400, rel=0.02)


def test_seeds_that_disagree_widen_the_interval():
    truth = Truth()
    calm = Truth(correlation=0.0)
    loud = Truth(correlation=0.08)
    grid = [0.0, *np.geomspace(40, 1000, 9).round()]
    widths = {}
    for name, world in (("calm", calm), ("loud", loud)):
        points = [
            HingeCollapse().find(
                simulate_curve(world, REFERENCE, grid, 4, np.random.default_rng(s), collapse=400.0), QUICK
            )
            for s in range(4)
        ]
        widths[name] = np.median([math.log(p.high / (p.low or grid[1])) for p in points if p.informative])
    assert widths["loud"] > 1.2 * widths["calm"]
    assert truth.collapse_point(*REFERENCE) == pytest.approx(400)


def test_a_fall_at_the_largest_level_alone_is_said_to_be_that():
    rates = {0: 0.55, 50: 0.7, 100: 0.8, 200: 0.8, 400: 0.81, 800: 0.8, 1600: 0.3}

    def found(rates):
        table = curve_rows({f: [round(rate * 200)] * 3 for f, rate in rates.items()}, n=200)
        (point,) = [p for p in find_transitions(table, QUICK) if p.kind == "collapse"]
        assert point.status == "collapsed"
        return point

    last = found(rates)
    assert "largest F alone" in last.flags
    assert last.high == pytest.approx(1600)
    assert 800 < last.value < 1600
    assert "largest F alone" not in found(rates | {800: 0.7}).flags


def test_the_criterion_is_a_choice():
    assert isinstance(criteria_of(AnalysisConfig())[1], Retention)
    assert isinstance(criteria_of(AnalysisConfig(criterion="hinge"))[1], HingeCollapse)
    assert isinstance(criteria_of(AnalysisConfig(criterion="tolerance_rule"))[1], ToleranceRule)
    assert [c.kind for c in criteria_of(AnalysisConfig(criterion="general_loss"))] == ["onset", "tolerance"]
    with pytest.raises(InputError, match="tolerance_rule"):
        AnalysisConfig(criterion="tolerance_rul")
