"""The files that an analysis writes into a study's folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from megatron_kis.analysis.findings.analyse import analyse
from megatron_kis.analysis.findings.result import AnalysisResult
from megatron_kis.analysis.findings.sensitivity import with_sensitivity
from megatron_kis.analysis.findings.study_file import declared_settings, study_description, with_looks
from megatron_kis.analysis.law.law import SCHEMA as LAW_SCHEMA
from megatron_kis.analysis.law.law import Law
from megatron_kis.analysis.law.prediction import SCHEMA as PREDICTION_SCHEMA
from megatron_kis.analysis.law.prediction import Prediction, prediction_record
from megatron_kis.analysis.report import report
from megatron_kis.analysis.runs.curves import write_curves_csv
from megatron_kis.analysis.runs.load import load_runs
from megatron_kis.analysis.runs.load_csv import write_points_csv
from megatron_kis.common.errors import InputError
from megatron_kis.common.files import read_json, write_json
from megatron_kis.config.analysis import AnalysisConfig


def analyse_study(
    study_dir: Path,
    settings: AnalysisConfig | None = None,
    *,
    predict_params: Sequence[float] = (),
    predict_tokens: float | None = None,
    now: datetime | None = None,
    belongs: Mapping[str, Any] | None = None,
) -> AnalysisResult:
    """Analyses ``study_dir/runs`` and writes curves.csv, points.csv, law.json, prediction.json and report.html there.

    Each file is written atomically. prediction.json is left alone where it already has the same predictions, so that
    its date stays the day they were first made.

    Args:
        study_dir: the study's folder.
        settings: the analysis' settings; those that study.yaml declares if None.
        predict_params: sizes N to predict for.
        predict_tokens: token budget D of these predictions; the largest of each law if None.
        now: date of the predictions.
        belongs: which runs are the study's, as for `load_runs`.

    Raises:
        InputError: no complete run, or data that contradict each other.
    """
    study_dir = Path(study_dir)
    settings = with_looks(settings, study_dir) if settings else declared_settings(study_dir)
    description = study_description(study_dir)
    result = analyse(
        load_runs(study_dir, belongs),
        settings,
        predict_params=predict_params,
        predict_tokens=predict_tokens,
        title=str(description.get("title") or description.get("name") or study_dir.resolve().name),
        study=description,
    )
    assert result.curves is not None
    write_curves_csv(result.curves, study_dir / "curves.csv")
    write_points_csv(result.points, study_dir / "points.csv")
    write_json(study_dir / "law.json", law_record(result.laws, result.refused))
    write_predictions(result.predictions, study_dir / "prediction.json", now=now)
    report(with_sensitivity(result), study_dir / "report.html")
    return result


def law_record(laws: Sequence[Law], refused: Iterable[dict[str, str]]) -> dict[str, Any]:
    """Returns the content of law.json: the first law at the top, all under ``laws``, refusals under ``refused``."""
    if laws:
        top = laws[0].record()
    else:
        none = dict.fromkeys(("a", "b_log_params", "c_log_tokens"))
        top = {"schema": LAW_SCHEMA, "selected_law": None, "coefficients": none, "sigma": None}
    return top | {"laws": [law.record() for law in laws], "refused": list(refused)}


def write_predictions(predictions: Sequence[Prediction], path: Path, *, now: datetime | None = None) -> None:
    """Writes dated, hashed predictions, unless the file already has exactly these."""
    records = [prediction_record(prediction, now) for prediction in predictions]
    if path.is_file():
        try:
            before = read_json(path, PREDICTION_SCHEMA).get("predictions")
        except InputError:
            before = None
        if isinstance(before, list) and [_undated(item) for item in before] == [_undated(item) for item in records]:
            return
    write_json(path, {"schema": PREDICTION_SCHEMA, "predictions": records})


def _undated(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in json.loads(json.dumps(record)).items() if key not in ("created", "hash")}
