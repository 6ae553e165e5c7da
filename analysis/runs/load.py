"""Run folders as tidy tables. A run counts only if DONE exists; every other folder is listed with its reason.

A folder is *incomplete* if DONE is absent (still running, killed or failed), *damaged* if DONE exists but a file of the
run is missing, malformed or contradicts another one, *foreign* if its run was made with other settings or data than the
study or than most runs here (`runs.membership`), *unasked* if it has no answers to the questions that the study asks by
now, and *misplaced* if it is hidden or inside another folder. None of them is ever used.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from megatron_kis.analysis.runs.load_logs import (
    LOSS_COLUMNS,
    PROBE_COLUMNS,
    TEMPLATE_COLUMNS,
    ClosedRun,
    Row,
    loss_rows,
    number,
    probe_rows,
    template_rows,
    whole,
)
from megatron_kis.analysis.runs.membership import (
    Manifest,
    apart,
    majority_asking,
    manifest_near,
    marked,
    parse_manifest,
    wanted_by,
)
from megatron_kis.common.asked import FILE as ASKED_FILE
from megatron_kis.common.asked import Asking, answers_of, own_asking
from megatron_kis.common.errors import InputError
from megatron_kis.common.files import not_a_folder, read_json, read_json_lines, steadily
from megatron_kis.common.identity import QUESTIONS, RUN_FILE, RUN_SCHEMA

_LEDGER_SCHEMA = "kis.ledger/1"
_DONE_SCHEMA = "kis.done/1"

RUN_COLUMNS = [
    "run",
    "study",
    "model",
    "params",
    "nonembedding_params",
    "tokens",
    "frequency",
    "infusion_ratio",
    "infused_facts",
    "configured_ratio",
    "infused_bits",
    "seed",
    "background_policy",
    "exposures_exact",
    "host",
]
PROBLEM_COLUMNS = ["run", "status", "reason"]


@dataclass(frozen=True)
class Runs:
    """The complete runs of a folder as tidy tables, and the folders that do not count."""

    folder: Path
    """Folder with the run folders."""
    runs: pd.DataFrame
    """One row per complete run (`RUN_COLUMNS`); frequency in exposures per fact, tokens is D, params is total N,
    infused_facts is K, configured_ratio the infusion ratio that was asked for (NaN where F was)."""
    probes: pd.DataFrame
    """Probe rows of each run's last step (`PROBE_COLUMNS`), one row per group, split and scoring rule."""
    history: pd.DataFrame
    """Probe rows of every probed step."""
    losses: pd.DataFrame
    """Validation losses in nats per token at every validated step (`LOSS_COLUMNS`)."""
    problems: pd.DataFrame
    """Folders that do not count (`PROBLEM_COLUMNS`), status `incomplete`, `damaged`, `foreign`, `unasked` or
    `misplaced`."""
    records: dict[str, dict[str, Any]]
    """Content of run.json of each complete run, by run name; its ``fingerprints`` name the questions of its rows."""
    answers: dict[str, Path] = field(default_factory=dict)
    """Folder with the answers that are used, by run name, of those runs whose answers are not in their own folder."""

    @property
    def foreign(self) -> pd.DataFrame:
        """The problems that are complete runs of other studies; ``reason`` describes the difference."""
        return self.problems[self.problems["status"] == "foreign"]

    @property
    def unasked(self) -> pd.DataFrame:
        """The problems that are complete runs without answers to the study's questions."""
        return self.problems[self.problems["status"] == "unasked"]

    @cached_property
    def templates(self) -> pd.DataFrame:
        """Per-template counts at the last step (`TEMPLATE_COLUMNS`), read on first use: these are the most rows."""
        found = (_answered(self.folder / name, self.answers.get(name)) for name in self.runs["run"])
        return _table([template_rows(run) for run in found], TEMPLATE_COLUMNS)

    @cached_property
    def seconds(self) -> dict[str, float]:
        """Wall-clock seconds by run name, of the runs whose DONE says them; read on first use."""
        found: dict[str, float] = {}
        for name in self.runs["run"]:
            with contextlib.suppress(InputError):
                seconds = read_json(self.folder / name / "DONE", _DONE_SCHEMA).get("seconds")
                if isinstance(seconds, int | float) and not isinstance(seconds, bool) and math.isfinite(seconds):
                    found[name] = float(seconds)
        return found


