from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from megatron_kis.analysis import AnalysisConfig
from megatron_kis.analysis.criteria import find_transitions
from megatron_kis.analysis.law.fit import cells_of, fit_law
from megatron_kis.analysis.law.predict import predict
from megatron_kis.analysis.runs.load_csv import load_curves_csv, load_points_csv, write_points_csv
from megatron_kis.analysis.simulate import Truth, simulate_table
from megatron_kis.common.errors import InputError
from tests.analysis.points import noisy, point
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
        (CURVES + "1000,50,1,0,4,2\n1000,50,x,0,4,2\n", r"c.csv:3: column 'frequency': 'x' is not a number"),
        (CURVES + "1000,50,-1,0,4,2\n", r"c.csv:2: column 'frequency': -1 is out of range"),
        (CURVES + "1000,50,nan,0,4,2\n", r"c.csv:2: column 'frequency'"),
        (CURVES + "1000,50,1,0,4,5\n", r"c.csv:2: column 'correct': 5 of 4"),
        (CURVES + "1000,50,1,0,4.5,3\n", r"c.csv:2: column 'n': 4.5 is not whole"),
        (CURVES + "1000,50,1,0,4\n", r"c.csv:2: 5 cells"),
        (CURVES + "1000,50,1,0,4,2\n1000,50,1,0,4,3\n", r"c.csv:3: column 'seed': the same run as line 2"),
        (CURVES.replace("\n", ",group\n") + "1000,50,1,0,4,2,infussed\n", r"c.csv:2: column 'group'.*'infused'"),
        (
            CURVES + "1000,50,1,0,4,0.5\n",
            r"c.csv:2: column 'correct': 0.5 is not whole; counts, not rates: correct = round\(",
        ),
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
        (CURVES.replace(",", ";") + "1;1\n", r"c.csv:1: the columns are separated by semicolons; separate"),
        (CURVES.replace(",", "\t") + "1\t1\n", r"c.csv:1: the columns are separated by tabs; separate them by commas"),
        (CURVES.upper() + "1\n", r"c.csv:1: no columns 'params', .* rename 'PARAMS' to 'params', .*'N' to 'n'"),
        (CURVES, r"holds no row"),
        ("", r"c.csv:1: is empty; the first line is the header: params,tokens,frequency,seed,n,correct"),
        ("\n" + CURVES, r"c.csv:1: the first line is empty; the first line is the header: params,tokens"),
        ("1000,50,1,0,4,2\n", r"c.csv:1: has numbers instead of a header; the first line is the header: params,tok"),
        ("," + CURVES + "0,1000,50,1,0,4,2\n", r"c.csv:1: column 1 has no name; leave it out \(pandas: .*index=False"),
        (CURVES + "1000,50,1,0,0,0\n", r"c.csv:2: column 'n': is 0; the number of questions; leave out a row"),
        (CURVES + "1000,50,1,0,,2\n", r"c.csv:2: column 'n': is empty; a whole number"),
        (CURVES + "1000,50,1,0,4,50%\n", r"c.csv:2: column 'correct': 50% is a percentage; counts, not rates"),
        (CURVES + "1000,50,1,0,4,-1\n", r"c.csv:2: column 'correct': -1 is out of range"),
        (CURVES + '1000,50,1,0,"4,2\n1000,50,2,0,4,2\n', r"c.csv:2: not valid CSV \(.*\); close every quote"),
        (POINTS + "1000,50,onset,5,4,6,observed\n", r"c.csv:1: has a column 'kind'; transitions .* --points"),
    ],
)
def test_wrong_curves_are_named_by_file_line_and_column(tmp_path, text, said):
    with pytest.raises(InputError, match=said):
        load_curves_csv(write(tmp_path / "c.csv", text))


HEADERS = {
    "N,D,F,seed,n,correct": "'params', 'tokens', 'frequency'; rename 'N' to 'params', 'D' to 'tokens', 'F' to 'freq",
    "num_params,tokens,exposures,seed,n,correct": "rename 'num_params' to 'params', 'exposures' to 'frequency'",
    "params,tokens,frequency,seed,n,accuracy": r"'correct'; counts, not rates: correct = round\(accuracy \* n\)",
    "N,D,F,seed,n_questions,acc": r"'N' to 'params', .*'n_questions' to 'n'; counts, not rates: .*\(acc \* n\)",
    "params,tokens,frequency,seed,N,correct": "rename 'N' to 'n'",
    "parms,tokns,frequency,seed,n,corect": "rename 'parms' to 'params', 'tokns' to 'tokens', 'corect' to 'correct'",
    "params,tokens,frequency,seed,n,correct,accuracy": "unknown column 'accuracy'; leave it out: a rate follows",
    "params,tokens,frequency,seed,n,correct,val_loss": "unknown column 'val_loss'; did you mean 'validation_loss'",
    "params,tokens,frequency,seed,n,correct,K": "unknown column 'K'; did you mean 'infused_facts'",
    "params,tokens,frequency,seed,n,correct,host": "unknown column 'host'; leave it out; valid: chance,",
    "run,model,x,y,z,w": "no columns 'params', .*; needed are params,tokens,frequency,seed,n,correct$",
}


