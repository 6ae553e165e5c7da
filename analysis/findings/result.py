"""A study's folder from its runs: curves.csv, points.csv, law.json, prediction.json and report.html."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from megatron_kis.analysis.criteria import Transition, find_transitions
from megatron_kis.analysis.law.fit import SCHEMA as LAW_SCHEMA
from megatron_kis.analysis.law.fit import Law, LawRefused, fit_law
from megatron_kis.analysis.law.predict import SCHEMA as PREDICTION_SCHEMA
from megatron_kis.analysis.law.predict import Prediction, load_predictions, predict, prediction_record
from megatron_kis.analysis.law.validate import Score, rolling_origin
from megatron_kis.analysis.runs.curves import Curve, curve_table, write_curves_csv
from megatron_kis.analysis.runs.curves import curves as all_curves
from megatron_kis.analysis.runs.load import Runs, load_runs
from megatron_kis.analysis.runs.load_csv import write_points_csv
from megatron_kis.common.configuration import parse_config
from megatron_kis.common.errors import InputError
from megatron_kis.common.files import read_json, read_text, write_json
from megatron_kis.common.parsing import parse_yaml
from megatron_kis.config.analysis import SECTION, AnalysisConfig

STUDY_FILE = "study.yaml"

# The law at the top of law.json is the first of these that could be fitted: the paper's collapse point before its
# companions. The order is fixed here, before any data are seen.
LAW_ORDER = (("collapse", "infused"), ("collapse", "background"), ("tolerance", "general"), ("onset", "infused"))


@dataclass(frozen=True)
class AnalysisResult:
    """Everything the report shows. Parts that the input does not hold are None or empty."""

    settings: AnalysisConfig
    runs: Runs | None
    curves: pd.DataFrame | None
    points: list[Transition]
    laws: list[Law]
    refused: list[dict[str, str]]
    """Laws that the points cannot support: kind, group, code, reason."""
    predictions: list[Prediction]
    rolling: dict[tuple[str, str], list[Score]] = field(default_factory=dict)
    """Of each law's kind and group: how the study would have foretold its own larger N and D."""
    title: str = "Knowledge-infusion study"
    study: dict[str, Any] = field(default_factory=dict)
    """What study.yaml says, where there is one."""

    @property
    def law(self) -> Law | None:
        """The law at the top of law.json."""
        return self.laws[0] if self.laws else None


def fit_laws(
    points: Sequence[Transition], settings: AnalysisConfig | None = None, curves: pd.DataFrame | None = None
) -> tuple[list[Law], list[dict[str, str]]]:
    """The laws of every kind and group the points hold, in their order, and the refusals.

    With the ``curves`` table the collapse laws by the hinge are bootstrapped through both stages; the other laws from
    the intervals of their points.
    """
    from megatron_kis.analysis.law.bootstrap import bootstrap_law
    from megatron_kis.analysis.law.bootstrap_points import bootstrap_points

    settings = settings or AnalysisConfig()
    laws, refused = [], []
    there = {(point.kind, point.group) for point in points}
    order = (
        sorted(LAW_ORDER, key=lambda key: key[0] != "tolerance") if settings.criterion == "general_loss" else LAW_ORDER
    )
    drawn: list[Curve] = []
    if curves is not None and settings.law_resamples and settings.criterion == "hinge":
        primary = curves[(curves["split"] == settings.split) & (curves["scoring"] == settings.scoring)]
        drawn = all_curves(primary)
    for kind, group in [*order, *sorted(there - set(order))]:
        if (kind, group) not in there:
            continue
        try:
            law = fit_law(points, kind, group, confidence=settings.confidence, law=settings.law)
            if drawn:
                law = bootstrap_law(law, drawn, points, settings, resamples=settings.law_resamples)
            if settings.law_resamples and law.calibration is None:
                law = bootstrap_points(law, points, settings, resamples=settings.law_resamples)
            laws.append(law)
        except LawRefused as error:
            refused.append({"kind": kind, "group": group, "code": error.code, "reason": str(error)})
    return laws, refused


def law_record(laws: Sequence[Law], refused: Iterable[dict[str, str]]) -> dict[str, Any]:
    """law.json: the first law at the top, all of them under ``laws``, the refusals under ``refused``."""
    if laws:
        top = laws[0].record()
    else:
        none = dict.fromkeys(("a", "b_log_params", "c_log_tokens"))
        top = {"schema": LAW_SCHEMA, "selected_law": None, "coefficients": none, "sigma": None}
    return top | {"laws": [law.record() for law in laws], "refused": list(refused)}


def analyse_points(
    points: list[Transition], settings: AnalysisConfig, *, predict_params: Sequence[float] = (),
    predict_tokens: float | None = None, runs: Runs | None = None, curves: pd.DataFrame | None = None,
    title: str = "Knowledge-infusion study", study: dict[str, Any] | None = None,
) -> AnalysisResult:  # fmt: skip
    """Laws and predictions from transitions.

    Without ``predict_tokens`` a prediction is for the largest budget of its law.
    """
    laws, refused = fit_laws(points, settings, curves)
    predictions = [
        predict(law, params, predict_tokens or law.range_tokens[1]) for law in laws for params in predict_params
    ]
    rolling = {
        (law.kind, law.group): rolling_origin(
            points, law.kind, law.group, confidence=settings.confidence, law=settings.law
        )
        for law in laws
    }
    return AnalysisResult(settings, runs, curves, points, laws, refused, predictions, rolling, title, study or {})


