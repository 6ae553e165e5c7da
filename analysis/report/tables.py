"""The report's tables as rows of text; the template only lays them out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from megatron_kis.analysis.findings.result import AnalysisResult
from megatron_kis.analysis.law.law import Law
from megatron_kis.analysis.law.looks import percent
from megatron_kis.analysis.law.prediction import Prediction
from megatron_kis.analysis.report import formatting as fmt
from megatron_kis.analysis.report.run_tables import foreign, ledger, problems, provenance
from megatron_kis.analysis.report.table import Column, Table, numbers, table_of, words
from megatron_kis.analysis.runs.curves import mean_curves, rows_of
from megatron_kis.analysis.runs.slices import USUAL, rows_of_slice
from megatron_kis.analysis.runs.transitions import Transition

_KIND = words("transition", lambda item: fmt.kind_title(item.kind, item.group, item.slice))
_PARAMS = numbers("N", lambda item: fmt.size(item.params))
_TOKENS = numbers("D", lambda item: fmt.size(item.tokens))


def transitions(result: AnalysisResult) -> Table:
    """Lists every transition with its interval, in F, in infusion ratio and in tokens."""
    columns = [
        _KIND,
        _PARAMS,
        _TOKENS,
        words("status", lambda p: fmt.STATUS_WORDS[p.status]),
        *_dose_columns(result, "F", lambda p: p.value),
        numbers("interval", fmt.bracket),
        numbers("ρ", lambda p: fmt.ratio(p.infusion_ratio)),
        numbers("exposure tokens", lambda p: _size(p.exposure_tokens)),
        *_amount_columns(result.points, bits=lambda p: p.infused_bits),
        numbers("peak", lambda p: fmt.number(p.peak)),
        numbers("drop", lambda p: fmt.number(p.drop)),
        numbers("smallest detectable", lambda p: fmt.number(p.detectable, 2)),
        numbers("steepness", lambda p: fmt.number(p.steepness, 2)),
        numbers("tolerance rule", lambda p: fmt.frequency(p.companion)),
        numbers("p", lambda p: fmt.p_value(p.p_value)),
        numbers("levels", lambda p: _whole(p.levels)),
        numbers("seeds", lambda p: _whole(p.seeds)),
        words("why", lambda p: p.reason),
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
    return table_of(columns, result.points, note, remark=True)


def _dose_columns(result: AnalysisResult, head: str, dose: Callable[[Any], float | None]) -> list[Column]:
    """Returns the column of transitions' doses; with their symbols if the study has an axis other than F."""
    if result.slices == [USUAL]:
        return [numbers(head, lambda item: fmt.frequency(dose(item)))]
    return [numbers(head.replace("F", "dose"), lambda item: fmt.dose_at_transition(item.slice, dose(item)))]


def _amount_columns(
    items: Sequence[Transition] | Sequence[Prediction], *, bits: Callable[[Any], float | None] | None = None
) -> list[Column]:
    """Returns the columns of exposures and of bits per parameter where they are known; with ``bits`` one of bits."""
    columns = []
    if any(item.exposures is not None for item in items):
        columns.append(numbers("exposures", lambda item: _size(item.exposures)))
    if any(item.bits_per_param is not None for item in items):
        if bits is not None:
            columns.append(numbers("bits", lambda item: _size(bits(item))))
        columns.append(numbers("bits per parameter", lambda item: fmt.number(item.bits_per_param, 2)))
    return columns


def rates(result: AnalysisResult) -> Table | None:
    """Lists level means of every group, split and scoring rule."""
    if result.curves is None:
        return None
    level = [numbers("F", lambda r: f"{r.dose:g}")]
    if result.slices != [USUAL]:
        level = [
            words("held", lambda r: r.held),
            numbers("dose", lambda r: f"{r.symbol} = {r.dose:g}"),
        ]
    columns = [
        words("group", lambda r: r.group),
        words("split", lambda r: fmt.SPLIT_TITLES.get(r.split, r.split)),
        words("scoring", lambda r: r.scoring),
        _PARAMS,
        _TOKENS,
        *level,
        numbers("rate", lambda r: f"{r.rate:.3f}"),
        numbers("lowest", lambda r: f"{r.lowest:.3f}"),
        numbers("highest", lambda r: f"{r.highest:.3f}"),
        numbers("seeds", lambda r: str(r.seeds)),
        numbers("chance", lambda r: fmt.rate(r.chance)),
    ]
    items = [
        row
        for one in result.slices
        for row in rows_of(mean_curves(rows_of_slice(result.curves, one)).assign(held=fmt.held(one), symbol=one.symbol))
    ]
    declared = result.settings.split, result.settings.scoring
    items.sort(key=lambda row: (row.split, row.scoring) != declared)  # a page may have room for the first rows only
    return table_of(columns, items)


