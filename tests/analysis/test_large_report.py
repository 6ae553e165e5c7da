"""The report of many models: what it draws and lists is bounded, and what it leaves out is named and kept."""

from __future__ import annotations

import csv
import itertools
import logging
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from megatron_kis.analysis.criteria import find_transitions
from megatron_kis.analysis.findings.analyse import MOST_SIMULATED, analyse_points, resamples_of
from megatron_kis.analysis.findings.result import AnalysisResult
from megatron_kis.analysis.law.validate import MOST_ORIGINS, backtest
from megatron_kis.analysis.report import extent, figures, report
from megatron_kis.analysis.report.check_figures import check_figures
from megatron_kis.analysis.report.law_figure import law_figures
from megatron_kis.analysis.report.table import Column, Table
from megatron_kis.analysis.simulate import Truth, simulate_table
from megatron_kis.common import progress
from megatron_kis.config.analysis import AnalysisConfig
from tests.analysis.points import point

SETTINGS = AnalysisConfig(resamples=99, law_resamples=0)
DOSES = [0.0, *np.geomspace(30, 2000, 6).round()]


def result_of(models: int, seeds: int = 2) -> AnalysisResult:
    """A study of so many sizes whose points are not looked for."""
    cells = [(int(n), 2_000_000_000) for n in np.geomspace(25e6, 3e9, models)]
    table, _ = simulate_table(Truth(facts=60), cells, DOSES, seeds, np.random.default_rng(0))
    points = [
        point(n, 300 * (n / 25e6) ** 0.3, d, group="background", low=200.0, high=9e3, interval="profile", levels=7)
        for n, d in cells
    ]
    return analyse_points(points, SETTINGS, table=table)


def page(result: AnalysisResult, folder: Path) -> str:
    return report(result, folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_bytes_of_a_report_are_bounded_for_each_model(tmp_path):
    small, large = page(result_of(12), tmp_path), page(result_of(40), tmp_path)
    # 28 more models have 28 more rows and points in figures of the law, and no figure of their own.
    each = (len(large) - len(small)) / 28
    assert len(large) + 675 * each < 3_000_000, "of 715 models with 14 runs each, ten thousand runs"
    assert large.count("<svg xmlns") == small.count("<svg xmlns")
    assert "12 of 40 models are drawn, from the smallest to the largest." in large
    assert "models are drawn" not in small


def test_the_models_that_are_drawn_are_spread_from_the_smallest_to_the_largest():
    table = pd.DataFrame({"params": range(100), "tokens": 1})
    drawn = extent.drawn_cells(table)
    assert len(drawn) == extent.MOST_MODELS
    assert (drawn[0], drawn[-1]) == ((0, 1), (99, 1))
    assert {b[0] - a[0] for a, b in itertools.pairwise(drawn)} == {9}
    assert len(extent.rows_of_cells(table, drawn)) == extent.MOST_MODELS
    assert next(key.label for key in figures.size_keys(table)) == "N = 0"
    assert len(extent.drawn_cells(table.head(7))) == 7


def test_a_long_table_is_cut_on_the_page_and_whole_in_a_file_next_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr(extent, "MOST_ROWS", 20)
    html = page(result_of(4), tmp_path)  # 4 models x 3 groups x 7 levels
    assert "The first 20 of 84 rows; all are in report-rates.csv." in html
    with (tmp_path / "report-rates.csv").open(encoding="utf-8") as file:
        assert len(list(csv.reader(file))) == 1 + 84
    assert [path.name for path in tmp_path.glob("*.csv")] == ["report-rates.csv"]


def test_a_short_table_is_whole_and_keeps_its_note():
    table = Table([Column("a", False, str)], [["1"]] * extent.MOST_ROWS, "a note")
    assert extent.shortened(table, "a.csv") is table
    longer = Table(table.columns, [["1"]] * 401, "a note")
    assert extent.shortened(longer, "a.csv").note == "The first 400 of 401 rows; all are in a.csv. a note"


def test_seeds_are_drawn_one_by_one_or_as_the_range_of_each_level(tmp_path):
    few = page(result_of(1, seeds=3), tmp_path)
    many = page(result_of(1, seeds=20), tmp_path)  # 7 levels x 20 seeds
    assert "· seed 2" in few
    assert "· seed" not in many
    assert re.search(r"rate 0\.\d{3}, 20 seeds \(0\.\d{3} to 0\.\d{3}\)", many)


def test_a_figure_repeats_no_style_and_no_font_for_each_mark(tmp_path):
    html = page(result_of(3), tmp_path)
    assert "font-family: 'DejaVu" not in html
    assert not re.search(r"<use[^>]*style=[^>]*class=\"pt\"", html)
    assert not re.search(r" (?:x|y)=\"\d+\.\d{3}", html)


def test_the_points_of_a_law_are_drawn_together():
    def drawn(count):
        points = [point(n, n**0.3, low=0.8 * n**0.3, high=1.2 * n**0.3) for n in np.geomspace(1e6, 1e9, count)]
        points += [point(n, 0, status="right_censored", low=n**0.3) for n in np.geomspace(1e5, 1e6, 4)]
        result = analyse_points(points, SETTINGS)
        (law,) = law_figures(result)
        (check,) = [one for one in check_figures(result) if one.drawings]
        return [law.svg, next(one.svg for one in check.drawings if "Residuals" in one.svg)]

    for few, many in zip(drawn(20), drawn(60), strict=True):
        assert many.count("<title>") == few.count("<title>") + 40
        assert many.count("<path") == few.count("<path"), "one path for all intervals, one for a mark"
        assert len(many) - len(few) < 40 * 360


def test_the_bootstrap_of_many_cells_simulates_a_bounded_number_of_curves():
    settings = AnalysisConfig(law_resamples=999)
    assert resamples_of(5, settings) == 999
    assert resamples_of(100, settings) == MOST_SIMULATED // 100
    assert resamples_of(5_000, settings) == 199  # fewer hold no 95% interval
    assert resamples_of(5_000, settings.replace(law_resamples=99)) == 99


def test_of_many_sizes_the_largest_are_predicted_from_the_smaller_ones():
    generator = np.random.default_rng(1)
    points = [point(n, np.exp(0.4 * np.log(n) + 0.1 * generator.normal())) for n in np.geomspace(1e5, 1e8, 14)]
    scores = backtest(points, "collapse", "infused", law="N")
    assert [s.params for s in scores] == sorted(p.params for p in points)[-MOST_ORIGINS:]


def test_long_work_says_how_far_it_is(monkeypatch, caplog):
    monkeypatch.setattr(progress, "_LINE_INTERVAL", 0.0)
    caplog.set_level(logging.INFO, "megatron_kis")
    table, _ = simulate_table(Truth(facts=60), [(25_000_000, 2_000_000_000)], DOSES, 1, np.random.default_rng(0))
    find_transitions(table, SETTINGS)
    assert "collapse: curves: 2 of 3" in caplog.messages
