"""The law of one study by `kis law fit --curves`, by the report, and from its points alone."""

from __future__ import annotations

import io
import json
import math
from contextlib import redirect_stdout

import numpy as np
import pytest

from megatron_kis.analysis.law.law_file import load_laws
from megatron_kis.analysis.law.predict import predict
from megatron_kis.analysis.report import analyse_source
from megatron_kis.analysis.report.tables import predictions, transitions
from megatron_kis.analysis.runs.curves import write_curves_csv
from megatron_kis.analysis.simulate import Truth, simulate_table
from megatron_kis.cli.main import main
from megatron_kis.config.analysis import AnalysisConfig

QUICK = AnalysisConfig(resamples=99, law_resamples=99, law="N")
OPTIONS = ["--resamples", "99", "--law-resamples", "99", "--law", "N"]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A folder with curves.csv, points.csv, and law.json of the curves."""
    folder = tmp_path_factory.mktemp("study")
    table, _ = simulate_table(
        Truth(facts=200),
        [(int(25e6 * 4**i), 2_000_000_000) for i in range(4)],
        [0, 100, 200, 300, 450, 700, 1100, 1700],
        2,
        np.random.default_rng(0),
        groups=("background",),
    )
    curves, points = folder / "curves.csv", folder / "points.csv"
    write_curves_csv(table, curves)
    with redirect_stdout(io.StringIO()) as printed:
        assert main(["law", "collapse", "--curves", str(curves), "--output", str(points), *OPTIONS]) == 0
    (folder / "printed.txt").write_text(printed.getvalue())
    assert main(["law", "fit", "--curves", str(curves), "--output", str(folder / "law.json"), *OPTIONS]) == 0
    return folder


def test_curves_give_the_law_and_the_predictions_of_the_report(study):
    laws = load_laws(study / "law.json")
    result = analyse_source(study / "curves.csv", QUICK, predict_params=[1e10])
    assert [law.fingerprint for law in laws] == [law.fingerprint for law in result.laws]
    assert laws[0].surface is not None
    for law, told in zip(laws, result.predictions, strict=True):
        assert predict(law, 1e10) == told


def test_points_give_what_the_curves_law_says_of_points_and_say_what_they_lack(study, capsys):
    output = study / "of_points.json"
    assert main(["law", "fit", "--points", str(study / "points.csv"), "--output", str(output), *OPTIONS]) == 0
    assert "points contain no curves" in capsys.readouterr().err
    of_points, of_curves = load_laws(output), load_laws(study / "law.json")
    for alone, law in zip(of_points, of_curves, strict=True):
        assert alone.surface is None
        told, beside = predict(alone, 1e10), predict(law, 1e10)
        assert told.prediction_interval == pytest.approx(
            beside.points_interval if law.surface is not None else beside.prediction_interval
        )
    result = analyse_source(study / "points.csv", QUICK, predict_params=[1e10])
    assert [law.fingerprint for law in result.laws] == [law.fingerprint for law in of_points]
    assert "Points alone carry no curves" in predictions(result).note


def test_the_chance_of_a_false_collapse_among_the_tests_is_said(study):
    said = "4 tests for a collapse at level 0.05: if nothing falls, at least one is called with a chance of 19%"
    assert said in (study / "printed.txt").read_text()
    assert said in transitions(analyse_source(study / "points.csv", QUICK)).note


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("bent", [[1.0]], "is [[1.0]]; one or more rows of 10 numbers"),
        ("bent", [], "is []; one or more rows"),
        ("bent", [[math.nan] * 10], "one or more rows of 10 numbers"),
        ("straight", [[0.0] * 10], "rows of 10 numbers"),
        ("straight", None, "is None; a list"),
        ("law", "M", "is 'M'"),
        ("law", "N and held", "a law without a term in what is held"),
        ("centre", ["x"], "a list of 2 numbers"),
        ("centre", [], "a list of 2 numbers"),
        ("projection", [[1.0, 2.0]], "a list of 2 numbers"),
        ("shapes", [1.0], "is [1.0]; a list of"),
        ("shapes", [0.0] * 6, "probabilities of at least 0"),
        ("share", 1, "is 1; a number between 0 and 1"),
        ("share", None, "is None; a number"),
        ("chance", 1.0, "is 1.0; the rate of a guess, below 1"),
        ("chance", "0.25", "is '0.25'; a number"),
        ("mirrored", 0, "is 0; true or false"),
        ("bend", -1, "is -1; a number of at least 0"),
        ("freedom", None, "is None; a number"),
        ("convergance", 1.0, "is not known; did you mean 'convergence'?"),
    ],
)
def test_a_surface_that_is_damaged_is_named(key, value, said, study, tmp_path, capsys):
    path = tmp_path / "law.json"
    content = json.loads((study / "law.json").read_text())
    del content["laws"]
    path.write_text(json.dumps(content | {"surface": content["surface"] | {key: value}}))
    assert main(["law", "predict", str(path), "--params", "1e9"]) == 2
    error = capsys.readouterr().err
    assert f"{path}: surface.{key}: " in error
    assert said in error


def test_the_interval_of_the_mean_is_within_that_of_a_model_however_far_away(study):
    for law in load_laws(study / "law.json"):
        for params in np.geomspace(1e6, 1e18, 25):
            told = predict(law, float(params))
            (least, most), (low, high) = told.confidence_interval, told.prediction_interval
            assert low <= least <= most <= high, (law.kind, law.group, params)


@pytest.mark.parametrize("step", ["collapse", "fit"])
def test_a_file_is_read_with_and_without_the_name_of_its_kind(step, study, tmp_path, capsys):
    curves = str(study / "curves.csv")
    for source in ([curves], ["--curves", curves]):
        assert main(["law", step, *source, "--output", str(tmp_path / "out"), *OPTIONS]) == 0
        written = (tmp_path / "out").read_bytes()
        assert written == (study / {"collapse": "points.csv", "fit": "law.json"}[step]).read_bytes()


def test_points_are_read_with_and_without_the_name_of_their_kind(study, tmp_path, capsys):
    points = str(study / "points.csv")
    for source in ([points], ["--points", points]):
        assert main(["law", "fit", *source, "--output", str(tmp_path / "law.json"), *OPTIONS]) == 0
        assert "points contain no curves" in capsys.readouterr().err
    assert main(["law", "collapse", points, "--output", str(tmp_path / "again.csv")]) == 2
    assert f"{points}: has transitions, and no curves to find them in; a study folder" in capsys.readouterr().err
    assert not (tmp_path / "again.csv").exists()


@pytest.mark.parametrize("step", ["collapse", "fit", "report"])
def test_every_setting_is_an_option(step, capsys):
    with pytest.raises(SystemExit):
        main(["law", step, "--help"])
    told = capsys.readouterr().out
    assert [n for n in AnalysisConfig.model_fields if f"--{n.replace('_', '-')} " not in told] == []


def test_a_setting_that_an_option_gives_is_used(study, tmp_path, capsys):
    output = tmp_path / "law.json"
    points = ["law", "fit", "--points", str(study / "points.csv"), "--output", str(output)]
    assert main([*points, "--bend", "0", "--law-resamples", "0"]) == 0
    assert load_laws(output)[0].bend is None
    assert main([*points, "--bend", "-1"]) == 2
    assert "--bend" in capsys.readouterr().err
