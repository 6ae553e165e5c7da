"""Runs in a study's folder that conflict with the study: found before anything is trained, and named by key.

A run counts as done where its folder holds a complete run of the same settings, on the present data. Other complete
runs would be mixed with it, or would have to be trained over, and so they are listed and refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR
from typing import Any

from megatron_kis.common.errors import InputError, first_of, system_problem
from megatron_kis.common.files import read_json
from megatron_kis.common.identity import (
    ASKED,
    CHECKPOINT_FILE,
    CHECKPOINT_SCHEMA,
    RUN_FILE,
    RUN_SCHEMA,
    STUDY_FILE,
    data_differences,
    differences,
    settings_of,
)
from megatron_kis.common.paths import unwritable
from megatron_kis.common.units import plural
from megatron_kis.config.run import RunConfig
from megatron_kis.config.study import StudyConfig
from megatron_kis.training.record import config_fingerprint, result_settings, setting_differences

_SHOWN = 3  # names, and kinds of differences
_SHOWN_DIFFERENCES = 6  # of each kind
_KEPT = ("data", "runs")  # folders that a study replaces or removes
_REMEDY = "restore the settings, choose another output, or move those runs away"


@dataclass(frozen=True)
class Conflict:
    """A folder that holds another run than the study's."""

    name: str
    """Name of the run."""

    kind: str
    """Kind of the difference: ``other settings``, ``other data`` or ``checkpoints of other settings``."""

    differences: tuple[str, ...]
    """The differences, as ``key then -> now``."""


def foreign_settings(run: RunConfig, record: Mapping[str, Any]) -> list[str]:
    """Returns how the settings of a recorded run differ from the study's; nothing if they do not.

    Args:
        run: run of the study.
        record: content of ``run.json`` in its folder.
    """
    if record.get("config_fingerprint") == config_fingerprint(run):
        return []
    config = record.get("config")
    if not isinstance(config, dict):
        return ["its settings are not recorded"]
    return differences(settings_of(config), result_settings(run), but=ASKED)


def conflicts(
    runs: Iterable[RunConfig],
    data: Mapping[Path | None, Mapping[str, str]] | None = None,
    *,
    model_sha256: str | None = None,
) -> list[Conflict]:
    """Returns the complete runs that have other settings, or were trained on other data.

    Args:
        runs: runs of the study; those that are not complete are skipped.
        data: fingerprints of the present data, by the runs' start (``model.init_from``); not compared if not given.
        model_sha256: hash of the tokenizer's model file, which an older record has as the tokenizer's fingerprint.

    Raises:
        InputError: a complete run whose record cannot be read.
    """
    found = []
    for run in runs:
        if not (run.output / "DONE").exists():
            continue
        record = read_json(run.output / RUN_FILE, RUN_SCHEMA, keys=("config_fingerprint", "fingerprints"))
        if changed := foreign_settings(run, record):
            found.append(Conflict(run.name, "other settings", tuple(changed)))
        elif data is not None:
            now = data[run.model.init_from]
            then = {name: record["fingerprints"].get(name) for name in now}
            if changed := data_differences(then, now, model_sha256=model_sha256):
                found.append(Conflict(run.name, "other data", tuple(changed)))
    return found


def unfinished_conflicts(runs: Iterable[RunConfig]) -> list[Conflict]:
    """Returns the unfinished runs whose checkpoints are of other settings, so that they cannot be resumed."""
    found = []
    for run in runs:
        identity = None if (run.output / "DONE").exists() else newest_identity(run.output)
        if not identity or identity.get("config") == config_fingerprint(run):
            continue  # kis train says what is wrong with a damaged one
        then = identity.get("settings")
        if changed := setting_differences(then, result_settings(run)) if isinstance(then, dict) else []:
            found.append(Conflict(run.name, "checkpoints of other settings", tuple(changed)))
    return found