@pytest.mark.parametrize("header", HEADERS)
def test_the_column_that_a_wrong_header_means_is_named(tmp_path, header):
    with pytest.raises(InputError, match=rf"c.csv:1: .*{HEADERS[header]}"):
        load_curves_csv(write(tmp_path / "c.csv", header + "\n1000,50,1,0,4,2" + ",1" * (header.count(",") - 5) + "\n"))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_byte_order_mark_and_any_kind_of_line_end_are_read(tmp_path, end):
    path = tmp_path / "c.csv"
    path.write_bytes(("\ufeff" + CURVES + "1000,50,1,0,4,2\n1000,50,2,0,4,9\n").replace("\n", end).encode())
    with pytest.raises(InputError, match=r"c.csv:3: column 'correct': 9 of 4"):
        load_curves_csv(path)
    path.write_bytes(path.read_bytes().replace(b"9", b"3"))
    assert load_curves_csv(path)["correct"].tolist() == [2, 3]


def test_curves_given_as_points_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"p.csv:1: has a column 'correct'; curves .* kis law collapse --curves"):
        load_points_csv(write(tmp_path / "p.csv", CURVES + "1000,50,1,0,4,2\n"))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("1000,50,colapse,5,4,6,collapsed", r"p.csv:2: column 'kind'.*did you mean 'collapse'"),
        ("1000,50,collapse,5,4,6,done", r"p.csv:2: column 'status'"),
        ("1000,50,collapse,,4,6,collapsed", r"p.csv:2: column 'value'"),
        ("1000,50,collapse,0,,6,collapsed", r"p.csv:2: column 'value'"),
        ("1000,50,collapse,9,4,6,collapsed", r"p.csv:2: column 'value': 9 is outside"),
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
    ("row", "said"),
    [
        (
            "7000,50,collapse,,4,6,collapsed,facts,frequency,14",
            "'value': is '' and status is 'collapsed'; a positive K",
        ),
        ("7000,50,collapse,,,inf,right_censored,facts,ratio,0.5", "'low': .*; the largest K without the transition"),
        ("7000,50,collapse,,,inf,left_censored,facts,frequency,14", "'high': .*; the smallest K with the transition"),
        ("7000,50,collapse,,4,6,collapsed,frequency,facts,400", "'value': .*; a positive F"),
        ("7000,50,collapse,5,4,6,collapsed,facts,ratio,1.5", "'held': held is 1.5; a share of the tokens, at most 1"),
        ("7000,50,collapse,5,4,6,collapsed,frequency,facts,0.5", "'held': .*; a number of facts, at least 1"),
        ("7000,50,collapse,5,4,6,collapsed,frequency,facts,-4", "'held': -4 is out of range"),
        ("7000,50,collapse,5,4,6,collapsed,frequency,facts,inf", "'held': inf is out of range"),
        ("7000,50,collapse,5,4,6,collapsed,facts,frequency,many", "'held': 'many' is not a number"),
    ],
)
def test_the_dose_is_named_and_what_is_held_is_checked(tmp_path, row, said):
    path = write(tmp_path / "p.csv", POINTS.replace("\n", ",axis,held_by,held\n") + row + "\n")
    with pytest.raises(InputError, match=f"p.csv:2: column {said}"):
        load_points_csv(path)


NEEDED = {
    "--axis facts": (AnalysisConfig(axis="facts"), ["infused_facts"]),
    "--criterion half_margin": (AnalysisConfig(criterion="half_margin"), ["mean_margin", "mean_margin_sd"]),
    "--outcome pairwise": (AnalysisConfig(outcome="pairwise"), ["pairwise"]),
}


