"""The resolved study as a file: in its output folder, and in the folder of a submission."""

from __future__ import annotations

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
    return as_content(study, folder, within=study.output)