def load_runs(runs_dir: Path | str, belongs: Mapping[str, Any] | None = None) -> Runs:
    """Reads the run folders below ``runs_dir`` (a runs folder, or a study folder with ``runs/``).

    Args:
        runs_dir: the folder.
        belongs: which runs are the study's, as in ``study.json`` (``megatron_kis.study.manifest.manifest_of``); that of
            the study's folder if None; without one the runs are only compared with one another.

    Raises:
        InputError: the folder is missing or has no run folder at all, or study.json is damaged.
        JobError: the disk or the file server fails; the runs that could be read are not used.
    """
    folder = Path(runs_dir)
    if (folder / "runs").is_dir():
        folder = folder / "runs"
    if not folder.is_dir() or _is_there(folder / RUN_FILE):
        problem = "is a single run" if folder.is_dir() else not_a_folder(folder)
        raise InputError(problem, where=str(folder), remedy="give a folder of runs, or a study folder")
    manifest = manifest_near(folder) if belongs is None else parse_manifest(belongs)

    loaded: list[_Loaded] = []
    problems: list[Row] = []
    for path in _folders(folder):
        if _as_text(path.name) != path.name:
            problems.append((path.name, "misplaced", "its name is not UTF-8: rename it"))
            continue
        if path.name.startswith("."):
            problems += _misplaced(folder, path)
            continue
        try:
            loaded.append(_load_run(path))
        except InputError as error:
            if _is_there(path / "DONE"):
                problems.append((path.name, "damaged", str(error)))
            else:
                within = [] if _is_there(path / RUN_FILE) else _misplaced(folder, path)
                problems += within or [(path.name, "incomplete", _why_incomplete(path))]
    if not loaded and not problems:
        raise InputError("holds no run folder", where=str(folder), remedy="train first, or name the folder of the runs")
    reasons = apart(marked({run.row["run"]: run.record for run in loaded}), manifest)
    problems += [(name, "foreign", reason) for name, reason in reasons.items()]
    loaded = [run for run in loaded if run.row["run"] not in reasons]
    loaded, others = _asked_alike(loaded, manifest)
    problems += others

    history = _table([run.probes for run in loaded], PROBE_COLUMNS)
    last = history.groupby("run")["step"].transform("max") if len(history) else history["step"]
    return Runs(
        folder=folder,
        runs=_table([[tuple(run.row[name] for name in RUN_COLUMNS)] for run in loaded], RUN_COLUMNS),
        probes=history[history["step"] == last].reset_index(drop=True),
        history=history,
        losses=_table([run.losses for run in loaded], LOSS_COLUMNS),
        problems=_table([sorted(tuple(map(_as_text, row)) for row in problems)], PROBLEM_COLUMNS),
        records={run.row["run"]: run.record for run in loaded},
        answers={run.row["run"]: run.answers for run in loaded if run.answers is not None},
    )


def _asked_alike(loaded: Sequence[_Loaded], manifest: Manifest | None) -> tuple[list[_Loaded], list[Row]]:
    """Returns the runs with their answers to the same questions, and problem rows of those that have none whole."""
    most = majority_asking([list(run.places) for run in loaded]) if manifest is None else None
    alike, problems = [], []
    for run in loaded:
        name = run.row["run"]
        wanted = most if manifest is None else wanted_by(manifest, name)
        place = next((one for one in run.places if wanted is None or one.fits(wanted)), None)
        if place is not None:
            try:
                alike.append(run.asked(place))
            except InputError as error:
                problems.append((name, "damaged", str(error)))
        elif wanted is not None:
            differs = ", ".join(run.asking.differences(wanted))
            problems.append((name, "unasked", f"was asked other questions ({differs}): kis study probe asks it again"))
    return alike, problems


def _folders(folder: Path) -> list[Path]:
    """Lists the folders in a folder, by name."""

    def names() -> list[str]:
        with os.scandir(folder) as found:
            return sorted(entry.name for entry in found if entry.is_dir())

    return [folder / name for name in steadily(names, folder)]


def _is_there(path: Path) -> bool:
    return steadily(path.is_file, path)


def _misplaced(folder: Path, path: Path) -> list[Row]:
    """Returns the problem rows of a run in a hidden folder, or of runs inside a folder that is not a run itself."""

    def is_run(place: Path) -> bool:
        return _is_there(place / RUN_FILE) or _is_there(place / "DONE")

    if path.name.startswith(".") and is_run(path):
        return [(path.name, "misplaced", "its name begins with a dot: rename it if it is a run of this study")]
    reason = f"a run within the folder {path.name}: move it up if it is a run of this study"
    return [(f"{path.name}/{inner.name}", "misplaced", reason) for inner in _folders(path) if is_run(inner)]


