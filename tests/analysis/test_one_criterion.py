"""The collapse criterion is one: the law's bootstrap calls a curve what the product calls it."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chi2

from megatron_kis.analysis.criteria import STATUSES, HingeCollapse
from megatron_kis.analysis.criteria.counts import evidence, generator_of, seed_matrix
from megatron_kis.analysis.criteria.hinge import calibrate, classify, fit_curve, measured, shape_of
from megatron_kis.analysis.criteria.hinge_fit import COARSE, FINE, fit_hinges
from megatron_kis.analysis.criteria.unimodal import critical_value, fall_test
from megatron_kis.analysis.law.bootstrap import judge, measure, simulated_cell
from megatron_kis.analysis.law.fit import cells_of
from megatron_kis.analysis.runs.curves import Curve
from megatron_kis.analysis.simulate import Truth, simulate_curve
from megatron_kis.config.analysis import AnalysisConfig

QUICK = AnalysisConfig(resamples=99)
GRID = [0.0, *np.geomspace(40, 1000, 9).round()]
CURVES = 200


def random_curve(generator: np.random.Generator, number: int) -> Curve:
    """Returns a curve of 60 facts and one seed: cliffs and slopes, high and low, before, on and beyond the grid."""
    truth = Truth(
        facts=60,
        steepness=float(generator.choice([0.8, 2, 6, 40])),
        plateau=float(generator.choice([0.35, 0.5, 0.8, 0.97])),
        base=float(generator.choice([0.25, 0.4, 0.55, 0.8])),
        collapses=bool(generator.random() < 0.8),
    )
    collapse = math.exp(generator.uniform(math.log(20), math.log(2500)))
    return simulate_curve(truth, (100_000_000, 2_000_000_000 + number), GRID, 1, generator, collapse=collapse)


def limits(curve: Curve, status: str) -> tuple[float, float]:
    """Returns (critical value, cut-off) that the product calibrates for a curve that it calls ``status``."""
    _, facts, seen = measured(curve, QUICK)
    _, null = fall_test(seen.of(0), facts, QUICK.overdispersion, QUICK.resamples, generator_of(curve, QUICK, "fall"))
    cut = float(chi2.ppf(QUICK.confidence, 1))
    if status in ("collapsed", "left_censored"):
        fits = fit_curve(curve, QUICK)
        shape = shape_of(seen.of(0), fits)
        cut, _ = calibrate(shape, float(fits.tau[0]), facts, QUICK, generator_of(curve, QUICK, "cut"))
    return critical_value(null, QUICK.alpha), cut


@pytest.fixture(scope="module")
def judged():
    """(curve, the product's point, critical value, cut-off)"""
    generator = np.random.default_rng(5)
    curves = [random_curve(generator, number) for number in range(CURVES)]
    points = [HingeCollapse().find(curve, QUICK) for curve in curves]
    return [(curve, point, *limits(curve, point.status)) for curve, point in zip(curves, points, strict=True)]


@pytest.fixture(scope="module")
def cell(judged):
    """The bootstrap's cell: one grid and one number of facts, so that it fits every curve."""
    curve, point, _, _ = judged[0]
    return simulated_cell(curve, point, 4.0, QUICK, 99)


def test_the_bootstrap_and_the_product_call_the_same_curve_the_same(judged, cell):
    coarse = 0
    for curve, point, critical, cut in judged:
        own = replace(cell, critical=critical, cut=cut)
        rates = seed_matrix(curve)[0][None]
        assert judge(own, rates, QUICK, FINE).status[0] == point.status
        expected = cells_of([point])
        lower, upper, variance = measure(own, rates, QUICK, FINE)
        assert lower == pytest.approx(expected.lower, abs=1e-9)
        assert upper == pytest.approx(expected.upper, abs=1e-9)
        assert variance == pytest.approx(expected.variance, abs=1e-9)
        coarse += judge(own, rates, QUICK, COARSE).status[0] == point.status
    assert coarse >= 0.99 * CURVES  # how finely hinges are fitted matters on the borders only
    found = Counter(point.status for _, point, _, _ in judged)
    assert min(found[status] for status in STATUSES if status != "observed") > 20


def test_curves_are_judged_together_as_they_are_alone(judged):
    x, facts, _ = measured(judged[0][0], QUICK)
    rates = np.stack([seed_matrix(curve)[0] for curve, _, _, _ in judged])
    seen = evidence(rates, facts, QUICK.overdispersion)
    fits = fit_hinges(x, seen.rate, seen.weight, 0.25, FINE)
    critical = np.array([critical for _, _, critical, _ in judged])
    cut = np.array([cut for _, _, _, cut in judged])
    verdicts = classify(seen, fits, critical, cut, QUICK)
    assert verdicts.status.tolist() == [point.status for _, point, _, _ in judged]
    values = [(math.log(point.value), row) for row, (_, point, _, _) in enumerate(judged) if point.value]
    assert all(verdicts.value[row] == pytest.approx(value, abs=1e-4) for value, row in values)


def test_an_inconclusive_curve_says_nothing_in_a_resample(judged, cell):
    curve, _, critical, cut = next(item for item in judged if item[1].status == "inconclusive")
    lower, upper, variance = measure(replace(cell, critical=critical, cut=cut), seed_matrix(curve)[0][None], QUICK)
    assert (lower[0], upper[0], variance[0]) == (-math.inf, math.inf, 0.0)
