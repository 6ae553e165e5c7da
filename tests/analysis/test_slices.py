"""Curves along the number of infused facts: found in the data, searched for transitions, fitted and predicted."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from megatron_kis.analysis import AnalysisConfig, find_transitions, fit_law, load_runs, predict, simulate
from megatron_kis.analysis.design.new_sizes import new_sizes
from megatron_kis.analysis.design.next_runs import bisect, propose
from megatron_kis.analysis.findings.analyse import analyse, fit_laws
from megatron_kis.analysis.law.law_file import load_law
from megatron_kis.analysis.law.prediction import load_predictions, prediction_record
from megatron_kis.analysis.law.validate import backtest, validate
from megatron_kis.analysis.outputs import law_record
from megatron_kis.analysis.report.summary import findings_by_slice, key_numbers, study_design
from megatron_kis.analysis.report.tables import TABLES
from megatron_kis.analysis.runs.curves import curve_table, curves, write_curves_csv
from megatron_kis.analysis.runs.load_csv import (
    POINT_COLUMNS,
    load_curves_csv,
    load_points_csv,
    points_table,
    write_points_csv,
)
from megatron_kis.analysis.runs.slices import USUAL, Slice, slices_of
from megatron_kis.common.errors import InputError
from tests.analysis.synthetic import curve_rows

QUICK = AnalysisConfig(resamples=99, law_resamples=0)
AT_14 = Slice("facts", "frequency", 14.0)
AT_HALF = Slice("facts", "ratio", 0.5)
LEVELS = (0, 500, 1000, 1500, 2200, 3200, 5000, 7500, 11000, 16000)
CELLS = tuple((n, 2 * 10**9) for n in (10**7, 3 * 10**7, 10**8, 3 * 10**8, 10**9))
TRUTH = simulate.Truth(scatter=0.02, collapse_at=4000.0, facts=200, fact_bits=5.0)


def with_amounts(rows: dict[tuple[float, float, float], list[int]], **more: object) -> pd.DataFrame:
    """A curve table from counts: (F, K, configured ratio) -> correct answers of each seed; NaN where unknown."""
    parts = []
    for (frequency, facts, ratio), counts in rows.items():
        part = curve_rows({frequency: counts}, **more)  # type: ignore[arg-type]
        share = np.nan_to_num(frequency * facts * 10 / 1_000_000) if math.isnan(ratio) else ratio
        parts.append(part.assign(infused_facts=facts, configured_ratio=ratio, infusion_ratio=share))
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def simulated():
    table, at = simulate.simulate_table(
        TRUTH, CELLS, LEVELS, 3, np.random.default_rng(5), groups=("background", "control"), one=AT_14
    )
    return table, at, find_transitions(table, QUICK)


def visible(page: str) -> str:
    """The words of a page, with plain spaces."""
    body = re.sub(r"<(style|script|svg)\b.*?</\1>", " ", page, flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body).replace("\u00a0", " "))


NAN = math.nan
BASE = (0.0, NAN, NAN)


# which slices there are


def test_without_several_numbers_of_facts_the_dose_is_the_frequency():
    table = curve_rows({0: [50], 8: [60], 64: [90]})
    assert slices_of(table) == slices_of(table.assign(infused_facts=60.0)) == [USUAL]
    assert slices_of(table.assign(infused_facts=60.0), "frequency") == [USUAL]


@pytest.mark.parametrize(
    ("runs", "axis", "found"),
    [
        ([BASE, (14, 100, NAN), (14, 400, NAN)], "auto", [AT_14]),
        ([BASE, (14, 100, NAN), (14, 400, NAN)], "facts", [AT_14]),
        ([BASE, (2.5, 100, 0.5), (0.7, 400, 0.5), (9.9, 400, 0.9)], "auto", [AT_HALF]),
        (
            [BASE, *((f, k, NAN) for f in (7, 14) for k in (100, 400))],
            "auto",
            [Slice("facts", "frequency", 7), AT_14],  # three doses of F are no second axis
        ),
        (
            [BASE, *((f, k, NAN) for f in (7, 14, 28) for k in (100, 400))],
            "auto",
            [
                Slice("facts", "frequency", 7),
                AT_14,
                Slice("facts", "frequency", 28),
                Slice("frequency", "facts", 100),
                Slice("frequency", "facts", 400),
            ],
        ),
        (
            [BASE, *((f, k, NAN) for f in (7, 14) for k in (100, 400))],
            "frequency",
            [Slice("frequency", "facts", 100), Slice("frequency", "facts", 400)],
        ),
        # of F = 7 there are two doses only: no curve
        ([BASE, (7, 100, NAN), (14, 100, NAN), (14, 400, NAN)], "facts", [AT_14]),
    ],
)
def test_slices_are_found_where_three_doses_differ_and_the_rest_is_held(runs, axis, found):
    assert slices_of(with_amounts({run: [50] for run in runs}), axis) == found


def by_seed(*runs: tuple[float, float, float, int, int]) -> pd.DataFrame:
    """A curve table from (F, K, configured ratio, seed, correct answers)."""
    parts = [with_amounts({(f, k, ratio): [count]}).assign(seed=seed) for f, k, ratio, seed, count in runs]
    return pd.concat(parts, ignore_index=True)


def test_seeds_of_a_configured_ratio_are_one_level_of_f():
    table = by_seed(
        *((*BASE, seed, 50) for seed in (0, 1)),
        *((14, k, NAN, seed, 70) for k in (400, 3200) for seed in (0, 1)),
        *((f, 3200, 0.5, seed, 60) for seed, f in enumerate((12.076875, 12.0771875))),
        *((f, 400, 0.5, seed, 60) for seed, f in enumerate((96.63, 96.6425))),
    )
    at_3200 = Slice("frequency", "facts", 3200)
    assert slices_of(table) == [AT_14, AT_HALF]  # 0, 12 and 14 are three doses of F, not four
    assert at_3200 in slices_of(table, "frequency")
    (curve,) = curves(table, [at_3200])
    assert curve.dose.tolist() == pytest.approx([0, 12.07703125, 14])
    assert [len(rates) for rates in curve.seed_rates] == [2, 2, 2]
    for part in (table.iloc[::-1], pd.concat([table, table.iloc[3:]])):  # whatever the order and number of its rows
        assert curves(part, [at_3200])[0].dose.tolist() == curve.dose.tolist()


def test_a_report_counts_the_seeds_of_a_configured_ratio_as_one_level(tmp_path):
    table = by_seed(
        *((*BASE, seed, 50) for seed in (0, 1)),
        *((f, 3200, 0.5, seed, 60) for seed, f in enumerate((12.076875, 12.0771875))),
        *((f, 400, 0.5, seed, 60) for seed, f in enumerate((96.63, 96.6425))),
        (96.63, 400, 0.5, 2, 60),
    )
    result = analyse(pd.concat([table[:-1], table[:-1].assign(params=200_000)]), QUICK)
    assert any(item.label == "infusion frequency, 3 levels" for item in key_numbers(result))
    assert "; 2 seeds per cell" in study_design(result)[0]
    assert "; 2 to 3 seeds per cell" in study_design(analyse(table, QUICK))[0]
    alone = analyse(table[table["infused_facts"].isin([400, NAN])], QUICK)
    assert "3 seeds per cell" in study_design(alone)[0]
    assert "2 levels of infusion (0 and 96.6342 exposures" in study_design(alone)[0]


def test_no_point_lies_between_two_seeds_of_one_level():
    table = by_seed(
        (*BASE, 0, 95),
        (14, 400, NAN, 0, 90),
        *((f, 100, NAN, 0, 95) for f in (4, 8)),
        *((24 + seed / 2, 100, 0.5, seed, count) for seed, count in enumerate((45, 35))),
        *((48 + seed / 2, 100, 0.9, seed, 25) for seed in (0, 1)),
    )
    settings = QUICK.replace(criterion="tolerance_rule")
    (point,) = [p for p in find_transitions(table, settings) if p.kind == "collapse" and p.slice.held == 100]
    assert (point.low, point.high) == (8, 24.25)


def test_the_run_without_infusion_is_dose_0_of_every_curve():
    table = with_amounts({BASE: [50]} | {(f, k, NAN): [60] for f in (7, 14, 28) for k in (100, 400)})
    found = {curve.slice: curve for curve in curves(table)}
    assert len(found) == 5
    assert all(curve.dose[0] == 0 and curve.rate[0] == 0.5 for curve in found.values())
    assert found[AT_14].dose.tolist() == [0, 100, 400]
    assert found[Slice("frequency", "facts", 400)].dose.tolist() == [0, 7, 14, 28]
    assert found[AT_14].exposures.tolist() == [0, 1400, 5600]


def test_an_infused_run_without_its_number_of_facts_is_named():
    table = with_amounts({BASE: [50], (14, 100, NAN): [60], (14, 400, NAN): [60], (14, NAN, NAN): [60]})
    with pytest.raises(InputError, match=r"does not say how many facts .*F = 14.*infused_facts"):
        find_transitions(table, QUICK)
    with pytest.raises(InputError, match="does not say how many facts"):
        find_transitions(curve_rows({0: [50], 14: [60]}), QUICK.replace(axis="facts"))


# transitions along K


def test_the_collapse_along_the_number_of_facts_covers_the_truth(simulated):
    _, truth, points = simulated
    mine = [p for p in points if (p.kind, p.group) == ("collapse", "background")]
    assert [p.slice for p in mine] == [AT_14] * len(CELLS)
    for point in mine:
        assert point.status == "collapsed"
        assert (point.low or 0) <= truth[point.params, point.tokens] <= point.high
        assert "is lost at K = " in point.reason
        assert "F" not in point.reason
    assert {p.kind for p in points} == {"collapse", "tolerance"}  # no onset along K


def test_a_collapse_point_along_k_is_also_given_in_exposures_tokens_and_bits(simulated):
    _, _, points = simulated
    point = next(p for p in points if p.kind == "collapse")
    assert point.exposures == pytest.approx(14 * point.value)
    assert point.exposure_tokens == pytest.approx(14 * point.value * TRUTH.fact_tokens)
    assert point.infused_bits == pytest.approx(5 * point.value)
    assert point.bits_per_param == pytest.approx(5 * point.value / point.params)


def test_a_held_ratio_keeps_its_tokens_and_shares_them_among_more_facts():
    table, _ = simulate.simulate_table(
        TRUTH, CELLS[:1], LEVELS, 10, np.random.default_rng(5), groups=("background",), one=AT_HALF
    )
    point = next(p for p in find_transitions(table, QUICK) if p.kind == "collapse")
    assert point.slice == AT_HALF
    assert point.infusion_ratio == pytest.approx(0.5)
    assert point.exposure_tokens == pytest.approx(0.5 * point.tokens)
    assert point.exposures == pytest.approx(0.5 * point.tokens / TRUTH.fact_tokens)
    first = min(table.loc[table["frequency"] > 0, "infused_facts"])
    assert first < point.low  # a value below it would be between nothing and the held share


def test_along_f_bits_do_not_depend_on_the_dose():
    held = Slice("frequency", "facts", 400.0)
    levels = (0, 60, 150, 300, 500, 800, 1300)
    truth = replace(TRUTH, collapse_at=400.0, fact_bits=3.0)
    parts = [
        simulate.simulate_table(
            truth,
            CELLS[:1],
            levels,
            2,
            np.random.default_rng(1),
            groups=("background",),
            one=Slice("frequency", "facts", k),
        )[0]
        for k in (200.0, 400.0)
    ]
    table = pd.concat([parts[0], parts[1][parts[1]["frequency"] > 0]])
    points = [p for p in find_transitions(table, QUICK) if p.kind == "collapse" and p.slice == held]
    (point,) = points
    assert point.infused_bits == pytest.approx(1200)
    assert point.exposures == pytest.approx(400 * point.value)


def test_another_axis_draws_other_random_numbers_but_the_usual_one_does_not():
    from megatron_kis.analysis.criteria.counts import generator_of

    (curve,) = curves(curve_rows({0: [50], 8: [60], 64: [90]}))
    draws = [generator_of(replace(curve, slice=one), QUICK).random() for one in (USUAL, AT_14, AT_HALF)]
    assert len(set(draws)) == 3


# files


def test_curves_and_points_come_back_from_their_files(simulated, tmp_path):
    table, _, points = simulated
    write_curves_csv(table, tmp_path / "curves.csv")
    again = load_curves_csv(tmp_path / "curves.csv")
    pd.testing.assert_frame_equal(again, table, check_dtype=False)
    assert find_transitions(again, QUICK) == points
    write_points_csv(points, tmp_path / "points.csv")
    assert load_points_csv(tmp_path / "points.csv") == points


@pytest.mark.parametrize("one", [AT_14, AT_HALF], ids=["held frequency", "held ratio"])
def test_run_folders_give_the_same_points_as_their_table(one, tmp_path):
    table, _ = simulate.simulate_table(
        TRUTH, CELLS[:1], LEVELS[:6], 1, np.random.default_rng(3), groups=("background",), one=one
    )
    count = simulate.write_runs(table, tmp_path)
    runs = load_runs(tmp_path)
    assert len(runs.runs) == count == 6
    assert find_transitions(runs, QUICK) == find_transitions(table, QUICK)
    assert slices_of(curve_table(runs)) == [one]


def test_one_number_of_facts_leaves_the_files_as_they_were(tmp_path):
    table = curve_rows({0: [40], 100: [50], 300: [91], 600: [96], 1000: [44], 1200: [31]})
    points = find_transitions(table, QUICK)
    known = table.assign(infused_facts=60.0, configured_ratio=0.5)
    assert find_transitions(known, QUICK) == points
    assert list(points_table(points).columns) == POINT_COLUMNS
    for name, one in (("before.csv", table), ("after.csv", known)):
        write_curves_csv(one, tmp_path / name)
    assert (tmp_path / "before.csv").read_bytes() == (tmp_path / "after.csv").read_bytes()


CURVES = "params,tokens,frequency,seed,n,correct,infused_facts,configured_ratio\n"
POINTS = "params,tokens,kind,value,low,high,status,axis,held_by,held\n"


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("100000,1000000,14,0,50,20,0,", "'infused_facts': is 0 at F = 14"),
        ("100000,1000000,14,0,50,20,1.5,", "'infused_facts': 1.5 is not whole"),
        ("100000,1000000,14,0,50,20,400000,", "'infused_facts': 400,000 facts, 14 times each, in 1,000,000 tokens"),
        ("100000,1000000,14,0,50,20,400,0", "'configured_ratio': is 0 at F = 14"),
        ("100000,1000000,14,0,50,20,400,2", "'configured_ratio': 2 is out of range"),
    ],
)
def test_wrong_amounts_in_a_curve_file_are_named(row, problem, tmp_path):
    path = tmp_path / "curves.csv"
    path.write_text(CURVES + row + "\n")
    with pytest.raises(InputError, match=problem) as error:
        load_curves_csv(path)
    assert f"{path}:2" in str(error.value)


@pytest.mark.parametrize(
    ("cells", "problem"),
    [
        ("size,,", "'axis': is 'size'"),
        ("facts,facts,400", "'held_by': held_by is 'facts'.*frequency or ratio"),
        ("frequency,ratio,0.5", "'held_by': held_by is 'ratio'.*facts"),
        ("facts,frequency,", "held_by and held: one without the other"),
        ("facts,frequency,0", "held is 0"),
    ],
)
def test_a_wrong_axis_in_a_point_file_is_named(cells, problem, tmp_path):
    path = tmp_path / "points.csv"
    path.write_text(POINTS + f"100000,1000000,collapse,400,300,500,collapsed,{cells}\n")
    with pytest.raises(InputError, match=problem) as error:
        load_points_csv(path)
    assert f"{path}:2" in str(error.value)


@pytest.mark.parametrize(
    ("cells", "remedy"),
    [
        (",,,collapsed", "a positive {}"),
        (",,,right_censored", "the largest {} without the transition"),
        (",,,left_censored", "the smallest {} with the transition"),
    ],
)
def test_a_missing_dose_in_a_point_file_is_asked_for_by_its_symbol(cells, remedy, tmp_path):
    path = tmp_path / "points.csv"
    for along, symbol in ((",,", "F"), ("facts,frequency,14", "K")):
        path.write_text(f"{POINTS}100000,1000000,collapse,{cells},{along}\n")
        with pytest.raises(InputError, match=f"{remedy.format(symbol)}$"):
            load_points_csv(path)


def test_the_same_model_along_two_axes_is_no_repetition(tmp_path):
    path = tmp_path / "points.csv"
    row = "100000,1000000,collapse,400,300,500,collapsed,"
    path.write_text(POINTS + f"{row},,\n{row}facts,frequency,14\n{row}facts,frequency,20\n")
    assert [p.slice for p in load_points_csv(path)] == [AT_14, Slice("facts", "frequency", 20.0), USUAL]
    path.write_text(POINTS + f"{row}facts,frequency,14\n{row}facts,frequency,14\n")
    with pytest.raises(InputError, match="the same transition as line 2"):
        load_points_csv(path)


# laws and predictions


def test_each_slice_has_a_law_of_its_own(simulated):
    _, _, points = simulated
    doubled = [
        replace(p, slice=Slice("facts", "frequency", 28.0), value=p.value / 2, low=None, high=None)
        for p in points
        if p.value
    ]
    laws, _ = fit_laws([*points, *doubled], QUICK.replace(law="N"))
    by_slice = {law.slice: law for law in laws if law.kind == "collapse"}
    at_28 = Slice("facts", "frequency", 28.0)
    assert list(by_slice) == [AT_14, at_28, Slice("facts", "frequency")]  # the last is of both
    first, second = (math.exp(by_slice[one].at(1e8, 2e9)[0]) for one in (AT_14, at_28))
    assert first / second == pytest.approx(2, rel=0.1)
    with pytest.raises(InputError, match=r"several slices.*facts at F = 14, facts at F = 28"):
        fit_law([*points, *doubled], "collapse", "background")


def test_the_law_along_k_has_the_true_slope_and_says_what_it_means(simulated):
    _, _, points = simulated
    law = fit_law(points, "collapse", "background", law="N")
    assert law.slice == AT_14
    assert law.selected_law == "log K* = a + b log N"
    b = law.coefficients["b_log_params"]
    assert b.low <= TRUTH.size_exponent <= b.high
    assert law.tokens_per_frequency == pytest.approx(14 * TRUTH.fact_tokens)
    found = predict(law, 7e9, 2e9)
    truth = TRUTH.collapse_point(7e9, 2e9)
    assert found.prediction_interval[0] <= truth <= found.prediction_interval[1]
    assert found.exposures == pytest.approx(14 * found.centre)
    assert found.exposures_interval == pytest.approx([14 * end for end in found.prediction_interval])
    assert found.exposure_tokens == pytest.approx(14 * found.centre * TRUTH.fact_tokens)
    assert found.bits_per_param == pytest.approx(5 * found.centre / 7e9)
    with pytest.raises(InputError, match="--facts: the law is one of the number of facts itself"):
        predict(law, 7e9, 2e9, facts=100, fact_tokens=12)


def test_a_prediction_whose_share_shows_each_fact_less_than_once_warns(simulated):
    _, _, points = simulated
    held = [replace(p, slice=AT_HALF) for p in points]
    law = fit_law(held, "collapse", "background", law="N")
    law = replace(law, amounts={"tokens_per_exposure": 12.0, "bits_per_dose": 5.0})
    far, near = (predict(law, params, 1e6) for params in (2e13, 1e6))
    assert far.exposures < far.centre
    assert any("times each: name a larger token budget" in warning for warning in far.warnings)
    assert not any("times each" in warning for warning in near.warnings)


def test_laws_and_predictions_along_k_come_back_from_their_files_and_are_scored(simulated, tmp_path):
    _, _, points = simulated
    law = fit_law(points, "collapse", "background", law="N")
    (tmp_path / "law.json").write_text(json.dumps(law_record([law], [])))
    assert load_law(tmp_path / "law.json") == law
    (tmp_path / "prediction.json").write_text(json.dumps(prediction_record(predict(law, 1e9, 2e9))))
    predictions = load_predictions(tmp_path / "prediction.json")
    assert predictions[0]["axis"] == "facts"
    (score,) = validate(predictions, points)
    assert score.slice == AT_14
    assert score.measured == next(p.value for p in points if p.kind == "collapse" and p.params == 10**9)
    along_f = [replace(p, slice=USUAL) for p in points]
    with pytest.raises(InputError, match="along facts at F = 14"):
        validate(predictions, along_f)


def test_a_law_of_f_is_recorded_as_before(tmp_path):
    from tests.analysis.points import noisy

    law = fit_law(noisy())
    assert not {"slice", "axis", "amounts"} & set(law.record())
    assert not {"slice", "axis", "exposures", "bits", "bits_per_param"} & set(predict(law, 1e9).record())
    record = law.record()
    (tmp_path / "law.json").write_text(json.dumps(record | {"axis": "size"}))
    with pytest.raises(InputError, match="axis is 'size'"):
        load_law(tmp_path / "law.json")


def test_larger_models_are_predicted_within_their_slice(simulated):
    _, _, points = simulated
    moved = [replace(p, slice=Slice("facts", "frequency", 28.0), value=(p.value or 1) * 50) for p in points if p.value]
    alone = backtest(points, "collapse", "background", along=AT_14, law="N")
    assert alone
    assert backtest([*points, *moved], "collapse", "background", along=AT_14, law="N") == alone


def test_the_law_of_facts_is_bootstrapped_through_its_curves(simulated):
    table, _, _ = simulated
    settings = QUICK.replace(criterion="hinge", law_resamples=99, law="N")
    laws, _ = fit_laws(find_transitions(table, settings), settings, table)
    law = next(law for law in laws if law.kind == "collapse")
    assert law.calibration["method"].startswith("two-stage")


# what to train next


def test_the_next_runs_along_k_say_how_many_facts_and_how_often(simulated):
    table, _, points = simulated
    settings = QUICK.replace(law="N")
    found = propose(table, 7e9, 2e9, settings, points=points, count=2)
    there = set(table["infused_facts"])
    for run in found:
        assert run.frequency == 14
        assert run.infusion_ratio is None
        assert run.facts not in there
        assert 500 < run.facts < 16000
        assert run.gain is not None
        assert "K*" in run.reason
    size = new_sizes(table, 7e9, 2e9, settings, points=points)[-1]
    assert size.slice == AT_14
    assert size.frequency == pytest.approx(TRUTH.collapse_point(size.params, size.tokens), rel=0.5)


def test_no_size_is_named_that_would_need_more_facts_than_there_are(simulated):
    table, _, points = simulated
    settings = QUICK.replace(law="N")
    points = [
        replace(p, value=5 * p.value, low=5 * p.low, high=5 * p.high)
        for p in points
        if p.kind == "collapse" and p.value
    ]
    every = [size.frequency for size in new_sizes(table, 7e9, 2e9, settings, points=points)]
    there = (every[-2] + every[-1]) / 2
    assert there > 16000  # the largest K of a run
    limited = table.assign(infused_facts=table["infused_facts"].where(table["frequency"] > 0, there))
    assert [size.frequency for size in new_sizes(limited, 7e9, 2e9, settings, points=points)] == every[:-1]


def test_the_next_runs_at_a_held_ratio_ask_for_the_ratio():
    truth = replace(TRUTH, collapses=False)
    table, _ = simulate.simulate_table(
        truth, CELLS[:1], LEVELS[:5], 1, np.random.default_rng(1), groups=("background",), one=AT_HALF
    )
    (run,) = bisect(table, QUICK, group="background", count=1)
    assert (run.facts, run.infusion_ratio, run.reason) == (3300, 0.5, "beyond the largest K")
    base = table["frequency"] == 0
    table.loc[base, "infused_facts"] = 2600.0  # those that there are
    assert [p.facts for p in bisect(table, QUICK, group="background", count=2)] == [2600]


# background facts of several strengths, and the report


def strengths(table: pd.DataFrame) -> pd.DataFrame:
    """Adds groups of two strengths, of which one forgets at once."""
    background = table[table["group"] == "background"]
    weak = background.assign(
        group="background@60", correct=background["correct"].where(background["frequency"] == 0, 50)
    )
    return pd.concat([table, weak, background.assign(group="background@250")], ignore_index=True)


def test_background_facts_of_each_strength_have_points_and_laws_of_their_own(simulated, tmp_path):
    table = strengths(simulated[0])
    points = find_transitions(table, QUICK)
    groups = list(dict.fromkeys(p.group for p in points if p.kind == "collapse"))
    assert groups == ["background", "background@60", "background@250"]
    assert {p.status for p in points if p.group == "background@60"} == {"left_censored"}
    laws, refused = fit_laws(points, QUICK.replace(law="N"))
    assert {law.group for law in laws if law.kind == "collapse"} == {"background", "background@250"}
    assert {item["group"] for item in refused} == {"background@60"}
    write_points_csv(points, tmp_path / "points.csv")
    assert load_points_csv(tmp_path / "points.csv") == points
    path = tmp_path / "curves.csv"
    path.write_text("params,tokens,frequency,seed,n,correct,group\n100000,1000000,14,0,50,20,background@often\n")
    with pytest.raises(InputError, match=r"'group': is 'background@often'.*background@<exposures>"):
        load_curves_csv(path)


def test_the_report_names_the_axis_what_is_held_and_the_strength(simulated, tmp_path):
    from megatron_kis.analysis import report

    table = strengths(simulated[0])
    result = analyse(table, QUICK.replace(law="N"), predict_params=[7e9])
    page = report(result, tmp_path / "report.html").read_text()
    text = visible(page)
    assert "Collapse of background facts, 60 exposures, K at F = 14" in text
    assert "number of infused facts K (log scale)" in page
    assert "infusion frequency F (exposures per fact" not in page
    assert "K ≈ " in text
    assert "500, 1,000" in study_design(result)[0]
    assert "each 14 times" in study_design(result)[0]
    assert "The smallest F" not in text
    assert "per e-fold of F" not in text
    for name, head in (("transitions", "dose"), ("predictions", "centre"), ("backtest", "predicted")):
        shown = TABLES[name](result)
        column = [column.head for column in shown.columns].index(head)
        assert {row[column].partition(" = ")[0] for row in shown.rows} <= {"K*", "–"} != {"–"}


@pytest.fixture(scope="module")
def both():
    """An analysis along K at a share of 0.5, and along F at K = 400, of two sizes with two strengths."""
    cells, at_400 = CELLS[:2], Slice("frequency", "facts", 400.0)
    parts = [
        simulate.simulate_table(
            TRUTH, cells, levels, 1, np.random.default_rng(5), groups=("background", "control"), one=one
        )[0]
        for one, levels in ((AT_HALF, (0, 500, 1500, 5000, 15000)), (at_400, (10, 4000, 40000)))
    ]
    return analyse(strengths(pd.concat(parts, ignore_index=True)), QUICK.replace(criterion="tolerance_rule"))


def test_findings_are_told_slice_by_slice_and_strengths_apart(both):
    found = findings_by_slice(both)
    titles = ["How many: number of infused facts K, at ρ = 0.5", "How often: infusion frequency F, at K = 400"]
    assert [one.title for one in found] == titles
    for one in found:
        assert one.table.heads == ["Collapse of background facts", "General loss beyond its tolerance"]
        assert one.strengths is not None
        assert one.strengths.heads == ["60 exposures", "250 exposures"]
        assert len(one.table.rows) == len(one.strengths.rows) == 2
        assert [line.split(":")[0] for line in one.sentences] == one.table.heads
    (usual,) = findings_by_slice(analyse(curve_rows({0: [50], 8: [60], 64: [90]}), QUICK))
    assert usual.title == ""
    assert usual.strengths is None


def test_a_model_has_one_figure_for_all_strengths_and_the_page_shows_the_single_ones_on_demand(both):
    from megatron_kis.analysis.report import render
    from megatron_kis.analysis.report.figures import overview
    from megatron_kis.analysis.report.model_figures import model_curves

    drawings = model_curves(both, *CELLS[0])
    assert len(drawings) == 4  # for each slice all background facts, and those of each strength in one figure
    shown = drawings[1]
    assert all(f'class="series strength-{i}"' in shown.svg for i in (0, 1))
    assert "60 exposures: " in shown.caption
    assert "share answered right" in shown.svg
    pairs = replace(
        both, curves=both.curves.assign(pairwise=0.8), settings=both.settings.replace(outcome="pairwise"), points=[]
    )
    for drawing in model_curves(pairs, *CELLS[0]):
        assert "share of wrong options below the right one" in drawing.svg
    assert [drawing.strength for drawing in overview(both)] == [False, True, True, False, True, True, False]
    page = render(both)
    assert "<summary>Background facts of each strength</summary>" in page
    assert "background, 250 exposures" in visible(page)
    assert "@" not in visible(page[: page.index('id="curves"')])  # names of groups are for files


def test_points_of_a_file_are_reported_along_their_axis(simulated, tmp_path):
    from megatron_kis.analysis import report

    write_points_csv(simulated[2], tmp_path / "points.csv")
    text = visible(report(tmp_path / "points.csv", tmp_path / "report.html", QUICK).read_text())
    assert "Collapse of background facts, K at F = 14" in text