@dataclass(frozen=True)
class _Loaded:
    path: Path
    record: dict[str, Any]
    row: dict[str, Any]
    probes: list[Row]
    losses: list[Row]
    places: dict[Asking, Path | None]
    """Folders of its answers by what it was asked; None for its own, the first."""
    asking: Asking
    """The questions of ``probes``."""
    answers: Path | None = None
    """Folder of ``probes``; None for the run's own."""

    def asked(self, wanted: Asking) -> _Loaded:
        """Returns the run with its answers to these questions."""
        if wanted == self.asking:
            return self
        place = self.places[wanted]
        rows = probe_rows(_answered(self.path, place), self.row["tokens"])
        prints = {**(self.record.get("fingerprints") or {}), QUESTIONS: wanted.questions}
        record = {**self.record, "fingerprints": prints}
        return replace(self, record=record, probes=rows, asking=wanted, answers=place)


def _answered(path: Path, answers: Path | None) -> ClosedRun:
    """Returns the files of a run, or those with its answers to other questions."""
    return ClosedRun(path) if answers is None else ClosedRun(answers, seal=ASKED_FILE, name=path.name)


def _table(parts: Sequence[Sequence[Row]], columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame([row for part in parts for row in part], columns=columns)


def _why_incomplete(path: Path) -> str:
    if not (path / RUN_FILE).is_file():
        return "no run.json and no DONE: never started, or not a run folder"
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
    run = ClosedRun(path)
    record = run.record(RUN_FILE, RUN_SCHEMA)
    where = f"{path}{os.sep}{RUN_FILE}"
    if record.get("config_fingerprint") and not run.hashed:  # one of our runs; other trainers may leave DONE empty
        raise InputError("holds no hashes of the run's files", where=f"{path}{os.sep}DONE")
    tokens = whole(record, "tokens", where, least=1)
    frequency = number(record, "infusion_frequency", where, least=0)
    model = record.get("model")
    row: dict[str, Any] = {
        "run": path.name,
        "study": _as_text(record.get("study")),
        "model": _as_text(model.get("name") if isinstance(model, dict) else model),
        "params": whole(record, "params", where, least=1),
        "nonembedding_params": _optional_int(record, "nonembedding_params", where),
        "tokens": tokens,
        "frequency": frequency,
        "infusion_ratio": number(record, "infusion_ratio", where, least=0),
        "infused_facts": _optional(record, "infused_facts", where),
        "configured_ratio": _configured_ratio(record),
        "infused_bits": _optional(record, "infused_bits", where),
        "seed": whole(record, "seed", where, least=0),
        "background_policy": _as_text(record.get("background_policy")),
        "exposures_exact": _exposures_exact(run, frequency),
        "host": _as_text(_host_name(record.get("host"))),
    }
    own = own_asking(record)
    places: dict[Asking, Path | None] = {own: None, **answers_of(path)}
    return _Loaded(path, record, row, probe_rows(run, tokens), loss_rows(run), places, own)


def _as_text(value: Any) -> Any:
    """Returns text that can be encoded as UTF-8; JSON and file names may have lone surrogates."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _exposures_exact(run: ClosedRun, frequency: float) -> bool | None:
    """Returns whether every fact received the exposures of the plan; None if the ledger has no count of them."""
    if not run.has("exposures.json"):
        return None
    ledger = run.record("exposures.json", _LEDGER_SCHEMA)
    received = (ledger.get("received") or {}).get("infused")
    if isinstance(received, dict) and received:
        # `exact` also covers the background facts, for which the plan has a count as well.
        return ledger.get("exact") is not False and received == _promised(ledger, received, frequency)
    return True if frequency == 0 and received == {} else None


def _promised(ledger: dict[str, Any], facts: Iterable[str], frequency: float) -> dict[str, Any]:
    """Returns the planned exposures by fact: those of a ratio, a popularity or fewer shown facts are not all alike."""
    promised = (ledger.get("expected") or {}).get("infused")
    by_fact = promised.get("by_fact") if isinstance(promised, dict) else None
    return by_fact if isinstance(by_fact, dict) else dict.fromkeys(facts, frequency)


def _optional_int(record: dict[str, Any], key: str, where: str) -> int | None:
    return None if record.get(key) is None else whole(record, key, where, least=0)


def _optional(record: dict[str, Any], key: str, where: str) -> float:
    """Returns a number of at least 0; NaN if the record has none."""
    return math.nan if record.get(key) is None else number(record, key, where, least=0)


def _configured_ratio(record: dict[str, Any]) -> float:
    """Returns the infusion ratio that a run was asked for; NaN if F was asked for, or it is not known."""
    settings = record.get("settings") or record.get("config")
    section = settings.get("infusion") if isinstance(settings, dict) else None
    ratio = section.get("ratio") if isinstance(section, dict) else None
    return float(ratio) if isinstance(ratio, int | float) and not isinstance(ratio, bool) else math.nan


def _host_name(host: Any) -> str | None:
    if isinstance(host, dict):
        return next((str(host[key]) for key in ("name", "hostname", "node") if host.get(key)), None)
    return str(host) if host else None
