"""The report's tables as rows of text; the template only lays them out."""

# ruff: noqa: RUF001 (texts for readers use real dashes, minus signs and Greek letters)

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from analysis.report import wording as w
from analysis.study import AnalysisResult

_LONG = 16  # characters of a fingerprint shown; the whole stands in its tooltip


@dataclass(frozen=True)
class Table:
    """A table: heads with whether the column is numeric, and rows of text."""

    heads: list[tuple[str, bool]]
    rows: list[list[str]]
    note: str = ""
    titles: dict[str, str] = field(default_factory=dict)
    """Longer texts of shortened cells, shown on hover."""
    remark: bool = False
    """Whether the last column is a sentence: it is laid out as a line of its own under the row."""


def transitions(result: AnalysisResult) -> Table:
    """Every transition with its interval, in F, in infusion ratio and in tokens."""
    heads = [
        ("transition", False), ("N", True), ("D", True), ("status", False), ("F", True), ("interval", True),
        ("ρ", True),
        ("exposure tokens", True), ("peak", True), ("drop", True), ("p", True), ("levels", True), ("seeds", True),
        ("why", False),
    ]  # fmt: skip
    rows = [
        [
            w.kind_title(p.kind, p.group), w.size(p.params), w.size(p.tokens), w.STATUS_WORDS[p.status],
            w.frequency(p.value), w.bracket(p), w.ratio(p.infusion_ratio),
            "–" if p.exposure_tokens is None else w.size(p.exposure_tokens), w.number(p.peak), w.number(p.drop),
            w.p_value(p.p_value), _whole(p.levels), _whole(p.seeds), p.reason,
        ]
        for p in result.points
    ]  # fmt: skip
    note = (
        "Intervals are brackets of the frequencies tried, not confidence intervals. Peak and drop are rates; for the "
        "loss, the loss at F = 0 in nats a token and the largest relative excess."
    )
    return Table(heads, rows, note, remark=True)


def ledger(result: AnalysisResult) -> Table | None:
    """One row a complete run."""
    if result.runs is None or result.curves is None:
        return None
    settings, runs = result.settings, result.runs
    primary = runs.probes[(runs.probes["split"] == settings.split) & (runs.probes["scoring"] == settings.scoring)]
    rates = {(r.run, r.group): r.correct / r.n for r in primary.itertuples()}
    losses = runs.losses.sort_values("step").groupby("run")["loss"].last().to_dict()
    heads = [
        ("run", False), ("model", False), ("N", True), ("D", True), ("F", True), ("ρ", True), ("seed", True),
        ("infused", True), ("background", True), ("control", True), ("validation loss", True), ("exposures", False),
    ]  # fmt: skip
    rows = [
        [
            r.run, r.model or "–", f"{r.params:,}", w.size(r.tokens), f"{r.frequency:g}", w.ratio(r.infusion_ratio),
            str(r.seed), *(w.rate(rates.get((r.run, group))) for group in ("infused", "background", "control")),
            w.number(losses.get(r.run), 4), _exact(r.exposures_exact),
        ]
        for r in runs.runs.sort_values(["params", "tokens", "frequency", "seed"]).itertuples()
    ]  # fmt: skip
    note = (
        f"Rates: {w.SPLIT_TITLES[settings.split]}, “{settings.scoring}” scoring. Exposures are exact when the ledger "
        "of the run counts F for every infused fact."
    )
    return Table(heads, rows, note)


def rates(result: AnalysisResult) -> Table | None:
    """Level means of every group, split and scoring rule."""
    if result.curves is None:
        return None
    from analysis.curves import mean_curves

    heads = [
        ("group", False), ("split", False), ("scoring", False), ("N", True), ("D", True), ("F", True), ("rate", True),
        ("lowest", True), ("highest", True), ("seeds", True), ("chance", True),
    ]  # fmt: skip
    rows = [
        [
            r.group, w.SPLIT_TITLES.get(r.split, r.split), r.scoring, w.size(r.params), w.size(r.tokens),
            f"{r.frequency:g}", f"{r.rate:.3f}", f"{r.lowest:.3f}", f"{r.highest:.3f}", str(r.seeds), w.rate(r.chance),
        ]
        for r in mean_curves(result.curves).itertuples()
    ]  # fmt: skip
    return Table(heads, rows)


