"""The resolved study as a file: in its output folder, and in the folder of a submission."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from megatron_kis.files import write_text
from megatron_kis.settings import as_content
from megatron_kis.study.config import StudyConfig


def write_study(study: StudyConfig, path: Path) -> None:
    """Writes the resolved study; see ``study_content``."""
    write_text(path, yaml.safe_dump(study_content(study, path.parent), sort_keys=False))


def study_content(study: StudyConfig, folder: Path) -> dict[str, Any]:
    """The resolved study as a file in ``folder`` says it: relative paths begin there.

    What lies in the study's own folder is named relative to it, however the study names it, so that the folder can be
    moved and copied. Other absolute paths stay.
    """
    changed = {"output": _inside(study.output, study.output), "data": _inside(study.data, study.output)}
    return as_content(study.model_copy(update=changed), folder)


def _inside(value: Any, output: Path) -> Any:
    """A value with the absolute paths in it that lie in ``output`` as relative ones, from the current folder."""
    if isinstance(value, Path):
        place = value.resolve()
        own = value.is_absolute() and place.is_relative_to(output.resolve())
        return Path(os.path.relpath(place)) if own else value
    if isinstance(value, dict):
        return {key: _inside(item, output) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_inside(item, output) for item in value]
    return value
