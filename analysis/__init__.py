"""From run logs to curves, transitions, the scaling law, predictions and the report. Imports no torch.

Five lines are enough: ``runs = load_runs("runs")``, ``points = find_transitions(runs)``,
``law = fit_law(points, kind="collapse", group="background")``, ``predict(law, params=7e9, tokens=1e12)``,
``report(runs, "report.html")``.
"""

# The imports are eager on purpose: `predict` and `report` are also names of modules here, and a module imported later
# would take the function's place. What is slow (matplotlib, jinja2) is imported inside the report's functions.
from megatron_kis.analysis.criteria import Transition, find_transitions
from megatron_kis.analysis.findings.result import AnalysisResult
from megatron_kis.analysis.law.fit import LawRefused, fit_law
from megatron_kis.analysis.law.law import Law
from megatron_kis.analysis.law.predict import predict
from megatron_kis.analysis.law.prediction import Prediction
from megatron_kis.analysis.outputs import analyse_study
from megatron_kis.analysis.report import report
from megatron_kis.analysis.runs.load import Runs, load_runs
from megatron_kis.analysis.runs.load_csv import load_curves_csv, load_points_csv
from megatron_kis.config.analysis import AnalysisConfig

AnalysisSettings = AnalysisConfig
"""The name of ``AnalysisConfig`` in older scripts."""

__all__ = [
    "AnalysisConfig",
    "AnalysisResult",
    "AnalysisSettings",
    "Law",
    "LawRefused",
    "Prediction",
    "Runs",
    "Transition",
    "analyse_study",
    "find_transitions",
    "fit_law",
    "load_curves_csv",
    "load_points_csv",
    "load_runs",
    "predict",
    "report",
]