@pytest.mark.parametrize("option", NEEDED)
def test_what_an_option_needs_is_named_by_file_line_and_column(tmp_path, option):
    settings, columns = NEEDED[option]
    path = tmp_path / "c.csv"

    def table(names, *cells):
        rows = [f"1000,500,{f},0,40,10,{cell}" for f, cell in zip((0, 8, 9), cells, strict=True)]
        write(path, CURVES.replace("\n", f",{names}\n") + "\n".join(rows) + "\n")

    whole = ",".join("1" for _ in columns)
    table(",".join(columns), whole, whole, whole)
    assert len(load_curves_csv(path, settings)) == 3
    for column in columns:
        others = [name for name in columns if name != column]
        table(",".join([*others, "facts"]), *[",".join([*("1" for _ in others), "40"])] * 3)
        with pytest.raises(InputError, match=rf"^{path}:1: no column '{column}'; {option} .*needs"):
            load_curves_csv(path, settings)
        assert len(load_curves_csv(path)) == 3
        table(",".join([column, *others]), *[",".join(["", *("1" for _ in others)])] * 3)
        line = 3 if column == "infused_facts" else 2  # without infusion there is nothing to say
        with pytest.raises(InputError, match=rf"^{path}:{line}: column '{column}': is empty.*; {option} .*needs"):
            load_curves_csv(path, settings)


def test_one_row_without_what_is_needed_is_named(tmp_path):
    path = tmp_path / "c.csv"
    write(path, CURVES.replace("\n", ",pairwise,split\n") + "1000,500,0,0,40,10,,train\n1000,500,8,0,40,10,,held_out\n")
    with pytest.raises(InputError, match=r"c.csv:3: column 'pairwise': is empty; --outcome pairwise"):
        load_curves_csv(path, AnalysisConfig(outcome="pairwise"))
    rows = ["1000,5000,0,0,40,10,", "1000,5000,8,0,40,10,100", "1000,5000,8,0,40,10,200", "1000,5000,9,0,40,10,"]
    write(path, CURVES.replace("\n", ",infused_facts\n") + "\n".join(rows) + "\n")
    with pytest.raises(InputError, match=r"c.csv:5: column 'infused_facts': is empty, and other runs have 100 to 200"):
        load_curves_csv(path)


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("nonembedding_params", "2000", r"p.csv:2: column 'nonembedding_params': is more than params"),
        ("seeds", "2.5", r"p.csv:2: column 'seeds': 2.5 is not whole"),
        ("exposure_tokens", "-1", r"p.csv:2: column 'exposure_tokens': -1 is out of range"),
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


def test_points_carry_the_level_of_their_intervals(tmp_path):
    curves, _ = simulate_table(
        Truth(facts=200),
        [(n, 2_000_000_000) for n in (50_000_000, 100_000_000)],
        [0, 50, 150, 300, 450, 700, 1000],
        3,
        np.random.default_rng(0),
        groups=("background",),
    )
    for level, said in ((0.8, True), (0.95, False)):
        settings = AnalysisConfig(criterion="hinge", confidence=level, resamples=99)
        points = find_transitions(curves, settings)
        assert {point.confidence for point in points} == {level}
        path = tmp_path / f"{level}.csv"
        write_points_csv(points, path)
        assert ("confidence" in path.read_text().splitlines()[0]) is said
        assert load_points_csv(path) == points
    head = "params,tokens,kind,value,low,high,status,confidence\n"
    for wrong in ("0", "1", "95"):
        with pytest.raises(InputError, match=r"p\.csv:2: column 'confidence'"):
            load_points_csv(write(tmp_path / "p.csv", f"{head}1e6,1e9,collapse,50,40,60,collapsed,{wrong}\n"))


def test_the_law_measures_intervals_by_their_level():
    half = 0.2
    one = point(1e6, 100, low=100 * math.exp(-half), high=100 * math.exp(half), interval="profile")
    cells = cells_of([one, replace(one, confidence=0.5)])
    assert np.sqrt(cells.variance) == pytest.approx([half / 1.959964, half / 0.6744898])
    assert cells_of([replace(one, interval="bracket", confidence=0.5)]).variance == 0


@pytest.mark.parametrize(
    ("name", "row"),
    [("tokens", "1000000,6e21,50,40,60"), ("params", "6e21,1e9,50,40,60"), ("tokens", "1e6,1e30,50,40,60")],
)
def test_flops_in_place_of_a_count_are_named(tmp_path, name, row):
    n, d, *ends = row.split(",")
    points = f"params,tokens,kind,value,low,high,status\n{n},{d},collapse,{','.join(ends)},collapsed\n"
    with pytest.raises(InputError, match=rf"2: column '{name}': is .*, not of FLOPs"):
        load_points_csv(write(tmp_path / "p.csv", points))
    curves = f"params,tokens,frequency,seed,n,correct\n{n},{d},5,0,100,50\n"
    with pytest.raises(InputError, match=rf"2: column '{name}': is .*, not of FLOPs"):
        load_curves_csv(write(tmp_path / "c.csv", curves))


def test_models_of_more_parameters_than_an_integer_holds_have_a_law():
    law = fit_law([point(p.params * 10**15, p.value, p.tokens * 10**15) for p in noisy()])
    told = predict(law, 2.0**80)
    assert told.extrapolation_factor > 10
    assert predict(law, 2**80).prediction_interval == told.prediction_interval
