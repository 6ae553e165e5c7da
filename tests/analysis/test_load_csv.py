from __future__ import annotations

import math

import pytest

from megatron_kis.analysis.criteria import find_transitions
from megatron_kis.analysis.runs.load_csv import load_curves_csv, load_points_csv, write_points_csv
from megatron_kis.common.errors import InputError
from tests.analysis.synthetic import curve_rows

CURVES = "params,tokens,frequency,seed,n,correct\n"
POINTS = "params,tokens,kind,value,low,high,status\n"


def write(path, text):
    path.write_text(text)
    return path


def test_curves_of_another_trainer_need_only_the_six_columns(tmp_path):
    table = load_curves_csv(write(tmp_path / "c.csv", CURVES + "1000,500,0,0,40,10\n\n1e3,500,8,0,40,31\n"))
    assert table["params"].tolist() == [1000, 1000]
    assert table[["group", "split", "scoring", "facts"]].drop_duplicates().values.tolist() == [
        ["infused", "held_out", "statement", 40]
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("params,tokens,frequency,seed,n\n1000,50,1,0,4\n", r"c.csv:1: no column 'correct'"),
        (CURVES.replace("\n", ",chanse\n") + "1000,50,1,0,4,2,0.5\n", r"c.csv:1: unknown column 'chanse'"),
        (CURVES + "1000,50,1,0,4,2\n1000,50,x,0,4,2\n", r"c.csv:3: column 'frequency': 'x' is no number"),
        (CURVES + "1000,50,-1,0,4,2\n", r"c.csv:2: column 'frequency': -1 is out of range"),
        (CURVES + "1000,50,nan,0,4,2\n", r"c.csv:2: column 'frequency'"),
        (CURVES + "1000,50,1,0,4,5\n", r"c.csv:2: column 'correct': 5 of 4"),
        (CURVES + "1000,50,1,0,4.5,3\n", r"c.csv:2: column 'n': 4.5 is not whole"),
        (CURVES + "1000,50,1,0,4\n", r"c.csv:2: 5 cells"),
        (CURVES + "1000,50,1,0,4,2\n1000,50,1,0,4,3\n", r"c.csv:3: column 'seed': the same run as line 2"),
        (CURVES.replace("\n", ",group\n") + "1000,50,1,0,4,2,infussed\n", r"c.csv:2: column 'group'.*'infused'"),
        (CURVES + "1000,50,1,0,4,0.5\n", r"c.csv:2: column 'correct': 0.5 is not whole"),
        (CURVES + "7,50,1,0,4,2\n", r"c.csv:2: column 'params': is 7; the number of parameters, not of millions"),
        (CURVES + "7000,50,8,0,40,20\n", r"c.csv:2: column 'tokens': 50 do not hold 8 exposures of 40 facts"),
        (CURVES.replace("\n", ",chance\n") + "1000,50,1,0,4,2,1\n", r"c.csv:2: column 'chance': is 1"),
        (
            CURVES.replace("\n", ",nonembedding_params\n") + "1000,50,1,0,4,2,2000\n",
            r"c.csv:2: column 'nonembedding_params': is more than params",
        ),
        (
            CURVES.replace("\n", ",infusion_ratio\n") + "1000,50,1,0,4,2,0\n",
            r"c.csv:2: column 'infusion_ratio': is 0 at F = 1; 0 at F = 0, and only there",
        ),
        (
            CURVES.replace("\n", ",group,validation_loss\n")
            + "1000,50,1,0,4,2,infused,3\n\n1000,50,1,0,4,2,background,4\n",
            r"c.csv:4: column 'validation_loss': 4, and 3 in line 2; one value for the same params, tokens",
        ),
        (CURVES.replace(",", ";") + "1;1\n", r"c.csv:1: no column 'params'; separate the columns by commas"),
        (CURVES.upper() + "1\n", r"c.csv:1: no column 'params'; the header has 'PARAMS'"),
        (CURVES, r"holds no row"),
        ("", r"c.csv:1: no column 'params'"),
    ],
)
def test_wrong_curves_are_named_by_file_line_and_column(tmp_path, text, said):
    with pytest.raises(InputError, match=said):
        load_curves_csv(write(tmp_path / "c.csv", text))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("1000,50,colapse,5,4,6,collapsed", r"p.csv:2: column 'kind'.*did you mean 'collapse'"),
        ("1000,50,collapse,5,4,6,done", r"p.csv:2: column 'status'"),
        ("1000,50,collapse,,4,6,collapsed", r"p.csv:2: column 'value'"),
        ("1000,50,collapse,0,,6,collapsed", r"p.csv:2: column 'value'"),
        ("1000,50,collapse,9,4,6,collapsed", r"p.csv:2: column 'value': 9 lies outside"),
        ("1000,50,collapse,,,inf,right_censored", r"p.csv:2: column 'low'"),
        ("1000,50,collapse,,,inf,left_censored", r"p.csv:2: column 'high'"),
        ("0,50,collapse,5,4,6,collapsed", r"p.csv:2: column 'params'"),
        ("7,50,collapse,5,4,6,collapsed", r"p.csv:2: column 'params': is 7; the number of parameters"),
        ("1000,50,collapse,,9,4,right_censored", r"p.csv:2: column 'low': 9 is more than high, 4"),
        ("1000,50,collapse,5,4,,right_censored", r"p.csv:2: column 'value': is 5 and status is 'right_censored'"),
        (
            "1000,50,collapse,5,4,6,collapsed\n1000,50,collapse,6,4,8,collapsed",
            r"p.csv:3: column 'params': the same transition as line 2",
        ),
    ],
)
def test_wrong_points_are_named_by_file_line_and_column(tmp_path, row, said):
    with pytest.raises(InputError, match=said):
        load_points_csv(write(tmp_path / "p.csv", POINTS + row + "\n"))


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("infusion_ratio", "40", r"p.csv:2: column 'infusion_ratio': 40 is out of range; .* at most 1"),
        ("p_value", "-1", r"p.csv:2: column 'p_value': -1 is out of range"),
        ("split", "heldout", r"p.csv:2: column 'split': is 'heldout'; did you mean 'held_out'"),
    ],
)
def test_wrong_values_of_optional_columns_are_named(tmp_path, column, value, said):
    text = POINTS.replace("\n", f",{column}\n") + f"1000,50,collapse,5,4,6,collapsed,{value}\n"
    with pytest.raises(InputError, match=said):
        load_points_csv(write(tmp_path / "p.csv", text))


