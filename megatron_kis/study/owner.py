"""The study to which an output folder belongs: every command refuses the folder of another study.

A study that was renamed is still the same. Its runs are there with the same settings, and its data are made from the
same sources in the same way; or nothing was trained yet, and the folder names the same runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megatron_kis.common.errors import InputError, first_of
from megatron_kis.common.files import read_json
from megatron_kis.common.identity import RUN_FILE, RUN_SCHEMA, STUDY_FILE, STUDY_SCHEMA
from megatron_kis.common.units import plural
from megatron_kis.config.run import RunConfig
from megatron_kis.config.study import StudyConfig
from megatron_kis.executor.slurm.records import STUDY, submission_folder, submitted
from megatron_kis.study.conflicts import begun, foreign_settings, newest_identity, unnamed
from megatron_kis.study.manifest import FILES, other_data_settings, read_resolved
from megatron_kis.training.record import config_fingerprint, result_settings, setting_differences

_SHOWN = 3  # differences


def check_owner(study: StudyConfig, runs: Sequence[RunConfig]) -> None:
    """Refuses an output folder that belongs to another study.

    Args:
        study: the study.
        runs: its runs, done or not.

    Raises:
        InputError: the folder holds another study, which is named, with the differences.
    """
    owner, planned = _owner(study)
    if not owner or owner == study.name:
        return
    mine = [run for run in runs if begun(run.output)]
    others = len(unnamed(study, runs))
    differs = other_data(study)
    if differs:
        said = f"its data were made with other settings: {first_of(differs, _SHOWN)}"
    elif mine:
        changed: list[str] = []
        for run in mine:
            changed = _changed(run)
            if not changed:
                return
        said = f"its runs have other settings: {first_of(changed, _SHOWN)}"
    elif others:
        said = f"with {plural(others, 'run')}, none of them this one's"
    elif {run.name for run in runs} & planned:
        return
    else:
        said = "whose runs are others"
    remedy = f"give each study an 'output' of its own; or, if this is that study, its name ({owner}) and settings"
    raise InputError(f"holds another study, {owner!r}, {said}", where=f"output: {study.output}", remedy=remedy)


def other_data(study: StudyConfig) -> list[str]:
    """Returns ``data.key then -> now`` where the data in a study's folder are made otherwise than the study says.

    Files at other places with the same content are the same.

    Raises:
        InputError: the folder's ``study.yaml`` cannot be read.
    """
    changed = other_data_settings(study)
    if not changed or other_data_settings(study, but=FILES) or not _as_made(study):
        return changed
    return []


def _as_made(study: StudyConfig) -> bool:
    """Returns whether the present data are made from the files that the study names now: the same, at other places."""
    from megatron_kis.data_tools.preparation.prepare import stale

    try:
        return not stale(study.data, study.output / "data")
    except InputError:  # a file that is not there
        return False


def _owner(study: StudyConfig) -> tuple[str, set[str]]:
    """Returns the name of the study that the folder was made for, empty if it does not say, and its runs by name."""
    try:
        content = read_json(study.output / STUDY_FILE, STUDY_SCHEMA)
        if name := _text(content.get("study")):
            rows = content.get("runs")
            return name, {row[0] for row in rows if isinstance(row, list) and row} if isinstance(rows, list) else set()
    except InputError:
        pass
    try:
        if name := _text(read_resolved(study.output).get("name")):
            return name, set()
    except InputError:
        return "", set()
    return _submitted(study), set()


def _submitted(study: StudyConfig) -> str:
    """Returns the name of the study whose jobs were submitted last."""
    numbers = sorted({job.submission for job in submitted(study.output)})
    for number in reversed(numbers):
        folder = submission_folder(study.output, number)
        try:
            return _text(read_resolved(folder).get("name")) if (folder / STUDY).is_file() else ""
        except InputError:
            continue
    return ""


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _changed(run: RunConfig) -> list[str]:
    """Returns how a run that was begun in the folder differs from the study's; nothing if that is not known."""
    try:
        if (run.output / RUN_FILE).is_file():
            return foreign_settings(run, read_json(run.output / RUN_FILE, RUN_SCHEMA))
    except InputError:
        return []
    identity = newest_identity(run.output)
    if not identity or identity.get("config") == config_fingerprint(run):
        return []
    then = identity.get("settings")
    return setting_differences(then, result_settings(run)) if isinstance(then, dict) else ["settings"]