def _coefficient(head: str, name: str, of: Callable[[Any], dict[str, Any]]) -> Column:
    """Returns the column of a coefficient with its interval; ``of`` gives an item's coefficients."""

    def text(item: Any) -> str:
        found = of(item).get(name)
        return "–" if found is None else fmt.estimate(found["value"], found["low"], found["high"])

    return numbers(head, text)


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
        words("law", lambda law: law.selected_law),
        *_coefficients(
            lambda law: {name: vars(c) for name, c in law.coefficients.items() if c is not None},
            held=any(law.range_held is not None for law in result.laws),
        ),
        numbers("σ", lambda law: fmt.number(law.sigma)),
        *([numbers("exponents from all curves", _exponents)] if any(law.surface for law in result.laws) else []),
        numbers("points", lambda law: str(sum(p["residual"] is not None for p in law.points))),
        numbers("censored", lambda law: str(sum(p["residual"] is None for p in law.points))),
        numbers("left out", lambda law: str(len(law.excluded))),
        words("status", lambda law: "unvalidated" if law.unvalidated else "fitted"),
    ]
    note = (
        f"Natural logarithms; censored regression, REML σ; {percent(result.laws[0].confidence)} confidence intervals "
        "(t, Knapp–Hartung). Censored points are part of the fit; inconclusive ones are left out."
    )
    return table_of(columns, result.laws, note)


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
        words("transition", lambda item: fmt.kind_title(item[0].kind, item[0].group, item[0].slice)),
        words("law", lambda item: item[1]["formula"]),
        numbers("coefficients", lambda item: str(item[1]["parameters"])),
        numbers("σ", lambda item: fmt.number(item[1]["sigma"])),
        numbers("AICc", lambda item: fmt.number(item[1]["aicc"], 4)),
        numbers("log score", lambda item: fmt.number(item[1]["log_score"], 4)),
        words("choice", lambda item: "chosen" if item[1]["selected"] else ""),
    ]
    note = (
        "Log score: how well a law fitted to the smaller N predicts the largest N (higher is better). The law with a "
        "term for everything that was varied is used unless another one is better by more than one. AICc is shown for "
        "comparison: lower is better; a law that does not fit, or has hardly fewer parameters than there are cells, "
        "has none."
    )
    return table_of(columns, items, note)


_VARIANTS = {
    "nonembedding_params": "N without embeddings",
    "infusion_ratio": "of the infusion ratio ρ",
    "exposure_tokens": "of exposure tokens",
}


def sensitivity(result: AnalysisResult) -> Table | None:
    """Lists each law with N counted without embeddings, and as a law of the infusion ratio and of exposure tokens."""
    items = [(law, key, item) for law in result.laws for key, item in (law.sensitivity | law.equivalents).items()]
    columns = [
        words("transition", lambda item: fmt.kind_title(item[0].kind, item[0].group, item[0].slice)),
        words("law", lambda item: _VARIANTS[item[1]]),
        *_coefficients(lambda item: item[2]["coefficients"]),
        numbers("σ", lambda item: fmt.number(item[2]["sigma"])),
    ]
    return table_of(columns, items) if items else None


def choices(result: AnalysisResult) -> Table | None:
    """Lists the law at the top under every scoring rule, split and criterion; the declared choice first."""
    if len(result.variants) < 2:
        return None
    columns = [
        words("", lambda v: "declared" if v.declared else ""),
        words("scoring", lambda v: v.scoring),
        words("split", lambda v: fmt.SPLIT_TITLES.get(v.split, v.split)),
        words("criterion", lambda v: v.criterion.replace("_", " ")),
        words("transition", lambda v: fmt.kind_title(v.kind, v.group, v.slice)),
        numbers("seen", lambda v: f"{v.seen} of {v.models}" if v.models else "–"),
        numbers("b (log N)", lambda v: "–" if v.exponent is None else fmt.estimate(*v.exponent)),
        *_dose_columns(result, "F at the target", lambda v: v.centre),
        numbers("prediction interval", lambda v: fmt.interval(v.interval)),
        words("no law", lambda v: v.refused),
    ]
    note = (
        f"{len(result.variants)} analyses, each of them another one in one choice; laws and predictions "
        "from points alone, so that they compare. The declared choice is the answer: "
        "it was made before the data were seen."
    )
    return table_of(columns, result.variants, note)


