"""What the report says first about a model that was not trained: how much to infuse, and how certain that is."""

from __future__ import annotations

from megatron_kis.analysis.findings.result import AnalysisResult
from megatron_kis.analysis.law.decision import Decision
from megatron_kis.analysis.law.fit import VALIDATED_CELLS
from megatron_kis.analysis.law.looks import percent
from megatron_kis.analysis.law.prediction import Prediction
from megatron_kis.analysis.report import formatting as fmt
from megatron_kis.analysis.runs.groups import base_group
from megatron_kis.analysis.runs.slices import FACTS, FREQUENCY, RATIO, Slice
from megatron_kis.common.units import plural

LEARNED, KEPT, WORSE = ("onset", "infused"), ("collapse", "background"), ("tolerance", "general")
FORGOTTEN = ("collapse", "infused")


def target(result: AnalysisResult, one: Slice) -> list[str]:
    """Returns what the laws say of the largest model asked about."""
    decisions = [d for d in result.decisions if d.slice == one] or result.decisions
    if decisions:
        return _decided(result, max(decisions, key=lambda d: (d.params, d.tokens)))
    mine = [p for p in result.predictions if p.slice == one]
    if mine:
        return _predicted(max(mine, key=lambda p: (p.params, p.tokens)))
    if result.laws:
        return ["No other model was asked about: predict in the study file, or --params, names one."]
    asked = result.study.get("predict")
    sizes = [size for size in asked if isinstance(size, int | float)] if isinstance(asked, list) else []
    if sizes:
        return [
            f"For {fmt.size(max(sizes))} parameters nothing follows yet: no transition was seen in enough models for a "
            "law over model size."
        ]
    return []


def _decided(result: AnalysisResult, d: Decision) -> list[str]:
    head = f"For {fmt.size(d.params)} parameters and {fmt.size(d.tokens)} tokens"
    level = percent(d.confidence)
    keys = {(limit.kind, base_group(limit.group)) for limit in d.limits}
    tolerance = f"{100 * result.settings.tolerance:g}%"
    kept = fmt.listed(
        [
            words
            for key, words in (
                (KEPT, "earlier knowledge is kept"),
                (FORGOTTEN, "the new facts themselves are kept"),
                (WORSE, f"the loss on general text stays within {tolerance}"),
            )
            if key in keys
        ]
    )
    firm = all(model.prediction.recommended is not None for model in d.models)
    if d.dose is None:
        none = "no dose is safe by these laws" if firm else "no dose can be named yet"
        sentences = [f"{head}, {none}: even at {fmt.smallest_dose(d.slice)} it is not {level} certain that {kept}."]
    else:
        times = fmt.frequency(d.dose) if d.slice.axis == FREQUENCY else fmt.facts(d.dose)
        amounts = _amounts(d)
        often = d.slice.axis == FREQUENCY
        dose = f"{fmt.counted(times, 'exposure')} of each fact" if often else fmt.counted(times, "fact") + held(d.slice)
        if firm:
            advised = f"show each fact at most {fmt.counted(times, 'time')}" if often else f"infuse at most {dose}"
            sentences = [f"{head}, {advised}{amounts}.", f"With a probability of {level}, {kept}."]
        else:
            sentences = [f"{head}, a first estimate: with a probability of {level}, {kept} up to {dose}{amounts}."]
        if d.learned is not None and often:
            chance = fmt.probability(d.learned.probability)
            sentences.append(f"New facts are learned there with a probability of {chance}.")
    if KEPT not in keys and any((p.kind, base_group(p.group)) == KEPT for p in result.points):
        sentences.append("This says nothing about earlier knowledge: the runs carry no law of its loss.")
    if not firm:
        sentences += _why_not_firm(d)
    beyond = max(model.prediction.extrapolation_factor for model in d.models)
    if beyond > 1:
        sentences.append(f"The target is {fmt.frequency(beyond)} times beyond the models that were trained.")
    return sentences


def _amounts(d: Decision) -> str:
    if d.amounts is None:
        return ""
    known = []
    if d.amounts.infusion_ratio is not None and d.slice.held_by != RATIO:
        known.append(f"{fmt.share(d.amounts.infusion_ratio)} of the tokens")
    if d.amounts.tokens is not None:
        known.append(f"{fmt.size(d.amounts.tokens)} tokens of domain data")
    if d.slice.axis == FACTS and d.amounts.bits is not None:
        known.append(f"{fmt.number(d.amounts.bits / d.params, 2)} bits per parameter")
    return f" ({', '.join(known)})" if known else ""


def _why_not_firm(d: Decision) -> list[str]:
    """Says why a dose is only a first estimate."""
    few = [m.law for m in d.models if m.law.unvalidated]
    if few:
        seen = min(sum(p["residual"] is not None for p in law.points) for law in few)
        return [f"It rests on {plural(seen, 'model')}; a law to act on needs {VALIDATED_CELLS}."]
    notes = [m.prediction.recommended_note for m in d.models if m.prediction.recommended is None]
    said = "; ".join(dict.fromkeys(note for note in notes if note))
    return [f"It is not a recommendation: {said}."] if said else []


def _predicted(p: Prediction) -> list[str]:
    """Returns what a law of an onset alone says."""
    low, high = p.prediction_interval
    return [
        f"For {fmt.size(p.params)} parameters and {fmt.size(p.tokens)} tokens, new facts are learned from about "
        f"{doses(p.centre, p.centre, p.slice)} ({percent(p.confidence)} prediction interval {fmt.frequency(low)} to "
        f"{fmt.frequency(high)}). What is lost by then cannot be said: the runs carry no law of a loss."
    ]


def doses(low: float, high: float, one: Slice) -> str:
    """Describes doses from ``low`` to ``high``: exposures, or facts, and what is held."""
    values = fmt.span(fmt.frequency(low), fmt.frequency(high))
    return f"{values} exposures each{held(one)}" if one.axis == FREQUENCY else f"{values} facts{held(one)}"


def held(one: Slice) -> str:
    """Says what is held along the dose."""
    if one.held is None:
        return ""
    if one.held_by == RATIO:
        return f" in {fmt.share(one.held)} of the tokens"
    return f" of {one.held:,.0f} facts" if one.held_by == FACTS else f" at {one.held:g} exposures each"
