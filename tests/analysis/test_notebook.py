"""The page for notebooks: its code runs as it stands, on a study and on a file of another trainer."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from megatron_kis.analysis import load_runs, report
from megatron_kis.analysis.runs.curves import curve_table, write_curves_csv
from megatron_kis.analysis.simulate import Truth, simulate_table, write_runs

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "notebook.md"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cells = [(params, 2_000_000_000) for params in (30_000_000, 200_000_000, 1_000_000_000)]
    levels = [0, 40, 100, 200, 300, 400, 600, 900, 1400]
    table, _ = simulate_table(Truth(), cells, levels, 1, np.random.default_rng(5))
    write_runs(table, tmp_path / "studies" / "my_study" / "runs")
    (tmp_path / "studies" / "my_study" / "runs" / "n30000000-d2000000000-f40-s0" / "DONE").unlink()
    write_curves_csv(table, tmp_path / "my_curves.csv")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_code_of_the_page_runs_from_top_to_bottom(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.M | re.S)
    assert len(blocks) == 4
    assert len(blocks[0].replace("\n\n", "\n").splitlines()) == 5  # five lines from a study to its report
    notebook: dict[str, object] = {}
    for block in blocks:
        exec(block, notebook)
    shown = capsys.readouterr().out
    assert "n30000000-d2000000000-f40-s0" in shown  # the run without DONE is named
    assert "collapse of background, N = 1,000,000,000: collapsed" in shown
    assert "For 7B parameters" in (folder / "report.html").read_text(encoding="utf-8")
    assert "<h1>" in (folder / "my_report.html").read_text(encoding="utf-8")


def test_a_report_can_be_made_of_runs_tables_points_and_files(folder: Path) -> None:
    from megatron_kis.analysis import AnalysisConfig, find_transitions, load_curves_csv
    from megatron_kis.analysis.runs.load_csv import write_points_csv

    quick = AnalysisConfig(resamples=99, law_resamples=0)
    curves = load_curves_csv("my_curves.csv")
    points = find_transitions(curves, quick)
    write_points_csv(points, folder / "points.csv")
    pages = [
        report(source, folder / "r.html", quick).read_text(encoding="utf-8")
        for source in (curves, "my_curves.csv", points, "points.csv")
    ]
    answers = [re.findall(r'<table class="by-model.*?</table>', page, flags=re.S) for page in pages]
    assert len(answers[0]) == 1
    assert answers == [answers[0]] * 4
    runs = load_runs("studies/my_study")
    whole = curve_table(runs)
    assert len(whole) < len(curves)  # the run that does not count is left out