def backtest(result: AnalysisResult) -> Table | None:
    """Lists the prediction of each size and budget from the smaller ones."""
    items = [score for scores in result.backtests.values() for score in scores]
    if not items:
        return None
    columns = [
        _KIND,
        words("from smaller", lambda s: "N" if s.axis == "params" else "D"),
        _PARAMS,
        _TOKENS,
        numbers("extrapolation", lambda s: f"{s.extrapolation_factor:.3g}×"),
        *_dose_columns(result, "predicted", lambda s: s.centre),
        numbers("prediction interval", lambda s: fmt.interval(s.prediction_interval)),
        numbers("measured", lambda s: fmt.frequency(s.measured) if s.measured else fmt.STATUS_WORDS[s.status]),
        numbers("|log ratio|", lambda s: fmt.number(s.abs_log_ratio)),
        words("hit", lambda s: fmt.hit(s.hit, decided=s.decided)),
        numbers("constant", lambda s: fmt.number(s.baselines.get("constant"))),
        numbers("largest model", lambda s: fmt.number(s.baselines.get("largest_model"))),
    ]
    return table_of(columns, items, "The last two columns are |log ratio| of the baselines: smaller is better.")


def predictions(result: AnalysisResult) -> Table | None:
    """Lists predictions with intervals and extrapolation factor."""
    if not result.predictions:
        return None
    alone = not result.decisions  # a decision takes all laws together: this is the one dose to act on
    noted = alone and any(p.recommended_note for p in result.predictions)
    columns = [
        _KIND,
        _PARAMS,
        _TOKENS,
        *_dose_columns(result, "centre", lambda p: p.centre),
        numbers("confidence interval", lambda p: fmt.interval(p.confidence_interval)),
        numbers("prediction interval", lambda p: fmt.interval(p.prediction_interval)),
        *_checks(result.predictions),
        *([numbers("recommended", lambda p: fmt.frequency(p.recommended))] if alone else []),
        *([words("why", lambda p: p.recommended_note or "")] if noted else []),
        numbers("ρ at centre", lambda p: fmt.ratio(p.infusion_ratio)),
        numbers("domain tokens", lambda p: _size(p.exposure_tokens)),
        *_amount_columns(result.predictions),
        numbers("beyond trained", lambda p: f"{p.extrapolation_factor:.3g}×"),
        words("reservations", lambda p: "; ".join(p.warnings)),
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
    return table_of(columns, result.predictions, note, remark=True)


def decisions(result: AnalysisResult) -> Table | None:
    """Lists how much to infuse into every size that is predicted for, by every law of what is lost."""
    items = [(decision, limit) for decision in result.decisions for limit in decision.limits]
    if not items:
        return None
    columns = [
        numbers("N", lambda item: fmt.size(item[0].params)),
        numbers("D", lambda item: fmt.size(item[0].tokens)),
        words("dose of", lambda item: fmt.slice_title(item[0].slice) or "F"),
        numbers("largest dose", lambda item: fmt.decided(item[0])),
        numbers("nothing lost", lambda item: fmt.number(item[0].probability)),
        numbers("facts learned", lambda item: fmt.number(item[0].learned.probability if item[0].learned else None)),
        words("law", lambda item: fmt.kind_title(item[1].kind, item[1].group)),
        numbers("not yet lost there", lambda item: fmt.number(item[1].probability)),
        numbers("dose by it alone", lambda item: fmt.frequency(math.floor(item[1].alone))),
        words("from", lambda item: "all curves" if item[1].method == "surface" else "points"),
    ]
    return table_of(columns, items, "Probabilities at the largest dose at which nothing is lost with the confidence.")


def _checks(predictions: Sequence[Prediction]) -> list[Column]:
    """Returns columns of the intervals, other than the main one, that any prediction has."""
    names = {
        "if straight": "straight_interval",
        "from points": "points_interval",
        "by bootstrap": "bootstrap_interval",
    }

    def column(title: str, name: str) -> Column:
        return numbers(title, lambda p: fmt.interval(getattr(p, name)))

    return [column(title, name) for title, name in names.items() if any(getattr(p, name) for p in predictions)]


def _size(value: float | None) -> str:
    return "–" if value is None else fmt.size(value)


def _whole(value: int | None) -> str:
    return "–" if value is None else str(value)


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
