"""Branches: runs that start from a checkpoint of a trunk and decay from there, so that one trunk serves many budgets.

A trunk is trained with the ``wsd`` schedule. While its rate is stable, its checkpoints do not depend on its budget; a
branch with a budget of its own starts from one of them and lets the rate decay (Hu et al. 2024). Its folder gets the
trunk's records up to that step and the checkpoint itself (links, where the file system has them). From then on it is a
run like any other, which can be killed and resumes.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_kis.checkpoint.folders import FOLDER, Checkpoint, required, write_manifest
from megatron_kis.checkpoint.log_repair import PROBES, content_at
from megatron_kis.common.configuration import parse_config
from megatron_kis.common.errors import InputError
from megatron_kis.common.files import not_a_folder, read_json, write_bytes
from megatron_kis.common.identity import (
    CHECKPOINT_FILE,
    CHECKPOINT_SCHEMA,
    QUESTIONS,
    RUN_FILE,
    RUN_SCHEMA,
    changed_data,
    short,
)
from megatron_kis.common.paths import seen_from
from megatron_kis.common.units import plural
from megatron_kis.config.run import OptimizerConfig, RunConfig
from megatron_kis.data.extension import check_continuation, same_until
from megatron_kis.engine.lr_schedule import learning_rate
from megatron_kis.training.record import setting_differences
from megatron_kis.training.resume import outcomes_of

logger = logging.getLogger(__name__)

_OWN = (
    "training.token_budget",
    "training.optimizer.warmup_share",
    "training.optimizer.decay_share",
    "training.optimizer.minimum_share",
    "extends",
    "infusion.",
    "probes.moments.",
    "validation.moments.",
)
"""Settings in which a branch may differ from its trunk; whether the exposures fit is decided by the plans."""


_DIGITS = 18  # of a step


def parse_source(text: str) -> tuple[Path, int | None]:
    """Returns the folder and the step of ``RUN_DIR[@STEP]``.

    Raises:
        InputError: the step is no number, or there is no such folder.
    """
    folder, at, step = text.rpartition("@")
    too_long = step.isdecimal() and len(step) > _DIGITS
    if not at or (not too_long and Path(text).is_dir()):
        folder, step = text, ""
    if step and (too_long or not step.isdecimal()):
        raise InputError(f"is {text!r}", where="--branch-from", remedy="give RUN_DIR or RUN_DIR@STEP")
    if not Path(folder).is_dir():
        raise InputError(not_a_folder(Path(folder)), where=folder, remedy="give the folder of a run with checkpoints")
    return Path(folder), int(step) if step else None


def check_origin(text: str | None, run: Path, origin: Mapping[str, Any] | None, *, remedy: str) -> None:
    """Refuses ``--branch-from`` for a run that began elsewhere.

    Args:
        text: ``RUN_DIR[@STEP]``; the folder may be gone, or moved, since the run began. None if it is not given.
        run: the run's folder.
        origin: what the run or its checkpoint says in ``branched_from``; None if it began at step 0.
        remedy: what to do besides leaving the option out.

    Raises:
        InputError: names the option.
    """
    if text is None:
        return
    began = "step 0"
    if origin is not None:
        trunk = run / origin["folder"]
        began = f"{trunk}@{origin['step']}"
        if text in (str(trunk), began):
            return
    folder, step = parse_source(text)
    if origin is not None and step in (None, origin["step"]):
        path = folder / RUN_FILE
        same = folder.resolve() == trunk.resolve()
        if same or (path.is_file() and read_json(path, RUN_SCHEMA).get("run") == origin["run"]):
            return
    problem = f"is {text!r}, but {run} began from {began}"
    raise InputError(problem, where="--branch-from", remedy=f"leave it out, or {remedy}")


def check_complete(run: Path, *, restart: bool, branch_from: str | None) -> None:
    """Refuses options that ask a complete run to begin differently.

    Args:
        run: the run's folder.
        restart: whether it is asked to begin again at step 0.
        branch_from: as ``text`` of ``check_origin``.

    Raises:
        InputError: names the option.
    """
    remedy = "choose another output, or move that run away"
    if restart:
        problem = f"begins an unfinished run again, and {run} is complete"
        raise InputError(problem, where="--restart", remedy=f"leave it out, {remedy}")
    origin = read_json(run / RUN_FILE, RUN_SCHEMA).get("branched_from")
    check_origin(branch_from, run, origin, remedy=remedy)


def find_source(text: str) -> Checkpoint:
    """Returns the trunk's checkpoint that ``RUN_DIR[@STEP]`` names; collective: every rank calls this.

    Raises:
        InputError: there is none that is whole.
    """
    return required(*parse_source(text))


def check_branch(
    checkpoint: Checkpoint, config: RunConfig, identity: dict[str, Any], *, model_sha256: str | None = None
) -> None:
    """Refuses a branch that does not fit its trunk.

    Args:
        checkpoint: checkpoint of the trunk.
        config: configuration of the branch.
        identity: identity of the branch.
        model_sha256: hash of the tokenizer's model file, which is an older trunk's fingerprint of it.

    Raises:
        InputError: other data, settings or precision, exposures that the branch's plan does not have, or a step at
            which the trunk's rate is not stable or the branch's has begun to fall.
    """
    where = str(checkpoint.folder)
    then = checkpoint.manifest["identity"]
    for name in changed_data(then["data"], identity["data"], model_sha256=model_sha256):
        before = short(then["data"].get(name))
        now = short(identity["data"].get(name))
        problem = f"the trunk was trained on another {name} ({before}, now {now})"
        raise InputError(problem, where=where, remedy="branch on the trunk's own data")
    precisions = then["precision"], identity["precision"]
    if precisions[0] != precisions[1]:
        problem = f"the trunk was trained in another precision ({precisions[0]}, now {precisions[1]})"
        raise InputError(problem, where=where, remedy="use the trunk's")
    differ = setting_differences(then["settings"], identity["settings"], precision=precisions)
    other = [said for said in differ if not said.startswith(_OWN)]
    if other:
        raise InputError(f"the trunk has other settings: {', '.join(other)}", where=where, remedy="use the trunk's")
    sequences = int(checkpoint.manifest["sequences"])
    if not same_until(sequences, then["plan_identity"], identity["plan_identity"]):
        _check_plan(then["plan_identity"], identity["plan_identity"])
    _check_rates(checkpoint, config)


def _check_plan(trunk: dict[str, Any], branch: dict[str, Any]) -> None:
    """Refuses a branch whose plan is neither the trunk's nor extends it; plans without any exposure always fit."""
    if any(plan.get(name) for plan in (trunk, branch) for name in ("infused_tokens", "background_tokens")):
        check_continuation(trunk, branch)


