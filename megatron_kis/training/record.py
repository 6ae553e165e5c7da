"""The record of a run: ``run.json`` at its start, ``DONE`` at its end, and what tells two runs apart."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import megatron_kis
from megatron_kis.config import RunConfig
from megatron_kis.data.general import Epochs
from megatron_kis.errors import InputError
from megatron_kis.files import fingerprint, read_json, sha256_file, write_json
from megatron_kis.identity import settings_of

RUN_SCHEMA = "kis.run/1"
DONE_SCHEMA = "kis.done/1"
CLOSED = ("run.json", "metrics.jsonl", "probes.jsonl", "exposures.json")
"""The files whose hashes ``DONE`` holds."""


def result_settings(config: RunConfig) -> dict[str, Any]:
    """The settings that can change a result. Data count by their content, not by their place."""
    return settings_of(config.model_dump(mode="json"))


def config_fingerprint(config: RunConfig) -> str:
    """Of everything in a configuration that can change a result."""
    return fingerprint(result_settings(config))


def versions() -> dict[str, str]:
    """Versions of what computes."""
    found = {"megatron_kis": megatron_kis.__version__, "python": platform.python_version()}
    for package in ("torch", "megatron-core", "numpy", "sentencepiece", "transformer-engine"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def code_fingerprint() -> str:
    """Of the source files of this package, by name and content."""
    root = Path(megatron_kis.__file__).parent
    return fingerprint({str(path.relative_to(root)): sha256_file(path) for path in sorted(root.rglob("*.py"))})


def run_record(
    config: RunConfig,
    *,
    params: int,
    nonembedding_params: int,
    plan: dict[str, Any],
    fingerprints: dict[str, str],
    layout: dict[str, int],
    device: str,
    precision: str,
    epochs: Sequence[Epochs],
) -> dict[str, Any]:
    """The content of ``run.json``."""
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
        "infused_facts": plan["infused_facts"],
        "seed": config.training.seed,
        "model": {"name": config.model.label, **{k: getattr(shape, k) for k in shape.__dataclass_fields__}},
        "background_policy": plan["background_policy"],
        "background_frequency": plan["background_frequency"],
        "general_text": [
            {"corpus": str(read.corpus), "sequences": read.sequences, "epochs": round(read.epochs, 4)}
            for read in epochs
        ],
        "plan": plan,
        "config": config.model_dump(mode="json"),
        "config_fingerprint": config_fingerprint(config),
        "fingerprints": {**fingerprints, "code": code_fingerprint()},
        "versions": versions(),
        "parallel": layout,
        "device": device,
        "precision": precision,
        "host": {"name": platform.node(), "system": platform.platform(), "cpus": os.cpu_count()},
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def mark_done(folder: Path, summary: dict[str, Any]) -> None:
    """Writes ``DONE``, last of all, with the hashes of what it closes."""
    hashes = {name: sha256_file(folder / name) for name in CLOSED}
    write_json(folder / "DONE", {"schema": DONE_SCHEMA, "files": hashes, **summary})


def is_done(config: RunConfig, data_fingerprints: dict[str, str] | None = None) -> bool:
    """Whether the run's folder holds a complete run of this very configuration.

    Args:
        config: the run.
        data_fingerprints: of the data it would read now; not compared if not given.

    Raises:
        InputError: it holds a complete run of another configuration or of other data.
    """
    folder = config.output
    if not (folder / "DONE").exists():
        return False
    record = read_json(folder / "run.json", RUN_SCHEMA, keys=("config_fingerprint", "fingerprints"))
    if record["config_fingerprint"] != config_fingerprint(config):
        raise InputError(
            "holds a complete run with other settings",
            where=str(folder),
            remedy="choose another output, or move that run away",
        )
    for name, wanted in (data_fingerprints or {}).items():
        found = record["fingerprints"].get(name)
        if found != wanted:
            raise InputError(
                f"holds a complete run on another {name} ({str(found)[:12]}, now {wanted[:12]})",
                where=str(folder),
                remedy="choose another output, or move that run away",
            )
    return True
