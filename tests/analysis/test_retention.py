"""Collapse as the dose at which a share of what was known is lost, and onset as that at which a share is learned."""

from __future__ import annotations

import math

import numpy as np
import pytest

from megatron_kis.analysis import report
from megatron_kis.analysis.criteria import Onset, Retention, find_transitions
from megatron_kis.analysis.simulate import Truth, simulate_curve
from megatron_kis.config.analysis import AnalysisConfig
from tests.analysis.synthetic import curve_rows

QUICK = AnalysisConfig(resamples=199)
GRID = [0.0, 25, 50, 100, 200, 400, 800, 1600, 3200]


def collapse(counts: dict[float, list[int]], n: int = 500, **more: object):
    (point,) = [p for p in find_transitions(curve_rows(counts, n=n), QUICK, **more) if p.kind == "collapse"]
    return point


def test_it_is_the_default_and_the_point_is_that_of_the_curve():
    assert AnalysisConfig().criterion == "retention"
    counts = {f: [400] * 3 for f in (0, 25, 50, 100, 200)} | {400: [370] * 3, 800: [230] * 3, 1600: [140] * 3}
    point = collapse(counts)
    assert (point.status, point.interval) == ("collapsed", "profile")
    assert 200 < point.low < point.value < point.high < 800
    assert point.reason.startswith("10% of what was known is lost at F =")


def test_where_everything_is_known_nothing_is_lost_yet():
    """A plateau at one: 1,500 of 1,500 facts up to F = 400, and nine of ten between 800 and 1,600."""
    up = {f: [500] * 3 for f in (25, 50, 100, 200, 400)}
    point = collapse(up | {800: [470, 475, 480], 1600: [390, 400, 410], 3200: [310, 300, 290], 6400: [210, 190, 200]})
    assert point.status == "collapsed"
    assert 600 < point.low < point.value < point.high < 1600


def test_a_slow_fall_has_its_place_within_its_interval_and_more_seeds_keep_it_there():
    few = {50: [378], 100: [380], 200: [372], 400: [358], 800: [334], 1600: [310], 3200: [286]}
    values = [collapse({f: k * seeds for f, k in few.items()}, n=400).value for seeds in (2, 6)]
    assert values[1] == pytest.approx(values[0], rel=0.25)
    assert all(400 < value < 1600 for value in values)


def test_what_one_run_decides_is_no_collapse():
    flat = {f: [60, 61, 62] for f in (0, 25, 50, 100, 200, 400, 800)}
    point = collapse(flat | {1600: [60, 61, 20]}, n=90)
    assert point.status != "collapsed"
    alone = collapse({f: [k[0]] for f, k in flat.items()} | {1600: [20]}, n=90)
    assert alone.status == "inconclusive" and alone.flags == "rests on one run at F = 1600"
    again = collapse({f: [k[0]] for f, k in flat.items()} | {1600: [20], 3200: [22]}, n=90)
    assert again.status == "collapsed" and 400 < again.low < 1600 and again.high < 1800


def test_a_small_fall_is_no_bound_and_no_fall_is_said_as_what_was_shown():
    small = collapse({f: [1600] * 3 for f in (0, 25, 50, 100, 200, 400)} | {800: [1540] * 3, 1600: [1530] * 3}, n=2000)
    assert small.status == "inconclusive" and small.low is None
    assert "less than delta_min" in small.reason
    none = collapse({f: [1600, 1601, 1599] for f in (0, 25, 50, 100, 200, 400, 800, 1600)}, n=2000)
    assert none.status == "right_censored" and none.low <= 1600
    assert none.reason.startswith("no fall larger than 0.0") and none.reason.endswith("shown up to F = 1600")


def test_a_fall_from_the_first_level_on_is_bounded_from_above():
    point = collapse(
        {0: [390, 400, 410], 25: [190, 200, 210], 50: [140, 150, 160], 100: [130, 140, 150], 200: [140, 130, 150]}
    )
    assert point.status == "left_censored" and point.high <= 25


@pytest.mark.parametrize("criterion", ["retention", "hinge"])
def test_a_collapse_says_that_chance_was_assumed(criterion):
    counts = {f: [400] * 3 for f in (0, 25, 50, 100, 200)} | {400: [370] * 3, 800: [230] * 3, 1600: [140] * 3}
    settings = QUICK.replace(criterion=criterion)
    for chance, flags in ((0.25, ""), (None, "the chance level is not known and was taken as 0")):
        (point,) = [
            p for p in find_transitions(curve_rows(counts, n=500, chance=chance), settings) if p.kind == "collapse"
        ]
        assert (point.status, point.flags) == ("collapsed", flags)


@pytest.mark.parametrize(
    ("criterion", "method", "note"),
    [
        (
            "retention",
            "10% of the rate’s excess over chance on its plateau is lost",
            "The steepness is the power of F with which",
        ),
        ("hinge", "Criterion “hinge”", "that the bootstrap calibrates, and the bracket"),
        ("tolerance_rule", "Criterion “tolerance rule”", "are brackets of the levels tried"),
    ],
)
def test_the_report_says_by_which_criterion_points_were_found(criterion, method, note, tmp_path):
    counts = {f: [80] for f in (0, 25, 50, 100, 200)} | {400: [74], 800: [46], 1600: [28]}
    page = report(curve_rows(counts), tmp_path / "r.html", QUICK.replace(criterion=criterion)).read_text()
    assert method in page and note in page
    assert ("that the bootstrap calibrates" in page) == (criterion == "hinge")


