"""The censored regression: against other programs, against differences, and against what dropping cells would do."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats
from statsmodels.regression.linear_model import OLS

from megatron_kis.analysis.findings.analyse import fit_laws
from megatron_kis.analysis.law.candidates import CANDIDATES, SIZE, Cells, compare, fit_candidate
from megatron_kis.analysis.law.fit import fit_law
from megatron_kis.analysis.law.predict import predict
from megatron_kis.analysis.law.regression import fit, half_width, log_likelihood
from megatron_kis.analysis.outputs import law_record
from tests.analysis.points import SIZES, noisy, point


def cells(seed=0, n=14):
    generator = np.random.default_rng(seed)
    x = np.column_stack([np.ones(n), generator.normal(size=(n, 2))])
    y = x @ [1, 0.5, -0.3] + 0.3 * generator.normal(size=n)
    return x, y


def mixed(y):
    """Two right-censored, one left-censored, one bracket, the others points."""
    lower, upper = y.copy(), y.copy()
    upper[:2], lower[2] = np.inf, -np.inf
    lower[3], upper[3] = y[3] - 0.2, y[3] + 0.3
    return lower, upper


def test_points_known_exactly_are_ordinary_least_squares():
    x, y = cells()
    ours, theirs = fit(x, y, y, np.zeros(len(y))), OLS(y, x).fit()
    assert ours.beta == pytest.approx(theirs.params, abs=1e-8)
    assert ours.covariance == pytest.approx(theirs.cov_params(), abs=1e-8)
    assert float(ours.sigma) == pytest.approx(math.sqrt(theirs.scale), abs=1e-8)
    assert float(ours.freedom) == pytest.approx(theirs.df_resid)
    assert ours.scatter_freedom == ours.freedom


def test_a_sigma_that_the_prior_keeps_up_has_four_degrees_of_freedom_at_least():
    for n, freedom in ((4, 1), (6, 3), (7, 4), (12, 9)):
        x, y = cells(n=n)
        few = fit(x, y, y, np.full(n, 0.02))
        assert float(few.freedom) == pytest.approx(freedom)
        assert float(few.scatter_freedom) == pytest.approx(max(freedom, 4))
        assert fit(x, y, y, np.full(n, 0.02), method="ml").scatter_freedom == pytest.approx(freedom)


def test_a_cell_that_says_nothing_changes_nothing():
    x, y = cells(3)
    lower, upper = mixed(y)
    variance = np.full((2, len(y)), 0.02)
    without = fit(x, lower, upper, variance)
    more = np.vstack([x, [1.0, 3.0, -2.0]])
    open_below, open_above = np.append(lower, -np.inf), np.append(upper, np.inf)
    found = fit(more, open_below, open_above, np.full((2, len(y) + 1), 0.02))
    assert found.beta == pytest.approx(without.beta, abs=1e-6)
    assert found.sigma == pytest.approx(without.sigma, abs=1e-6)
    assert found.freedom == pytest.approx(without.freedom, abs=1e-6)


def test_gradients_are_those_of_central_differences():
    x, y = cells(1)
    lower, upper = mixed(y)
    beta, log_sigma, variance, h = np.array([0.9, 0.4, -0.2]), math.log(0.35), np.full(len(y), 0.02), 1e-5

    def value(beta, log_sigma):
        return log_likelihood(x @ beta, np.array(math.exp(log_sigma)), lower, upper, variance)[0].sum()

    _, score, information, by_sigma = log_likelihood(x @ beta, np.array(math.exp(log_sigma)), lower, upper, variance)
    for axis, step in enumerate(h * np.eye(3)):
        assert (value(beta + step, log_sigma) - value(beta - step, log_sigma)) / (2 * h) == pytest.approx(
            float(score @ x[:, axis]), abs=1e-6
        )
        second = value(beta + step, log_sigma) - 2 * value(beta, log_sigma) + value(beta - step, log_sigma)
        assert -second / h**2 == pytest.approx(float((information * x[:, axis] ** 2).sum()), rel=1e-3)
    assert (value(beta, log_sigma + h) - value(beta, log_sigma - h)) / (2 * h) == pytest.approx(
        float(by_sigma.sum()), abs=1e-6
    )


def test_points_alone_are_measured_as_they_are_next_to_a_censored_cell():
    """Where all cells are points a shorter way gives the same bits."""
    generator = np.random.default_rng(5)
    mean, y, variance = generator.normal(4, 0.3, 6), generator.normal(4, 0.3, 6), generator.uniform(0, 0.1, 6)
    upper = y.copy()
    alone = log_likelihood(mean, np.array(0.2), y, upper, variance)
    beside = log_likelihood(
        np.append(mean, 4.0), np.array(0.2), np.append(y, 4.2), np.append(upper, np.inf), np.append(variance, 0.0)
    )
    for ours, theirs in zip(alone, beside, strict=True):
        assert ours.tolist() == theirs[:-1].tolist()
    exact = log_likelihood(mean, np.array(0.2), y, upper, np.zeros(1))
    for ours, theirs in zip(exact, log_likelihood(mean, np.array(0.2), y, upper, np.zeros(6)), strict=True):
        assert ours.tolist() == theirs.tolist()


def test_maximum_likelihood_is_where_a_general_optimizer_ends():
    x, y = cells(2)
    lower, upper = mixed(y)

    def loss(theta):  # written from the definition, by scipy's own distribution functions
        mean, sigma = x @ theta[:3], math.exp(theta[3])
        point = lower == upper
        density = stats.norm.logpdf(np.where(point, lower, 0), mean, sigma)
        mass = stats.norm.cdf(upper, mean, sigma) - stats.norm.cdf(lower, mean, sigma)
        return -np.where(point, density, np.log(np.where(point, 1.0, mass))).sum()

    best = optimize.minimize(
        loss, [1, 0.5, -0.3, -1], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12, "maxiter": 9999}
    )
    ours = fit(x, lower, upper, np.zeros(len(y)), method="ml")
    assert [*ours.beta, math.log(ours.sigma)] == pytest.approx(best.x, abs=1e-4)
    assert float(ours.likelihood) == pytest.approx(-best.fun, abs=1e-7)


def test_right_censored_cells_are_those_of_a_log_normal_survival_model():
    lifelines = pytest.importorskip("lifelines")
    x, y = cells(3, n=30)
    upper = y.copy()
    upper[:8] = np.inf
    frame = pd.DataFrame({"time": np.exp(y), "seen": np.isfinite(upper), "x": x[:, 1], "z": x[:, 2]})
    theirs = lifelines.LogNormalAFTFitter().fit(frame, "time", "seen")
    ours = fit(x, y, upper, np.zeros(len(y)), method="ml")
    expected = [theirs.params_["mu_"][name] for name in ("Intercept", "x", "z")]
    assert ours.beta == pytest.approx(expected, abs=1e-4)
    assert math.log(ours.sigma) == pytest.approx(theirs.params_["sigma_"]["Intercept"], abs=1e-4)


def test_resamples_fitted_together_are_those_fitted_alone():
    x, y = cells(4)
    lower, upper = mixed(y)
    shift = np.random.default_rng(0).normal(size=(5, 1)) * 0.2
    variance = np.full(len(y), 0.01)
    together = fit(x, lower + shift, upper + shift, np.broadcast_to(variance, (5, len(y))))
    for row in range(5):
        alone = fit(x, lower + shift[row], upper + shift[row], variance)
        assert together.beta[row] == pytest.approx(alone.beta, abs=2e-3)
        assert together.sigma[row] == pytest.approx(float(alone.sigma), rel=0.03)


def test_censored_cells_do_not_bias_the_slope_and_dropping_them_does():
    generator = np.random.default_rng(0)
    n = np.repeat(np.log(np.geomspace(1e6, 1e9, 5)), 4)
    x = np.column_stack([np.ones(len(n)), n - n.mean()])
    y = 5 + 0.3 * x[:, 1] + 0.3 * generator.normal(size=(300, len(n)))
    limit = np.quantile(y, 0.7)  # of the grid's top: 30% lie beyond it, mostly large models
    lower, upper = np.minimum(y, limit), np.where(y > limit, np.inf, y)
    kept = fit(x, lower, upper, np.zeros(y.shape))
    error = float(np.median(np.sqrt(kept.covariance[:, 1, 1])))
    assert abs(kept.beta[:, 1].mean() - 0.3) < 0.5 * error
    dropped = [np.polyfit(x[row < limit, 1], row[row < limit], 1)[0] for row in y]
    assert np.mean(dropped) < 0.3 - 0.7 * error


def test_the_prior_on_the_scatter_widens_intervals_and_leaves_the_coefficients_of_censored_cells(monkeypatch):
    x, y = cells(6, n=6)
    upper, variance = y.copy(), np.full(6, 0.01)
    upper[:2] = np.inf
    with_prior = fit(x, y, upper, variance)
    monkeypatch.setattr("megatron_kis.analysis.law.regression._AVOID", 0.0)
    without = fit(x, y, upper, variance)
    assert with_prior.beta == pytest.approx(without.beta, abs=1e-6)
    assert float(with_prior.sigma) > 1.1 * float(without.sigma)


def as_cells(n, d, log_f):
    return Cells(np.log(n), np.log(d), log_f, log_f, np.zeros(len(n)))


@pytest.mark.parametrize("name", ["N", "N and D", "D/N", "C"])
def test_every_candidate_recovers_its_own_noise_free_law(name):
    n, d = np.reshape(np.meshgrid(np.geomspace(1e6, 1e9, 4), np.geomspace(1e9, 1e11, 3)), (2, -1))
    law = CANDIDATES[name]
    slopes = np.array([0.4, 0.2])[: len(law.rows)]
    log_f = 1.0 + law.covariates(np.log(n), np.log(d)) @ slopes
    fitted = fit_candidate(law, as_cells(n, d, log_f))
    mean, _ = fitted.mean(np.log([7e10]), np.log([1e12]))
    expected = 1.0 + law.covariates(np.log([7e10]), np.log([1e12])) @ slopes
    assert mean == pytest.approx(expected, abs=1e-6)


def test_a_law_with_an_offset_is_recovered():
    n = np.geomspace(1e6, 1e9, 8)
    log_f = np.log(200 + np.exp(-2 + 0.4 * np.log(n))) + 1e-4 * np.random.default_rng(0).normal(size=8)
    fitted = fit_candidate(CANDIDATES["N + offset"], as_cells(n, np.full(8, 1e9), log_f))
    assert math.exp(fitted.parameters[-1]) == pytest.approx(200, rel=0.02)
    assert fitted.parameters[1] == pytest.approx(0.4, abs=0.01)


def test_the_largest_size_held_out_tells_a_law_from_a_constant():
    n = np.geomspace(1e6, 1e9, 7)
    log_f = 3 + 0.3 * np.log(n) + 0.05 * np.random.default_rng(1).normal(size=7)
    scores = {row["law"]: row["log_score"] for row in compare(as_cells(n, np.full(7, 1e9), log_f))}
    assert scores["N"] > scores["constant"] + 2
    flat = {row["law"]: row["log_score"] for row in compare(as_cells(n, np.full(7, 1e9), log_f - 0.3 * np.log(n)))}
    assert flat["constant"] > flat["N"]


def test_a_law_of_exposure_tokens_and_of_the_ratio_agrees_with_that_of_f():
    cost = 1500.0
    points = [
        point(n, p.value, d, exposure_tokens=p.value * cost, infusion_ratio=p.value * cost / d)
        for p in noisy(two_budgets=True)
        for n, d in [(p.params, p.tokens)]
    ]
    law = fit_law(points, law="N and D")
    ratio = law.equivalents["infusion_ratio"]["coefficients"]
    tokens = law.equivalents["exposure_tokens"]["coefficients"]
    a = law.coefficients["a"].value
    b = law.coefficients["b_log_params"].value
    c = law.coefficients["c_log_tokens"].value
    assert tokens["a"]["value"] == pytest.approx(a + math.log(cost), abs=1e-8)
    assert [tokens[k]["value"] for k in ("b_log_params", "c_log_tokens")] == pytest.approx([b, c], abs=1e-8)
    assert [ratio[k]["value"] for k in ("a", "b_log_params")] == pytest.approx([a + math.log(cost), b], abs=1e-8)
    assert ratio["c_log_tokens"]["value"] == pytest.approx(c - 1, abs=1e-8)


def test_without_embeddings_the_slope_is_another_row():
    points = [point(p.params, p.value, nonembedding_params=int(p.params**0.9)) for p in noisy()]
    law = fit_law(points, law="N")
    row = law.sensitivity["nonembedding_params"]["coefficients"]["b_log_params"]
    assert row["value"] == pytest.approx(law.coefficients["b_log_params"].value / 0.9, rel=1e-3)


def test_a_curved_truth_raises_the_lack_of_fit_flag():
    generator = np.random.default_rng(0)
    n = np.geomspace(1e6, 1e9, 7)
    bend = 2 + 0.3 * np.log(n) - 0.05 * (np.log(n) - np.log(n).mean()) ** 2
    noise = 0.03 * generator.normal(size=7)
    curved = fit_law([point(a, math.exp(b)) for a, b in zip(n, bend + noise, strict=True)], law="N")
    straight = fit_law([point(a, math.exp(2 + 0.3 * math.log(a) + e)) for a, e in zip(n, noise, strict=True)], law="N")
    assert curved.lack_of_fit["flag"]
    assert any("lack of fit" in warning for warning in curved.warnings)
    assert not straight.lack_of_fit["flag"]


def brackets(count, exponent, factor, studies, scatter=0.1, beyond=4):
    """Fits studies whose sizes are two apart and whose doses are a common grid of a factor.

    Returns shares of the law's means and of the new models at a size beyond in their intervals, and the fit.
    """
    generator = np.random.default_rng(count)
    log_n = math.log(2) * np.arange(count)
    x = np.column_stack([np.ones(count), log_n - log_n.mean()])
    y = 5 + exponent * x[:, 1] + scatter * generator.normal(size=(studies, count))
    width = math.log(factor)
    phase = generator.uniform(0, width, (studies, 1))
    lower = np.floor((y - phase) / width) * width + phase
    found = fit(x, lower, lower + width, np.zeros(y.shape))
    row = np.array([1, x[-1, 1] + math.log(beyond)])
    error = np.sqrt(np.einsum("i,rij,j->r", row, found.covariance, row))
    truth = 5 + exponent * row[1]
    mean = np.abs(found.beta @ row - truth) <= half_width(error, 0.0, found.freedom, found.scatter_freedom)
    new = np.abs(found.beta @ row - truth - scatter * generator.normal(size=studies))
    model = new <= half_width(error, found.sigma, found.freedom, found.scatter_freedom)
    return mean.mean(), model.mean(), found


@pytest.mark.parametrize(
    ("count", "exponent", "factor"),
    [(4, 0, 4), (5, 0, 4), (6, 0, 4), (8, 0, 4), (8, 0, 2), (5, -0.6, 1.42), (4, -0.3, 2)],
)
def test_models_in_one_bracket_do_not_say_where_in_it(count, exponent, factor):
    """Their middles agree exactly, wherever the bracket's F* is."""
    for beyond in (4, 10):
        mean, model, _ = brackets(count, exponent, factor, 400, beyond=beyond)
        assert mean > 0.92
        assert model > 0.93


