"""The report's tables as rows of text; the template only lays them out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from megatron_kis.analysis.findings.result import AnalysisResult
from megatron_kis.analysis.report import wording as w

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
    """Whether the last column is a sentence: it is laid out as a line of its own under the row, if it says anything."""


def transitions(result: AnalysisResult) -> Table:
    """Every transition with its interval, in F, in infusion ratio and in tokens."""
    heads = [
        ("transition", False), ("N", True), ("D", True), ("status", False), ("F", True), ("interval", True),
        ("ρ", True),
        ("exposure tokens", True), ("peak", True), ("drop", True), ("smallest detectable", True), ("γ", True),
        ("tolerance rule", True), ("p", True), ("levels", True), ("seeds", True), ("why", False),
    ]  # fmt: skip
    rows = [
        [
            w.kind_title(p.kind, p.group), w.size(p.params), w.size(p.tokens), w.STATUS_WORDS[p.status],
            w.frequency(p.value), w.bracket(p), w.ratio(p.infusion_ratio),
            "–" if p.exposure_tokens is None else w.size(p.exposure_tokens), w.number(p.peak), w.number(p.drop),
            w.number(p.detectable, 2), w.number(p.steepness, 2), w.frequency(p.companion),
            w.p_value(p.p_value), _whole(p.levels), _whole(p.seeds), p.reason,
        ]
        for p in result.points
    ]  # fmt: skip
    note = (
        "Intervals of collapse points are bootstrap-calibrated profile intervals, never narrower than the bracket of "
        "the frequencies tried; those of onset and tolerance are such brackets. γ: fall of the logit for each e-fold "
        "of F. Peak and drop are rates; for the loss, the loss at F = 0 in nats a token and the largest relative "
        "excess."
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
    from megatron_kis.analysis.runs.curves import mean_curves

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
        ("points", True), ("censored", True), ("left out", True), ("status", False),
    ]  # fmt: skip

    def estimate(law: Any, name: str) -> str:
        c = law.coefficients[name]
        return "–" if c is None else w.estimate(c.value, c.low, c.high)

    rows = [
        [
            w.kind_title(law.kind, law.group), law.selected_law,
            *(estimate(law, name) for name in ("a", "b_log_params", "c_log_tokens")), w.number(law.sigma),
            str(sum(p["residual"] is not None for p in law.points)),
            str(sum(p["residual"] is None for p in law.points)), str(len(law.excluded)),
            "unvalidated" if law.unvalidated else "fitted",
        ]
        for law in result.laws
    ]  # fmt: skip
    level = f"{100 * result.settings.confidence:g}%"
    return Table(
        heads, rows,
        f"Natural logarithms; censored regression, REML σ; {level} confidence intervals (t, Knapp–Hartung). "
        "Censored points are part of the fit; inconclusive ones are left out."
    )  # fmt: skip


def candidates(result: AnalysisResult) -> Table | None:
    """Candidate laws with AICc and the log score of the largest N, held out."""
    rows = [
        [
            w.kind_title(law.kind, law.group), row["formula"], str(row["parameters"]), w.number(row["sigma"]),
            w.number(row["aicc"], 4), w.number(row["log_score"], 4), "in use" if row["selected"] else "",
        ]
        for law in result.laws
        for row in law.candidates
    ]  # fmt: skip
    if not rows:
        return None
    heads = [
        ("transition", False), ("law", False), ("coefficients", True), ("σ", True), ("AICc", True), ("log score", True),
        ("chosen", False),
    ]  # fmt: skip
    note = (
        "Log score: of the largest N, held out, under the law of the others (higher is better). The law with a term "
        "for all that was varied stands unless another is better by more than one. AICc beside it: lower is better."
    )
    return Table(heads, rows, note)


def sensitivity(result: AnalysisResult) -> Table | None:
    """The slope with N counted without embeddings, and the same law of the infusion ratio and of exposure tokens."""
    names = {
        "nonembedding_params": "N without embeddings",
        "infusion_ratio": "of the infusion ratio ρ",
        "exposure_tokens": "of exposure tokens",
    }

    def cells(coefficients: dict[str, Any]) -> list[str]:
        return [
            "–" if (c := coefficients.get(name)) is None
            else w.estimate(c["value"], c["low"], c["high"])
            for name in ("a", "b_log_params", "c_log_tokens")
        ]  # fmt: skip

    rows = [
        [w.kind_title(law.kind, law.group), names[key], *cells(item["coefficients"]), w.number(item["sigma"])]
        for law in result.laws
        for key, item in (law.sensitivity | law.equivalents).items()
    ]
    heads = [("transition", False), ("law", False), ("a", True), ("b (log N)", True), ("c (log D)", True), ("σ", True)]
    return Table(heads, rows) if rows else None


def foretold(result: AnalysisResult) -> Table | None:
    """Each size and budget foretold from the smaller ones."""
    heads = [
        ("transition", False), ("from smaller", False), ("N", True), ("D", True), ("extrapolation", True),
        ("foretold", True), ("prediction interval", True), ("measured", True), ("|log ratio|", True), ("hit", False),
        ("constant", True), ("largest model", True),
    ]  # fmt: skip
    rows = [
        [
            w.kind_title(s.kind, s.group), "N" if s.axis == "params" else "D", w.size(s.params), w.size(s.tokens),
            f"{s.extrapolation_factor:.3g}×", w.frequency(s.centre), _interval(s.prediction_interval),
            w.frequency(s.measured) if s.measured else w.STATUS_WORDS[s.status], w.number(s.abs_log_ratio),
            "yes" if s.hit else "no", w.number(s.baselines.get("constant")), w.number(s.baselines.get("largest_model")),
        ]
        for scores in result.rolling.values()
        for s in scores
    ]  # fmt: skip
    if not rows:
        return None
    return Table(heads, rows, "The last two columns are |log ratio| of the baselines: smaller is better.")


def predictions(result: AnalysisResult) -> Table | None:
    """Predictions with intervals and extrapolation factor."""
    if not result.predictions:
        return None
    heads = [
        ("transition", False), ("N", True), ("D", True), ("centre", True), ("confidence interval", True),
        ("prediction interval", True), ("by bootstrap", True), ("recommended", True), ("ρ at centre", True),
        ("domain tokens", True), ("times beyond", True), ("reservations", False),
    ]  # fmt: skip
    rows = [
        [
            w.kind_title(p.kind, p.group), w.size(p.params), w.size(p.tokens), w.frequency(p.centre),
            _interval(p.confidence_interval), _interval(p.prediction_interval),
            "–" if p.bootstrap_interval is None else _interval(p.bootstrap_interval),
            "–" if p.recommended is None else w.frequency(p.recommended),
            w.ratio(p.infusion_ratio), "–" if p.exposure_tokens is None else w.size(p.exposure_tokens),
            f"{p.extrapolation_factor:.3g}×", "; ".join(p.warnings),
        ]
        for p in result.predictions
    ]  # fmt: skip
    note = (
        "Recommended: the safe end of the prediction interval (lower for a collapse, upper for an onset), "
        "and nothing where the law is unvalidated. By "
        "bootstrap: the prediction interval as studies drawn anew from the law ask for it, a check of Student's t."
    )
    return Table(heads, rows, note, remark=True)


def foreign(result: AnalysisResult) -> Table | None:
    """Complete runs that do not belong to the study, and in what they differ."""
    if result.runs is None or result.runs.foreign.empty:
        return None
    rows = [[row.run, row.reason] for row in result.runs.foreign.itertuples()]
    note = (
        "Complete runs that were made with other settings or data than the study, or that it does not name. What "
        "differs: that run’s -> the study’s. They are in no curve, loss comparison or law."
    )
    return Table([("run folder", False), ("what differs", False)], rows, note, remark=True)


def problems(result: AnalysisResult) -> Table | None:
    """Run folders that hold no complete run."""
    if result.runs is None:
        return None
    found = result.runs.problems
    found = found[found["status"] != "foreign"]
    rows = [[r.run, r.status, r.reason] for r in found.itertuples()]
    if not rows:
        return None
    return Table([("run folder", False), ("status", False), ("reason", False)], rows, remark=True)


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
