"""What a reader should know before trusting the answer: a row of checks of the runs and of their questions."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import pandas as pd
import scipy

from megatron_kis.analysis.criteria.tests import p_above
from megatron_kis.analysis.findings.result import AnalysisResult
from megatron_kis.analysis.report import formatting as fmt
from megatron_kis.analysis.runs.curves import primary_rows
from megatron_kis.analysis.runs.slices import levels_of_frequency, varies_facts
from megatron_kis.analysis.runs.transitions import INCONCLUSIVE, Transition
from megatron_kis.common.units import plural

GOOD, BAD, OPEN = "good", "bad", "open"
_AWAY = 2.6  # standard errors from chance that a group of facts which were never shown may have
_UNLIKELY = 0.01  # probability of such differences between templates that are alike
_WIDE = 0.3  # range of templates' rates beyond which their mean is of little use


@dataclass(frozen=True)
class RunCheck:
    """One check."""

    status: str
    """`GOOD`, `BAD`, or `OPEN` where it cannot be determined or the reader must judge."""
    title: str
    text: str


def run_checks(result: AnalysisResult) -> list[RunCheck]:
    """Returns the checks that the data of a study allow; none of points alone."""
    if result.curves is None:
        return []
    found = [_controls(result), _ledger(result), _known_before(result), _seeds(result), _told(result), _counted(result)]
    return [check for check in [*found, _templates(result)] if check is not None]


def _controls(result: AnalysisResult) -> RunCheck:
    """Control facts were never shown: right answers about them are guesses."""
    assert result.curves is not None
    table = primary_rows(result.curves, result.settings)
    mine = table[(table["group"] == "control") & (table["n"] > 0)]
    chance = mine["chance"].dropna()
    if mine.empty or chance.empty:
        return RunCheck(OPEN, "No control facts", "Facts that were never shown were not asked about.")
    rates = mine["correct"] / mine["n"]
    mean, guess = float(rates.mean()), float(chance.mean())
    error = math.sqrt(guess * (1 - guess) / float(mine["facts"].max()))  # all runs are asked the same facts
    seen = f"{mean:.2f} on average over {plural(len(mine), 'run')} ({rates.min():.2f} to {rates.max():.2f})"
    if abs(mean - guess) <= _AWAY * error:
        return RunCheck(GOOD, "Control facts are at chance", f"{seen}; chance is {guess:.2f}.")
    side = "above" if mean > guess else "below"
    return RunCheck(BAD, f"Control facts are {side} chance", f"{seen}; chance is {guess:.2f}. Look at the questions.")


def _ledger(result: AnalysisResult) -> RunCheck | None:
    """Whether every fact was shown as often as the plan says."""
    if result.runs is None:
        return RunCheck(OPEN, "Exposures are not recorded", "A table of curves has no ledger of exposures.")
    exact = result.runs.runs["exposures_exact"]
    wrong, unknown = int((exact == False).sum()), int(exact.isna().sum())  # noqa: E712 (NaN where not recorded)
    runs = plural(len(exact), "run")
    if wrong:
        return RunCheck(BAD, "Exposures are not exact", f"In {wrong} of {runs} facts were not fed as often as planned.")
    if unknown:
        return RunCheck(OPEN, "Exposures are not recorded", f"{unknown} of {runs} have no count of exposures.")
    return RunCheck(GOOD, "Every exposure was fed", f"In all {runs} each fact was fed as often as planned.")


def _known_before(result: AnalysisResult) -> RunCheck | None:
    """What is never known cannot be lost. Infused facts may help a model to learn others of their kind."""
    mine = [curve for curve in result.primary_curves if curve.group == "background" and curve.dose[0] == 0]
    if not any(curve.group == "background" for curve in result.primary_curves):
        return RunCheck(OPEN, "No background facts", "Whether earlier knowledge is kept was not asked.")
    mine = list({(curve.params, curve.tokens): curve for curve in mine}.values())
    if not mine:
        return RunCheck(BAD, "No run without infusion", "What was known before is not measured: add a run at dose 0.")
    lost = [p for p in result.points if (p.kind, p.group) == ("collapse", "background")]
    later = {(p.params, p.tokens) for p in lost if _was_known(p)}
    unknown, with_infused, rates = 0, 0, []
    for curve in mine:
        rate, chance = float(curve.rate[0]), curve.mean_chance
        rates.append(rate)
        if chance is None or curve.dispersion is None:
            continue
        weight = curve.dispersion.effective(curve.facts, curve.runs)[:1]
        if float(p_above(curve.rate[:1], weight, chance, curve.dispersion.freedom)[0]) > result.settings.alpha:
            with_infused += (curve.params, curve.tokens) in later
            unknown += (curve.params, curve.tokens) not in later
    seen = f"{fmt.span(f'{min(rates):.2f}', f'{max(rates):.2f}')} right at dose 0"
    chances = [curve.mean_chance for curve in mine if curve.mean_chance is not None]
    guess = f"; chance is {sum(chances) / len(chances):.2f}" if chances else ""

    def some(models: int) -> str:
        return "" if models == len(mine) else f" in {models} of {len(mine)} models"

    if unknown:
        text = f"{seen}{guess}. There is nothing to lose{some(unknown)}: show background facts more often."
        return RunCheck(BAD, "Background facts are not known without infusion", text)
    if with_infused:
        text = f"{seen}{guess}. They are learned only with infused facts{some(with_infused)}."
        return RunCheck(OPEN, "Background facts are not known without infusion", f"{text} The highest rate counts.")
    return RunCheck(GOOD, "Background facts are known without infusion", f"{seen}{guess}.")


def _was_known(point: Transition) -> bool:
    """Whether the facts of a collapse were known at some dose."""
    return point.status != INCONCLUSIVE or point.p_value is not None


def _seeds(result: AnalysisResult) -> RunCheck:
    assert result.curves is not None
    table = result.curves
    cell = ["params", "tokens", levels_of_frequency(table).rename("level")]
    if varies_facts(table):
        cell.append("infused_facts")
    seeds = sorted({int(n) for n in table.groupby(cell, dropna=False)["seed"].nunique()})
    if seeds[-1] == 1:
        return RunCheck(
            OPEN,
            "One seed",
            "How much runs differ was not measured; it is estimated from neighbouring doses and a prior.",
        )
    count = fmt.span(str(seeds[0]), str(seeds[-1]))
    return RunCheck(GOOD, f"{count} seeds", "How much runs differ was measured, and is in every interval.")


def _told(result: AnalysisResult) -> RunCheck:
    """Transitions that the data do not determine are left out of laws."""
    open_ = [p for p in result.points if p.status == INCONCLUSIVE]
    every = len(result.points)
    if not open_:
        return RunCheck(GOOD, "Every model counts", f"All {plural(every, 'transition')} could be determined.")
    kinds = Counter(fmt.kind_title(p.kind, p.group, p.slice) for p in open_)
    named = [f"{kind[0].lower()}{kind[1:]} in {plural(count, 'model')}" for kind, count in kinds.most_common(3)]
    title = f"{len(open_)} of {plural(every, 'transition')} cannot be determined"
    return RunCheck(OPEN, title, f"Not clear: {'; '.join(named)}. The table below says why.")


def _counted(result: AnalysisResult) -> RunCheck | None:
    if result.runs is None:
        return None
    problems = result.runs.problems
    counted = plural(len(result.runs.runs), "complete run")
    if problems.empty:
        return RunCheck(GOOD, "Every run counts", f"All {counted} belong to the study.")
    kinds = fmt.listed([f"{count} {kind}" for kind, count in Counter(problems["status"]).most_common()])
    return RunCheck(OPEN, f"{plural(len(problems), 'run')} not counted", f"{kinds}; listed under Runs. {counted}.")


def _templates(result: AnalysisResult) -> RunCheck | None:
    """Whether the mean over templates mixes templates that work with ones that do not."""
    if result.runs is None or result.runs.templates.empty:
        return None
    table, settings = result.runs.templates, result.settings
    mine = table[(table["group"] == "infused") & (table["split"] == settings.split)]
    mine = mine[(mine["scoring"] == settings.scoring) & (mine["n"] > 0)]
    largest = result.runs.runs.groupby(["params", "tokens"])["frequency"].transform("max")
    last = result.runs.runs.loc[result.runs.runs["frequency"] == largest, ["run", "params", "tokens"]]
    mine = mine.merge(last, on="run")
    if mine.empty or float(mine.groupby("run").size().max()) < 2:
        return None
    counts = mine.groupby(["params", "tokens", "relation", "template"])[["n", "correct"]].sum()
    rates: pd.Series[float] = counts["correct"] / counts["n"]
    by_model = rates.groupby(level=["params", "tokens"])
    width = float((by_model.max() - by_model.min()).max())
    unlike = any(_unlike(one) for _, one in counts.groupby(level=["params", "tokens"]))
    text = f"{fmt.SPLIT_TITLES[settings.split].capitalize()} range from {rates.min():.2f} to {rates.max():.2f} "
    text += "where each fact was shown most often, relation by relation."
    if width > _WIDE and unlike:
        title = "Templates differ much"
        return RunCheck(OPEN, title, f"{text} A mean rate mixes templates that work with ones that do not.")
    return RunCheck(GOOD, "Templates agree", text)


def _unlike(counts: pd.DataFrame) -> bool:
    """Returns whether rates of templates differ by more than so few questions explain (chi-square)."""
    mean = float(counts["correct"].sum() / counts["n"].sum())
    if not 0 < mean < 1:
        return False
    squares = counts["n"] * (counts["correct"] / counts["n"] - mean) ** 2
    return bool(scipy.special.chdtrc(len(counts) - 1, float(squares.sum()) / (mean * (1 - mean))) < _UNLIKELY)
