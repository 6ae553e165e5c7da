"""The record of a run: ``run.json`` at its start, ``DONE`` at its end, and how the settings of two runs differ."""

from __future__ import annotations

import functools
import os
import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import megatron_kis
from megatron_kis.common.configuration import as_content
from megatron_kis.common.errors import InputError
from megatron_kis.common.files import fingerprint, read_json, sha256_file, write_json
from megatron_kis.common.identity import (
    ASKED,
    DATA,
    RUN_FILE,
    RUN_SCHEMA,
    changed_data,
    differences,
    settings_of,
    short,
)
from megatron_kis.common.paths import seen_from
from megatron_kis.config.run import RunConfig
from megatron_kis.data.general_text import Epochs

DONE_SCHEMA = "kis.done/1"
CLOSED = (RUN_FILE, "metrics.jsonl", "probes.jsonl", "exposures.json")
"""Files whose hashes ``DONE`` holds."""


def result_settings(config: RunConfig) -> dict[str, Any]:
    """Returns the settings that can change a result. Data count by their content, not by their place."""
    return settings_of(config.model_dump(mode="json"))


def config_fingerprint(config: RunConfig) -> str:
    """Returns the fingerprint of everything in a configuration that can change a result."""
    return fingerprint(result_settings(config))


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that compute."""
    found = {"megatron_kis": megatron_kis.__version__, "python": platform.python_version()}
    for package in ("torch", "megatron-core", "numpy", "sentencepiece", "transformer-engine"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@functools.cache
def code_fingerprint() -> str:
    """Returns the fingerprint of the package's sources by name and content; the same in a checkout and installed.

    It is taken once, as a process keeps the code that it has imported.
    """
    root = Path(megatron_kis.__file__).parent
    paths = sorted(Path(folder, name) for folder, _, names in os.walk(root, followlinks=True) for name in names)
    return fingerprint({str(path.relative_to(root)): sha256_file(path) for path in paths if path.suffix == ".py"})


def run_record(
    config: RunConfig,
    *,
    params: int,
    nonembedding_params: int,
    plan: dict[str, Any],
    infused_bits: float | None,
    fingerprints: dict[str, str],
    layout: dict[str, int],
    device: str,
    precision: str,
    epochs: Sequence[Epochs],
) -> dict[str, Any]:
    """Returns the content of ``run.json``; paths in its study are relative to the run's folder."""
    folder = config.output
    within = folder.parent.parent if config.study else folder  # OUTPUT/runs/RUN: what is copied together
    shape = config.model.shape()
    return {
        "schema": RUN_SCHEMA,
        "run": config.name,
        "study": config.study,
        "params": params,
        "nonembedding_params": nonembedding_params,
        "tokens": plan["token_budget"],
        "infusion_frequency": plan["infusion_frequency"],
        "infusion_ratio": plan["infusion_ratio"],
        "infused_facts": plan.get("shown_facts", plan["infused_facts"]),
        "infused_bits": infused_bits,
        "seed": config.training.seed,
        "model": {"name": config.model.label, **shape.as_dict()},
        "background_policy": plan["background_policy"],
        "background_frequency": plan["background_frequency"],
        "background_groups": _background_groups(config, plan),
        "general_text": [
            {
                "corpus": str(seen_from(read.corpus, folder, within=within)),
                "sequences": read.sequences,
                "epochs": round(read.epochs, 4),
            }
            for read in epochs
        ],
        "plan": plan,
        "config": as_content(config, folder, within=within),
        "settings": result_settings(config),
        "config_fingerprint": config_fingerprint(config),
        "fingerprints": {**fingerprints, "code": code_fingerprint()},
        "versions": versions(),
        "parallel": layout,
        "device": device,
        "precision": precision,
        "host": {"name": platform.node(), "system": platform.platform(), "cpus": os.cpu_count()},
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _background_groups(config: RunConfig, plan: dict[str, Any]) -> list[dict[str, int]]:
    """Returns ``facts`` and ``frequency`` of each group of background facts, as configured."""
    groups = config.infusion.background.groups
    if groups:
        return [group.model_dump() for group in groups]
    facts, frequency = plan["background_facts"], plan["background_frequency"]
    return [{"facts": facts, "frequency": frequency}] if facts and frequency else []


def mark_done(folder: Path, summary: dict[str, Any], *, kept: Sequence[str] = ()) -> None:
    """Writes ``DONE``, last of all, with the hashes of what it closes.

    Args:
        folder: the run's folder.
        summary: further content of ``DONE``.
        kept: the run's inputs, paths relative to the folder.
    """
    hashes = {name: sha256_file(folder / name) for name in CLOSED}
    inputs = {name: sha256_file(folder / name) for name in kept}
    write_json(folder / "DONE", {"schema": DONE_SCHEMA, "files": hashes, "inputs": inputs, **summary})


def check_closed(folder: Path) -> bool:
    """Returns whether a run is complete, with the ``run.json`` that ``DONE`` closed.

    Raises:
        InputError: ``DONE`` is damaged, or ``run.json`` was changed after the run was closed.
    """
    done = folder / "DONE"
    if not done.exists():
        return False
    remedy = "restore both files, or train the run again in another folder"
    files = read_json(done, DONE_SCHEMA, keys=("files",))["files"]
    closed = files.get(RUN_FILE) if isinstance(files, dict) else None
    if not isinstance(closed, str):
        raise InputError(f"holds no hash of {RUN_FILE}", where=str(done), remedy=remedy)
    if sha256_file(folder / RUN_FILE) != closed:
        problem = "was changed after the run was closed (its sha256 is not DONE's)"
        raise InputError(problem, where=str(folder / RUN_FILE), remedy=remedy)
    return True


def setting_differences(
    then: Mapping[str, Any], now: Mapping[str, Any], *, precision: tuple[Any, Any] = (None, None)
) -> list[str]:
    """Lists the settings that can change a result and differ between two runs; not those of what they are asked.

    Args:
        then: settings of one run as its record has them, perhaps of an older version.
        now: settings of the other run.
        precision: resolved precisions of both, where known; if equal, ``auto`` is no difference to its resolution.
    """
    resolved = None not in precision and precision[0] == precision[1]
    but = (*ASKED, "training.precision") if resolved else ASKED
    return differences(settings_of(then), settings_of(now), but=but)


def is_done(
    config: RunConfig,
    data_fingerprints: Mapping[str, str] | None = None,
    *,
    precision: str | None = None,
    model_sha256: str | None = None,
) -> bool:
    """Returns whether the run's folder holds a complete run of this very configuration, whatever it was asked.

    Args:
        config: the run's configuration.
        data_fingerprints: fingerprints of the data it would read now; by default those that the configuration names.
        precision: precision in which it would be trained now, resolved; not compared if None.
        model_sha256: hash of the tokenizer's model file, which is an older record's fingerprint of it.

    Raises:
        InputError: it holds a complete run of another configuration or of other data.
    """
    folder = config.output
    if not (folder / "DONE").exists():
        return False
    record = read_json(folder / RUN_FILE, RUN_SCHEMA, keys=("config_fingerprint", "fingerprints"))
    check_closed(folder)
    remedy = "choose another output, or move that run away"
    if record["config_fingerprint"] != config_fingerprint(config):
        then = record.get("settings") or settings_of(record.get("config") or {})
        keys = setting_differences(then, result_settings(config), precision=(record.get("precision"), precision))
        if keys or not then:
            which = f": {', '.join(keys)}" if then else ""
            raise InputError(f"holds a complete run with other settings{which}", where=str(folder), remedy=remedy)
    was: dict[str, Any] = record["fingerprints"]
    now = {**config.data.fingerprints, **(data_fingerprints or {})}
    compared = {*now, *((*DATA, "start") if data_fingerprints else ())}
    for name in (one for one in changed_data(was, now, model_sha256=model_sha256) if one in compared):
        said = f"({short(was.get(name))}, now {short(now.get(name))})"
        raise InputError(f"holds a complete run on another {name} {said}", where=str(folder), remedy=remedy)
    if precision is not None and record.get("precision", precision) != precision:
        said = f"({record['precision']}, now {precision})"
        raise InputError(f"holds a complete run in another precision {said}", where=str(folder), remedy=remedy)
    return True