def test_a_bound_lies_within_the_doses_that_were_tried():
    """Between dose 0 and the first one the likelihood tells by its form alone where it is."""
    lost = collapse({0: [900] * 3, 50: [500] * 3, 100: [400] * 3, 200: [350] * 3, 400: [300] * 3}, n=1000)
    assert (lost.status, lost.high) == ("left_censored", 50)
    learned = curve_rows({0: [250] * 3} | {f: [900] * 3 for f in (50, 100, 200, 400)}, n=1000, group="infused")
    (point,) = [p for p in find_transitions(learned, QUICK) if p.kind == "onset"]
    assert (point.status, point.high) == ("left_censored", 50)


TRUTHS = {
    "corner": (Truth(steepness=6.0), 0.055),
    "slow": (Truth(steepness=1.5), 0.055),
    "high plateau": (Truth(steepness=3.0, plateau=0.97, base=0.97), 0.055),
}


@pytest.mark.parametrize("name", TRUTHS)
def test_intervals_hold_the_dose_at_which_a_tenth_is_lost(name):
    truth, _ = TRUTHS[name]
    generator = np.random.default_rng(5)
    fine = np.geomspace(10, 20_000, 6000)
    hits, called = [], 0
    for _ in range(40):
        at = math.exp(generator.uniform(math.log(120), math.log(900)))
        point = Retention().find(simulate_curve(truth, truth.reference, GRID, 3, generator, collapse=at), QUICK)
        excess = truth.rates(fine, at) - truth.chance
        lost = float(fine[np.argmax((fine > at) & (excess <= (1 - QUICK.r) * excess.max()))])
        called += point.status == "collapsed"
        hits.append((point.low or 0) <= lost <= (point.high or math.inf))
    assert np.mean(hits) >= 0.87
    assert called >= 30


def test_bounds_of_curves_that_decline_slowly_are_true():
    """A loss that has begun must not be said to come later."""
    generator = np.random.default_rng(6)
    truth = Truth(steepness=0.5)
    fine = np.geomspace(10, 200_000, 6000)
    false = 0
    for _ in range(60):
        at = math.exp(generator.uniform(math.log(200), math.log(2000)))
        point = Retention().find(simulate_curve(truth, truth.reference, GRID, 3, generator, collapse=at), QUICK)
        excess = truth.rates(fine, at) - truth.chance
        lost = float(fine[np.argmax((fine > at) & (excess <= (1 - QUICK.r) * excess.max()))])
        false += point.status == "right_censored" and point.low > lost
    assert false <= 5


def learned(seeds: int, generator: np.random.Generator, *, half: float = 150.0, facts: int = 60):
    """The onset of infused facts whose rate is half way up at F = ``half``."""
    f = np.array(GRID)
    right = generator.binomial(facts, (0.25 + 0.6 * f**3 / (f**3 + half**3))[:, None], (len(f), seeds))
    table = curve_rows(dict(zip(GRID, right.tolist(), strict=True)), n=facts, group="infused")
    (point,) = find_transitions(table, QUICK, criteria=(Onset(),))
    return point


def test_an_onset_is_a_point_of_the_curve_and_not_of_how_much_was_asked():
    """Half of the rise at F = 150, whatever the number of seeds and facts: they make the interval narrower."""
    widths = []
    for seeds, facts in ((1, 60), (3, 60), (10, 60), (3, 400)):
        generator = np.random.default_rng(7)
        points = [learned(seeds, generator, facts=facts) for _ in range(25)]
        seen = [p for p in points if p.value]
        assert len(seen) >= 20
        assert np.median([p.value for p in seen]) == pytest.approx(150, rel=0.15)
        assert np.mean([(p.low or 0) <= 150 <= (p.high or math.inf) for p in points]) >= 0.88
        widths.append(np.median([math.log(p.high / p.low) for p in seen]))
    assert widths[0] > 1.2 * widths[1] > 1.2 * widths[2]


def test_without_a_run_at_zero_a_flat_curve_above_chance_is_no_onset():
    """Others cannot tell a preference that needs no learning from facts that are known at every F."""
    counts = {f: [42, 43, 44] for f in (10, 50, 100, 200, 400)}
    (point,) = [p for p in find_transitions(curve_rows(counts, n=120, group="infused"), QUICK) if p.kind == "onset"]
    assert point.status == "inconclusive" and "no run with F = 0" in point.reason
    with_zero = {0.0: [42, 43, 44], **counts}
    (point,) = [p for p in find_transitions(curve_rows(with_zero, n=120, group="infused"), QUICK) if p.kind == "onset"]
    assert point.status in ("right_censored", "inconclusive") and point.value is None


def test_an_onset_without_a_plateau_is_open_above():
    counts = {f: [k - 1, k, k + 2] for f, k in {0: 15, 25: 15, 50: 16, 100: 16, 200: 22, 400: 34}.items()}
    (point,) = [p for p in find_transitions(curve_rows(counts, n=60, group="infused"), QUICK) if p.kind == "onset"]
    assert point.status == "right_censored" and 50 < point.low < 400
    assert "no plateau" in point.reason
