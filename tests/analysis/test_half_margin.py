"""The criterion of the mean margin, and the share of ordered pairs as an outcome, on curves with a known truth."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from megatron_kis.analysis import AnalysisConfig, analyse_study, find_transitions, fit_law, load_runs, simulate
from megatron_kis.analysis.criteria.half_margin import crossings, last_up, margins_of
from megatron_kis.analysis.design.next_runs import propose
from megatron_kis.analysis.runs.curves import curves, write_curves_csv
from megatron_kis.analysis.runs.load_csv import load_curves_csv
from megatron_kis.common.errors import InputError
from tests.analysis.synthetic import curve_rows

LEVELS = (0, 2, 4, 8, 16, 32, 64)
HALF = AnalysisConfig(criterion="half_margin", resamples=499, law_resamples=0)


def measured(
    margins: dict[float, list[float]], *, sd: float = 4.0, facts: int = 50, params: int = 100_000
) -> pd.DataFrame:
    """A table with the margins of each seed by dose; all answers are right, whatever the margin."""
    table = curve_rows({dose: [facts] * len(seeds) for dose, seeds in margins.items()}, n=facts, params=params)
    values = [margins[row.frequency][row.seed] for row in table.itertuples()]
    return table.assign(mean_margin=values, mean_margin_sd=sd)


def drawn(generator: np.random.Generator, half: float, *, seeds: int = 3, sd: float = 4.0, facts: int = 50, **more):
    """A measured curve whose true margin falls from 12 nats to half of it at ``half``; a seed moves all its facts."""
    truth = {dose: 12 / (1 + (dose / half) ** 1.5) for dose in LEVELS}
    noise = sd / math.sqrt(facts)
    margins = {
        dose: [m * math.exp(0.1 * generator.normal()) + noise * generator.normal() for _ in range(seeds)]
        for dose, m in truth.items()
    }
    return measured(margins, sd=sd, facts=facts, **more)


def collapse(table: pd.DataFrame, settings: AnalysisConfig = HALF):
    (point,) = [p for p in find_transitions(table, settings) if p.kind == "collapse"]
    return point


def test_the_crossing_is_linear_in_log_margin_over_log_dose():
    x = np.log([1.0, 4.0, 16.0])
    at = crossings(x, np.array([[8.0, 8.0, 2.0], [8.0, 8.0, 8.0], [8.0, 3.0, 1.0]]), 0.5)
    assert math.exp(at[0]) == pytest.approx(8)  # 4 nats lie half way from 8 to 2 on a log scale
    assert at[1] == np.inf
    assert 0 < at[2] < math.log(4)
    with np.errstate(divide="ignore"):
        from_zero = np.log([0.0, 4.0, 16.0])
    assert crossings(from_zero, np.array([[8.0, 3.0, 1.0]]), 0.5)[0] == -np.inf
    assert last_up(np.array([8.0, 3.0, 7.0, 1.0]), 0.5) == 2  # a margin that recovers has not fallen


def test_a_margin_falls_although_no_answer_changes():
    table = measured({0: [12.0], 2: [12.0], 4: [11.0], 8: [9.0], 16: [4.0], 32: [2.0]}, sd=2.0)
    point = collapse(table)
    assert point.status == "collapsed"
    assert (point.low, point.high, point.interval) == (8, 16, "bracket")
    expected = 8 * 2 ** (math.log(9 / 6) / math.log(9 / 4))
    assert point.value == pytest.approx(expected)
    assert point.peak == 12.0
    assert point.drop == 10.0
    assert "too few seeds" in point.flags
    assert collapse(table, HALF.replace(criterion="hinge")).status == "right_censored"


def test_another_share_is_reached_elsewhere():
    table = measured({0: [12.0], 2: [12.0], 4: [11.0], 8: [9.0], 16: [4.0], 32: [2.0]}, sd=2.0)
    assert collapse(table, HALF.replace(margin_share=0.25)).value > collapse(table).value
    with pytest.raises(InputError, match=r"analysis\.margin_share: is 1\.0; must be below 1"):
        AnalysisConfig(margin_share=1.0)


@pytest.mark.parametrize(
    ("margins", "status", "low", "high"),
    [
        ({0: [12.0], 2: [12.0], 8: [11.0], 32: [11.0]}, "right_censored", 32, None),
        ({0: [12.0], 2: [3.0], 8: [2.0], 32: [1.0]}, "left_censored", None, 2),
        ({0: [0.2], 2: [0.3], 8: [-0.1], 32: [0.1]}, "inconclusive", None, None),
        ({0: [3.0], 2: [-1.0], 8: [2.0], 32: [1.4]}, "inconclusive", None, None),
    ],
    ids=["stays up", "falls at once", "never above 0", "too uncertain"],
)
def test_curves_without_a_crossing_have_a_status(margins, status, low, high):
    sd = 6.0 if status == "inconclusive" else 2.0
    point = collapse(measured(margins, sd=sd))
    assert (point.status, point.value, point.low, point.high) == (status, None, low, high)


def test_limits_lie_at_doses_whose_margins_are_known():
    stays = measured({0: [12.0], 2: [12.0], 8: [11.0], 16: [11.0], 32: [11.0]}, sd=2.0)
    stays.loc[stays["frequency"] == 32, "mean_margin"] = np.nan
    point = collapse(stays)
    assert (point.status, point.low) == ("right_censored", 16)
    assert point.reason.endswith("up to F = 16")
    falls = measured({0: [12.0], 1: [3.0], 2: [3.0], 8: [2.0], 32: [1.0]}, sd=2.0)
    falls.loc[falls["frequency"] == 1, "mean_margin"] = np.nan
    point = collapse(falls)
    assert (point.status, point.high) == ("left_censored", 2)


def test_limits_are_no_tighter_than_the_bracket():
    late = collapse(measured({0: [12.0], 2: [12.0], 8: [11.0], 32: [5.9]}, sd=2.0))
    assert (late.status, late.low) == ("right_censored", 8)
    early = collapse(measured({0: [12.0], 2: [6.1], 8: [2.0], 32: [1.0]}, sd=2.0))
    assert (early.status, early.high) == ("left_censored", 8)


def test_a_last_level_that_is_up_is_no_early_fall():
    # The highest of many noisy levels is too high, so that nearly all drawn curves end below nine tenths of theirs.
    levels = {dose: [10.0] for dose in range(101)} | {120: [9.05]}
    point = collapse(measured(levels, sd=10.0, facts=100), HALF.replace(margin_share=0.9))
    assert point.status == "right_censored"
    assert point.low <= 120


def test_the_interval_covers_the_truth_and_widens_with_the_spread_of_seeds():
    generator = np.random.default_rng(1)
    hits, profiles = 0, 0
    for _ in range(150):
        point = collapse(drawn(generator, 11.0))
        assert point.status == "collapsed"
        hits += point.low <= 11.0 <= point.high
        profiles += point.interval == "profile"
    assert hits >= 0.93 * 150
    seeds = {dose: [m, m, m] for dose, m in zip(LEVELS, (12, 12, 11, 9, 5, 2, 1), strict=True)}
    apart = {dose: [0.7 * m, m, 1.3 * m] for dose, (m, _, _) in seeds.items()}
    quiet, loud = (collapse(measured(one, sd=0.1)) for one in (seeds, apart))
    assert loud.high / loud.low > quiet.high / quiet.low
    assert quiet.flags == loud.flags == ""


def test_errors_are_of_facts_and_of_seeds():
    (curve,) = curves(measured({dose: [10.0, 10.0, 10.0] for dose in LEVELS}, sd=5.0, facts=100))
    margins = margins_of(curve)
    assert margins.error == pytest.approx(5 / math.sqrt(100 * 3))
    (apart,) = curves(measured({dose: [8.0, 10.0, 12.0] for dose in LEVELS}, sd=0.01, facts=100))
    assert margins_of(apart).error == pytest.approx(2 / math.sqrt(3), rel=0.01)


def test_margins_and_their_points_are_the_same_from_files(tmp_path):
    table = drawn(np.random.default_rng(2), 11.0)
    write_curves_csv(table, tmp_path / "curves.csv")
    assert collapse(load_curves_csv(tmp_path / "curves.csv")) == collapse(table)
    path = tmp_path / "curves.csv"
    path.write_text(path.read_text().replace(",4,", ",-4,", 1).replace(",4\n", ",-4\n", 1))
    with pytest.raises(InputError, match="mean_margin_sd"):
        load_curves_csv(path)


def test_tables_without_margins_are_refused_and_curves_without_them_undecided():
    table = curve_rows({0: [50], 8: [60], 64: [90]})
    with pytest.raises(InputError, match=r"analysis\.criterion: no probe row has a mean margin.*hinge"):
        find_transitions(table, HALF)
    known = drawn(np.random.default_rng(3), 11.0)
    partly = pd.concat([known, curve_rows({0: [50], 8: [60], 64: [90]}, params=200_000)], ignore_index=True)
    found = {p.params: p for p in find_transitions(partly, HALF) if p.kind == "collapse"}
    assert found[100_000].status == "collapsed"
    assert found[200_000].status == "inconclusive"
    assert "no mean margins" in found[200_000].reason


def test_a_law_of_half_margins_has_the_true_slope_and_asks_for_runs():
    generator = np.random.default_rng(4)
    sizes = (10**5, 3 * 10**5, 10**6, 3 * 10**6, 10**7)
    table = pd.concat([drawn(generator, 5.0 * (n / 10**5) ** 0.4, params=n) for n in sizes], ignore_index=True)
    points = find_transitions(table, HALF)
    law = fit_law(points, "collapse", "background", law="N")
    b = law.coefficients["b_log_params"]
    assert b.low <= 0.4 <= b.high
    runs = propose(table, 1e8, 1e6, HALF.replace(law="N"), points=points, count=2)
    assert all(run.gain is not None and run.gain > 0 for run in runs)


def test_runs_with_margins_are_analysed_by_them(tmp_path):
    table = drawn(np.random.default_rng(5), 11.0).assign(nonembedding_params=50_000.0, validation_loss=3.0)
    simulate.write_runs(table, tmp_path / "runs")
    result = analyse_study(tmp_path, HALF)
    assert result.points == find_transitions(load_runs(tmp_path), HALF)
    assert any(p.status == "collapsed" and p.interval for p in result.points)
    assert "half margin" in (tmp_path / "report.html").read_text()


# the share of ordered pairs


def test_the_share_of_ordered_pairs_is_a_rate_with_a_chance_of_one_half():
    rise_and_fall = {0: [40], 100: [50], 300: [91], 600: [96], 800: [95], 1000: [44], 1200: [31]}
    table = curve_rows(rise_and_fall)
    flat = table.assign(pairwise=0.5)
    settings = AnalysisConfig(resamples=99, outcome="pairwise")
    assert "never reliably above chance (0.50" in collapse(flat, settings).reason
    rates = table.assign(pairwise=0.5 + table["correct"] / table["n"] / 2)
    point = collapse(rates, settings)
    assert point.status == "collapsed"
    assert point.low <= 800 <= point.high
    assert point.peak == pytest.approx(0.98)
    with pytest.raises(InputError, match=r"analysis\.outcome: not every probe row has 'pairwise'.*accuracy"):
        find_transitions(table, settings)


def test_the_report_of_ordered_pairs_says_so(tmp_path):
    from megatron_kis.analysis import report

    table = curve_rows({0: [60], 100: [80], 300: [91], 600: [96]}).assign(pairwise=0.9)
    page = report(table, tmp_path / "r.html", AnalysisConfig(resamples=99, outcome="pairwise")).read_text()
    assert "share of wrong options below the right one" in page
    assert "share answered right" not in page
