"""The report's tables as rows of text; the template only lays them out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from megatron_kis.analysis.findings.result import AnalysisResult
from megatron_kis.analysis.law.fit import Law
from megatron_kis.analysis.law.looks import percent
from megatron_kis.analysis.law.predict import Prediction
from megatron_kis.analysis.report import formatting as fmt
from megatron_kis.analysis.runs.curves import mean_curves, primary_rows, rows_of
from megatron_kis.analysis.runs.slices import USUAL, rows_of_slice, varies_facts
from megatron_kis.analysis.runs.transitions import Transition

_LONG = 16  # characters shown of a fingerprint; its tooltip has all of them


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    head: str
    numeric: bool
    text: Callable[[Any], str]
    """Returns the cell's text for the row's item."""


def _words(head: str, text: Callable[[Any], str]) -> Column:
    return Column(head, False, text)


def _numbers(head: str, text: Callable[[Any], str]) -> Column:
    return Column(head, True, text)


@dataclass(frozen=True)
class Table:
    """A table: columns and rows of text."""

    columns: list[Column]
    rows: list[list[str]]
    note: str = ""
    titles: dict[str, str] = field(default_factory=dict)
    """Full texts of shortened cells, shown on hover."""
    remark: bool = False
    """Whether the last column is a sentence, shown under the row on a line of its own unless it is empty."""


def _table(columns: list[Column], items: Iterable[Any], note: str = "", *, remark: bool = False) -> Table:
    rows = [[column.text(item) for column in columns] for item in items]
    return Table(columns, rows, note, remark=remark)


_KIND = _words("transition", lambda item: fmt.kind_title(item.kind, item.group, item.slice))
_PARAMS = _numbers("N", lambda item: fmt.size(item.params))
_TOKENS = _numbers("D", lambda item: fmt.size(item.tokens))


def transitions(result: AnalysisResult) -> Table:
    """Lists every transition with its interval, in F, in infusion ratio and in tokens."""
    columns = [
        _KIND,
        _PARAMS,
        _TOKENS,
        _words("status", lambda p: fmt.STATUS_WORDS[p.status]),
        *_dose_columns(result, "F", lambda p: p.value),
        _numbers("interval", fmt.bracket),
        _numbers("ρ", lambda p: fmt.ratio(p.infusion_ratio)),
        _numbers("exposure tokens", lambda p: _size(p.exposure_tokens)),
        *_amount_columns(result.points, bits=lambda p: p.infused_bits),
        _numbers("peak", lambda p: fmt.number(p.peak)),
        _numbers("drop", lambda p: fmt.number(p.drop)),
        _numbers("smallest detectable", lambda p: fmt.number(p.detectable, 2)),
        _numbers("steepness", lambda p: fmt.number(p.steepness, 2)),
        _numbers("tolerance rule", lambda p: fmt.frequency(p.companion)),
        _numbers("p", lambda p: fmt.p_value(p.p_value)),
        _numbers("levels", lambda p: _whole(p.levels)),
        _numbers("seeds", lambda p: _whole(p.seeds)),
        _words("why", lambda p: p.reason),
    ]
    dose = "F" if result.slices == [USUAL] else "the dose"
    likely = "hold every dose whose likelihood ratio is under the cut-off"
    of_collapse, steep = {
        "retention": (likely, f"The steepness is the power of {dose} with which the rate’s excess over chance changes"),
        "hinge": (
            f"{likely} that the bootstrap calibrates, and the bracket of the levels tried",
            f"The steepness of a collapse is the fall of the logit per e-fold of {dose}",
        ),
        "half_margin": ("come from resamples of the means, and hold the bracket of the levels tried", ""),
    }.get(result.settings.criterion, ("are brackets of the levels tried", ""))
    note = (
        f"Intervals of collapse points {of_collapse}; those of the onset {likely}; those of loss tolerance follow from "
        f"the scatter of runs. {f'{steep}. ' if steep else ''}Peak and drop are rates; for the loss, the peak is the "
        "loss at F = 0 in nats per token and the drop is the largest relative excess."
    )
    if several := fmt.false_collapses(result.points, result.settings.alpha):
        note += f" {several}"
    return _table(columns, result.points, note, remark=True)


def _dose_columns(result: AnalysisResult, head: str, dose: Callable[[Any], float | None]) -> list[Column]:
    """Returns the column of transitions' doses; with their symbols if the study has an axis other than F."""
    if result.slices == [USUAL]:
        return [_numbers(head, lambda item: fmt.frequency(dose(item)))]
    return [_numbers(head.replace("F", "dose"), lambda item: fmt.dose_at_transition(item.slice, dose(item)))]


