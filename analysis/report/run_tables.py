"""The report's tables of runs: those that count, those that do not, and how they were made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pandas as pd

from megatron_kis.analysis.findings.result import AnalysisResult
from megatron_kis.analysis.report import formatting as fmt
from megatron_kis.analysis.report.table import Table, numbers, table_of, words
from megatron_kis.analysis.runs.curves import primary_rows, rows_of
from megatron_kis.analysis.runs.slices import varies_facts
from megatron_kis.common.units import plural

_LONG = 16  # characters shown of a fingerprint; its tooltip has all of them


def ledger(result: AnalysisResult) -> Table | None:
    """Lists every complete run."""
    if result.runs is None or result.curves is None:
        return None
    settings, runs = result.settings, result.runs
    primary = primary_rows(runs.probes, settings)
    rates = {(r.run, r.group): r.correct / r.n for r in rows_of(primary)}
    losses = runs.losses.sort_values("step").groupby("run")["loss"].last().to_dict()
    columns = [
        words("run", lambda r: r.run),
        words("model", lambda r: r.model or "–"),
        numbers("N", lambda r: f"{r.params:,}"),
        numbers("D", lambda r: fmt.size(r.tokens)),
        *([numbers("K", _facts)] if varies_facts(result.curves) else []),
        numbers("F", lambda r: f"{r.frequency:g}"),
        numbers("ρ", lambda r: fmt.ratio(r.infusion_ratio)),
        numbers("seed", lambda r: str(r.seed)),
        numbers("infused", lambda r: fmt.rate(rates.get((r.run, "infused")))),
        numbers("background", lambda r: fmt.rate(rates.get((r.run, "background")))),
        numbers("control", lambda r: fmt.rate(rates.get((r.run, "control")))),
        numbers("validation loss", lambda r: fmt.number(losses.get(r.run), 4)),
        words("exposures", lambda r: _exact(r.exposures_exact)),
    ]
    note = (
        f"Rates: {fmt.SPLIT_TITLES[settings.split]}, “{settings.scoring}” scoring. Exposures are exact if the ledger "
        "of the run counts F exposures of every infused fact."
    )
    order = ["params", "tokens", "frequency", "seed"]
    if varies_facts(result.curves):
        order = ["params", "tokens", "infused_facts", "frequency", "seed"]
    rows = runs.runs.assign(infused_facts=runs.runs["infused_facts"].where(runs.runs["frequency"] > 0, 0.0))
    return table_of(columns, rows_of(rows.sort_values(order)), note)


def foreign(result: AnalysisResult) -> Table | None:
    """Lists complete runs that do not belong to the study, and how they differ."""
    if result.runs is None or result.runs.foreign.empty:
        return None
    columns = [words("run folder", lambda r: r.run), words("what differs", lambda r: r.reason)]
    note = (
        "Complete runs with other settings or data than the study’s, or that the study does not list. Differences are "
        "shown as: this run’s -> the study’s. These runs are not part of any curve, loss comparison or law."
    )
    return table_of(columns, rows_of(result.runs.foreign), note, remark=True)


def problems(result: AnalysisResult) -> Table | None:
    """Lists run folders without a complete run."""
    if result.runs is None:
        return None
    found = result.runs.problems
    found = found[found["status"] != "foreign"]
    columns = [
        words("run folder", lambda r: r.run),
        words("status", lambda r: r.status),
        words("reason", lambda r: r.reason),
    ]
    return table_of(columns, rows_of(found), remark=True) if len(found) else None


def provenance(result: AnalysisResult) -> Table | None:
    """Lists fingerprints, versions and hosts of the complete runs; where runs differ, each value with its count."""
    if result.runs is None:
        return None
    titles: dict[str, str] = {}
    rows: list[list[str]] = []
    records = result.runs.records.values()
    for section in ("fingerprints", "versions"):
        parts: list[dict[str, Any]] = [record[section] for record in records if isinstance(record.get(section), dict)]
        names = sorted({name for part in parts for name in part})
        rows += [[section, name, _values((part.get(name) for part in parts), titles)] for name in names]
    for name in ("device", "precision"):
        if any(record.get(name) for record in records):
            rows.append(["hardware", name, _values((record.get(name) for record in records), titles)])
    rates = _learning_rates(records)
    rows += [["training", f"learning rate at N = {size}", _values(values, titles)] for size, values in rates.items()]
    hosts = result.runs.runs["host"].dropna()
    if len(hosts):
        rows.append(["hardware", "host", _values(hosts, titles)])
    policies = result.runs.runs["background_policy"].dropna()
    if len(policies):
        rows.append(["study", "background policy", _values(policies, titles)])
    columns = [
        words("kind", lambda row: row[0]),
        words("what", lambda row: row[1]),
        words("value", lambda row: row[2]),
    ]
    return Table(columns, rows, titles=titles) if rows else None


def _learning_rates(records: Iterable[dict[str, Any]]) -> dict[str, list[Any]]:
    """Collects learning rates by size: small models are sensitive to them, so a law over sizes depends on them."""
    found: dict[str, list[Any]] = {}
    for record in sorted(records, key=lambda item: item["params"]):
        value = record
        for key in ("config", "training", "optimizer", "learning_rate"):
            value = value.get(key) or {} if isinstance(value, dict) else {}
        if isinstance(value, int | float):
            found.setdefault(fmt.size(record["params"]), []).append(value)
    return found


def _values(values: Iterable[Any], titles: dict[str, str]) -> str:
    counts = Counter(str(value) for value in values if value is not None)
    shown = []
    for value, count in sorted(counts.items()):
        short = value if len(value) <= 2 * _LONG else value[:_LONG] + "…"
        shown.append(short if len(counts) == 1 else f"{short} ({plural(count, 'run')})")
    text = ", ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")
    if len(counts) and text != ", ".join(sorted(counts)):
        titles[text] = ", ".join(sorted(counts)[:8])
    return text


def _facts(run: Any) -> str:
    return "–" if pd.isna(run.infused_facts) else f"{run.infused_facts:,.0f}"


def _exact(value: bool | None) -> str:
    return "not recorded" if value is None or pd.isna(value) else "exact" if value else "NOT exact"
