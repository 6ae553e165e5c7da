"""The pages of the studies: their tables are those of their results, their predictions as they were registered."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from benchmarks import study_page
from megatron_kis.analysis.law.predict import load_predictions
from megatron_kis.analysis.law.validate import validate
from megatron_kis.analysis.runs.load_csv import load_points_csv
from megatron_kis.common.errors import InputError


@pytest.mark.parametrize("page", study_page.PAGES, ids=lambda page: page.name)
def test_every_table_of_a_page_is_made_of_its_results(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert study_page.fill(text) == text
    assert len(re.findall("<!-- table: ", text)) == len(re.findall("<!-- end -->", text)) > 4
    damaged = text.replace("| 0.25 |", "| 0.35 |")
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


@pytest.mark.parametrize("name", sorted(path.name for path in study_page.RESULTS.iterdir()))
def test_controls_of_every_study_are_at_chance(name: str) -> None:
    """Over all cells of a study; by the cell, what 60 facts on six templates can tell."""
    table = pd.read_csv(study_page.RESULTS / name / "curves.csv")
    control = table[(table["group"] == "control") & (table["split"] == "held_out")]
    rate = control["correct"] / control["n"]
    spread = (0.25 * 0.75 / control["facts"]) ** 0.5  # templates of one fact move together: the fact is the unit
    assert abs(rate.mean() - 0.25) < 0.03
    assert ((rate - 0.25).abs() < 3.5 * spread).all()
