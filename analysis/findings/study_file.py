"""Declarations in the files of a study: its title, the settings of its analysis, the sizes that it predicts for."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from megatron_kis.analysis.findings.looks import looked
from megatron_kis.analysis.law.prediction import SCHEMA, load_predictions
from megatron_kis.common.configuration import parse_config
from megatron_kis.common.errors import InputError
from megatron_kis.common.files import read_json, read_text
from megatron_kis.common.parsing import parse_yaml
from megatron_kis.config.analysis import SECTION, AnalysisConfig

STUDY_FILE = "study.yaml"


def study_description(study_dir: Path) -> dict[str, Any]:
    """Returns the content of ``study.yaml``; empty where it is absent or not a mapping.

    Raises:
        InputError: it cannot be read, is not YAML, or has a key twice.
    """
    path = study_dir / STUDY_FILE
    if not path.is_file():
        return {}
    content = parse_yaml(read_text(path), where=str(path))
    return content if isinstance(content, dict) else {}


def declared_settings(folder: Path, **overrides: Any) -> AnalysisConfig:
    """Returns the settings that a study declared before its data were seen, with the looks that were counted since.

    Args:
        folder: the study's folder or its ``runs`` folder; without a ``study.yaml`` the defaults apply.
        overrides: settings that replace the declared ones.

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
    for place in (folder, folder.parent):
        declared = with_looks(declared, place)
    return AnalysisConfig(**(declared.model_dump() | overrides)) if overrides else declared


def with_looks(settings: AnalysisConfig, study_dir: Path) -> AnalysisConfig:
    """Returns settings with at least the looks that were counted in a study's folder (`findings.looks`)."""
    counted = looked(study_dir)
    return settings.model_copy(update={"looked": counted}) if counted > settings.looked else settings


def predicted_before(study_dir: Path) -> tuple[list[float], float | None]:
    """Returns the sizes that a study's ``prediction.json`` already predicts for, and the budget if it is only one."""
    path = study_dir / "prediction.json"
    there = path.is_file() and read_json(path, SCHEMA).get("predictions") != []  # empty where no law could be fitted
    items = load_predictions(path) if there else []
    budgets = {float(item["tokens"]) for item in items}
    return sorted({float(item["params"]) for item in items}), budgets.pop() if len(budgets) == 1 else None
