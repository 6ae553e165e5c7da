from __future__ import annotations

import argparse
import json

import pytest

from megatron_kis.cli import law
from megatron_kis.common.errors import InputError
from megatron_kis.common.units import quantity
from tests.analysis.synthetic import Truth, curve_rows, write_run


def kis(*arguments):
    parser = argparse.ArgumentParser()
    law.add_parser(parser.add_subparsers(required=True))
    options = parser.parse_args(["law", *map(str, arguments)])
    return options.handler(options)


@pytest.fixture
def points_csv(tmp_path):
    rows = [f"{n},1000000,collapse,{n**0.4:.6f},,,collapsed" for n in (10**4, 10**5, 10**6, 10**7, 10**8)]
    rows.append("1000000000,1000000,collapse,,2000,inf,right_censored")
    path = tmp_path / "points.csv"
    path.write_text("params,tokens,kind,value,low,high,status\n" + "\n".join(rows) + "\n")
    return path


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7e9", 7e9),
        ("7b", 7e9),
        ("7B", 7e9),
        ("137M", 137e6),
        ("1T", 1e12),
        ("1_000", 1000),
        ("2.5k", 2500),
        ("64", 64),
    ],
)
def test_counts_are_read_as_people_write_them(text, value):
    assert quantity(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "x", "-7b", "7x", "0", "1.2.3", "inf", "nan", "1e400"])
def test_what_is_no_count_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError):
        quantity(text)


