"""Studies that are extended because of what they showed: the level of their intervals, and where looks are counted."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest

from benchmarks.next_runs import COARSE, SETTINGS, Outcome, Seen, Study, Told, lost_at, study
from benchmarks.stopping import RULES, simulate
from megatron_kis.analysis import AnalysisConfig, analyse_study, predict
from megatron_kis.analysis.criteria import find_transitions
from megatron_kis.analysis.findings.analyse import analyse_points, fit_laws
from megatron_kis.analysis.findings.looks import LOOKS_FILE, add_look, look_at, looked
from megatron_kis.analysis.findings.study_file import declared_settings
from megatron_kis.analysis.law.looks import group_sequential, level_after, level_at_look, percent, said_of
from megatron_kis.analysis.outputs import law_record
from megatron_kis.analysis.report import render
from megatron_kis.cli.main import main
from megatron_kis.common.errors import InputError
from tests.analysis.points import SIZES, point
from tests.analysis.synthetic import Truth, write_study

QUICK = AnalysisConfig(resamples=99, law_resamples=0, law="N")
NOTHING = pd.DataFrame()
POINTS = [
    point(n, 3 * n**0.4 * math.exp(0.1 * (-1) ** i), low=2.9 * n**0.4 * math.exp(0.1 * (-1) ** i))
    for i, n in enumerate(SIZES)
]


def test_the_errors_of_all_looks_sum_to_alpha():
    spent = [1 - level_at_look(0.95, look) for look in range(1, 20_000)]
    assert sum(spent) == pytest.approx(0.05, abs=1e-5)
    assert sum(spent) < 0.05
    assert spent == sorted(spent, reverse=True)


@pytest.mark.parametrize(("looks", "error"), [(1, 0.05), (2, 0.0294), (3, 0.0221), (5, 0.0158), (10, 0.0106)])
def test_declared_looks_have_pococks_level(looks, error):
    """The constants of Pocock (1977), two-sided, alpha = 0.05."""
    assert 1 - group_sequential(0.95, looks) == pytest.approx(error, abs=6e-5)


def test_a_study_that_was_not_extended_keeps_its_level_and_one_beyond_its_declared_looks_has_no_lower_one():
    assert level_after(0.95, 0) == 0.95
    assert said_of(0.95, 0) == ""
    assert level_after(0.95, 1) == pytest.approx(1 - 0.05 * 6 / (math.pi * 2) ** 2)
    assert level_after(0.95, 0, 5) == level_after(0.95, 4, 5) == group_sequential(0.95, 5)
    assert level_after(0.95, 5, 5) == max(level_after(0.95, 5), group_sequential(0.95, 5))
    assert level_after(0.95, 0) < level_after(0.95, 2, 5) < level_after(0.95, 2)
    assert "more than were declared" in said_of(0.95, 5, 5)
    assert said_of(0.95, 2) == (
        "look 3: intervals of the law and its predictions are at 99.66%, so that over all looks the study keeps 95%"
    )
    assert [percent(level) for level in (0.95, 0.9842, 0.99988)] == ["95%", "98.4%", "99.988%"]


def test_the_level_of_a_look_is_told_in_few_digits(tmp_path, capsys):
    points = [*POINTS, *(replace(p, kind="tolerance", group="general") for p in POINTS)]
    result = analyse_points(points, QUICK.model_copy(update={"looked": 1}), predict_params=[1e9])
    assert result.laws[0].confidence == level_after(0.95, 1)
    path = tmp_path / "law.json"
    path.write_text(json.dumps(law_record(result.laws, [])))
    assert main(["law", "predict", str(path), "--params", "1e9"]) == 0
    assert main(["law", "decide", str(path), "--params", "1e9", "--confidence", str(level_after(0.95, 1))]) == 0
    told = [render(result), *capsys.readouterr().out.split("largest dose")]
    assert len(told) == 3
    assert all("99.24%" in text and "99.2401" not in text for text in told)


def test_counted_looks_bring_the_coverage_of_a_study_that_stops_when_it_likes_back():
    plain, declared, counted = (simulate(1000, 8, 16, 0.15)[rule] for rule in RULES)
    assert plain.coverage < 0.93, "nothing to correct"
    assert declared.coverage > 0.96 and counted.coverage > 0.96
    assert plain.missed_narrow > 2 * declared.missed_narrow
    assert plain.width < declared.width < counted.width


def test_laws_of_an_extended_study_have_the_level_of_its_look_and_say_so():
    (plain,), _ = fit_laws(POINTS, QUICK)
    (later,), _ = fit_laws(POINTS, QUICK.model_copy(update={"looked": 2}))
    (first,), _ = fit_laws(POINTS, QUICK.model_copy(update={"looks": 3}))
    assert (plain.confidence, plain.warnings) == (0.95, [])
    assert (later.confidence, first.confidence) == (level_at_look(0.95, 3), group_sequential(0.95, 3))
    assert later.warnings == [said_of(0.95, 2)] and first.warnings == [said_of(0.95, 0, 3)]
    width = [math.log(np.divide(*predict(law, 1e9).prediction_interval[::-1])) for law in (plain, first, later)]
    assert width == sorted(width)
    assert said_of(0.95, 2) in predict(later, 1e9).warnings
    assert later.coefficients["b_log_params"].low < plain.coefficients["b_log_params"].low


def test_the_first_look_shows_what_a_study_that_ends_there_may_state():
    look = look_at(POINTS, NOTHING, 1e9, 1e9, QUICK)
    assert (look.number, look.level) == (1, level_at_look(0.95, 1))
    (law,), _ = fit_laws(POINTS, QUICK, level=look.level)
    assert look.interval == predict(law, 1e9, 1e9).prediction_interval
    assert look.words().startswith("look 1: F* = ") and "at 97% (over all looks 95%)" in look.words()
    assert "no law yet" in look_at(POINTS[:1], NOTHING, 1e9, 1e9, QUICK).words()


@pytest.mark.slow
def test_a_look_at_curves_shows_the_interval_of_the_law_that_the_study_gets():
    world = Study(3)
    table = pd.concat([world.train(cell, COARSE, 2) for cell in world.cells], ignore_index=True)
    points = [p for p in find_transitions(table, SETTINGS) if p.kind == "collapse"]
    look = look_at(points, table, 7e9, 2e9, SETTINGS.replace(looks=3))
    assert look.level == group_sequential(0.95, 3)
    (law,), _ = fit_laws(points, SETTINGS, table)
    told = predict(replace(law, confidence=look.level), 7e9, 2e9)
    assert told.interval_method == "surface"
    assert look.interval == told.prediction_interval
    assert look.interval not in (told.points_interval, told.straight_interval)


def test_a_simulated_study_ends_at_the_first_look_that_is_narrow_enough():
    widths = (2.5, 2.2, 1.9, 2.4)
    looks = [Seen(0.2 + 0.1 * i, True, dict.fromkeys(RULES, Told(w, w < 2.3))) for i, w in enumerate(widths)]
    outcome = Outcome(0, Told(2.0, True), looks)
    assert outcome.ended(RULES[0]) == (looks[2], True)
    assert outcome.ended(RULES[0], 1.25) == (looks[0], True)
    assert outcome.ended(RULES[0], 0.5) == (looks[3], False)


def test_the_simulated_truth_is_the_dose_of_the_criterion():
    truth, corner = Study(0).truth, 500.0
    excess = truth.rates(np.array([200.0, math.exp(lost_at(truth, corner, SETTINGS.r))]), corner) - truth.chance
    assert excess[1] == pytest.approx((1 - SETTINGS.r) * excess[0], rel=1e-3)


@pytest.mark.slow
def test_a_simulated_study_is_told_by_all_rules_at_each_look():
    found = study(1, looks=2, batch=3)
    assert len(found.looks) == 2 and all(seen.surface for seen in found.looks)
    assert found.looks[0].share == pytest.approx(6 / 30) and found.looks[1].share > found.looks[0].share
    for seen in found.looks:
        plain, declared, counted = (seen.told[rule].width for rule in RULES)
        assert found.full.width < plain < min(declared, counted)


def test_looks_are_counted_in_the_studys_folder_once_for_the_same_runs(tmp_path):
    look = look_at(POINTS, NOTHING, 1e9, 1e9, QUICK)
    when = {"params": 1e9, "tokens": 1e9, "now": datetime(2026, 1, 2, tzinfo=UTC)}
    assert looked(tmp_path) == 0
    for runs in (["a", "b"], ["b", "a"], ["a", "b", "c"]):
        add_look(tmp_path, look, runs, [{"size": "s", "seed": 1}], **when)
    assert looked(tmp_path) == 2
    row = json.loads((tmp_path / LOOKS_FILE).read_text().splitlines()[0])
    assert (row["number"], row["level"], row["added"]) == (1, look.level, [{"size": "s", "seed": 1}])
    assert row["time"] == "2026-01-02T00:00:00+00:00"
    assert declared_settings(tmp_path).looked == declared_settings(tmp_path / "runs").looked == 2
    assert declared_settings(tmp_path, looked=7).looked == 7
    (tmp_path / LOOKS_FILE).write_text('{"schema": "kis.look/1"}\n')
    with pytest.raises(InputError, match=r"looks\.jsonl:1: is not a look"):
        looked(tmp_path)


def test_a_studys_own_laws_know_its_looks(tmp_path):
    write_study(tmp_path, Truth(), params=(100_000, 200_000, 400_000), frequencies=(0, 64, 256, 512, 800, 1100))
    look = look_at(POINTS, NOTHING, 1e9, 1e9, QUICK)
    add_look(tmp_path, look, ["a"], [], params=1e9, tokens=1e9)
    result = analyse_study(tmp_path, QUICK, predict_params=[3e6])
    assert result.settings.looked == 1
    assert {law.confidence for law in result.laws} == {level_at_look(0.95, 2)}
    assert "look 2: intervals of the law" in (tmp_path / "report.html").read_text()
    assert all(said_of(0.95, 1) in p.warnings for p in result.predictions)
