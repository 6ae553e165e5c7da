"""What a page of any width shows: ticks that do not overlap, points with intervals, tables without repeats."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from megatron_kis.analysis.findings.analyse import analyse, analyse_points
from megatron_kis.analysis.law.fit import fit_law
from megatron_kis.analysis.report import check_figures, figures, law_figure
from megatron_kis.analysis.report.annotated import annotated
from megatron_kis.analysis.report.axes import in_rows
from megatron_kis.analysis.report.narrow import labels, narrowed, split
from megatron_kis.analysis.report.table import Column, Table
from megatron_kis.analysis.report.theme import panel, to_svg
from megatron_kis.analysis.simulate import Truth, simulate_table
from megatron_kis.config.analysis import AnalysisConfig
from tests.analysis.points import point

QUICK = AnalysisConfig(law_resamples=0, resamples=99)


@pytest.fixture(scope="module")
def small():
    levels = [0.0, 50, 100, 200, 400, 600, 720, 800]
    cells = [(25_000_000, 2_000_000_000), (50_000_000, 2_000_000_000)]
    truth = Truth(facts=120, fact_tokens=20_000.0, collapse_at=500.0)
    table, _ = simulate_table(truth, cells, levels, 1, np.random.default_rng(3), groups=("infused", "background"))
    return analyse(table, QUICK)


def test_ticks_that_are_close_are_written_in_rows():
    places, texts = [0.0, 1.0, 1.5, 2.0, 3.0], ["0", "0.060", "0.12", "0.24", "0.48"]
    assert in_rows(places, texts, 0.01) == [0, 0, 0, 0, 0]
    assert in_rows(places, texts, 0.15) == [0, 0, 1, 0, 0]
    assert in_rows([0.0, 0.1, 0.2, 0.3], ["100"] * 4, 0.15) == [0, 1, 2, None]
    assert in_rows([], [], 1.0) == []


def ticks(drawn):
    """Returns the boxes of the labels below the axis by the row in which each is written, from left to right."""
    drawn.figure.draw_without_rendering()
    rows = {}
    for label in drawn.axes.get_xticklabels():
        low, high = drawn.axes.get_xlim()
        if label.get_text().strip() and low <= label.get_position()[0] <= high:
            rows.setdefault(label.get_text().count("\n"), []).append(label.get_window_extent())
    return [sorted(boxes, key=lambda box: box.x0) for boxes in rows.values()]


SIZES = {
    "close": np.geomspace(90e6, 240e6, 6).round(),
    "two decades": np.geomspace(25e6, 3.2e9, 10).round(),
    "many": np.geomspace(25e6, 3.2e9, 60).round(),
    "six decades": np.geomspace(14_928, 70e9, 30).round(),
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_labels_of_sizes_do_not_overlap(sizes, monkeypatch):
    seen = []
    monkeypatch.setattr(check_figures, "to_svg", lambda drawn: seen.append(ticks(drawn)) or "")
    monkeypatch.setattr(law_figure, "to_svg", lambda drawn: seen.append(ticks(drawn)) or "")
    points = [
        point(int(n), 100 * (n / 1e6) ** 0.3 * wave) for n, wave in zip(sizes, np.tile([1, 1.1], 30), strict=False)
    ]
    law = fit_law(points, law="N", compare_laws=False)
    check_figures.residuals(law)
    law_figure.law_figures(analyse_points(points, QUICK))
    assert len(seen) == 2
    for rows in seen:
        assert sum(map(len, rows)) > 1
        for boxes in rows:
            assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


def test_curves_are_also_drawn_over_the_share_of_the_tokens_with_every_level_and_interval(small):
    drawn = {drawing.caption.split(",")[0]: drawing.svg for drawing in figures.overview(small)}
    assert len(drawn) == 4
    linear = drawn["Background facts: retention over the share of the tokens"]
    assert "infusion ratio ρ (share of the training tokens)" in linear
    for svg in drawn.values():
        for level in ("50", "100", "200", "400", "600", "720", "800"):
            assert f">{level}<" in svg, "no tick is left out"
    assert "95% interval 0." in linear
    unknown = replace(small, curves=small.curves.assign(infusion_ratio=float("nan")))
    assert len(figures.overview(unknown)) == 2


def test_an_interval_of_a_rate_is_wilsons_and_holds_it():
    low, high = figures.interval_of(0.5, 100.0, 0.95)
    assert (low, high) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert figures.interval_of(1.0, 20.0, 0.95)[1] == 1.0
    assert figures.interval_of(0.3, None, 0.95) == (0.3, 0.3)


def test_one_curve_names_what_the_others_show(small):
    drawing = annotated(small)
    seen = [p for p in small.points if (p.kind, p.group) == ("collapse", "background") and p.informative]
    assert any(f"earlier facts lost: F ≈ {p.value:.0f}" in drawing.svg for p in seen)
    assert "new facts" in drawing.svg and "earlier knowledge" in drawing.svg
    assert annotated(replace(small, curves=None)) is None


def table(rows, remark=False):
    heads = ("run", "N", "D", "empty", "why")[: len(rows[0])]
    return Table([Column(head, True, str) for head in heads], rows, "A note.", remark=remark)


def test_a_column_that_says_the_same_in_every_row_is_said_once():
    shown = narrowed(table([["a", "1", "9", "–", ""], ["b", "2", "9", "–", ""]], remark=True))
    assert [column.head for column in shown.columns] == ["run", "N", "why"]
    assert shown.rows == [["a", "1", ""], ["b", "2", ""]]
    assert shown.note == "In every row: D: 9. A note."
    single = narrowed(table([["a", "1", "9", "–", "x"]]))
    assert [column.head for column in single.columns] == ["run", "N", "D", "why"]
    assert narrowed(replace(single, rows=[])).columns == single.columns


def test_a_table_of_too_many_columns_is_shown_in_two_that_share_their_keys():
    wide = Table([Column(f"c{i}", True, str) for i in range(16)], [[str(i) for i in range(16)]], "A note.", remark=True)
    first, second = split(wide, "c10", keys=3)
    assert [column.head for column in first.columns] == [f"c{i}" for i in range(10)]
    assert [column.head for column in second.columns] == ["c0", "c1", "c2", *(f"c{i}" for i in range(10, 16))]
    assert (first.note, first.remark, second.note, second.remark) == ("", False, "A note.", True)
    assert second.rows == [["0", "1", "2", *(str(i) for i in range(10, 16))]]
    assert split(table([["a", "1"]]), "N")[1] is None


def test_a_long_title_is_broken_and_stays_in_its_figure(small):
    with panel("long", "Of a figure.") as drawn:
        drawn.axes.set_title("Collapse of background facts, 250 exposures, K at ρ = 0.5")
        svg = to_svg(drawn)
    assert ">Collapse of background facts, 250 exposures,<" in svg
    assert ">K at ρ = 0.5<" in svg


def test_the_heads_before_cells_of_a_list_are_harmless_in_a_style():
    style = labels({"t-x": ["run", 'a "b" </style>\\']})
    assert style.startswith('#t-x tr:not(.remark)>:nth-child(2):before{content:"a ')
    assert style.count('"') == 2
    assert "<" not in style