def test_from_points_to_a_validated_prediction(points_csv, tmp_path, capsys):
    law_json, prediction = tmp_path / "law.json", tmp_path / "prediction.json"
    assert kis("fit", "--points", points_csv, "--output", law_json, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(law_json.read_text())
    assert printed["coefficients"]["b_log_params"]["value"] == pytest.approx(0.4, abs=1e-6)
    assert printed["coefficients"]["b_log_params"]["low"] <= printed["coefficients"]["b_log_params"]["high"]
    assert printed["selected_law"]
    assert [p["status"] for p in printed["points"]].count("right_censored") == 1

    assert kis("predict", law_json, "--params", "7b", "--tokens", "1M", "--output", prediction, "--json") == 0
    predicted = json.loads(capsys.readouterr().out)
    assert predicted["centre"] == pytest.approx(7e9**0.4, rel=1e-4)
    assert predicted["extrapolation_factor"] == pytest.approx(70)
    assert predicted["recommended"] == predicted["prediction_interval"][0]

    measured = tmp_path / "measured.csv"
    measured.write_text(
        f"params,tokens,kind,value,low,high,status\n7000000000,1000000,collapse,{predicted['centre']},,,collapsed\n"
    )
    assert kis("validate", prediction, "--points", measured, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["hits"], result["mean_abs_log_ratio"]) == (1, pytest.approx(0, abs=1e-9))
    measured.write_text(
        f"params,tokens,kind,value,low,high,status\n7000000000,1000000,collapse,,{predicted['centre']},,right_censored\n"
    )
    assert kis("validate", prediction, "--points", measured) == 0
    printed = capsys.readouterr().out
    assert "not contradicted" in printed
    assert "0 of 0 intervals hit\n1 more could not have missed" in printed


def test_tables_are_plain_text_off_a_terminal(points_csv, tmp_path, capsys):
    kis("fit", "--points", points_csv, "--output", tmp_path / "law.json")
    kis("predict", tmp_path / "law.json", "--params", "7e9")
    out = capsys.readouterr().out
    assert "b_log_params" in out
    assert "recommended" in out
    assert out.isprintable() or "\x1b" not in out


def test_curves_of_another_trainer_become_points_and_a_report(tmp_path, capsys):
    table = curve_rows({0: [25], 8: [30], 64: [80], 256: [95], 512: [93]}, group="infused", losses={0: 3.0, 512: 3.9})
    table.drop(columns=["facts"]).to_csv(tmp_path / "curves.csv", index=False)
    assert kis("collapse", "--curves", tmp_path / "curves.csv", "--output", tmp_path / "points.csv", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert {(p["kind"], p["status"]) for p in printed["points"]} == {
        ("onset", "observed"),
        ("collapse", "right_censored"),
        ("tolerance", "left_censored"),
    }
    for source in ("curves.csv", "points.csv"):
        assert kis("report", tmp_path / source, "--output", tmp_path / "report.html") == 0
        assert "<h1>" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("option", "column"),
    [
        (["--axis", "facts"], "infused_facts"),
        (["--criterion", "half_margin"], "mean_margin"),
        (["--outcome", "pairwise"], "pairwise"),
    ],
)
def test_an_option_that_needs_what_is_not_there_is_named(option, column, tmp_path, capsys):
    path = tmp_path / "curves.csv"
    rates = {0: [25], 8: [30], 64: [80]}
    curve_rows(rates, group="infused").drop(columns=["facts"]).to_csv(path, index=False)
    for command in (["collapse", "--curves", path], ["report", path]):
        with pytest.raises(InputError, match=rf"^{path}:1: no column '{column}'; {' '.join(option)} .*needs"):
            kis(*command, *option, "--output", tmp_path / "out")
    for frequency in (0, 64):
        write_run(tmp_path / "runs" / f"f{frequency}", Truth(facts=40), 100_000, frequency, 0)
    for command in ("collapse", "fit"):
        with pytest.raises(InputError, match=f"^{option[0]}: "):
            kis(command, tmp_path / "runs", *option, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_law_is_named_by_its_option(points_csv, tmp_path):
    with pytest.raises(InputError, match=r"^--law: unknown law 'N and E'; did you mean 'N and D'"):
        kis("fit", "--points", points_csv, "--law", "N and E", "--output", tmp_path / "law.json")


def test_runs_that_do_not_count_are_named_on_stderr(tmp_path, capsys):
    for frequency in (0, 64, 512):
        write_run(tmp_path / "runs" / f"f{frequency}", Truth(facts=40), 100_000, frequency, 0, done=frequency != 64)
    assert (
        kis("collapse", tmp_path / "runs", "--output", tmp_path / "points.csv", "--curves-output", tmp_path / "c.csv")
        == 0
    )
    assert "left out: f64 (incomplete)" in capsys.readouterr().err
    assert (tmp_path / "c.csv").is_file()


def test_points_that_support_no_law_are_wrong_input_and_write_nothing(points_csv, tmp_path):
    lines = points_csv.read_text().splitlines()
    points_csv.write_text("\n".join(lines[:3]) + "\n")
    with pytest.raises(InputError, match="2 model sizes only, and a law takes at least 3"):
        kis("fit", "--points", points_csv, "--output", tmp_path / "law.json")
    with pytest.raises(InputError, match="2 model sizes only, and a law takes at least 3"):
        kis("fit", "--points", points_csv, "--kind", "collapse", "--output", tmp_path / "law.json")
    assert not (tmp_path / "law.json").exists()


@pytest.mark.parametrize("group", [[], ["--group", "infused"]])
def test_slices_that_support_no_law_are_named_and_the_others_are_fitted(group, tmp_path, capsys):
    rows = [f"{n},1000000,collapse,{n**0.4:.6f},,,collapsed,frequency,facts,400" for n in (10**4, 10**5, 10**6, 10**7)]
    rows += [f"{n},1000000,collapse,{n**0.3:.6f},,,collapsed,frequency,facts,900" for n in (10**4, 10**5)]
    path, output = tmp_path / "points.csv", tmp_path / "law.json"
    path.write_text("\n".join(["params,tokens,kind,value,low,high,status,axis,held_by,held", *rows, ""]))
    asked = ["fit", "--points", path, "--kind", "collapse", *group, "--output", output]
    assert kis(*asked) == 0
    printed = capsys.readouterr().out
    assert "no law: Collapse of infused facts, F at K = 900: it was seen in 2 model sizes only" in printed
    record = json.loads(output.read_text())
    assert [law["held"] for law in record["laws"]] == [400, None]
    assert [(item["held"], item["code"]) for item in record["refused"]] == [("900.0", "few_points")]

    output.unlink()
    path.write_text("\n".join(line for line in path.read_text().splitlines() if not line.endswith("400")) + "\n")
    with pytest.raises(InputError, match=r"no law can be fitted \(Collapse of infused facts, F at K = 900: "):
        kis(*asked)
    for absent in (["--kind", "onset"], ["--kind", "collapse", "--group", "background"]):
        with pytest.raises(InputError, match="no points of these; there are --kind collapse --group infused") as error:
            kis("fit", "--points", path, *absent, "--output", output)
        assert error.value.where == " ".join(absent)
    assert not output.exists()


def test_the_law_of_one_kind_is_the_one_among_all(points_csv, tmp_path):
    kis("fit", "--points", points_csv, "--output", tmp_path / "all.json")
    kis("fit", "--points", points_csv, "--kind", "collapse", "--output", tmp_path / "one.json")
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "all.json").read_bytes()


def test_the_choices_declared_in_a_study_hold_for_its_runs(study, tmp_path, capsys):
    (tmp_path / "runs").symlink_to(study / "runs")
    (tmp_path / "study.yaml").write_text("analysis: {split: train, tolerance: 0.10}\n")
    assert kis("collapse", tmp_path, "--output", tmp_path / "points.csv", "--json") == 0
    declared = json.loads(capsys.readouterr().out)["settings"]
    assert (declared["split"], declared["tolerance"]) == ("train", 0.10)
    kis("collapse", tmp_path / "runs", "--output", tmp_path / "points.csv", "--json", "--split", "held_out")
    assert json.loads(capsys.readouterr().out)["settings"]["split"] == "held_out"


@pytest.mark.parametrize("step", [[], ["collapse"], ["fit"], ["predict"], ["validate"], ["report"]])
def test_every_level_has_help(step, capsys):
    with pytest.raises(SystemExit) as stop:
        kis(*step, "--help")
    assert stop.value.code == 0
    assert "usage:" in capsys.readouterr().out


def test_a_bad_value_is_named_by_the_option_that_gave_it(points_csv, tmp_path):
    output = tmp_path / "p.csv"
    with pytest.raises(InputError, match=r"^--delta-min: is 2\.0; must be below 1"):
        kis("collapse", tmp_path, "--output", output, "--delta-min", "2")
    with pytest.raises(InputError, match=r"^--confidence: is 3\.0; must be below 1"):
        kis("fit", "--points", points_csv, "--output", tmp_path / "law.json", "--confidence", "3")
    (tmp_path / "study.yaml").write_text("analysis: {delta_min: 3}\n")
    with pytest.raises(
        InputError, match=r"study\.yaml: analysis\.delta_min: is 3; must be below 1"
    ):  # the file's, not an option's
        kis("collapse", tmp_path, "--output", output, "--tolerance", "0.1")
    assert not output.exists()


def test_a_table_of_survival_is_refused_before_the_facts_are_read(tmp_path):
    """What no run asked for, and facts that are none: nothing of the facts, or of the answers, is there to be read."""
    runs, output, facts = tmp_path / "runs", tmp_path / "survival.csv", tmp_path / "facts.jsonl"
    for frequency in (0, 64):
        write_run(runs / f"f{frequency}", Truth(facts=40), 100_000, frequency, 0)
    without(runs, "split", "question")
    facts.write_text("no facts\n")
    given = ("survival", runs, "--output", output, "--facts", facts)
    with pytest.raises(InputError, match=r"facts\.jsonl:1: malformed JSON line"):
        kis(*given, "--split", "train")
    for choices, message in (
        (("--split", "question"), r"--split: no run asked about .* split 'question'; valid: held_out, train$"),
        (("--split", "train", "--scoring", "statemnt"), r"--scoring: no scoring rule 'statemnt'; did you mean 'stat"),
        (("--split", "train", "--scoring", "pmi"), r"--scoring: no run was scored by rule 'pmi'; valid: "),
        (("--split", "train", "--facts", tmp_path), rf"--facts {tmp_path}: is a folder; give the facts\.jsonl"),
        (("--split", "train", "--facts", tmp_path / "x"), rf"--facts {tmp_path / 'x'}: no such file; give the facts"),
    ):
        with pytest.raises(InputError, match=f"^{message}"):
            kis(*given, *choices)
    without(runs, "group", "background")
    with pytest.raises(InputError, match="no run asked about background facts; select background facts"):
        kis(*given, "--split", "train")
    assert not output.exists()


def without(runs, key, value):
    """Takes rows out of the probes of runs."""
    for path in runs.glob("*/probes.jsonl"):
        lines = path.read_text().splitlines()
        path.write_text("".join(f"{line}\n" for line in lines if json.loads(line).get(key) != value))


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--law", "M", r"^--law: unknown law 'M'; valid: "),
        ("--scoring", "statment", r"^--scoring: no probe row has scoring 'statment'; did you mean 'statement'\?"),
        ("--split", "train", r"^--split: no probe row has split 'train'; valid: held_out"),
    ],
)
def test_an_unknown_choice_is_refused_by_its_option(option, value, said, tmp_path):
    curve_rows({0: [25], 8: [30], 64: [80]}, group="infused").to_csv(tmp_path / "curves.csv", index=False)
    with pytest.raises(InputError, match=said):
        kis("collapse", "--curves", tmp_path / "curves.csv", option, value, "--output", tmp_path / "points.csv")
    assert not (tmp_path / "points.csv").exists()


def test_a_file_without_a_law_says_why_in_words(tmp_path, points_csv):
    path = tmp_path / "law.json"
    refused = {
        "kind": "collapse",
        "group": "background",
        "code": "all_censored",
        "reason": "law: no point was bracketed",
    }
    path.write_text(json.dumps({"schema": "kis.law/1", "selected_law": None, "refused": [refused]}))
    with pytest.raises(InputError, match=r"none could be fitted \(collapse of background: no point was bracketed\)$"):
        kis("predict", path, "--params", "7b")
