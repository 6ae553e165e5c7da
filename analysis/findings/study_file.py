"""Declarations in the files of a study: its title, the settings of its analysis, the sizes that it predicts for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_kis.analysis.law.predict import load_predictions
from megatron_kis.common.files import read_text
from megatron_kis.common.parsing import parse_yaml
from megatron_kis.config.analysis import AnalysisSettings


def study_description(study_dir: Path) -> dict[str, Any]:
    """Returns the content of ``study.yaml``; empty where it is absent or not a mapping.

    Raises:
        InputError: it cannot be read, is not YAML, or has a key twice.
    """
    path = study_dir / "study.yaml"
    if not path.is_file():
        return {}
    content = parse_yaml(read_text(path), where=str(path))
    return content if isinstance(content, dict) else {}


def declared_settings(folder: Path, **overrides: Any) -> AnalysisSettings:
    """Returns the settings that a study declared before its data were seen.

    Keys of the ``analysis`` section of ``study.yaml`` that are not settings of the analysis are ignored.

    Args:
        folder: the study's folder or its ``runs`` folder; without a ``study.yaml`` the defaults apply.
        overrides: settings that replace the declared ones.
    """
    declared: dict[str, Any] = {}
    for place in (folder.parent, folder):
        section = study_description(place).get("analysis")
        if isinstance(section, dict):
            declared = {key: value for key, value in section.items() if key in AnalysisSettings.__dataclass_fields__}
    return AnalysisSettings.from_mapping(declared | overrides)


def predicted_before(study_dir: Path) -> tuple[list[float], float | None]:
    """Returns the sizes that a study's ``prediction.json`` already predicts for, and the budget if it is only one."""
    path = study_dir / "prediction.json"
    items = load_predictions(path) if path.is_file() else []
    budgets = {float(item["tokens"]) for item in items}
    return sorted({float(item["params"]) for item in items}), budgets.pop() if len(budgets) == 1 else None
