"""The figures of docs/study/index.md, drawn by the report's own code from the committed results.

    python -m benchmarks.study_figures     # writes docs/study/figures/*.svg

Curves and points are those of the study and of the larger model (``reference`` and ``large``). The law is that of the
study alone, and predicts the model that was registered.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pandas as pd

from benchmarks.study_page import FOLDER, RESULTS
from megatron_kis.analysis.findings.result import AnalysisResult
from megatron_kis.analysis.law.law_file import load_laws
from megatron_kis.analysis.law.predict import predict
from megatron_kis.analysis.law.prediction import load_predictions
from megatron_kis.analysis.report import figures, law_figure
from megatron_kis.analysis.report.theme import exported_to
from megatron_kis.analysis.runs.load_csv import load_curves_csv, load_points_csv
from megatron_kis.config.analysis import AnalysisConfig

TARGET = FOLDER / "figures"
NAMES = (
    "overview-infused",
    "overview-background",
    "loss-relative",
    "law-onset-infused",
    "law-collapse-background",
    "law-tolerance-general",
)
_STUDIES = ("reference", "large")


def result() -> AnalysisResult:
    """Returns the committed results of both studies, with the laws of the first."""
    laws = load_laws(RESULTS / "reference" / "law.json")
    sizes = {(p["kind"], p["group"]): p["params"] for p in load_predictions(RESULTS / "reference" / "prediction.json")}
    return AnalysisResult(
        settings=AnalysisConfig(),
        runs=None,
        curves=pd.concat([load_curves_csv(RESULTS / name / "curves.csv") for name in _STUDIES], ignore_index=True),
        points=[point for name in _STUDIES for point in load_points_csv(RESULTS / name / "points.csv")],
        laws=laws,
        refused=[],
        predictions=[predict(law, sizes[law.kind, law.group]) for law in laws],
    )


def draw(folder: Path) -> None:
    """Writes the figures that the page shows into ``folder``."""
    drawn = result()
    with tempfile.TemporaryDirectory() as scratch:
        with exported_to(Path(scratch), 100):
            figures.overview(drawn)
            figures.losses(drawn)
            law_figure.law_figures(drawn)
        for name in NAMES:
            shutil.copyfile(Path(scratch) / f"{name}.svg", folder / f"{name}.svg")


if __name__ == "__main__":
    draw(TARGET)
