"""Resuming from a checkpoint: what must be the same, and which records of later steps are removed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_kis.checkpoint.folders import Checkpoint
from megatron_kis.common.errors import InputError
from megatron_kis.common.files import fingerprint
from megatron_kis.common.identity import QUESTIONS, changed_data, data_differences, differences
from megatron_kis.config.run import RunConfig
from megatron_kis.training.record import config_fingerprint, result_settings, setting_differences

_REMEDY = "restore what it was trained with, choose another output, or begin again with --restart"


def identity(config: RunConfig, *, plan: dict[str, Any], data: dict[str, str], precision: str) -> dict[str, Any]:
    """Returns what a checkpoint and the run that resumes from it must share.

    Args:
        config: the run's configuration.
        plan: the plan's identity.
        data: fingerprints of the data by name.
        precision: precision of the weights.
    """
    return {
        "config": config_fingerprint(config),
        "settings": result_settings(config),
        "plan": fingerprint(plan),
        "plan_identity": plan,
        "data": data,
        "precision": precision,
    }


def check_same_run(checkpoint: Checkpoint, now: dict[str, Any], *, model_sha256: str | None = None) -> None:
    """Refuses to resume with other data, another plan, other settings or another precision.

    Args:
        checkpoint: checkpoint from which a run is to resume.
        now: identity of the run.
        model_sha256: hash of the tokenizer's model file, which is an older checkpoint's fingerprint of it.

    Raises:
        InputError: they differ; with both fingerprints, and the keys that differ.
    """
    then = checkpoint.manifest["identity"]
    changed = changed_data(then["data"], now["data"], model_sha256=model_sha256)
    if changed:
        first = changed[0]
        all_changed = data_differences(then["data"], now["data"], model_sha256=model_sha256)
        which = ", ".join(all_changed) if len(changed) > 1 else ""
        _compare(checkpoint, f"on another {first}", then["data"].get(first), now["data"].get(first), which)
    asked = (then["data"].get(QUESTIONS), now["data"].get(QUESTIONS))
    if asked[0] is not None:  # of an older version, which kept no questions to resume with (``artifacts.as_begun``)
        _compare(checkpoint, "and asked other questions", *asked)
    precisions = then["precision"], now["precision"]
    settings = setting_differences(then["settings"], now["settings"], precision=precisions)
    if settings:
        _compare(checkpoint, "with other settings", then["config"], now["config"], ", ".join(settings))
    plan = ", ".join(differences(then["plan_identity"], now["plan_identity"]))
    _compare(checkpoint, "with another exposure plan", then["plan"], now["plan"], plan)
    _compare(checkpoint, "in another precision", then["precision"], now["precision"])


def _compare(checkpoint: Checkpoint, how: str, then: str | None, now: str | None, keys: str = "") -> None:
    if then == now:
        return
    detail = f": {keys}" if keys else ""
    raise InputError(
        f"this run was trained {how} up to step {checkpoint.step} (checkpoint {str(then)[:16]}, now {str(now)[:16]})"
        + detail,
        where=str(checkpoint.folder),
        remedy=_REMEDY,
    )


def outcomes_of(folder: Path) -> dict[int, Path]:
    """Finds the files of probes' outcomes in a folder, by step."""
    numbers = {path: path.stem.removeprefix("step-") for path in folder.glob("step-*.npz")}
    return {int(number): path for path, number in numbers.items() if number.isdecimal()}


def remove_later_outcomes(folder: Path, step: int) -> None:
    """Removes outcomes of probes after ``step``, which the resumed run writes again."""
    for at, path in outcomes_of(folder).items():
        if at > step:
            path.unlink()
