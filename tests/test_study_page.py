"""The pages of the studies: their tables are those of their results, their predictions as they were registered."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from benchmarks import study_figures, study_page
from megatron_kis.analysis.law.prediction import load_predictions
from megatron_kis.analysis.law.validate import validate
from megatron_kis.analysis.report.law_figure import law_figures
from megatron_kis.analysis.runs.load_csv import load_points_csv
from megatron_kis.common.errors import InputError


@pytest.mark.parametrize("page", study_page.PAGES, ids=lambda page: page.name)
def test_every_table_of_a_page_is_made_of_its_results(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert study_page.fill(text) == text
    assert len(re.findall("<!-- table: ", text)) == len(re.findall("<!-- end -->", text)) > 1
    damaged = re.sub(r"\| 0\.(\d)5 \|", r"| 0.\g<1>6 |", text)
    assert damaged != text
    assert study_page.fill(damaged) == text


def test_the_registered_predictions_are_whole_and_as_old_as_they_say(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = study_page.RESULTS / "reference" / "prediction.json"
    scores = validate(load_predictions(path), load_points_csv(study_page.RESULTS / "large" / "points.csv"))
    assert {score.kind for score in scores} == {"onset", "collapse", "tolerance"}
    content = json.loads(path.read_text(encoding="utf-8"))
    content["predictions"][0]["centre"] *= 1.1
    changed = tmp_path_factory.mktemp("changed") / "prediction.json"
    changed.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match="hash"):
        load_predictions(changed)


def rows_of(table: str) -> list[list[str]]:
    """The cells of a table's lines, without its head."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the results of the study of numbers of facts, to be changed."""
    for name in ("amount", "amount_large"):
        shutil.copytree(study_page.RESULTS / name, tmp_path / name)
    monkeypatch.setattr(study_page, "RESULTS", tmp_path)
    return tmp_path


def test_a_score_is_of_the_point_of_its_own_slice_and_budget(results: Path) -> None:
    before = study_page.scores("amount", "amount_large", "ratio=0.5")
    path = results / "amount_large" / "points.csv"
    points = pd.read_csv(path, dtype=str, keep_default_na=False)
    more = [points.assign(held="0.9", value="", low="1", high="2", status="inconclusive")]
    more.append(points.assign(tokens="2000000", value="", low="1", high="2", status="inconclusive"))
    pd.concat([*more, points]).to_csv(path, index=False)
    assert study_page.scores("amount", "amount_large", "ratio=0.5") == before
    assert len(rows_of(before)) == 12


def test_a_table_of_laws_is_of_one_value_of_what_is_held(results: Path) -> None:
    assert {row[0] for row in rows_of(study_page.laws("amount", "ratio=0.5"))} == {"collapse"}
    with pytest.raises(InputError, match=r"held_by is 'ratios'.*frequency or ratio"):
        study_page.laws("amount", "ratios=0.5")


def test_laws_of_several_studies_are_fitted_to_the_points_of_all(results: Path) -> None:
    assert len(rows_of(study_page.laws("amount+amount_large", "ratio=0.5"))) == 6
    apart = {tuple(row[:2]): row for row in rows_of(study_page.laws("amount", "ratio=0.5"))}
    together = {tuple(row[:2]): row for row in rows_of(study_page.laws("amount+amount_large", "ratio=0.5"))}
    assert {key: int(row[4]) for key, row in together.items()} == {
        key: int(row[4]) + 2 * (not key[1].endswith(("120 exposures", "240 exposures"))) for key, row in apart.items()
    }

    def estimates(rows: dict[tuple[str, ...], list[str]]) -> dict[tuple[str, ...], list[str]]:
        """Without the intervals: the study's own law is that of the version it was analysed with."""
        return {key: [*row[:3], row[3].partition(" (")[0], row[4]] for key, row in rows.items()}

    # A study cut in two is the study again.
    points = pd.read_csv(results / "amount" / "points.csv", dtype=str, keep_default_na=False)
    small = points["params"].astype(int) < 25_000
    for name, part in (("small", points[small]), ("rest", points[~small])):
        (results / name).mkdir()
        part.to_csv(results / name / "points.csv", index=False)
    again = {tuple(row[:2]): row for row in rows_of(study_page.laws("small+rest", "ratio=0.5"))}
    assert estimates(again) == estimates(apart)
    with pytest.raises(InputError, match=r"amount.small have points of the same N and D"):
        study_page.laws("amount+small", "ratio=0.5")


