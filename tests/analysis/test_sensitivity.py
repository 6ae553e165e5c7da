"""The law under every scoring rule, split and criterion."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from megatron_kis.analysis import find_transitions, predict, report
from megatron_kis.analysis.findings.analyse import analyse, fit_laws
from megatron_kis.analysis.findings.sensitivity import choices, sensitivity, with_sensitivity
from megatron_kis.analysis.runs.curves import write_curves_csv
from megatron_kis.analysis.simulate import Truth, simulate_table
from megatron_kis.cli.main import main
from megatron_kis.common.errors import InputError
from megatron_kis.config.analysis import AnalysisConfig

SETTINGS = AnalysisConfig(resamples=99, law_resamples=0, law="N", criterion="tolerance_rule")
CELLS = [(n, 2_000_000_000) for n in (30_000_000, 100_000_000, 300_000_000)]
TARGET = 3e9


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """Statements of the held-out split fall at F*, questions and train statements do, sums never."""
    generator = np.random.default_rng(2)
    levels = [0, 50, 100, 200, 350, 600, 1000]
    truth = Truth(facts=400, scatter=0.02, size_exponent=0.2)
    fall, _ = simulate_table(truth, CELLS, levels, 2, generator, groups=("background",))
    flat, _ = simulate_table(replace(truth, collapses=False), CELLS, levels, 2, generator, groups=("background",))
    parts = [
        fall,
        fall.assign(split="train"),
        fall.assign(split="question"),
        flat.assign(scoring="sum", validation_loss=fall["validation_loss"]),
    ]
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def rows(table):
    return sensitivity(table, SETTINGS, TARGET)


def tried(found):
    return [(one.scoring, one.split, one.criterion) for one in found]


def test_the_declared_choice_is_first_and_the_others_differ_in_one(table):
    found = tried(choices(table, SETTINGS))
    mine = ("statement", "held_out", "tolerance_rule")
    assert found[0] == mine and len(set(found)) == len(found) == 1 + 1 + 2 + 3
    assert {sum(a != b for a, b in zip(one, mine, strict=True)) for one in found[1:]} == {1}
    assert {one[2] for one in found} == {"tolerance_rule", "hinge", "retention", "general_loss"}


def test_all_combinations_are_tried_where_they_are_asked_for_and_are_in_the_data(table):
    found = tried(choices(table, SETTINGS, cross=True))
    assert len(found) == 4 * 3 + 1  # (rule, split) of the table by criteria of rates; the loss has no split
    assert ("sum", "train", "hinge") not in found
    assert sum(one[2] == "general_loss" for one in found) == 1


def test_a_criterion_that_has_nothing_to_look_at_is_not_tried(table):
    without = table.assign(validation_loss=np.nan)
    assert "general_loss" not in {one[2] for one in tried(choices(without, SETTINGS))}
    assert "half_margin" in {one[2] for one in tried(choices(table.assign(mean_margin=1.0), SETTINGS))}


def test_each_row_is_the_law_that_its_choice_gives(table, rows):
    by = {(row.scoring, row.split, row.criterion): row for row in rows}
    for criterion in ("tolerance_rule", "hinge"):
        settings = SETTINGS.model_copy(update={"criterion": criterion})
        points = [p for p in find_transitions(table, settings) if (p.kind, p.group) == ("collapse", "background")]
        (law,), _ = fit_laws(points, settings, table)
        row = by["statement", "held_out", criterion]
        assert row.exponent[0] == law.coefficients["b_log_params"].value
        assert row.interval == predict(law, TARGET).prediction_interval
        assert (row.law, row.seen, row.models, row.refused) == (law.selected_law, 3, 3, "")
    assert by["statement", "held_out", "tolerance_rule"].declared
    assert sum(row.declared for row in rows) == 1
    assert by["statement", "train", "tolerance_rule"].centre == rows[0].centre
    loss = by["statement", "held_out", "general_loss"]
    assert (loss.kind, loss.group) == ("tolerance", "general") and loss.interval is not None


def test_a_choice_without_a_law_says_why_in_few_words(rows):
    (row,) = [row for row in rows if row.scoring == "sum"]
    assert (row.law, row.interval, row.seen) == (None, None, 0)
    assert row.refused == "seen in no model (0 of 3)"


def test_a_study_that_declared_the_loss_is_compared_with_the_memory_of_its_facts(table):
    found = sensitivity(table, SETTINGS.model_copy(update={"criterion": "general_loss"}), TARGET)
    assert [(found[0].kind, found[0].criterion), found[0].declared] == [("tolerance", "general_loss"), True]
    others = [row for row in found[1:] if row.scoring == "statement" and row.split == "held_out"]
    assert {row.group for row in others} == {"background"} and all(row.interval for row in others)
    with pytest.raises(InputError, match=r"^c.csv: no point of a collapse or of the loss"):
        sensitivity(table.assign(group="control"), SETTINGS, where="c.csv")
    with pytest.raises(InputError, match="no probe row has split 'nothing'"):
        sensitivity(table, SETTINGS.model_copy(update={"split": "nothing"}))


def test_the_report_folds_the_table(table, tmp_path):
    result = with_sensitivity(analyse(table, SETTINGS, predict_params=[TARGET]))
    assert [row.declared for row in result.variants] == [True, *[False] * 6]
    assert {row.method for row in result.variants} == {"points", ""}
    page = report(result, tmp_path / "report.html").read_text()
    assert "<h3>The first law under other scoring rules, splits and criteria</h3>" in page
    assert "7 analyses, each of them another one in one choice" in page
    assert "seen in no model (0 of 3)" in page
    without = replace(result, variants=[])
    assert "under other scoring rules" not in report(without, tmp_path / "report.html").read_text()


def test_the_command_tells_how_far_it_is_and_refuses_points(table, tmp_path, capsys):
    path = tmp_path / "curves.csv"
    write_curves_csv(table, path)
    options = ["--params", "3b", "--resamples", "99", "--law-resamples", "0", "--law", "N"]
    command = ["law", "sensitivity", str(path), *options]
    assert main([*command, "--criterion", "tolerance_rule", "--json"]) == 0
    printed = capsys.readouterr()
    content = json.loads(printed.out)
    assert [row["declared"] for row in content["rows"]] == [True, *[False] * 6]
    assert printed.err.splitlines()[0] == "kis: 1 of 7: statement, held_out, tolerance_rule"
    assert len(printed.err.splitlines()) == 7
    assert main([*command, "--criterion", "hinge"]) == 0
    out = capsys.readouterr().out
    assert "declared" in out.splitlines()[2] and "hinge" in out.splitlines()[2]
    points = tmp_path / "points.csv"
    points.write_text("params,tokens,kind,value,low,high,status\n1000000,1000000,collapse,10,9,11,collapsed\n")
    assert main(["law", "sensitivity", str(points), "--params", "3b"]) == 2
    assert "has transitions, and no curves to find them in" in capsys.readouterr().err
