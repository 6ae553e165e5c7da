"""The resolved study as a file, in its output folder and in that of a submission; and how the data differ from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from megatron_kis.common.configuration import as_content, file_base
from megatron_kis.common.files import read_text, write_text
from megatron_kis.common.identity import leaves, within
from megatron_kis.common.parsing import parse_yaml
from megatron_kis.common.paths import Moved, placed
from megatron_kis.config.study import StudyConfig

FILE = "study.yaml"
"""In the study's output folder."""

FILES = ("data.text", "data.facts", "data.templates", "data.tokenizer")
"""Settings that name files, which count by their content."""


def write_study(study: StudyConfig, path: Path) -> None:
    """Writes the resolved study; see ``study_content``."""
    write_text(path, yaml.safe_dump(study_content(study, path.parent), sort_keys=False))


def study_content(study: StudyConfig, folder: Path) -> dict[str, Any]:
    """The resolved study as a file in ``folder`` says it: relative paths begin there.

    What is in the study's own folder is named relative to it, however the study names it, so that the folder can be
    moved and copied. Other absolute paths stay.
    """
    return as_content(study, folder, within=study.output)


def read_resolved(output: Path) -> dict[str, Any]:
    """What ``study.yaml`` of an output folder says; nothing where there is none, or it is no mapping.

    Raises:
        InputError: it cannot be read, is no YAML, or has a key twice.
    """
    path = output / FILE
    content = parse_yaml(read_text(path), where=str(path)) if path.is_file() else None
    return content if isinstance(content, dict) else {}


def other_data_settings(study: StudyConfig, *, but: tuple[str, ...] = ()) -> list[str]:
    """``data.key then -> now`` of the settings of the data that differ from those that the study was last run with.

    What was not written down then, because the setting came later, is not compared.

    Args:
        study: the study.
        but: keys that may differ, such as ``FILES``.

    Raises:
        InputError: as ``read_resolved``.
    """
    content = read_resolved(study.output)
    section, base = content.get("data"), file_base(study.output / FILE, content)
    then, now = dict(leaves(section if isinstance(section, dict) else {})), dict(leaves(study.data.model_dump()))
    return [
        f"data.{key} {_shown(then[key])} -> {_shown(value)}"
        for key, value in now.items()
        if key in then
        and not within(f"data.{key}", but)
        and _placed(then[key], value, base) != _placed(value, value, None)
    ]


def _placed(value: Any, like: Any, base: Path | Moved | None) -> Any:
    """A value of a file in ``base``, with its paths as absolute ones; ``like`` tells what is a path."""
    if isinstance(like, list | tuple) and isinstance(value, list | tuple):
        return [_placed(item, like[0] if like else None, base) for item in value]
    if isinstance(like, Path) and isinstance(value, str | Path):
        return placed(value, base).resolve()
    return value


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "none" if value is None else str(value)