def test_a_size_without_runs_of_a_slice_has_no_line() -> None:
    sizes = [row[0] for row in rows_of(study_page.amounts("amount", "background", "train", "frequency=14"))]
    assert "21,220" not in sizes  # trained at a ratio alone
    assert "26,232" in sizes


@pytest.mark.parametrize("name", sorted(path.name for path in study_page.RESULTS.iterdir()))
def test_controls_of_every_study_are_at_chance(name: str) -> None:
    """Over all cells of a study; by the cell, what 60 facts on six templates can tell."""
    table = pd.read_csv(study_page.RESULTS / name / "curves.csv")
    control = table[(table["group"] == "control") & (table["split"] == "held_out")]
    rate = control["correct"] / control["n"]
    spread = (0.25 * 0.75 / control["facts"]) ** 0.5  # templates of one fact move together: the fact is the unit
    assert abs(rate.mean() - 0.25) < 0.03
    assert ((rate - 0.25).abs() < 3.5 * spread).all()


def test_likeness_compares_facts_within_their_cells(results: Path) -> None:
    path = results / "amount" / "likeness.csv"
    table = pd.read_csv(path)
    before = study_page.likeness("amount")
    # What all facts of a cell share says nothing about which of them are lost.
    cell = table.groupby(["exposures", "params", "infused_facts"]).ngroup()
    table.assign(right=table["right"] + cell, overlap=table["overlap"] - 2 * cell).to_csv(path, index=False)
    assert study_page.likeness("amount") == before
    table.assign(right=-table["same_object"]).to_csv(path, index=False)
    assert [row[1] for row in rows_of(study_page.likeness("amount"))][-1] == "-1.00"


SIZES = ("122k", "154k", "232k", "323k", "664k")
_LABEL = re.compile(r'<text[^>]* transform="[^"]*?([\d.]+)\)"[^>]*>([^<]+)</text>')


def labels_of(path: Path) -> dict[str, float]:
    """The texts of a figure, with their places from the top."""
    return {text.strip(): float(place) for place, text in _LABEL.findall(path.read_text(encoding="utf-8"))}


def test_the_figures_are_those_of_the_results_and_leave_out_no_size_and_no_level(tmp_path: Path) -> None:
    study_figures.draw(tmp_path)
    assert {path.stem for path in study_figures.TARGET.iterdir()} == set(study_figures.NAMES)
    for name in study_figures.NAMES:
        labels = labels_of(study_figures.TARGET / f"{name}.svg")
        assert labels.keys() == labels_of(tmp_path / f"{name}.svg").keys()
        if name.startswith("law-"):
            assert labels.keys() >= {*SIZES, "F (exposures per fact)"}
            continue
        title = "infusion frequency F (exposures per fact, log scale)"
        assert labels.keys() >= {*(f"N = {size}" for size in SIZES), "490", "0.95", title}
        assert min(place for text, place in labels.items() if text.startswith("N = ")) > labels[title] > labels["490"]


def test_the_predictions_in_the_figures_are_the_registered_ones() -> None:
    drawn = {(p.kind, p.group): p for p in study_figures.result().predictions}
    registered = load_predictions(study_page.RESULTS / "reference" / "prediction.json")
    assert len(drawn) == len(registered)
    for record in registered:
        found = drawn[record["kind"], record["group"]]
        assert (found.params, found.tokens) == (record["params"], record["tokens"])
        assert found.prediction_interval == pytest.approx(record["prediction_interval"])


def test_a_prediction_does_not_hide_the_point_of_the_model_that_was_trained_after_it() -> None:
    drawings = [drawing for drawing in law_figures(study_figures.result()) if "series prediction" in drawing.svg]
    assert len(drawings) == 3
    for drawing in drawings:
        places = {
            series: [float(x) for x in re.findall(r'<use[^>]* x="([\d.]+)"', group)]
            for series, group in re.findall(r'class="series (prediction|seen|censored)"(.*?)</g>', drawing.svg, re.S)
        }
        (star,) = places.pop("prediction")
        last = max(x for xs in places.values() for x in xs)
        assert 3 < star - last < 12