def _amount_columns(
    items: Sequence[Transition] | Sequence[Prediction], *, bits: Callable[[Any], float | None] | None = None
) -> list[Column]:
    """Returns the columns of exposures and of bits per parameter where they are known; with ``bits`` one of bits."""
    columns = []
    if any(item.exposures is not None for item in items):
        columns.append(_numbers("exposures", lambda item: _size(item.exposures)))
    if any(item.bits_per_param is not None for item in items):
        if bits is not None:
            columns.append(_numbers("bits", lambda item: _size(bits(item))))
        columns.append(_numbers("bits per parameter", lambda item: fmt.number(item.bits_per_param, 2)))
    return columns


def ledger(result: AnalysisResult) -> Table | None:
    """Lists every complete run."""
    if result.runs is None or result.curves is None:
        return None
    settings, runs = result.settings, result.runs
    primary = primary_rows(runs.probes, settings)
    rates = {(r.run, r.group): r.correct / r.n for r in rows_of(primary)}
    losses = runs.losses.sort_values("step").groupby("run")["loss"].last().to_dict()
    columns = [
        _words("run", lambda r: r.run),
        _words("model", lambda r: r.model or "–"),
        _numbers("N", lambda r: f"{r.params:,}"),
        _TOKENS,
        *([_numbers("K", _facts)] if varies_facts(result.curves) else []),
        _numbers("F", lambda r: f"{r.frequency:g}"),
        _numbers("ρ", lambda r: fmt.ratio(r.infusion_ratio)),
        _numbers("seed", lambda r: str(r.seed)),
        _numbers("infused", lambda r: fmt.rate(rates.get((r.run, "infused")))),
        _numbers("background", lambda r: fmt.rate(rates.get((r.run, "background")))),
        _numbers("control", lambda r: fmt.rate(rates.get((r.run, "control")))),
        _numbers("validation loss", lambda r: fmt.number(losses.get(r.run), 4)),
        _words("exposures", lambda r: _exact(r.exposures_exact)),
    ]
    note = (
        f"Rates: {fmt.SPLIT_TITLES[settings.split]}, “{settings.scoring}” scoring. Exposures are exact if the ledger "
        "of the run counts F exposures of every infused fact."
    )
    order = ["params", "tokens", "frequency", "seed"]
    if varies_facts(result.curves):
        order = ["params", "tokens", "infused_facts", "frequency", "seed"]
    rows = runs.runs.assign(infused_facts=runs.runs["infused_facts"].where(runs.runs["frequency"] > 0, 0.0))
    return _table(columns, rows_of(rows.sort_values(order)), note)


def rates(result: AnalysisResult) -> Table | None:
    """Lists level means of every group, split and scoring rule."""
    if result.curves is None:
        return None
    level = [_numbers("F", lambda r: f"{r.dose:g}")]
    if result.slices != [USUAL]:
        level = [
            _words("held", lambda r: r.held),
            _numbers("dose", lambda r: f"{r.symbol} = {r.dose:g}"),
        ]
    columns = [
        _words("group", lambda r: r.group),
        _words("split", lambda r: fmt.SPLIT_TITLES.get(r.split, r.split)),
        _words("scoring", lambda r: r.scoring),
        _PARAMS,
        _TOKENS,
        *level,
        _numbers("rate", lambda r: f"{r.rate:.3f}"),
        _numbers("lowest", lambda r: f"{r.lowest:.3f}"),
        _numbers("highest", lambda r: f"{r.highest:.3f}"),
        _numbers("seeds", lambda r: str(r.seeds)),
        _numbers("chance", lambda r: fmt.rate(r.chance)),
    ]
    items = [
        row
        for one in result.slices
        for row in rows_of(mean_curves(rows_of_slice(result.curves, one)).assign(held=fmt.held(one), symbol=one.symbol))
    ]
    declared = result.settings.split, result.settings.scoring
    items.sort(key=lambda row: (row.split, row.scoring) != declared)  # a page may have room for the first rows only
    return _table(columns, items)


