"""``study.json``: which runs belong to a study, with which settings and on which data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_kis.config import RunConfig
from megatron_kis.files import write_json
from megatron_kis.identity import CELL, DATA, leaves, settings_of, within


def write_manifest(
    output: Path, study_name: str, runs: Sequence[RunConfig], fingerprints: Mapping[str, str]
) -> None:
    """Writes ``study.json`` of a study, atomically."""
    settings: list[dict[str, Any]] = []
    rows = []
    for run in runs:
        own = {key: value for key, value in leaves(settings_of(run.model_dump(mode="json"))) if not within(key, CELL)}
        if own not in settings:
            settings.append(own)
        training = run.training
        rows.append([run.name, settings.index(own), training.token_budget, run.infusion.frequency, training.seed])
    data = {name: fingerprints[name] for name in DATA}
    content = {"schema": "kis.study/1", "study": study_name, "data": data, "settings": settings, "runs": rows}
    write_json(output / "study.json", content)
