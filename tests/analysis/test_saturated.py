"""Plateaus near one: a fall has the shape that its levels show, and begins where something is lost."""

from __future__ import annotations

import math

import numpy as np
import pytest

from megatron_kis.analysis.criteria import find_transitions
from megatron_kis.analysis.criteria.counts import Evidence
from megatron_kis.analysis.criteria.hinge import shape_of, tolerance_point
from megatron_kis.analysis.criteria.hinge_fit import FINE, fit_hinges, fit_nodes, rate_of
from megatron_kis.config.analysis import AnalysisConfig
from tests.analysis.synthetic import curve_rows

QUICK = AnalysisConfig(resamples=199)
LEVELS = np.array([25, 50, 100, 200, 400, 800, 1600, 3200, 6400.0])
X = np.log(LEVELS)


def powers(collapse: float, gamma: float, top: float, chance: float):
    return chance + (top - chance) * np.minimum((LEVELS / collapse) ** -gamma, 1.0)


def collapse(rates, *, facts: int, chance: float):
    table = curve_rows(
        {dose: [round(rate * facts)] * 3 for dose, rate in zip(LEVELS[: len(rates)], rates, strict=True)},
        n=facts,
        chance=chance,
    )
    (point,) = [p for p in find_transitions(table, QUICK) if p.kind == "collapse"]
    return point


@pytest.mark.parametrize("top", [0.7, 0.98, 1.0])
def test_a_noise_free_fall_as_a_power_is_recovered(top):
    rate, weight = powers(700, 0.8, top, 0.25)[None], np.full(9, 1e6)
    fits = fit_hinges(X, rate, weight, 0.25, FINE)
    assert fits.power[0]
    assert fits.tau[0] == pytest.approx(math.log(700), abs=2e-3)
    assert fits.gamma[0] == pytest.approx(0.8, abs=2e-3)
    assert fits.rates()[0] == pytest.approx(rate[0], abs=1e-4)
    again = shape_of(Evidence(rate[0], weight), fits).rates(fits.tau)
    assert again[0, 4:] == pytest.approx(rate[0, 4:], abs=1e-4)
    lost = 0.25 + (top - 0.25) * (math.exp(tolerance_point(fits, 0.1)) / 700) ** -0.8
    assert lost == pytest.approx(0.9 * top, abs=1e-3)  # the companion has lost a tenth


def test_the_score_of_a_power_node_vanishes_at_its_fit():
    generator = np.random.default_rng(0)
    k, n = generator.binomial(80, powers(700, 0.8, 0.9, 0.25), size=(5, 9)).astype(float), np.full((5, 9), 80.0)
    taus = np.array([math.log(500), math.log(750)])
    m, gamma, best = fit_nodes(X, taus, k, n, 0.25, 60, power=True)
    h = np.maximum(X - taus[:, None], 0.0)

    def likelihood(m, u):
        p = 0.25 + (rate_of(m, 0.25) - 0.25)[..., None] * np.exp(-np.exp(u)[..., None] * h)
        return (k[:, None] * np.log(p) + (n - k)[:, None] * np.log1p(-p)).sum(-1)

    u, step = np.log(gamma), 1e-5
    assert likelihood(m, u) == pytest.approx(best, rel=1e-9)
    assert np.abs(likelihood(m + step, u) - likelihood(m - step, u)).max() < 2 * step * 1e-3
    assert np.abs(likelihood(m, u + step) - likelihood(m, u - step)).max() < 2 * step * 1e-3


def test_nothing_begins_to_fall_where_everything_is_known():
    some = collapse([1, 1, 1, 1, 1, 0.95, 0.80, 0.60, 0.40], facts=500, chance=0.25)
    assert some.status == "collapsed"
    assert 400 <= some.value <= 800
    cliff = collapse([1, 1, 1, 1, 1, 0.89, 0.28, 0.09, 0.05], facts=500, chance=0.04)
    assert cliff.status == "collapsed"
    assert 400 <= cliff.value <= 800


def test_the_interval_knows_that_the_shape_is_not_known():
    rate, weight = np.array([[1, 1, 1, 1, 1, 0.95, 0.80, 0.60, 0.40]]), np.full(9, 300.0)
    fits = fit_hinges(X, rate, weight, 0.25, FINE)
    k, n = rate * weight, np.broadcast_to(weight, rate.shape)
    for power in (False, True):
        _, _, alone = fit_nodes(X, fits.taus, k, n, 0.25, 25, power=power)
        assert (fits.likelihood >= alone - 1e-6).all()


def test_models_that_know_more_collapse_later():
    generator, found = np.random.default_rng(1), []
    for at in (60, 120, 240, 480, 960, 1900):
        rates = generator.binomial(1000, powers(at, 1.0, 1.0, 0.04)) / 1000
        found.append(collapse(rates, facts=1000, chance=0.04))
    values = [point.value for point in found]
    assert {point.status for point in found} == {"collapsed"}
    assert values == sorted(values)
    assert np.log(values) == pytest.approx(np.log([60, 120, 240, 480, 960, 1900]), abs=0.35)


def test_a_high_plateau_that_is_not_one_may_fall_in_the_logit():
    eta = 6.5 - 1.2 * np.maximum(X - math.log(300), 0.0)
    fits = fit_hinges(X, rate_of(eta, 0.0)[None], np.full(9, 1e5), 0.0, FINE)
    assert not fits.power[0]
    assert fits.tau[0] == pytest.approx(math.log(300), abs=0.02)
