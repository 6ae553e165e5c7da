"""The files that say what a study is: ``study.json``, its runs and data, and ``study.yaml``, its resolved settings.

``study.json`` says which runs belong to a study, and with what settings and data they were, or will be, made. The
analysis counts these runs alone (``runs.membership``). For ten thousand runs the file stays small: settings that runs
share are written once, and each run is one line. ``study.yaml`` is in the study's folder and in that of a submission.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from megatron_kis.common.configuration import as_content, file_base
from megatron_kis.common.files import read_json, read_text, write_text
from megatron_kis.common.identity import (
    CELL,
    DATA,
    OLDER_TOKENIZER,
    STUDY_FILE,
    STUDY_SCHEMA,
    leaves,
    settings_of,
    within,
)
from megatron_kis.common.parsing import parse_yaml
from megatron_kis.common.paths import Moved, placed
from megatron_kis.config.run import RunConfig
from megatron_kis.config.study import StudyConfig

FILE = "study.yaml"
"""Name of the resolved study in its output folder."""

FILES = ("data.text", "data.facts", "data.templates", "data.tokenizer")
"""Settings that name files, which count by their content."""


QUESTIONS = ("data.templates", "data.select.distractors")
"""Settings of the data that may make other questions, and nothing that a run is trained on."""


def manifest_of(study_name: str, runs: Sequence[RunConfig], fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """Returns the content of ``study.json``.

    Args:
        study_name: name of the study.
        runs: all runs of the study, done or not.
        fingerprints: fingerprints of the study's data (``identity.DATA``); those not known yet are missing or empty.
    """
    settings: dict[str, int] = {}
    rows = []
    for run in runs:
        shared = settings_of(run.model_dump(mode="json", exclude=_APART))
        number = settings.setdefault(json.dumps(shared, sort_keys=True), len(settings))
        infusion = run.infusion
        row = [run.name, number, run.training.token_budget, infusion.frequency, run.training.seed]
        more = [infusion.facts, infusion.ratio]
        rows.append(row if more == [None, None] else row + more)
    return {
        "schema": STUDY_SCHEMA,
        "study": study_name,
        "data": {name: fingerprints[name] for name in (*DATA, OLDER_TOKENIZER) if fingerprints.get(name)},
        "settings": [json.loads(text) for text in settings],
        "runs": rows,
    }


def write_manifest(output: Path, study_name: str, runs: Sequence[RunConfig], fingerprints: Mapping[str, str]) -> None:
    """Writes ``study.json`` into the study's folder, atomically; the arguments are those of ``manifest_of``."""
    content = manifest_of(study_name, runs, fingerprints)
    rows = [json.dumps(row, ensure_ascii=False) for row in content.pop("runs")]
    head = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False).removesuffix("\n}")
    write_text(output / STUDY_FILE, f'{head},\n "runs": [\n  ' + ",\n  ".join(rows) + "\n ]\n}\n")


def data_fingerprints(output: Path) -> dict[str, str]:
    """Returns the fingerprints of a study's data from its ``study.json``; none where there is no such file.

    Raises:
        InputError: the file is damaged.
    """
    path = output / STUDY_FILE
    if not path.is_file():
        return {}
    data = read_json(path, STUDY_SCHEMA, keys=("data",))["data"]
    return {str(name): str(value) for name, value in data.items()} if isinstance(data, dict) else {}


def write_study(study: StudyConfig, path: Path) -> None:
    """Writes the resolved study; see ``study_content``."""
    write_text(path, yaml.safe_dump(study_content(study, path.parent), sort_keys=False))


def study_content(study: StudyConfig, folder: Path) -> dict[str, Any]:
    """Returns the resolved study for a file in ``folder``: relative paths begin there.

    Paths within the study's own folder become relative, however the study names them, so that the folder can be moved
    and copied; so do the sources that the study file names relatively, and that are moved together with both. Other
    absolute paths stay.
    """
    return as_content(study, folder, within=study.output, as_read=True)


def read_resolved(output: Path) -> dict[str, Any]:
    """Returns the content of an output folder's ``study.yaml``; empty where there is none, or it is no mapping.

    Raises:
        InputError: it cannot be read, is no YAML, or has a key twice.
    """
    path = output / FILE
    content = parse_yaml(read_text(path), where=str(path)) if path.is_file() else None
    return content if isinstance(content, dict) else {}


def other_data_settings(study: StudyConfig, *, but: tuple[str, ...] = ()) -> list[str]:
    """Returns ``data.key then -> now`` for each setting of the data that differs from when the study was last run.

    Settings that did not exist then are not compared.

    Args:
        study: the study.
        but: keys that may differ, such as ``FILES``.

    Raises:
        InputError: as ``read_resolved``.
    """
    content = read_resolved(study.output)
    section = content.get("data")
    base = file_base(study.output / FILE, content)
    then = dict(leaves(section if isinstance(section, dict) else {}))
    now = dict(leaves(study.data.model_dump()))
    return [
        f"data.{key} {_shown(then[key])} -> {_shown(value)}"
        for key, value in now.items()
        if key in then
        and not within(f"data.{key}", but)
        and _placed(then[key], value, base) != _placed(value, value, None)
    ]


def _apart() -> dict[str, Any]:
    """Returns ``identity.CELL`` in the form of pydantic's ``exclude``."""
    tree: dict[str, Any] = {}
    for key in CELL:
        *path, last = key.split(".")
        branch = tree
        for part in path:
            branch = branch.setdefault(part, {})
        branch[last] = True
    return tree


def _placed(value: Any, like: Any, base: Path | Moved | None) -> Any:
    """Returns a value of a file in ``base`` with absolute paths; ``like`` tells what is a path."""
    if isinstance(like, list | tuple) and isinstance(value, list | tuple):
        return [_placed(item, like[0] if like else None, base) for item in value]
    if isinstance(like, Path) and isinstance(value, str | Path):
        return placed(value, base).resolve()
    return value


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "none" if value is None else str(value)


_APART = _apart()