def _check_rates(checkpoint: Checkpoint, config: RunConfig) -> None:
    step, steps = checkpoint.step, config.training.steps
    trunk_settings = checkpoint.manifest["identity"]["settings"]["training"]["optimizer"]
    trunk = parse_config(OptimizerConfig, trunk_settings, source=str(checkpoint.folder / CHECKPOINT_FILE))
    where = f"training (branch at step {step})"
    same_budget = int(checkpoint.manifest["steps"]) == steps and trunk == config.training.optimizer
    if same_budget and step < steps:
        return  # the same rates at every step, whatever the schedule
    if trunk.schedule != "wsd":
        raise InputError(f"the trunk's schedule is {trunk.schedule}", where=where, remedy="train a trunk with wsd")
    if step >= steps:
        raise InputError(
            f"the branch has only {plural(steps, 'step')}", where=where, remedy="use a larger token_budget"
        )
    if learning_rate(step - 1, int(checkpoint.manifest["steps"]), trunk) != trunk.learning_rate:
        raise InputError("the trunk's rate is not stable there", where=where, remedy="branch between warm-up and decay")
    if learning_rate(step - 1, steps, config.training.optimizer) != trunk.learning_rate:
        raise InputError(
            "the branch's own schedule would be warming up or decaying there already",
            where=where,
            remedy="branch earlier, or use a smaller decay_share or warmup_share",
        )


def import_trunk(checkpoint: Checkpoint, run: Path, *, steps: int, identity: dict[str, Any], beginning: str) -> None:
    """Copies a trunk's checkpoint, and its records up to there, into the branch's folder. One rank calls this.

    Answers to other questions are no records of the branch: one that shows another number of facts, or has other
    questions or another choice of them, has none until here.

    Args:
        checkpoint: checkpoint of the trunk.
        run: the branch's folder, without checkpoints or logs.
        steps: number of steps of the branch.
        identity: identity of the branch.
        beginning: a name of this start of the branch, see ``RunDir.beginning``.
    """
    trunk = checkpoint.folder.parent.parent
    own_questions = _asked(checkpoint.manifest["identity"]) != _asked(identity)
    ends = {}
    for name in checkpoint.manifest["logs"]:
        if name == PROBES and own_questions:
            ends[name] = 0
            continue
        content, lost = content_at(checkpoint, trunk, name)
        if lost:
            logger.warning(f"kis: {trunk / name} {lost}; the branch has the rest")
        ends[name] = len(content)
        write_bytes(run / name, content)
    for step, path in outcomes_of(trunk / "outcomes").items():
        if step <= checkpoint.step and not own_questions:
            (run / "outcomes").mkdir(exist_ok=True)
            shutil.copyfile(path, run / "outcomes" / path.name)
    partial = run / FOLDER / f".{checkpoint.folder.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    files = {
        name: seal for name, seal in checkpoint.manifest["files"].items() if not (name == PROBES and own_questions)
    }
    for name in files:
        _link(checkpoint.folder / name, partial / name)
    branched = {
        "run": checkpoint.manifest["run"],
        "folder": str(seen_from(trunk, run, within=run.parent)),
        "step": checkpoint.step,
    }
    own = {
        "schema": CHECKPOINT_SCHEMA,
        "steps": steps,
        "identity": identity,
        "milestone": False,
        "logs": ends,
        "files": files,
        "beginning": beginning,
    }
    write_manifest(partial / CHECKPOINT_FILE, {**checkpoint.manifest, **own, "branched_from": branched})
    partial.rename(run / FOLDER / checkpoint.folder.name)


def _asked(identity: dict[str, Any]) -> tuple[Any, ...]:
    """Returns what decides the questions that a run is asked."""
    probes = identity["settings"].get("probes", {})
    return _facts(identity), identity["data"].get(QUESTIONS), probes.get("templates"), probes.get("facts_per_group")


def _facts(identity: dict[str, Any]) -> Any:
    """Returns the number of infused facts that a run may show, and so is asked for; that of all where none is named."""
    named = identity["settings"].get("infusion", {}).get("facts")
    return identity["plan_identity"]["infused_facts"] if named is None else named


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
