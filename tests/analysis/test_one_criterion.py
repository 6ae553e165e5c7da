"""The collapse criterion is one: the law's bootstrap calls a curve what the product calls it."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from megatron_kis.analysis.criteria import STATUSES, HingeCollapse, hinge
from megatron_kis.analysis.criteria.counts import pooled_rates
from megatron_kis.analysis.criteria.dispersion import with_dispersion
from megatron_kis.analysis.criteria.hinge import calibrate, classify, measured
from megatron_kis.analysis.criteria.hinge_fit import COARSE, FINE, fit_hinges
from megatron_kis.analysis.criteria.tests import cut_off
from megatron_kis.analysis.criteria.unimodal import critical_value
from megatron_kis.analysis.law.bootstrap import judge, measure, simulated_cell
from megatron_kis.analysis.law.fit import cells_of
from megatron_kis.analysis.runs.curves import Curve
from megatron_kis.analysis.simulate import Truth, simulate_curve
from megatron_kis.config.analysis import AnalysisConfig

QUICK = AnalysisConfig(resamples=99)
GRID = [0.0, *np.geomspace(40, 1000, 9).round()]
CURVES = 200


def random_curve(generator: np.random.Generator, number: int) -> Curve:
    """Returns a curve of 150 facts and one seed: cliffs and slopes, high and low, before, on and beyond the grid."""
    truth = Truth(
        facts=150,
        steepness=float(generator.choice([0.8, 2, 6, 40])),
        plateau=float(generator.choice([0.35, 0.5, 0.8, 0.97])),
        base=float(generator.choice([0.25, 0.4, 0.55, 0.8])),
        collapses=bool(generator.random() < 0.8),
    )
    collapse = math.exp(generator.uniform(math.log(12), math.log(2500)))
    return simulate_curve(truth, (100_000_000, 2_000_000_000 + number), GRID, 1, generator, collapse=collapse)


@pytest.fixture(scope="module")
def judged():
    """(curve, the product's point, critical value, cut-off), the last two as the product calibrates them for it."""
    critical, cut = math.nan, math.nan

    def noted_critical(null, alpha):
        nonlocal critical
        critical = critical_value(null, alpha)
        return critical

    def noted_cut(*arguments):
        nonlocal cut
        cut, error = calibrate(*arguments)
        return cut, error

    generator = np.random.default_rng(5)
    study = with_dispersion([random_curve(generator, number) for number in range(CURVES)], QUICK)
    none = cut_off(QUICK.confidence, study[0].dispersion.freedom)
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hinge, "critical_value", noted_critical)
        patch.setattr(hinge, "calibrate", noted_cut)
        for curve in study:
            critical, cut = math.nan, none  # where none is calibrated
            found.append((curve, HingeCollapse().find(curve, QUICK), critical, cut))
            assert (cut != none) <= (found[-1][1].status in ("collapsed", "left_censored"))
    return found


@pytest.fixture(scope="module")
def cell(judged):
    """The bootstrap's cell: one grid and one number of facts, so that it fits every curve."""
    curve, point, _, _ = judged[0]
    return simulated_cell(curve, point, 4.0, QUICK, 99)


def test_the_bootstrap_and_the_product_call_the_same_curve_the_same(judged, cell):
    for curve, point, critical, cut in judged:
        own = replace(cell, critical=critical, cut=cut)
        rates = pooled_rates(curve)[None]
        expected = cells_of([point])
        lower, upper, variance = measure(own, rates, QUICK, FINE)
        assert lower == pytest.approx(expected.lower, abs=1e-9)
        assert upper == pytest.approx(expected.upper, abs=1e-9)
        assert variance == pytest.approx(expected.variance, abs=1e-9)
    statuses = np.array([point.status for _, point, _, _ in judged])
    limits = {"critical": np.array([item[2] for item in judged]), "cut": np.array([item[3] for item in judged])}
    rates = np.stack([pooled_rates(curve) for curve, _, _, _ in judged])
    assert judge(replace(cell, **limits), rates, QUICK, FINE).status.tolist() == statuses.tolist()
    coarse = judge(replace(cell, **limits), rates, QUICK, COARSE).status == statuses
    assert coarse.mean() >= 0.99  # how finely hinges are fitted matters on the borders only
    found = Counter(statuses)
    assert min(found[status] for status in STATUSES if status != "observed") > 8, found


def test_curves_are_judged_together_as_they_are_alone(judged):
    x, seen = measured(judged[0][0], QUICK)
    rates = np.stack([pooled_rates(curve) for curve, _, _, _ in judged])
    seen = seen.of(rates)
    fits = fit_hinges(x, seen.rate, seen.weight, 0.25, FINE)
    critical = np.array([critical for _, _, critical, _ in judged])
    cut = np.array([cut for _, _, _, cut in judged])
    verdicts = classify(seen, fits, critical, cut, QUICK)
    assert verdicts.status.tolist() == [point.status for _, point, _, _ in judged]
    values = [(math.log(point.value), row) for row, (_, point, _, _) in enumerate(judged) if point.value]
    assert all(verdicts.value[row] == pytest.approx(value, abs=1e-4) for value, row in values)


def test_an_inconclusive_curve_says_nothing_in_a_resample(judged, cell):
    curve, _, critical, cut = next(item for item in judged if item[1].status == "inconclusive")
    lower, upper, variance = measure(replace(cell, critical=critical, cut=cut), pooled_rates(curve)[None], QUICK)
    assert (lower[0], upper[0], variance[0]) == (-math.inf, math.inf, 0.0)
