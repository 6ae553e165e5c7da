"""``study.json``: which runs belong to a study, and with what settings and data they were, or will be, made.

The analysis counts these runs alone (``runs.membership``). For ten thousand runs the file stays small: settings
that runs share are written once, and each run is one line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_kis.common.files import read_json, write_text
from megatron_kis.common.identity import CELL, DATA, OLDER_TOKENIZER, STUDY_FILE, STUDY_SCHEMA, settings_of
from megatron_kis.config.run import RunConfig


def manifest_of(study_name: str, runs: Sequence[RunConfig], fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """The content of ``study.json``.

    Args:
        study_name: name of the study.
        runs: all runs of the study, done or not.
        fingerprints: of the study's data (``identity.DATA``); what is missing or empty is not known yet.
    """
    settings: dict[str, int] = {}
    rows = []
    for run in runs:
        shared = settings_of(run.model_dump(mode="json", exclude=_APART))
        number = settings.setdefault(json.dumps(shared, sort_keys=True), len(settings))
        rows.append([run.name, number, run.training.token_budget, run.infusion.frequency, run.training.seed])
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
    """Fingerprints of a study's data, as its ``study.json`` has them; none where there is no such file.

    Raises:
        InputError: the file is damaged.
    """
    path = output / STUDY_FILE
    if not path.is_file():
        return {}
    data = read_json(path, STUDY_SCHEMA, keys=("data",))["data"]
    return {str(name): str(value) for name, value in data.items()} if isinstance(data, dict) else {}


def _apart() -> dict[str, Any]:
    """``identity.CELL`` as pydantic's ``exclude`` wants it."""
    tree: dict[str, Any] = {}
    for key in CELL:
        *path, last = key.split(".")
        place = tree
        for part in path:
            place = place.setdefault(part, {})
        place[last] = True
    return tree


_APART = _apart()