def analyse(
    data: Runs | pd.DataFrame, settings: AnalysisConfig | None = None, *, predict_params: Sequence[float] = (),
    predict_tokens: float | None = None, title: str = "Knowledge-infusion study", study: dict[str, Any] | None = None,
) -> AnalysisResult:  # fmt: skip
    """Transitions, laws and predictions from runs or a curve table. Writes nothing."""
    settings = settings or AnalysisConfig()
    runs = data if isinstance(data, Runs) else None
    table = curve_table(data) if isinstance(data, Runs) else data
    points = find_transitions(table, settings)
    return analyse_points(
        points, settings, predict_params=predict_params, predict_tokens=predict_tokens, runs=runs, curves=table,
        title=title, study=study,
    )  # fmt: skip


def analyse_study(
    study_dir: Path, settings: AnalysisConfig | None = None, *, predict_params: Sequence[float] = (),
    predict_tokens: float | None = None, now: datetime | None = None, belongs: Mapping[str, Any] | None = None,
) -> AnalysisResult:  # fmt: skip
    """Analyses ``study_dir/runs`` and writes curves.csv, points.csv, law.json, prediction.json and report.html there.

    ``settings`` are those that study.yaml declares if None. Each file is written atomically. prediction.json is kept
    as it is where it already holds the same predictions, so that its date stays the day they were first made.
    ``belongs`` says which runs are the study's, as for `load_runs`.

    Raises:
        InputError: no complete run, or data that contradict each other.
    """
    from megatron_kis.analysis.report import report

    study_dir = Path(study_dir)
    settings = settings or declared_settings(study_dir)
    described = study_description(study_dir)
    result = analyse(
        load_runs(study_dir, belongs), settings, predict_params=predict_params, predict_tokens=predict_tokens,
        title=str(described.get("title") or described.get("name") or study_dir.resolve().name), study=described,
    )  # fmt: skip
    assert result.curves is not None
    write_curves_csv(result.curves, study_dir / "curves.csv")
    write_points_csv(result.points, study_dir / "points.csv")
    write_json(study_dir / "law.json", law_record(result.laws, result.refused))
    write_predictions(result.predictions, study_dir / "prediction.json", now=now)
    report(result, study_dir / "report.html")
    return result


def write_predictions(predictions: Sequence[Prediction], path: Path, *, now: datetime | None = None) -> None:
    """Writes dated, hashed predictions, unless the file already holds exactly these."""
    records = [prediction_record(prediction, now) for prediction in predictions]
    if path.is_file():
        try:
            before = read_json(path, PREDICTION_SCHEMA).get("predictions")
        except InputError:
            before = None
        if isinstance(before, list) and [_timeless(item) for item in before] == [_timeless(item) for item in records]:
            return
    write_json(path, {"schema": PREDICTION_SCHEMA, "predictions": records})


def _timeless(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in json.loads(json.dumps(record)).items() if key not in ("created", "hash")}


def study_description(study_dir: Path) -> dict[str, Any]:
    """What ``study.yaml`` says, or nothing where it is absent or no mapping.

    Raises:
        InputError: it cannot be read, is no YAML, or has a key twice.
    """
    path = study_dir / STUDY_FILE
    if not path.is_file():
        return {}
    content = parse_yaml(read_text(path), where=str(path))
    return content if isinstance(content, dict) else {}


def declared_settings(folder: Path, **overrides: Any) -> AnalysisConfig:
    """The settings a study declared before its data were seen, for its folder or its ``runs`` folder.

    Args:
        folder: any folder; without a ``study.yaml`` the defaults hold.
        overrides: settings that take the place of the declared ones.

    Raises:
        InputError: an unknown key or a bad value.
    """
    declared = AnalysisConfig()
    for place in (folder, folder.parent):
        content = study_description(place)
        close = difflib.get_close_matches(SECTION, [str(key) for key in content], n=1, cutoff=0.8)
        if close and close[0] != SECTION:
            where = f"{place / STUDY_FILE}: {close[0]}"
            raise InputError("unknown key", where=where, remedy=f"did you mean {SECTION!r}?")
        if SECTION in content:
            source = str(place / STUDY_FILE)
            declared = parse_config(AnalysisConfig, content[SECTION], source=source, section=SECTION)
            break
    return AnalysisConfig(**(declared.model_dump() | overrides)) if overrides else declared


def predicted_before(study_dir: Path) -> tuple[list[float], float | None]:
    """The sizes, and the one budget if it is one, that a study's ``prediction.json`` already predicts for."""
    path = study_dir / "prediction.json"
    items = load_predictions(path) if path.is_file() else []
    budgets = {float(item["tokens"]) for item in items}
    return sorted({float(item["params"]) for item in items}), budgets.pop() if len(budgets) == 1 else None
