"""The likelihood of where one curve declines."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad

from megatron_kis.analysis.criteria import decline
from megatron_kis.analysis.criteria.decline import STEEPNESS, Card, mirrored, retention, shapes_of
from megatron_kis.analysis.criteria.remembered import remembered

CHANCE, SHARE = 0.25, 0.1
X = np.log([25.0, 50, 100, 200, 400, 800, 1600, 3200])


def card_of(x, rate, weight, chance, share, *, failed: float = 0.01) -> Card:
    return decline.card_of(x, rate, weight, np.full(len(x), failed), chance, share)


def best(card: Card) -> float:
    return float(card.theta[card.marginal().argmax()])


def rates(theta: float, steepness: float = 3.0, plateau: float = 0.8, form: int = 0) -> np.ndarray:
    """A curve of one of the forms."""
    kept = retention(X, np.array(theta), np.array(steepness), *shapes_of(SHARE)[form], SHARE)
    return CHANCE + (plateau - CHANCE) * kept


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_every_form_has_lost_the_share_at_theta(share):
    for sharp, floor in shapes_of(share):
        kept = retention(np.array([-60.0, 3.0, 60.0]), np.array(3.0), np.array(2.0), sharp, floor, share)
        assert kept == pytest.approx([1.0, 1 - share, floor], abs=1e-9)


@pytest.mark.parametrize("form", range(len(shapes_of(SHARE))))
@pytest.mark.parametrize("place", [100.0, 300.0, 700.0])
def test_without_noise_the_place_is_found_whatever_the_form(form, place):
    card = card_of(X, rates(np.log(place), form=form), np.full(len(X), 1000.0), CHANCE, SHARE)
    assert best(card) == pytest.approx(np.log(place), abs=0.08)
    assert card.deviance < 0.8 * card.freedom


def test_the_mirrored_curve_has_the_mirrored_place():
    rate, weight = rates(np.log(300.0)), np.full(len(X), 120.0)
    there = card_of(X, rate, weight, CHANCE, SHARE)
    back = card_of(*mirrored(-X[::-1], rate[::-1], weight[::-1]), CHANCE, SHARE)
    np.testing.assert_allclose(back.marginal(), there.marginal(), atol=1e-9)
    onset = card_of(*mirrored(X, rate[::-1], weight), CHANCE, SHARE)  # rises where the other falls
    assert -best(onset) == pytest.approx(X[0] + X[-1] - best(there), abs=0.02)


def test_a_curve_that_stays_up_says_nothing_about_large_doses_and_one_that_fell_nothing_about_small_ones():
    up = card_of(X, np.full(len(X), 0.8), np.full(len(X), 120.0), CHANCE, SHARE)
    marginal = up.marginal()
    assert marginal[-1] > -0.1 and marginal[(up.theta > X[0]) & (up.theta < X[5])].max() < -3
    early = np.log([0.05, 0.1, *np.exp(X)])
    down = card_of(early, np.array([0.8, 0.8, *[0.3] * len(X)]), np.full(len(X) + 2, 120.0), CHANCE, SHARE)
    assert down.marginal()[down.theta > X[0]].max() < -3


def test_one_level_that_stands_alone_decides_nothing():
    """A run that diverged, in the middle or at the end, against two levels that fell."""
    flat, weight = np.full(len(X), 0.7), np.full(len(X), 60.0)
    for level in (3, len(X) - 1):
        failed = flat.copy()
        failed[level] = 0.3
        marginal = card_of(X, failed, weight, CHANCE, SHARE).marginal()
        assert marginal[-1] > -5
    fallen = flat.copy()
    fallen[-2:] = 0.3
    assert card_of(X, fallen, weight, CHANCE, SHARE).marginal()[-1] < -6


def test_lower_first_levels_do_not_move_the_place():
    rate, weight = rates(np.log(300.0)), np.full(len(X), 200.0)
    whole = card_of(X, rate, weight, CHANCE, SHARE)
    rate = rate.copy()
    rate[:2] = 0.3, 0.6
    rising = card_of(X, rate, weight, CHANCE, SHARE)
    assert best(rising) == pytest.approx(best(whole), abs=0.1)
    zero = card_of(np.concatenate([[-np.inf], X]), np.array([0.3, *rate]), np.full(len(X) + 1, 200.0), CHANCE, SHARE)
    assert best(zero) == pytest.approx(best(whole), abs=0.3)


def test_the_plateau_is_integrated_over_as_a_quadrature_does(monkeypatch):
    monkeypatch.setattr(decline, "SHARPNESS", (6.0,))
    monkeypatch.setattr(decline, "_FLOORS", (0.0,))
    rate, weight = rates(np.log(300.0)), np.full(len(X), 40.0)
    card = decline.card_of.__wrapped__(X, rate, weight, np.full(len(X), 1e-300), CHANCE, SHARE)
    right, wrong = rate * weight, (1 - rate) * weight
    top = len(STEEPNESS) // 2

    def exact(theta: float) -> float:
        kept = retention(X, np.array(theta), STEEPNESS[top], 6.0, 0.0, SHARE)

        def likelihood(a: float) -> float:
            p = CHANCE + a * kept
            return float(np.exp((right * np.log(p) + wrong * np.log1p(-p)).sum() + 180))

        return float(np.log(quad(likelihood, 1e-6, 1 - CHANCE - 1e-6, epsabs=0)[0]))

    places = [int(np.abs(card.theta - np.log(f)).argmin()) for f in (150.0, 300.0, 500.0)]
    found = np.array([card.log_likelihood[i, top] for i in places])
    wanted = np.array([exact(float(card.theta[i])) for i in places])
    np.testing.assert_allclose(found - found[1], wanted - wanted[1], atol=0.2)


SHAPES = {
    "corner": lambda x: 0.8 / (1 + np.exp(3 * np.maximum(x - np.log(300), 0) - 4)) * (1 + np.exp(-4)),
    "rounded": lambda x: 0.8 * np.exp(-0.35 * np.maximum(x - np.log(150), 0) ** 2),
    "slow": lambda x: 0.7 * np.minimum(1, (np.exp(x) / 200) ** -0.4),
    "half": lambda x: 0.75 * (0.5 + 0.5 / (1 + (np.exp(x) / 500) ** 3)),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_intervals_hold_the_place_of_curves_of_other_forms(shape):
    """Falls that are none of the forms tried: the dose at which a tenth of the excess is lost is in its interval."""
    excess = SHAPES[shape]
    grid = np.linspace(X[0], X[-1], 4000)
    truth = grid[np.argmax(excess(grid) <= (1 - SHARE) * excess(np.array([X[0] - 3]))[0])]
    generator = np.random.default_rng(1)
    hits = []
    for _ in range(40):
        p = CHANCE + (1 - CHANCE) * excess(X)
        card = card_of(X, generator.binomial(240, p) / 240, np.full(len(X), 240.0), CHANCE, SHARE)
        marginal = card.marginal()
        inside = card.theta[marginal >= -1.92]
        hits.append(inside[0] - 0.05 <= truth <= inside[-1] + 0.05)
    assert np.mean(hits) > 0.87


def test_a_long_rise_is_not_taken_for_a_misfit():
    rate = np.array([0.56, 0.55, 0.6, 0.62, 0.68, 0.72, 0.79, 0.8, 0.81, 0.52, 0.3])
    x = np.concatenate([[-np.inf], np.log(np.geomspace(8, 2600, 10))])
    card = card_of(x, rate, np.full(len(x), 400.0), CHANCE, SHARE, failed=1e-4)
    assert card.deviance < 3 * max(card.freedom, 1)
    assert x[7] < best(card) < x[9]
    marginal = card.marginal()
    assert card.theta[marginal > -2].min() > x[6]


def test_a_card_is_made_once():
    weight = np.full(len(X), 50.0)
    first = card_of(X, rates(np.log(300.0)), weight, CHANCE, SHARE)
    assert card_of(X, rates(np.log(300.0)), weight, CHANCE, SHARE) is first
    assert card_of(X, rates(np.log(200.0)), weight, CHANCE, SHARE) is not first


def test_results_are_not_remembered_for_ever():
    asked = []

    @remembered(2)
    def total(values, more):
        asked.append(more)
        return float(values.sum()) + more

    for more in (1, 2, 1, 3, 1):  # the third drops the first
        assert total(np.array([1.0, 2.0]), more) == 3 + more
    assert asked == [1, 2, 3, 1]
    assert total(np.array([1.0, 3.0]), 1) == 5
    assert total(np.array([[1.0], [3.0]]), 1) == 5
    assert len(asked) == 6, "an array of other numbers, or of another shape, is another question"


def test_results_are_remembered_by_what_they_depend_on():
    asked = []

    @remembered(2, lambda values, name: sum(values))
    def total(values, name):
        asked.append(name)
        return sum(values)

    assert [total([1, 2], "a"), total([2, 1], "b"), total([1, 3], "c")] == [3, 3, 4]
    assert asked == ["a", "c"], "the same sum is not asked again"


def test_what_a_card_leaves_out_is_nothing(monkeypatch):
    """Where the likelihood is far below its maximum the plateau need not be found."""
    rate, weight = rates(np.log(300.0)), np.full(len(X), 60.0)
    rate[2] = 0.1
    asked = X, rate, weight, np.full(len(X), 1e-3), CHANCE, SHARE
    usual = decline.card_of(*asked)
    monkeypatch.setattr(decline, "_NOTHING", 1e9)
    monkeypatch.setattr(decline, "_STILL", 1e-12)
    whole = decline.card_of.__wrapped__(*asked)
    likely = whole.log_likelihood > -20
    for name in ("log_likelihood", "plateau", "plateau_error"):
        found, wanted = getattr(usual, name)[likely], getattr(whole, name)[likely]
        np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert usual.deviance == pytest.approx(whole.deviance, abs=1e-6)
