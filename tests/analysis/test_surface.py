"""One likelihood for all curves of a study."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from megatron_kis.analysis.criteria import find_transitions
from megatron_kis.analysis.criteria.decline import Card, card_of, retention, shapes_of
from megatron_kis.analysis.findings.analyse import fit_laws
from megatron_kis.analysis.law.candidates import CANDIDATES, SIZE, SIZE_AND_BUDGET
from megatron_kis.analysis.law.ensemble import sample
from megatron_kis.analysis.law.law import Law
from megatron_kis.analysis.law.predict import predict
from megatron_kis.analysis.law.surface import Surface, fit_surface, record_of, surface_of
from megatron_kis.analysis.law.whole import with_surface
from megatron_kis.analysis.runs.curves import Dispersion, curves
from megatron_kis.config.analysis import AnalysisConfig
from tests.analysis.synthetic import curve_rows

SHARE, CHANCE = 0.1, 0.25
LOG_N = np.log([1e6, 4e6, 1.6e7, 6.4e7, 2.56e8])
X = np.log([25.0, 50, 100, 200, 400, 800, 1600, 3200])


def card(theta: float, generator: np.random.Generator, *, onset: bool = False, facts: int = 300) -> Card:
    share = 0.5 if onset else SHARE
    x = -X[::-1] if onset else X
    p = CHANCE + 0.55 * retention(x, np.array(theta), np.array(4.0), *shapes_of(share)[3], share)
    rate = generator.binomial(facts, p) / facts
    return card_of(x, rate, np.full(len(X), float(facts)), np.full(len(X), 1e-4), CHANCE, share)


def fitted(cards: list[Card], log_n: np.ndarray = LOG_N, *, bend: float = 0.025, onset: bool = False) -> Surface:
    generator = np.random.default_rng(0)
    share = 0.5 if onset else SHARE
    return fit_surface(
        cards,
        SIZE,
        log_n,
        np.zeros(len(log_n)),
        None,
        chance=CHANCE,
        share=share,
        mirrored=onset,
        bend=bend,
        generator=generator,
    )


def law(log_n: np.ndarray | float) -> np.ndarray:
    return np.log(200.0) + 0.3 * (np.asarray(log_n) - LOG_N[0])


@pytest.fixture(scope="module")
def study() -> Surface:
    generator = np.random.default_rng(3)
    return fitted([card(float(theta), generator) for theta in law(LOG_N)])


def interval(surface: Surface, log_n: float, *, straight: bool = False) -> tuple[float, float, float]:
    mean, sigma = surface.mean(log_n, 0.0, straight=straight), surface.sigma(straight=straight)
    low, middle, high = surface.quantiles(mean, sigma, (0.025, 0.5, 0.975))
    return low, middle, high


def test_the_law_is_found_and_may_bend_beyond_what_was_trained(study):
    beyond = float(LOG_N[-1]) + np.log(10)
    assert study.convergence < 1.1 and study.told == len(LOG_N)
    for straight in (False, True):
        low, middle, high = interval(study, beyond, straight=straight)
        assert low < law(beyond) < high
        assert middle == pytest.approx(float(law(beyond)), abs=0.4)
    width = [interval(study, beyond, straight=s)[2] - interval(study, beyond, straight=s)[0] for s in (True, False)]
    assert width[0] < 1.6 and 1.1 * width[0] < width[1]
    middle = float(LOG_N[2])
    inside = [interval(study, middle, straight=s)[2] - interval(study, middle, straight=s)[0] for s in (True, False)]
    assert inside[1] < 1.5 * inside[0], "a bend matters beyond the sizes, not among them"
    middle_of, least, most = study.estimates(0.95)["b_log_params"]
    assert least < 0.3 < most and middle_of == pytest.approx(float(np.median(study.straight[:, 1])))
    assert 0 < study.estimates(0.95)["sigma"][1] < study.estimates(0.95)["sigma"][2] < 1
    assert (study.straight[:, 2] == 0).all() and len(np.unique(study.straight[:, 1])) > 0.95 * len(study.straight)
    exponent = study.straight[:, 1]
    assert exponent.mean() == pytest.approx(0.3, abs=2 * exponent.std())


def test_a_curve_that_says_nothing_changes_nothing(study):
    generator = np.random.default_rng(3)
    cards = [card(float(theta), generator) for theta in law(LOG_N)]
    empty = replace(cards[0], log_likelihood=np.zeros_like(cards[0].log_likelihood))
    more = fitted([*cards, empty], np.append(LOG_N, np.log(1e9)))
    beyond = float(LOG_N[-1]) + np.log(10)
    assert more.told == study.told
    np.testing.assert_allclose(interval(more, beyond), interval(study, beyond), atol=0.35)


def test_a_curve_that_never_falls_bounds_the_law_from_below(study):
    """Six e-folds above the law the largest model still knows everything: the law turns up."""
    generator = np.random.default_rng(3)
    cards = [card(float(theta), generator) for theta in law(LOG_N[:-1])]
    cards.append(card(20.0, generator))
    beyond = float(LOG_N[-1])
    assert interval(fitted(cards), beyond)[1] > interval(study, beyond)[1] + 0.8


def test_an_onset_is_fitted_on_the_mirrored_axis():
    generator = np.random.default_rng(4)
    found = fitted([card(-float(theta), generator, onset=True) for theta in law(LOG_N)], onset=True)
    low, middle, high = interval(found, float(LOG_N[2]))
    assert low < law(LOG_N[2]) < high and middle == pytest.approx(float(law(LOG_N[2])), abs=0.2)
    rates = found.curves(X, float(LOG_N[2]), 0.0, None, generator).mean(axis=0)
    assert rates[0] < 0.45 and rates[-1] > 0.7


def test_the_band_of_a_new_model_holds_its_curve(study):
    generator = np.random.default_rng(5)
    size = float(LOG_N[-1]) + np.log(4)
    band = np.quantile(study.curves(X, size, 0.0, None, generator), [0.025, 0.975], axis=0)
    truth = CHANCE + 0.55 * retention(X, law(size), np.array(4.0), *shapes_of(SHARE)[3], SHARE)
    assert (band[0] <= truth + 0.01).all() and (truth - 0.01 <= band[1]).all()
    assert (band[1] - band[0])[0] < 0.2 < (band[1] - band[0])[-1]


def test_two_terms_are_told_apart():
    generator = np.random.default_rng(6)
    log_n, log_d = np.tile(LOG_N[:3], 3), np.repeat(np.log([1e9, 4e9, 1.6e10]), 3)
    theta = law(log_n) + 0.4 * (log_d - log_d[0])
    cards = [card(float(value), generator) for value in theta]
    found = fit_surface(
        cards,
        SIZE_AND_BUDGET,
        log_n,
        log_d,
        None,
        chance=CHANCE,
        share=SHARE,
        mirrored=False,
        bend=0.025,
        generator=generator,
    )
    for column, truth in ((1, 0.3), (2, 0.4)):
        draws = found.straight[:, column]
        assert abs(draws.mean() - truth) < 2.5 * draws.std() and draws.std() < 0.15


def test_every_form_of_a_law_names_its_terms(study):
    for candidate in CANDIDATES.values():
        if not candidate.offset:
            draws = np.column_stack(
                [study.straight[:, :1], *[study.straight[:, 1:2]] * len(candidate.rows), study.straight[:, 2:]]
            )
            form = replace(study, candidate=candidate, straight=draws, projection=np.zeros(1 + len(candidate.rows)))
            assert len(form.estimates(0.9)) == 1 + len(candidate.rows)


def test_a_record_gives_the_surface_again(study):
    again = surface_of(json.loads(json.dumps(record_of(study))))
    np.testing.assert_allclose(interval(again, 20.0), interval(study, 20.0), atol=1e-3)


def test_the_same_numbers_give_the_same_draws(study):
    generator = np.random.default_rng(3)
    again = fitted([card(float(theta), generator) for theta in law(LOG_N)])
    np.testing.assert_array_equal(again.bent, study.bent)


def test_walkers_find_a_correlated_normal():
    covariance = np.array([[1.0, 0.95], [0.95, 1.0]])
    inverse = np.linalg.inv(covariance)

    def density(at: np.ndarray) -> np.ndarray:
        value: np.ndarray = -0.5 * np.einsum("wi,ij,wj->w", at - 2, inverse, at - 2)
        return value

    generator = np.random.default_rng(0)
    draws, convergence = sample(
        density, generator.standard_normal((40, 2)) * 5, generator, discard=300, rounds=1500, every=5
    )
    assert draws.mean(axis=0) == pytest.approx([2.0, 2.0], abs=0.15)
    np.testing.assert_allclose(np.cov(draws.T), covariance, atol=0.15)
    assert convergence < 1.05


SIZES = (10**6, 4 * 10**6, 16 * 10**6, 64 * 10**6)


def study_table(rate: Callable[[np.ndarray, float], np.ndarray], generator: np.random.Generator) -> pd.DataFrame:
    """Background facts of four sizes, 300 a run, two seeds."""
    doses = [0.0, *np.exp(X)]
    parts = []
    for n in SIZES:
        with np.errstate(divide="ignore"):
            p = rate(np.log(doses), float(law(np.log(n))))
        right = generator.binomial(300, np.clip(p, 0.01, 0.99)[:, None], (len(doses), 2))
        parts.append(curve_rows(dict(zip(doses, right.tolist(), strict=True)), n=300, params=n))
    return pd.concat(parts)


def the_law(table: pd.DataFrame, **settings: Any) -> Law:
    chosen = AnalysisConfig(law="N", resamples=199, law_resamples=99, **settings)
    laws, refused = fit_laws(find_transitions(table, chosen), chosen, table)
    assert not [item for item in refused if item["kind"] == "collapse"]
    return next(one for one in laws if one.kind == "collapse")


def falling(x: np.ndarray, at: float) -> np.ndarray:
    return CHANCE + 0.55 * np.exp(-2 * np.maximum(np.where(np.isfinite(x), x, -9.0) - at, 0))


def test_a_law_from_curves_predicts_by_them_and_names_the_points_as_a_check():
    table = study_table(falling, np.random.default_rng(7))
    found = the_law(table)
    told = predict(found, 2.56e8)
    assert told.interval_method == "surface"
    low, high = told.prediction_interval
    straight = told.straight_interval
    assert low < told.centre < high and straight[0] < told.centre < straight[1]
    assert math.log(high / low) > math.log(straight[1] / straight[0])
    assert math.log(high / low) < math.log(told.points_interval[1] / told.points_interval[0])
    assert low < math.exp(float(law(math.log(2.56e8))) + 0.05) < high
    unbent = predict(the_law(table, bend=0.0), 2.56e8)
    np.testing.assert_allclose(np.log(unbent.prediction_interval), np.log(unbent.straight_interval), atol=0.15)
    assert the_law(table, criterion="hinge").surface is None


def test_curves_of_no_form_that_is_tried_fall_back_to_the_points():
    """Two humps: what was lost comes back, and is lost again."""

    def humps(x: np.ndarray, at: float) -> np.ndarray:
        return falling(x, at) + 0.45 * np.exp(-8 * (np.where(np.isfinite(x), x, -9.0) - at - 1.6) ** 2)

    table = study_table(humps, np.random.default_rng(8))
    before = the_law(table, criterion="hinge")
    known = Dispersion(scale=1.0, level=0.0, freedom=1e6, source="known", facts=300.0)
    mine = [replace(one, dispersion=known) for one in curves(table)]
    found = with_surface(before, mine, AnalysisConfig())
    assert found.surface is None
    assert any("differ from every form of a decline" in warning for warning in found.warnings)
    assert with_surface(before, curves(study_table(falling, np.random.default_rng(7))), AnalysisConfig()).surface