def _coefficient(head: str, name: str, of: Callable[[Any], dict[str, Any]]) -> Column:
    """Returns the column of a coefficient with its interval; ``of`` gives an item's coefficients."""

    def text(item: Any) -> str:
        found = of(item).get(name)
        return "–" if found is None else fmt.estimate(found["value"], found["low"], found["high"])

    return _numbers(head, text)


def _coefficients(of: Callable[[Any], dict[str, Any]], *, held: bool = False) -> list[Column]:
    return [
        _coefficient("a", "a", of),
        _coefficient("b (log N)", "b_log_params", of),
        _coefficient("c (log D)", "c_log_tokens", of),
        *([_coefficient("d (log held)", "d_log_held", of)] if held else []),
    ]


def laws(result: AnalysisResult) -> Table | None:
    """Lists the laws' estimates with intervals."""
    if not result.laws:
        return None
    columns = [
        _KIND,
        _words("law", lambda law: law.selected_law),
        *_coefficients(
            lambda law: {name: vars(c) for name, c in law.coefficients.items() if c is not None},
            held=any(law.range_held is not None for law in result.laws),
        ),
        _numbers("σ", lambda law: fmt.number(law.sigma)),
        *([_numbers("exponents from all curves", _exponents)] if any(law.surface for law in result.laws) else []),
        _numbers("points", lambda law: str(sum(p["residual"] is not None for p in law.points))),
        _numbers("censored", lambda law: str(sum(p["residual"] is None for p in law.points))),
        _numbers("left out", lambda law: str(len(law.excluded))),
        _words("status", lambda law: "unvalidated" if law.unvalidated else "fitted"),
    ]
    note = (
        f"Natural logarithms; censored regression, REML σ; {percent(result.laws[0].confidence)} confidence intervals "
        "(t, Knapp–Hartung). Censored points are part of the fit; inconclusive ones are left out."
    )
    return _table(columns, result.laws, note)


def _exponents(law: Law) -> str:
    if law.all_curves is None:
        return ""
    found = law.all_curves.estimates(law.confidence)
    return "; ".join(
        f"{fmt.number(middle)} [{fmt.number(low)}, {fmt.number(high)}]"
        for name, (middle, low, high) in found.items()
        if name != "sigma"
    )


def candidates(result: AnalysisResult) -> Table | None:
    """Lists candidate laws with AICc and the log score of the largest N, held out."""
    items = [(law, row) for law in result.laws for row in law.candidates]
    if not items:
        return None
    columns = [
        _words("transition", lambda item: fmt.kind_title(item[0].kind, item[0].group, item[0].slice)),
        _words("law", lambda item: item[1]["formula"]),
        _numbers("coefficients", lambda item: str(item[1]["parameters"])),
        _numbers("σ", lambda item: fmt.number(item[1]["sigma"])),
        _numbers("AICc", lambda item: fmt.number(item[1]["aicc"], 4)),
        _numbers("log score", lambda item: fmt.number(item[1]["log_score"], 4)),
        _words("choice", lambda item: "chosen" if item[1]["selected"] else ""),
    ]
    note = (
        "Log score: how well a law fitted to the smaller N predicts the largest N (higher is better). The law with a "
        "term for everything that was varied is used unless another one is better by more than one. AICc is shown for "
        "comparison: lower is better; a law that does not fit, or has hardly fewer parameters than there are cells, "
        "has none."
    )
    return _table(columns, items, note)


_VARIANTS = {
    "nonembedding_params": "N without embeddings",
    "infusion_ratio": "of the infusion ratio ρ",
    "exposure_tokens": "of exposure tokens",
}


def sensitivity(result: AnalysisResult) -> Table | None:
    """Lists each law with N counted without embeddings, and as a law of the infusion ratio and of exposure tokens."""
    items = [(law, key, item) for law in result.laws for key, item in (law.sensitivity | law.equivalents).items()]
    columns = [
        _words("transition", lambda item: fmt.kind_title(item[0].kind, item[0].group, item[0].slice)),
        _words("law", lambda item: _VARIANTS[item[1]]),
        *_coefficients(lambda item: item[2]["coefficients"]),
        _numbers("σ", lambda item: fmt.number(item[2]["sigma"])),
    ]
    return _table(columns, items) if items else None


