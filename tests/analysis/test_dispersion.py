"""How much rates vary is a property of the study: what tells of it, and what it does to the tests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import chi2

from megatron_kis.analysis.criteria import HingeCollapse, Onset, ToleranceRule, find_transitions
from megatron_kis.analysis.criteria.counts import draw
from megatron_kis.analysis.criteria.dispersion import PRIOR_FREEDOM, study_dispersion, with_dispersion
from megatron_kis.analysis.criteria.isotonic import prefix_fits
from megatron_kis.analysis.criteria.tests import detectable_drop, p_above, p_greater
from megatron_kis.analysis.criteria.unimodal import log_likelihood, unimodal_fit, unimodal_likelihood
from megatron_kis.analysis.runs.curves import Curve, Dispersion
from megatron_kis.analysis.simulate import draw_seeds, measured_curve
from megatron_kis.config.analysis import AnalysisConfig
from tests.analysis.synthetic import curve_rows

QUICK = AnalysisConfig(resamples=199)
DOSE = np.array([0, 50, 100, 200, 400, 800, 1600, 3200.0])


def study(generator, rates, *, facts: int, seeds: int, icc: float, sizes: int, shared: float = 0.0) -> list[Curve]:
    """Curves of one truth; ``shared``: standard deviation on the logit scale of what the seeds of a level share."""
    logit = np.log(np.array(rates) / (1 - np.array(rates)))
    matrix = np.full((len(rates), seeds), float(facts))
    found = []
    for size in range(sizes):
        p = 1 / (1 + np.exp(-logit - shared * generator.standard_normal(len(rates))))
        drawn = draw_seeds(generator, p, matrix, icc, 1)[0]
        found.append(measured_curve((100_000 + size, 1_000_000), DOSE[: len(rates)], drawn, matrix, 0.25))
    return found


def test_a_group_is_estimated_once_whatever_its_losses_are():
    one, other = (study(np.random.default_rng(0), [0.7] * 8, facts=f, seeds=2, icc=0, sizes=2) for f in (40, 60))
    first = study_dispersion(one, QUICK)
    assert study_dispersion([replace(curve, loss=curve.loss + 1) for curve in one], QUICK) is first
    assert study_dispersion(other, QUICK) is not first
    assert study_dispersion(one, QUICK.replace(seed=QUICK.seed + 1)) is not first


@pytest.mark.parametrize(("icc", "facts"), [(0.0, 120), (0.03, 120)])
def test_seeds_of_all_sizes_tell_the_scale(icc, facts):
    generator = np.random.default_rng(0)
    found = study_dispersion(study(generator, [0.7] * 8, facts=facts, seeds=3, icc=icc, sizes=6), QUICK)
    assert found.scale == pytest.approx(1 + (facts - 1) * icc, rel=0.35)
    assert found.freedom > 40
    assert found.source == "the seeds and the levels of 6 curves"


def test_seeds_that_agree_better_than_counts_of_independent_facts_weigh_more():
    # 30 facts that everyone knows and 30 that are guessed: half of the binomial variance
    generator = np.random.default_rng(1)
    rates = (30 + generator.binomial(30, 0.5, (8, 3))) / 60
    one = measured_curve((100_000, 1_000_000), DOSE, rates, np.full((8, 3), 60.0), 0.25)
    found = study_dispersion([replace(one, params=n) for n in range(1, 5)][:1], QUICK)
    assert found.scale < 0.9
    assert found.effective(one.facts, one.runs)[0] > 150  # of 180; a correlation of 0.01 would leave 113


def test_with_one_seed_levels_that_scatter_tell_it():
    generator = np.random.default_rng(2)
    calm = study_dispersion(study(generator, [0.7] * 8, facts=400, seeds=1, icc=0.0, sizes=6), QUICK)
    loud = study_dispersion(study(generator, [0.7] * 8, facts=400, seeds=1, icc=0.1, sizes=6), QUICK)
    assert 0.4 < calm.scale < 2  # the prior's is 5
    assert 15 < loud.scale + 400 * loud.level < 80  # the truth is 41
    assert loud.source == "the prior and the levels of 6 curves; one seed"


def test_what_the_seeds_of_a_level_share_is_told_from_their_levels():
    generator = np.random.default_rng(3)
    alone = study_dispersion(study(generator, [0.7] * 8, facts=120, seeds=10, icc=0.01, sizes=6), QUICK)
    shared = study_dispersion(study(generator, [0.7] * 8, facts=120, seeds=10, icc=0.01, sizes=6, shared=0.3), QUICK)
    assert alone.level < 0.002
    assert shared.level == pytest.approx(0.3**2 * 0.21, rel=0.5)
    assert shared.scale == pytest.approx(alone.scale, rel=0.3)


def test_without_seeds_and_levels_there_is_the_prior_alone():
    one = study(np.random.default_rng(4), [0.5, 0.6], facts=101, seeds=1, icc=0.0, sizes=1)
    found = study_dispersion(one, QUICK)
    assert found.source == "the prior alone; one seed"
    assert found.freedom < PRIOR_FREEDOM + 0.5
    # The middle of scale * freedom / chi-square(freedom) is 1 + 100 * 0.01.
    assert found.scale * found.freedom / chi2.median(found.freedom) == pytest.approx(2, rel=0.15)
    wider = study_dispersion(one, QUICK.replace(overdispersion=0.1))
    assert wider.scale * wider.freedom / chi2.median(wider.freedom) == pytest.approx(11, rel=0.15)


def test_sizes_that_know_everything_tell_nothing_of_it():
    generator = np.random.default_rng(4)
    live = study(generator, [0.4, 0.6, 0.7, 0.7, 0.7, 0.6, 0.4, 0.3], facts=60, seeds=1, icc=0.0, sizes=1)
    full = [
        replace(c, params=n)
        for n in range(6)
        for c in study(generator, [1 - 1e-12] * 8, facts=60, seeds=1, icc=0.0, sizes=1)
    ]
    alone, beside = study_dispersion(live, QUICK), study_dispersion([*live, *full], QUICK)
    assert (beside.scale, beside.level, beside.freedom) == pytest.approx((alone.scale, alone.level, alone.freedom))
    assert study_dispersion(full, QUICK).source == "the prior alone; one seed"


def test_a_dispersion_that_is_hardly_known_widens_what_is_drawn():
    generator, p, weight = np.random.default_rng(5), np.full(4, 0.5), np.full(4, 100.0)
    known, hardly = draw(generator, p, weight, np.inf, 4000), draw(generator, p, weight, 4.0, 4000)
    assert known.std() == pytest.approx(0.05, rel=0.03)
    assert np.quantile(hardly, 0.99) > np.quantile(known, 0.99) + 0.03
    together = np.abs(hardly - 0.5).mean(axis=1)  # the levels of a resample share its dispersion
    assert np.quantile(together, 0.99) > 2.5 * together.mean()


def test_tests_of_levels_ask_for_more_where_the_dispersion_is_hardly_known():
    assert p_above(0.36, 100.0, 0.25) < 0.02 < p_above(0.36, 100.0, 0.25, 3.0)
    assert p_greater(0.8, 60, 0.6, 60) < 0.01 < p_greater(0.8, 60, 0.6, 60, 3.0)
    assert detectable_drop(0.8, 100.0, 100.0, 0.05, 0.8) < 0.17 < detectable_drop(0.8, 100.0, 100.0, 0.05, 0.8, 3.0)


@pytest.mark.parametrize("criterion", [HingeCollapse(), ToleranceRule(), Onset()], ids=["hinge", "rule", "onset"])
def test_every_criterion_reads_the_dispersion_of_the_study(criterion):
    rates = [0.3, 0.6, 0.8, 0.8, 0.8, 0.8, 0.62, 0.55]
    (one,) = study(np.random.default_rng(6), rates, facts=60, seeds=3, icc=0.0, sizes=1)
    calm = criterion.find(replace(one, dispersion=Dispersion(0.3, 0.0, 60.0, "")), QUICK)
    loud = criterion.find(replace(one, dispersion=Dispersion(8.0, 0.0, 60.0, "")), QUICK)
    assert calm.p_value < loud.p_value
    assert calm.status != "inconclusive"
    assert loud.status != calm.status or loud.high > calm.high


def test_all_curves_of_a_group_have_one_dispersion_and_keep_what_they_have():
    generator = np.random.default_rng(7)
    curves = study(generator, [0.7] * 6, facts=60, seeds=2, icc=0.0, sizes=3)
    own = Dispersion(2.0, 0.0, 9.0, "given")
    again = with_dispersion([*curves, replace(curves[0], group="infused"), replace(curves[1], dispersion=own)], QUICK)
    assert again[0].dispersion == again[2].dispersion != again[3].dispersion
    assert again[4].dispersion == own


def test_the_seeds_of_other_sizes_decide_whether_a_fall_is_one():
    fall = {0: [45], 50: [50], 100: [50], 200: [49], 400: [50], 800: [40], 1600: [38]}
    steady = {f: [48, 48, 49] for f in fall}
    rough = {f: [30, 57, 48] for f in fall}

    def status(others):
        rows = [curve_rows(fall, n=60), *(curve_rows(others, n=60, params=n) for n in (200_000, 400_000, 800_000))]
        return next(p for p in find_transitions(pd.concat(rows), QUICK) if p.kind == "collapse" and p.params == 100_000)

    assert status(steady).status == "collapsed"
    assert status(rough).status == "inconclusive"


def test_the_best_curve_that_rises_and_falls_is_found():
    generator = np.random.default_rng(8)
    for _ in range(20):
        rate, weight = generator.uniform(0.05, 0.95, 6), generator.uniform(5, 200, 6)
        fit = unimodal_fit(rate, weight)
        top = int(np.argmax(fit))
        assert (np.diff(fit[: top + 1]) >= -1e-12).all()
        assert (np.diff(fit[top:]) <= 1e-12).all()
        found = float(log_likelihood(fit, rate, weight).sum())
        assert found == pytest.approx(float(unimodal_likelihood(rate, weight)), abs=1e-9)
        assert found >= float(log_likelihood(prefix_fits(rate, weight)[6], rate, weight).sum()) - 1e-9
