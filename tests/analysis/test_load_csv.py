from __future__ import annotations

import math

import pytest

from analysis.collapse import find_transitions
from analysis.load_csv import load_curves_csv, load_points_csv, write_points_csv
from megatron_kis.errors import InputError
from tests.analysis.synthetic import curve_rows

CURVES = "params,tokens,frequency,seed,n,correct\n"
POINTS = "params,tokens,kind,value,low,high,status\n"


def write(path, text):
    path.write_text(text)
    return path


def test_curves_of_another_trainer_need_only_the_six_columns(tmp_path):
    table = load_curves_csv(write(tmp_path / "c.csv", CURVES + "1000,50,0,0,40,10\n\n1e3,50,8,0,40,31\n"))
    assert table["params"].tolist() == [1000, 1000]
    assert table[["group", "split", "scoring", "facts"]].drop_duplicates().values.tolist() == [
        ["infused", "held_out", "statement", 40]
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("params,tokens,frequency,seed,n\n1,1,1,0,4\n", r"c.csv:1: no column 'correct'"),
        (CURVES.replace("\n", ",chanse\n") + "1,1,1,0,4,2,0.5\n", r"c.csv:1: unknown column 'chanse'; did you mean"),
        (CURVES + "1,1,1,0,4,2\n1,1,x,0,4,2\n", r"c.csv:3: column 'frequency': 'x' is no number"),
        (CURVES + "1,1,-1,0,4,2\n", r"c.csv:2: column 'frequency': -1 is out of range"),
        (CURVES + "1,1,nan,0,4,2\n", r"c.csv:2: column 'frequency'"),
        (CURVES + "1,1,1,0,4,5\n", r"c.csv:2: column 'correct': 5 of 4"),
        (CURVES + "1,1,1,0,4.5,3\n", r"c.csv:2: column 'n': 4.5 is not whole"),
        (CURVES + "1,1,1,0,4\n", r"c.csv:2: 5 cells"),
        (CURVES + "1,1,1,0,4,2\n1,1,1,0,4,3\n", r"c.csv:3: column 'seed': the same run as line 2"),
        (CURVES.replace("\n", ",group\n") + "1,1,1,0,4,2,infussed\n", r"c.csv:2: column 'group'.*'infused'"),
        (CURVES, r"holds no row"),
        ("", r"c.csv:1: no column 'params'"),
    ],
)  # fmt: skip
def test_wrong_curves_are_named_by_file_line_and_column(tmp_path, text, said):
    with pytest.raises(InputError, match=said):
        load_curves_csv(write(tmp_path / "c.csv", text))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("1,1,colapse,5,4,6,collapsed", r"p.csv:2: column 'kind'.*did you mean 'collapse'"),
        ("1,1,collapse,5,4,6,done", r"p.csv:2: column 'status'"),
        ("1,1,collapse,,4,6,collapsed", r"p.csv:2: column 'value'"),
        ("1,1,collapse,0,,6,collapsed", r"p.csv:2: column 'value'"),
        ("1,1,collapse,9,4,6,collapsed", r"p.csv:2: column 'value': 9 lies outside"),
        ("1,1,collapse,,,inf,right_censored", r"p.csv:2: column 'low'"),
        ("1,1,collapse,,,inf,left_censored", r"p.csv:2: column 'high'"),
        ("0,1,collapse,5,4,6,collapsed", r"p.csv:2: column 'params'"),
    ],
)
def test_wrong_points_are_named_by_file_line_and_column(tmp_path, row, said):
    with pytest.raises(InputError, match=said):
        load_points_csv(write(tmp_path / "p.csv", POINTS + row + "\n"))


def test_open_ends_may_be_empty_or_inf(tmp_path):
    text = POINTS + "7,1,collapse,,64,inf,right_censored\n8,1,collapse,,64,,right_censored\n9,1,onset,5,,8,observed\n"
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
