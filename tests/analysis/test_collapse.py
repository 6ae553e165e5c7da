from __future__ import annotations

import numpy as np
import pytest

from megatron_kis.analysis.criteria import HingeCollapse, Onset, find_transitions
from megatron_kis.analysis.criteria.counts import generator_of, pooled_rates
from megatron_kis.analysis.criteria.dispersion import with_dispersion
from megatron_kis.analysis.criteria.hinge import classify, measured
from megatron_kis.analysis.criteria.hinge_fit import FINE, fit_hinges
from megatron_kis.analysis.criteria.unimodal import critical_value, fall_test
from megatron_kis.analysis.runs.curves import curves
from megatron_kis.common.errors import InputError
from megatron_kis.config.analysis import AnalysisConfig
from tests.analysis.synthetic import curve, curve_rows

LEVELS = (0, 8, 32, 128, 512, 1024)
QUICK = AnalysisConfig(criterion="hinge", resamples=199)
HINGE = AnalysisConfig(criterion="hinge")
RISE_AND_FALL = {0: [40], 100: [50], 300: [91], 600: [96], 800: [95], 1000: [44], 1200: [31]}


def only(points, kind, group=None):
    (point,) = [p for p in points if p.kind == kind and group in (None, p.group)]
    return point


# collapse by memory


def test_a_fall_that_stays_down_is_bracketed_by_its_levels():
    point = only(find_transitions(curve_rows(RISE_AND_FALL), HINGE), "collapse")
    assert point.status == "collapsed"
    assert point.low <= 800 <= point.high <= 1000  # the last level that stands, and not yet the one that fell
    assert point.low <= point.value <= point.high
    assert point.p_value <= 0.01
    assert point.drop == pytest.approx(0.95 - 0.31, abs=0.07)
    assert point.companion >= point.value


def test_the_collapse_point_is_also_given_as_infusion_ratio_and_exposure_tokens():
    point = only(find_transitions(curve_rows(RISE_AND_FALL, tokens=1_000_000)), "collapse")
    assert point.infusion_ratio == pytest.approx(point.value * 0.5e-3)  # the table's ratio is linear in F
    assert point.exposure_tokens == pytest.approx(point.infusion_ratio * 1_000_000)
    assert point.ratio_low == pytest.approx(point.low * 0.5e-3)
    assert point.ratio_high == pytest.approx(point.high * 0.5e-3)


def test_a_dip_that_recovers_is_no_collapse():
    point = only(find_transitions(curve_rows({0: [50], 8: [90], 64: [40], 256: [92], 512: [95]})), "collapse")
    assert point.status == "inconclusive"  # a run that is 0.5 lower than its neighbours tells how much rates vary
    assert "would have shown" in point.reason


def test_a_high_plateau_is_right_censored_at_the_last_level_that_excludes_a_fall():
    point = only(find_transitions(curve_rows({0: [25], 8: [40], 64: [97], 256: [98], 512: [97]}), HINGE), "collapse")
    assert (point.status, point.value, point.low, point.high) == ("right_censored", None, 512, None)


def test_a_curve_that_falls_from_its_first_level_is_left_censored():
    point = only(
        find_transitions(curve_rows({0: [95, 96], 8: [60, 61], 64: [40, 41], 256: [30, 31]}), HINGE), "collapse"
    )
    assert (point.status, point.value, point.low, point.high) == ("left_censored", None, None, 8)


def test_chance_level_answers_have_nothing_that_could_collapse():
    point = only(find_transitions(curve_rows({0: [26], 8: [33], 64: [22], 256: [20]})), "collapse")
    assert point.status == "inconclusive"
    assert "no memory that could collapse" in point.reason


def test_too_few_facts_to_see_a_fall_are_inconclusive_not_right_censored():
    point = only(find_transitions(curve_rows({0: [4], 8: [9], 64: [10], 256: [9]}, n=12)), "collapse")
    assert point.status == "inconclusive"
    assert "would have shown" in point.reason


def test_two_levels_cannot_show_a_collapse():
    assert only(find_transitions(curve_rows({8: [95], 64: [30]})), "collapse").status == "inconclusive"


def test_a_fall_smaller_than_the_seeds_disagree_is_no_collapse():
    # every level scatters by 0.3 between seeds; the last two are lower by 0.15
    noisy = {8: [95, 65, 80], 64: [66, 95, 82], 256: [80, 94, 65], 512: [65, 80, 50], 1024: [80, 50, 66]}
    assert only(find_transitions(curve_rows(noisy), HINGE), "collapse").status != "collapsed"
    calm = {f: [round(float(np.mean(counts)))] * 3 for f, counts in noisy.items()}
    assert only(find_transitions(curve_rows(calm), HINGE), "collapse").status == "collapsed"


def test_repeating_questions_under_more_templates_adds_no_evidence():
    table = curve_rows({0: [60], 8: [66], 64: [60], 256: [52]}, n=100)
    more = table.assign(n=table["n"] * 12, correct=table["correct"] * 12)
    assert only(find_transitions(more), "collapse").p_value == only(find_transitions(table), "collapse").p_value


