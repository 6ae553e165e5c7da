"""Run folders to tidy tables. A run counts only if DONE exists; every other folder is listed with its reason.

A folder is *incomplete* when DONE is absent (still running, killed or failed) and *damaged* when DONE is there but a
file it promises is missing, malformed or contradicts another. Neither is ever used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from megatron_kis.errors import InputError
from megatron_kis.files import read_json, read_json_lines, sha256_file

_RUN_SCHEMA = "kis.run/1"
_LEDGER_SCHEMA = "kis.ledger/1"
_END_OF_RUN = 0.9  # the last probe must stand within the last tenth of D (the budget is rounded to whole batches)

RUN_COLUMNS = [
    "run", "study", "model", "params", "nonembedding_params", "tokens", "frequency", "infusion_ratio", "seed",
    "background_policy", "exposures_exact", "host",
]  # fmt: skip
PROBE_COLUMNS = [
    "run", "step", "step_tokens", "group", "split", "scoring", "n", "facts", "correct", "chance", "margin",
]  # fmt: skip
TEMPLATE_COLUMNS = ["run", "group", "split", "scoring", "relation", "template", "n", "correct"]
LOSS_COLUMNS = ["run", "step", "step_tokens", "loss"]
PROBLEM_COLUMNS = ["run", "status", "reason"]


@dataclass(frozen=True)
class Runs:
    """The complete runs of a folder as tidy tables, and the folders that do not count."""

    folder: Path
    """Where the run folders lie."""
    runs: pd.DataFrame
    """One row a complete run (`RUN_COLUMNS`); frequency in exposures a fact, tokens is D, params is total N."""
    probes: pd.DataFrame
    """Probe rows of each run's last step (`PROBE_COLUMNS`), one row a group, split and scoring rule."""
    history: pd.DataFrame
    """The same at every probed step."""
    templates: pd.DataFrame
    """Per-template counts at the last step (`TEMPLATE_COLUMNS`)."""
    losses: pd.DataFrame
    """Validation losses in nats a token at every validated step (`LOSS_COLUMNS`)."""
    problems: pd.DataFrame
    """Folders that do not count (`PROBLEM_COLUMNS`), status `incomplete` or `damaged`."""
    records: dict[str, dict[str, Any]]
    """run.json of each complete run, by run name."""


def load_runs(runs_dir: Path | str) -> Runs:
    """Reads the run folders below ``runs_dir`` (a runs folder, or a study folder that holds ``runs/``).

    Raises:
        InputError: the folder is missing or holds no run folder at all.
    """
    folder = Path(runs_dir)
    if (folder / "runs").is_dir():
        folder = folder / "runs"
    if not folder.is_dir():
        raise InputError("no such folder", where=str(folder), remedy="a folder of runs, or a study folder")
    found = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not found:
        raise InputError("holds no run folder", where=str(folder), remedy="train first, or name the folder of the runs")

    loaded: list[_Loaded] = []
    problems: list[dict[str, str]] = []
    for path in found:
        if not (path / "DONE").is_file():
            problems.append({"run": path.name, "status": "incomplete", "reason": _why_incomplete(path)})
            continue
        try:
            loaded.append(_load_run(path))
        except InputError as error:
            problems.append({"run": path.name, "status": "damaged", "reason": str(error)})

    history = _table((row for run in loaded for row in run.probes), PROBE_COLUMNS)
    last = history.groupby("run")["step"].transform("max") if len(history) else history["step"]
    return Runs(
        folder=folder,
        runs=_table((run.row for run in loaded), RUN_COLUMNS),
        probes=history[history["step"] == last].reset_index(drop=True),
        history=history,
        templates=_table((row for run in loaded for row in run.templates), TEMPLATE_COLUMNS),
        losses=_table((row for run in loaded for row in run.losses), LOSS_COLUMNS),
        problems=_table(problems, PROBLEM_COLUMNS),
        records={run.row["run"]: run.record for run in loaded},
    )


@dataclass(frozen=True)
class _Loaded:
    record: dict[str, Any]
    row: dict[str, Any]
    probes: list[dict[str, Any]]
    templates: list[dict[str, Any]]
    losses: list[dict[str, Any]]


def _table(rows: Iterable[dict[str, Any]], columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=columns)


def _why_incomplete(path: Path) -> str:
    if not (path / "run.json").is_file():
        return "no run.json and no DONE: never started, or no run folder"
    step = None
    if (path / "metrics.jsonl").is_file():
        try:
            for _, row in read_json_lines(path / "metrics.jsonl", tolerate_torn_tail=True):
                step = row.get("step", step)
        except InputError:
            return "no DONE, and metrics.jsonl is malformed: the run failed or was killed"
    return "no DONE: running, killed or failed" + (
        f" after step {step}" if step is not None else " before its first step"
    )