def test_a_narrow_bracket_is_a_point():
    x, y = cells(8, n=6)
    point, close = fit(x, y, y, np.full(6, 1e-12)), fit(x, y - 1e-5, y + 1e-5, np.full(6, 1e-12))
    assert close.covariance == pytest.approx(point.covariance, rel=1e-3)
    assert float(close.freedom) == pytest.approx(3, abs=1e-3)


def test_a_brackets_known_width_costs_no_degrees_of_freedom_and_tells_none_of_the_scatter():
    _, _, wide = brackets(5, 0, 4, 50)
    _, _, narrow = brackets(5, 0, 1.05, 50)
    assert np.median(wide.freedom) > 10
    assert np.median(narrow.freedom) < 3.3
    assert wide.scatter_freedom == pytest.approx(4)


def test_a_point_known_badly_weighs_less():
    points = noisy()
    wrong = point(points[-1].params, points[-1].value * 5)
    sure = fit_law([*points[:-1], wrong], law="N")
    vague = point(wrong.params, wrong.value, low=wrong.value / 30, high=wrong.value * 30, interval="profile")
    truth = fit_law(points, law="N").coefficients["b_log_params"].value
    unsure = fit_law([*points[:-1], vague], law="N")
    assert abs(unsure.coefficients["b_log_params"].value - truth) < 0.3 * abs(
        sure.coefficients["b_log_params"].value - truth
    )


def test_rescaling_the_budget_changes_only_the_intercept():
    points = noisy(two_budgets=True)
    scaled = [point(p.params, p.value, p.tokens * 1000) for p in points]
    law, other = fit_law(points, law="N and D"), fit_law(scaled, law="N and D")
    for name in ("b_log_params", "c_log_tokens"):
        assert other.coefficients[name].value == pytest.approx(law.coefficients[name].value, rel=1e-9)
    assert predict(other, 7e9, 1e15).centre == pytest.approx(predict(law, 7e9, 1e12).centre, rel=1e-9)


def test_the_same_points_give_the_same_bytes():
    points = [*noisy(), point(1e8, 0, status="right_censored", low=900.0)]
    assert json.dumps(law_record(*fit_laws(points))) == json.dumps(law_record(*fit_laws(points[::-1])))
    assert SIZE.name == fit_law(points).law
    assert len(SIZES) + 1 == len(fit_law(points).points)