@pytest.mark.slow
@pytest.mark.parametrize(
    "truth",
    [[0.5] * 6, [0.9] * 6, [0.3, 0.3, 0.4, 0.7, 0.9, 0.95], [0.6, 0.6, 0.61, 0.62, 0.63, 0.64]],
    ids=["flat", "high", "rising", "almost flat"],
)
def test_a_curve_that_never_falls_is_called_collapsed_at_most_seven_times_in_a_hundred(truth):
    generator = np.random.default_rng(1)
    trials, n, icc = 400, 100, 0.01
    drawn = []
    for _ in range(trials):
        # facts of one run move together (beta-binomial), as the settings' overdispersion says
        strength = 1 / icc - 1
        p = generator.beta(np.array(truth) * strength, (1 - np.array(truth)) * strength)
        counts = generator.binomial(n, p)
        drawn.append(curve(LEVELS, counts, n=n))
    # As `HingeCollapse.find` does, whose verdicts are these (test_one_criterion), with all hinges fitted together.
    drawn = with_dispersion(drawn, QUICK)  # what a study knows of it; benchmarks.size_and_power has lone curves
    x, seen = measured(drawn[0], QUICK)
    seen = seen.of(np.array([pooled_rates(one) for one in drawn]))
    nulls = [
        fall_test(seen.of(rate), QUICK.resamples, generator_of(one, QUICK, "fall"))[1]
        for rate, one in zip(seen.rate, drawn, strict=True)
    ]
    critical = np.array([critical_value(null, QUICK.alpha) for null in nulls])
    fits = fit_hinges(x, seen.rate, seen.weight, drawn[0].mean_chance, FINE)
    status = classify(seen, fits, critical, 3.84, QUICK).status  # the cut-off says how wide, not whether
    fallen = np.isin(status, ("collapsed", "left_censored"))
    assert fallen.sum() <= 0.07 * trials
    for i in {*range(0, trials, 20), *np.flatnonzero(fallen)}:
        assert HingeCollapse().find(drawn[i], QUICK).status == status[i]


# onset


def infused(counts, **more):
    return curve_rows(counts, group="infused", **more)


def test_the_onset_is_where_half_of_the_plateau_is_reached():
    point = only(find_transitions(infused({0: [25], 8: [27], 64: [30], 256: [80], 512: [95]})), "onset")
    assert point.status == "observed"
    assert 64 < point.low < point.value < point.high < 300
    tenth = AnalysisConfig(onset_share=0.1)
    early = only(find_transitions(infused({0: [25], 8: [27], 64: [30], 256: [80], 512: [95]}), tenth), "onset")
    assert early.value < point.value


def test_an_onset_at_the_smallest_frequency_is_left_censored():
    point = only(find_transitions(infused({0: [25], 8: [90], 64: [95]})), "onset")
    assert (point.status, point.low) == ("left_censored", None)
    assert 4 < point.high <= 12


def test_chance_at_every_frequency_right_censors_the_onset():
    point = only(find_transitions(infused({0: [25], 8: [27], 64: [24], 256: [30]})), "onset")
    assert (point.status, point.low) == ("right_censored", 256)


def test_an_untrained_preference_above_chance_is_no_onset():
    # 0.45 everywhere, F = 0 included: well above 1/4 but no memory of the infused facts
    point = only(find_transitions(infused({0: [180], 8: [184], 64: [176], 256: [188]}, n=400)), "onset")
    assert point.status == "right_censored"


def test_an_onset_needs_a_chance_level_and_enough_facts():
    counts = {0: [25], 8: [60], 64: [90]}
    assert only(find_transitions(infused(counts, chance=None)), "onset").status == "inconclusive"
    few = only(find_transitions(infused({0: [1], 8: [2], 64: [2]}, n=5)), "onset")
    assert few.status == "inconclusive"


def test_chance_curves_show_an_onset_at_most_seven_times_in_a_hundred():
    generator = np.random.default_rng(2)
    trials, seen = 400, 0
    for _ in range(trials):
        counts = generator.binomial(100, 0.25, size=6)
        seen += Onset().find(curve(LEVELS, counts, group="infused"), QUICK).status in ("observed", "left_censored")
    assert seen <= 0.07 * trials


def test_only_frequency_zero_says_nothing_of_onset_or_collapse():
    points = find_transitions(infused({0: [25]}, losses={0: 3.0}))
    assert {p.status for p in points} == {"inconclusive"}


# the whole


def test_row_order_and_repeated_rows_change_nothing():
    table = curve_rows(RISE_AND_FALL, losses={0: 3.0, 300: 3.1, 1200: 3.6})
    shuffled = table.sample(frac=1, random_state=3)
    doubled = shuffled.loc[[*shuffled.index, *shuffled.index[:4]]]
    assert find_transitions(doubled) == find_transitions(table)


def test_the_declared_split_decides_and_a_missing_one_is_an_error():
    table = curve_rows(RISE_AND_FALL)
    with pytest.raises(InputError, match=r"no probe row has split 'question'; valid: held_out$"):
        find_transitions(table, AnalysisConfig(split="question"))


def test_seeds_stay_apart_within_a_level():
    (curve,) = curves(curve_rows({0: [40, 60], 8: [80, 90]}))
    assert [sorted(rates.tolist()) for rates in curve.seed_rates] == [[0.4, 0.6], [0.8, 0.9]]
    assert curve.rate.tolist() == [0.5, pytest.approx(0.85)]


@pytest.mark.parametrize("key", [{"alpha": 0}, {"r": 1.5}, {"tolerance": -0.1}, {"resamples": 3}])
def test_settings_out_of_range_are_refused(key):
    with pytest.raises(InputError, match=f"analysis.{next(iter(key))}"):
        AnalysisConfig(**key)


def test_unknown_settings_are_refused_with_the_nearest_one():
    with pytest.raises(InputError, match="did you mean 'tolerance'"):
        AnalysisConfig(**{"tolerence": 0.1})
    with pytest.raises(InputError, match="alpha"):
        AnalysisConfig(**{"alpha": "small"})