def _load_run(path: Path) -> _Loaded:
    _check_done(path)
    record = read_json(path / "run.json", _RUN_SCHEMA)
    where = str(path / "run.json")
    tokens = int(_number(record, "tokens", where, least=1))
    frequency = _number(record, "infusion_frequency", where, least=0)
    model = record.get("model")
    row: dict[str, Any] = {
        "run": path.name,
        "study": record.get("study"),
        "model": model.get("name") if isinstance(model, dict) else model,
        "params": int(_number(record, "params", where, least=1)),
        "nonembedding_params": _optional_int(record, "nonembedding_params", where),
        "tokens": tokens,
        "frequency": frequency,
        "infusion_ratio": _number(record, "infusion_ratio", where, least=0),
        "seed": int(_number(record, "seed", where, least=0)),
        "background_policy": record.get("background_policy"),
        "exposures_exact": _exposures_exact(path / "exposures.json", frequency),
        "host": _host_name(record.get("host")),
    }
    probes, templates = _read_probes(path, tokens)
    return _Loaded(record, row, probes, templates, _read_losses(path))


def _check_done(path: Path) -> None:
    """DONE is JSON; the hashes it carries (``files``: name -> sha256), if any, must be those of the files."""
    try:
        done = json.loads((path / "DONE").read_bytes() or b"{}")
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read ({error})", where=str(path / "DONE")) from None
    closed = done.get("files") if isinstance(done, dict) else None
    for name, digest in (closed or {}).items():
        if isinstance(digest, str) and len(digest) == 64 and sha256_file(path / name) != digest:
            raise InputError("was changed after the run was closed (its sha256 is not DONE's)", where=str(path / name))


def _read_probes(path: Path, budget: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """All probe rows and the last step's per-template rows; of rows repeated after a resume the last one counts."""
    file = path / "probes.jsonl"
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    spread: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for number, raw in read_json_lines(file):
        where = f"{file}:{number}"
        for key in ("group", "split", "scoring"):
            if not isinstance(raw.get(key), str):
                raise InputError(f"no {key!r}", where=where)
        n = _number(raw, "n", where, least=1)
        row = {
            "run": path.name,
            "step": int(_number(raw, "step", where, least=0)),
            "step_tokens": int(_number(raw, "tokens", where, least=0)),
            "group": raw["group"],
            "split": raw["split"],
            "scoring": raw["scoring"],
            "n": int(n),
            "facts": int(_number(raw, "facts", where, least=1)) if "facts" in raw else int(n),
            "correct": _number(raw, "correct", where, least=0),
            "chance": _number(raw, "chance", where, least=0),
            "margin": raw.get("margin"),
        }
        if row["correct"] > row["n"] or row["facts"] > row["n"] or row["chance"] > 1:
            raise InputError("correct <= n, facts <= n and chance <= 1 do not all hold", where=where)
        key_ = (row["step"], row["group"], row["split"], row["scoring"])
        rows[key_] = row
        spread[key_] = [
            {"run": path.name, "group": row["group"], "split": row["split"], "scoring": row["scoring"]}
            | {name: item.get(name) for name in ("relation", "template", "n", "correct")}
            for item in raw.get("templates") or []
        ]
    if not rows:
        raise InputError("holds no probe row", where=str(file))
    last = max(key[0] for key in rows)
    reached = max(row["step_tokens"] for row in rows.values())
    if reached < _END_OF_RUN * budget:
        raise InputError(
            f"the last probe stands at {reached} of {budget} tokens: not the end of the run", where=str(file)
        )
    ordered = [rows[key] for key in sorted(rows)]
    return ordered, [item for key in sorted(spread) if key[0] == last for item in spread[key]]


def _read_losses(path: Path) -> list[dict[str, Any]]:
    file = path / "metrics.jsonl"
    losses: dict[int, dict[str, Any]] = {}
    for number, raw in read_json_lines(file):
        if raw.get("kind") == "validation":
            where = f"{file}:{number}"
            step = int(_number(raw, "step", where, least=0))
            tokens = int(_number(raw, "tokens", where, least=0))
            losses[step] = {"run": path.name, "step": step, "step_tokens": tokens, "loss": _number(raw, "loss", where)}
    return [losses[step] for step in sorted(losses)]


def _exposures_exact(path: Path, frequency: float) -> bool | None:
    """Whether every fact received the exposures it was promised; None where the ledger has no count of them."""
    if not path.is_file():
        return None
    ledger = read_json(path, _LEDGER_SCHEMA)
    received = (ledger.get("received") or {}).get("infused")
    if isinstance(received, dict) and received:
        # `exact` also covers the background facts, which the plan promises a count as well.
        return ledger.get("exact") is not False and all(count == frequency for count in received.values())
    return True if frequency == 0 and received == {} else None


def _number(record: dict[str, Any], key: str, where: str, *, least: float = -math.inf) -> float:
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < least:
        bound = "" if least == -math.inf else f" of at least {least:g}"
        raise InputError(f"{key!r} is {value!r}", where=where, remedy=f"a number{bound}")
    return float(value)


def _optional_int(record: dict[str, Any], key: str, where: str) -> int | None:
    return None if record.get(key) is None else int(_number(record, key, where, least=0))


def _host_name(host: Any) -> str | None:
    if isinstance(host, dict):
        return next((str(host[key]) for key in ("name", "hostname", "node") if host.get(key)), None)
    return str(host) if host else None