def refuse(output: Path, found: Sequence[Conflict]) -> None:
    """Refuses a study while runs conflict with it.

    Args:
        output: folder of the study.
        found: the conflicts.

    Raises:
        InputError: how many there are, what differs by key, and the first by name.
    """
    if not found:
        return
    groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for conflict in found:
        groups.setdefault((conflict.kind, conflict.differences), []).append(conflict.name)
    parts = []
    for (kind, changed), names in list(groups.items())[:_SHOWN]:
        state = "unfinished" if kind.startswith("checkpoints") else "complete"
        have = ("have" if len(names) > 1 else "has") if kind != "other data" else "used"
        who = f"{plural(len(names), f'{state} run')} {have} {kind}"
        parts.append(f"{who}: {first_of(changed, _SHOWN_DIFFERENCES)} ({'first ' if len(names) > 1 else ''}{names[0]})")
    if len(groups) > _SHOWN:
        rest = sum(len(names) for names in list(groups.values())[_SHOWN:])
        parts.append(f"{rest:,} more differ otherwise")
    remedy = _REMEDY
    if all(conflict.kind.startswith("checkpoints") for conflict in found):
        remedy = "restore the settings, choose another output, or begin them again with --restart"
    raise InputError("; ".join(parts), where=str(output / "runs"), remedy=remedy)


def check_output(output: Path) -> None:
    """Refuses an output folder that cannot be made.

    Raises:
        InputError: it, or a folder above it, is a file; it is where another study keeps its data or runs; a name is too
            long; or nothing can be made in the folder.
    """
    for place in (output, *output.absolute().parents):
        if place.name in _KEPT and (place.absolute().parent / STUDY_FILE).exists():
            problem = f"is in the folder of another study, {place.absolute().parent}"
            raise InputError(problem, where=f"output: {output}", remedy="choose another output")
    for place in (output, *output.absolute().parents):
        try:
            folder = S_ISDIR(place.stat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise InputError(system_problem(error), where=f"output: {place}", remedy="choose another output") from None
        if not folder:
            problem = "is a file, not a folder"
            raise InputError(problem, where=f"output: {place}", remedy="choose another output")
        if place != output and (reason := unwritable(place)):
            raise InputError(f"cannot be made ({reason})", where=f"output: {output}", remedy="choose another output")
        return


def unnamed(study: StudyConfig, runs: Iterable[RunConfig]) -> list[str]:
    """Returns the runs in the study's folder that the study does not name."""
    try:
        names = set(os.listdir(study.runs_folder))  # noqa: PTH208 - names alone, for tens of thousands of folders
    except OSError:
        return []
    others = names - {run.output.name for run in runs}
    return sorted(name for name in others if not name.startswith(".") and begun(study.runs_folder / name))


def unnamed_line(study: StudyConfig, runs: Iterable[RunConfig]) -> str:
    """Returns a line about the runs that the study does not name; empty where there are none."""
    names = unnamed(study, runs)
    if not names:
        return ""
    count = plural(len(names), "run")
    where = f"{count} in {study.runs_folder} that the study does not name"
    return f"{where}: kept, and not analysed ({first_of(names, _SHOWN)})"


def newest_checkpoint(folder: Path) -> Path | None:
    """Returns the folder of a run's newest checkpoint; None where there is none."""
    checkpoints = _checkpoints(folder)
    return max(checkpoints, key=lambda path: checkpoints[path], default=None)


def saved_steps(run: RunConfig) -> int:
    """Returns the steps of a run that need not be repeated: those of its newest checkpoint, or all."""
    if (run.output / "DONE").exists():
        return run.training.steps
    return max(_checkpoints(run.output).values(), default=0)


def _checkpoints(folder: Path) -> dict[Path, int]:
    """Returns the folders of a run's checkpoints, each with its step."""
    folders = (folder / "checkpoints").glob("step-*")
    return {path: int(match[1]) for path in folders if (match := re.fullmatch(r"step-(\d+)", path.name))}


def newest_identity(folder: Path) -> dict[str, Any] | None:
    """Returns the identity in a run's newest checkpoint; None where there is none, empty where it is damaged."""
    newest = newest_checkpoint(folder)
    if newest is None:
        return None
    try:
        identity = read_json(newest / CHECKPOINT_FILE, CHECKPOINT_SCHEMA).get("identity")
    except InputError:
        return {}
    return identity if isinstance(identity, dict) else {}


def begun(folder: Path) -> bool:
    """Tells whether a run was begun in a folder."""
    return any((folder / mark).exists() for mark in (RUN_FILE, "DONE", "checkpoints", "metrics.jsonl"))