def choices(result: AnalysisResult) -> Table | None:
    """Lists the law at the top under every scoring rule, split and criterion; the declared choice first."""
    if len(result.variants) < 2:
        return None
    columns = [
        _words("", lambda v: "declared" if v.declared else ""),
        _words("scoring", lambda v: v.scoring),
        _words("split", lambda v: fmt.SPLIT_TITLES.get(v.split, v.split)),
        _words("criterion", lambda v: v.criterion.replace("_", " ")),
        _words("transition", lambda v: fmt.kind_title(v.kind, v.group, v.slice)),
        _numbers("seen", lambda v: f"{v.seen} of {v.models}" if v.models else "–"),
        _numbers("b (log N)", lambda v: "–" if v.exponent is None else fmt.estimate(*v.exponent)),
        *_dose_columns(result, "F at the target", lambda v: v.centre),
        _numbers("prediction interval", lambda v: fmt.interval(v.interval)),
        _words("no law", lambda v: v.refused),
    ]
    note = (
        f"{len(result.variants)} analyses, each of them another one in one choice; laws and predictions "
        "from points alone, so that they compare. The declared choice is the answer: "
        "it was made before the data were seen."
    )
    return _table(columns, result.variants, note)


def backtest(result: AnalysisResult) -> Table | None:
    """Lists the prediction of each size and budget from the smaller ones."""
    items = [score for scores in result.backtests.values() for score in scores]
    if not items:
        return None
    columns = [
        _KIND,
        _words("from smaller", lambda s: "N" if s.axis == "params" else "D"),
        _PARAMS,
        _TOKENS,
        _numbers("extrapolation", lambda s: f"{s.extrapolation_factor:.3g}×"),
        *_dose_columns(result, "predicted", lambda s: s.centre),
        _numbers("prediction interval", lambda s: fmt.interval(s.prediction_interval)),
        _numbers("measured", lambda s: fmt.frequency(s.measured) if s.measured else fmt.STATUS_WORDS[s.status]),
        _numbers("|log ratio|", lambda s: fmt.number(s.abs_log_ratio)),
        _words("hit", lambda s: fmt.hit(s.hit, decided=s.decided)),
        _numbers("constant", lambda s: fmt.number(s.baselines.get("constant"))),
        _numbers("largest model", lambda s: fmt.number(s.baselines.get("largest_model"))),
    ]
    return _table(columns, items, "The last two columns are |log ratio| of the baselines: smaller is better.")


def predictions(result: AnalysisResult) -> Table | None:
    """Lists predictions with intervals and extrapolation factor."""
    if not result.predictions:
        return None
    alone = not result.decisions  # a decision takes all laws together: there is one dose to act on, and it is that
    noted = alone and any(p.recommended_note for p in result.predictions)
    columns = [
        _KIND,
        _PARAMS,
        _TOKENS,
        *_dose_columns(result, "centre", lambda p: p.centre),
        _numbers("confidence interval", lambda p: fmt.interval(p.confidence_interval)),
        _numbers("prediction interval", lambda p: fmt.interval(p.prediction_interval)),
        *_checks(result.predictions),
        *([_numbers("recommended", lambda p: fmt.frequency(p.recommended))] if alone else []),
        *([_words("why", lambda p: p.recommended_note or "")] if noted else []),
        _numbers("ρ at centre", lambda p: fmt.ratio(p.infusion_ratio)),
        _numbers("domain tokens", lambda p: _size(p.exposure_tokens)),
        *_amount_columns(result.predictions),
        _numbers("beyond trained", lambda p: f"{p.extrapolation_factor:.3g}×"),
        _words("reservations", lambda p: "; ".join(p.warnings)),
    ]
    note = "Each law by itself. What to infuse follows from all of them together: see How much to infuse."
    if alone:
        note = (
            "Recommended: the safe end of the prediction interval (lower for a collapse, upper for an onset), at most "
            "what all tokens allow; nothing is recommended by a law that is unvalidated or does not fit its points."
        )
    if any(p.straight_interval for p in result.predictions):
        note += (
            " The prediction interval allows the law to bend beyond the sizes trained. If straight: if it does not. "
            "From points: from the points alone, a check of one from all curves."
        )
    if result.curves is None:
        note += " Points alone carry no curves: each counts by its interval, and inconclusive ones not at all."
    if any(p.bootstrap_interval for p in result.predictions):
        note += " By bootstrap: the prediction interval from studies simulated with the law, a check of Student’s t."
    return _table(columns, result.predictions, note, remark=True)