def test_open_ends_may_be_empty_or_inf(tmp_path):
    text = (
        POINTS
        + "7000,1,collapse,,64,inf,right_censored\n8000,1,collapse,,64,,right_censored\n9000,1,onset,5,,8,observed\n"
    )
    onset, first, second = load_points_csv(write(tmp_path / "p.csv", text))
    assert (first.low, first.high) == (second.low, second.high) == (64, None)
    assert (onset.value, onset.low) == (5, None)


def test_points_csv_comes_back_as_it_was_written(tmp_path):
    table = curve_rows({0: [60], 8: [70], 64: [90], 128: [91], 256: [40], 512: [30]}, losses={0: 3.0, 512: 3.9})
    points = find_transitions(table)
    assert {point.status for point in points} >= {"collapsed"}
    write_points_csv(points, tmp_path / "points.csv")
    assert load_points_csv(tmp_path / "points.csv") == points
    assert not any(isinstance(p.high, float) and math.isinf(p.high) for p in points)


def test_sizes_and_budgets_may_have_units(tmp_path):
    path = tmp_path / "curves.csv"
    path.write_text("params,tokens,frequency,seed,n,correct\n1.3b,20B,4,0,100,50\n1300000000,2e10,8,0,100,60\n")
    table = load_curves_csv(path)
    assert set(table["params"]) == {1_300_000_000}
    assert set(table["tokens"]) == {20_000_000_000}
