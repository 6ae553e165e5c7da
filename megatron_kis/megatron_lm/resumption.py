"""What a run under Megatron-LM keeps next to each of its checkpoints: the plan, and the count of exposures up to there.

``<save>/kis/iter_0000500.json`` is written after Megatron-LM has saved iteration 500. A run that resumes from that
iteration needs the file, and is refused if its plan, its data or its settings are others.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_kis.checkpoint.folders import Checkpoint
from megatron_kis.common.errors import InputError
from megatron_kis.common.files import read_json, write_json
from megatron_kis.common.identity import data_differences, differences
from megatron_kis.megatron_lm.beyond import flag_of
from megatron_kis.training.record import setting_differences

SCHEMA = "kis.megatron/1"
_KEYS = ("step", "sequences", "identity", "state", "skipped", "ledger", "elapsed", "logs", "sessions")
_IDENTITY = ("settings", "data", "plan_identity", "precision")


def file_of(folder: Path | str, iteration: int) -> Path:
    """Returns the file that belongs to an iteration's checkpoint in a folder of ``--save`` or ``--load``."""
    return Path(folder) / "kis" / f"iter_{iteration:07d}.json"


def _read(path: Path) -> dict[str, Any]:
    content = read_json(path, SCHEMA, keys=_KEYS)
    known = content["identity"] if isinstance(content["identity"], dict) else {}
    if missing := [key for key in _IDENTITY if key not in known]:
        raise InputError(f"identity.{missing[0]} is missing", where=str(path), remedy="restore the file")
    return content


def write_progress(args: argparse.Namespace, iteration: int, content: Mapping[str, Any]) -> None:
    """Writes the file of an iteration that Megatron-LM has saved."""
    write_json(file_of(args.save, iteration), {"schema": SCHEMA, "step": iteration, "files": {}, **content})


def start_of(args: argparse.Namespace) -> tuple[str, str] | None:
    """Returns the argument that loads weights and the checkpoint that a run began with; None for random weights.

    A run that is resumed began with what the checkpoint's file says.

    Args:
        args: Megatron-LM's arguments, after the model was loaded.
    """
    if args.iteration:
        path = file_of(args.load, args.iteration)
        settings = _read(path)["identity"]["settings"] if path.is_file() else {}
        found: str | None = settings.get("megatron_lm", {}).get("start")
        return ("--load", found) if found else None
    for name in ("load", "pretrained_checkpoint"):
        folder = getattr(args, name, None)
        if folder and (Path(folder) / "latest_checkpointed_iteration.txt").is_file():
            return flag_of(name), str(Path(folder).absolute())
    return None


def read_progress(args: argparse.Namespace, identity: Mapping[str, Any]) -> Checkpoint | None:
    """Returns what was kept with the checkpoint that Megatron-LM has loaded; None if training begins.

    Args:
        args: Megatron-LM's arguments, after the model was loaded.
        identity: the run's plan, data, settings and precision (``training.resume.identity``).

    Raises:
        InputError: the checkpoint has no such file, or belongs to another run; names ``--load``.
    """
    if not args.iteration:
        return None
    path = file_of(args.load, args.iteration)
    otherwise = "or begin a new run: without --load, in a folder of its own"
    if args.kis_run is None:
        otherwise = "or begin again from its weights with --finetune"
    where = f"--load {args.load}"
    if not path.is_file():
        raise InputError(
            f"iteration {args.iteration} was saved without an exposure plan ({path} is not there)",
            where=where,
            remedy=f"restore the file, {otherwise}",
        )
    manifest = _read(path)
    then = manifest["identity"]
    settings = setting_differences(then["settings"], identity["settings"])
    for what, changed in (
        ("on other data", data_differences(then["data"], identity["data"])),
        ("with another exposure plan", differences(then["plan_identity"], identity["plan_identity"])),
        ("with other settings", settings),
        ("in another precision", differences({"is": then["precision"]}, {"is": identity["precision"]})),
    ):
        if changed:
            raise InputError(
                f"iteration {args.iteration} was trained {what}: {', '.join(changed)}",
                where=where,
                remedy=f"give what it was trained with, {otherwise}",
            )
    if manifest["sequences"] != args.consumed_train_samples:
        raise InputError(
            f"iteration {args.iteration} has consumed {args.consumed_train_samples} sequences, and {path} says"
            f" {manifest['sequences']}",
            where=where,
            remedy=f"restore both, {otherwise}",
        )
    return Checkpoint(path, manifest)