def decisions(result: AnalysisResult) -> Table | None:
    """Lists how much to infuse into every size that is predicted for, by every law of what is lost."""
    items = [(decision, limit) for decision in result.decisions for limit in decision.limits]
    if not items:
        return None
    columns = [
        _numbers("N", lambda item: fmt.size(item[0].params)),
        _numbers("D", lambda item: fmt.size(item[0].tokens)),
        _words("dose of", lambda item: fmt.slice_title(item[0].slice) or "F"),
        _numbers("largest dose", lambda item: fmt.decided(item[0])),
        _numbers("nothing lost", lambda item: fmt.number(item[0].probability)),
        _numbers("facts learned", lambda item: fmt.number(item[0].learned.probability if item[0].learned else None)),
        _words("law", lambda item: fmt.kind_title(item[1].kind, item[1].group)),
        _numbers("not yet lost there", lambda item: fmt.number(item[1].probability)),
        _numbers("dose by it alone", lambda item: fmt.frequency(math.floor(item[1].alone))),
        _words("from", lambda item: "all curves" if item[1].method == "surface" else "points"),
    ]
    return _table(columns, items, "Probabilities at the largest dose at which nothing is lost with the confidence.")


def _checks(predictions: Sequence[Prediction]) -> list[Column]:
    """Returns columns of the intervals, other than the main one, that any prediction has."""
    names = {
        "if straight": "straight_interval",
        "from points": "points_interval",
        "by bootstrap": "bootstrap_interval",
    }

    def column(title: str, name: str) -> Column:
        return _numbers(title, lambda p: fmt.interval(getattr(p, name)))

    return [column(title, name) for title, name in names.items() if any(getattr(p, name) for p in predictions)]


def foreign(result: AnalysisResult) -> Table | None:
    """Lists complete runs that do not belong to the study, and how they differ."""
    if result.runs is None or result.runs.foreign.empty:
        return None
    columns = [_words("run folder", lambda r: r.run), _words("what differs", lambda r: r.reason)]
    note = (
        "Complete runs with other settings or data than the study’s, or that the study does not list. Differences are "
        "shown as: this run’s -> the study’s. These runs are not part of any curve, loss comparison or law."
    )
    return _table(columns, rows_of(result.runs.foreign), note, remark=True)


def problems(result: AnalysisResult) -> Table | None:
    """Lists run folders without a complete run."""
    if result.runs is None:
        return None
    found = result.runs.problems
    found = found[found["status"] != "foreign"]
    columns = [
        _words("run folder", lambda r: r.run),
        _words("status", lambda r: r.status),
        _words("reason", lambda r: r.reason),
    ]
    return _table(columns, rows_of(found), remark=True) if len(found) else None


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
        _words("kind", lambda row: row[0]),
        _words("what", lambda row: row[1]),
        _words("value", lambda row: row[2]),
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
        shown.append(short if len(counts) == 1 else f"{short} ({fmt.plural(count, 'run')})")
    text = ", ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")
    if len(counts) and text != ", ".join(sorted(counts)):
        titles[text] = ", ".join(sorted(counts)[:8])
    return text


def _facts(run: Any) -> str:
    return "–" if pd.isna(run.infused_facts) else f"{run.infused_facts:,.0f}"


def _size(value: float | None) -> str:
    return "–" if value is None else fmt.size(value)


def _whole(value: int | None) -> str:
    return "–" if value is None else str(value)


def _exact(value: bool | None) -> str:
    return "not recorded" if value is None or pd.isna(value) else "exact" if value else "NOT exact"


TABLES: dict[str, Callable[[AnalysisResult], Table | None]] = {
    "transitions": transitions,
    "laws": laws,
    "candidates": candidates,
    "sensitivity": sensitivity,
    "predictions": predictions,
    "decisions": decisions,
    "choices": choices,
    "backtest": backtest,
    "ledger": ledger,
    "rates": rates,
    "foreign": foreign,
    "problems": problems,
    "provenance": provenance,
}
"""The report's tables by the names of their exported files."""