def laws(result: AnalysisResult) -> Table | None:
    """Estimates with intervals."""
    if not result.laws:
        return None
    heads = [
        ("transition", False), ("law", False), ("a", True), ("b (log N)", True), ("c (log D)", True), ("σ", True),
        ("points", True), ("left out", True), ("status", False),
    ]  # fmt: skip

    def estimate(law: Any, name: str) -> str:
        c = law.coefficients[name]
        return "–" if c is None else f"{w.number(c.value)} [{w.number(c.low)}, {w.number(c.high)}]"

    rows = [
        [
            w.kind_title(law.kind, law.group), law.selected_law,
            *(estimate(law, name) for name in ("a", "b_log_params", "c_log_tokens")), w.number(law.sigma),
            str(len(law.points)), str(len(law.excluded)), "unvalidated" if law.unvalidated else "fitted",
        ]
        for law in result.laws
    ]  # fmt: skip
    level = f"{100 * result.settings.confidence:g}%"
    return Table(
        heads, rows, f"Natural logarithms; least squares; {level} confidence intervals with n − p degrees of freedom."
    )


def predictions(result: AnalysisResult) -> Table | None:
    """Predictions with intervals and extrapolation factor."""
    if not result.predictions:
        return None
    heads = [
        ("transition", False), ("N", True), ("D", True), ("centre", True), ("confidence interval", True),
        ("prediction interval", True), ("recommended", True), ("ρ at centre", True), ("extrapolation", True),
        ("reservations", False),
    ]  # fmt: skip
    rows = [
        [
            w.kind_title(p.kind, p.group), w.size(p.params), w.size(p.tokens), w.frequency(p.centre),
            _interval(p.confidence_interval), _interval(p.prediction_interval), w.frequency(p.recommended),
            w.ratio(p.infusion_ratio), f"{p.extrapolation_factor:.3g}×", "; ".join(p.warnings) or "none",
        ]
        for p in result.predictions
    ]  # fmt: skip
    note = "Recommended: the safe end of the prediction interval (lower for a collapse, upper for an onset)."
    return Table(heads, rows, note, remark=True)


def problems(result: AnalysisResult) -> Table | None:
    """Run folders that were not counted."""
    if result.runs is None or result.runs.problems.empty:
        return None
    rows = [[r.run, r.status, r.reason] for r in result.runs.problems.itertuples()]
    return Table([("run folder", False), ("status", False), ("reason", False)], rows)


def provenance(result: AnalysisResult) -> Table | None:
    """Fingerprints, versions and hosts of the complete runs; where runs differ, each value with its count."""
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
    return Table([("kind", False), ("what", False), ("value", False)], rows, titles=titles) if rows else None


def _learning_rates(records: Iterable[dict[str, Any]]) -> dict[str, list[Any]]:
    """Learning rates by size: small models are sensitive to them, and a law over sizes inherits what was chosen."""
    found: dict[str, list[Any]] = {}
    for record in sorted(records, key=lambda item: item["params"]):
        value = record
        for key in ("config", "training", "optimizer", "learning_rate"):
            value = value.get(key) or {} if isinstance(value, dict) else {}
        if isinstance(value, int | float):
            found.setdefault(w.size(record["params"]), []).append(value)
    return found


def _values(values: Iterable[Any], titles: dict[str, str]) -> str:
    counts = pd.Series([str(value) for value in values if value is not None], dtype=object).value_counts(sort=False)
    shown = []
    for value, count in sorted(counts.items()):
        short = value if len(value) <= 2 * _LONG else value[:_LONG] + "…"
        shown.append(short if len(counts) == 1 else f"{short} ({w.plural(count, 'run')})")
    text = ", ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")
    if len(counts) and text != ", ".join(sorted(counts.index)):
        titles[text] = ", ".join(sorted(counts.index)[:8])
    return text


def _whole(value: int | None) -> str:
    return "–" if value is None else str(value)


def _exact(value: bool | None) -> str:
    return "not recorded" if value is None or pd.isna(value) else "exact" if value else "NOT exact"


def _interval(ends: tuple[float, float]) -> str:
    return f"{w.frequency(ends[0])} – {w.frequency(ends[1])}"
