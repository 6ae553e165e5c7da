"""Numbers, sizes and statuses as text for a reader."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from megatron_kis.analysis.law.decision import Amounts, Decision
from megatron_kis.analysis.runs.groups import base_group, strength
from megatron_kis.analysis.runs.slices import FREQUENCY, RATIO, USUAL, Slice, slice_of_record
from megatron_kis.analysis.runs.transitions import (
    COLLAPSED,
    INCONCLUSIVE,
    LEFT_CENSORED,
    OBSERVED,
    RIGHT_CENSORED,
    Transition,
)
from megatron_kis.common.units import plural

MINUS = "−"
_RAISED = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
KIND_TITLES = {
    ("onset", "infused"): "Onset of memorisation",
    ("collapse", "infused"): "Collapse of infused facts",
    ("collapse", "background"): "Collapse of background facts",
    ("tolerance", "general"): "General loss beyond its tolerance",
}
GROUP_TITLES = {
    "infused": "Infused facts: memorisation rate",
    "background": "Background facts: retention",
    "control": "Control facts: never shown",
}
SPLIT_TITLES = {"train": "train templates", "held_out": "held-out templates", "question": "questions"}
STATUS_WORDS = {
    COLLAPSED: "collapsed",
    OBSERVED: "observed",
    RIGHT_CENSORED: "right-censored",
    LEFT_CENSORED: "left-censored",
    INCONCLUSIVE: "inconclusive",
}
STATUS_MARKS = {COLLAPSED: "▼", OBSERVED: "●", RIGHT_CENSORED: "▷", LEFT_CENSORED: "◁", INCONCLUSIVE: "?"}


def kind_title(kind: str, group: str, one: Slice = USUAL) -> str:
    """Returns the heading of a kind and group of transitions, and of their slice where it is not the usual one."""
    title = KIND_TITLES.get((kind, base_group(group)), f"{kind.capitalize()} ({base_group(group)})")
    return title + _of_strength(group) + along(one)


def refused_title(item: dict[str, str]) -> str:
    """Returns the heading of a law that was refused (an item of ``refused`` in law.json)."""
    held = {"held": float(item["held"])} if "held" in item else {}
    return kind_title(item["kind"], item["group"], slice_of_record(item | held, where="refused"))


def refused_reason(item: dict[str, str]) -> str:
    """Says why a law was refused."""
    if item["code"] == "all_censored":
        return "no model shows it between two of its doses"
    reason = item["reason"].removeprefix("law: ").replace("_", "-")
    if few := re.fullmatch(r"bracketed points of (\d+) sizes? N only; .*", reason):
        sizes = plural(int(few[1]), "model size")
        return f"it was seen in {sizes} only, and a law takes at least 3"
    return reason


def group_title(group: str, one: Slice = USUAL) -> str:
    """Returns the heading of a group's curves."""
    exposures = strength(group)
    title = GROUP_TITLES[base_group(group)] if exposures is None else f"Background facts shown {exposures:g} times"
    return title + along(one)


def strength_title(group: str) -> str:
    """Names background facts of one strength below a heading that says so: ``60 exposures``."""
    return f"{strength(group):g} exposures"


def slice_title(one: Slice) -> str:
    """Returns a heading for what was found along a slice; empty for the usual one."""
    if one == USUAL:
        return ""
    dose = "How often: infusion frequency F" if one.axis == FREQUENCY else "How many: number of infused facts K"
    return dose + (f", at {one.label}" if one.label else "")


def group_words(group: str) -> str:
    """Names the facts of a group within a sentence: ``background facts, 60 exposures``."""
    return f"{base_group(group)} facts{_of_strength(group)}"


def along(one: Slice) -> str:
    """Names a slice at the end of a heading: ``, K at F = 14`` (several: ``, K over F``); nothing for the usual one."""
    if one.held_by is not None and one.held is None:
        return f", {one.symbol} over {one.held_symbol}"
    return "" if one == USUAL else f", {one.symbol}" + (f" at {one.label}" if one.label else "")


def held(one: Slice) -> str:
    """Says what a slice holds: ``F = 14``."""
    return one.label or "–"


def slug(*parts: str) -> str:
    """Joins parts of the name of a figure; empty ones are left out."""
    return "-".join(part.replace("@", "-").replace("_", "-") for part in parts if part)


def _of_strength(group: str) -> str:
    exposures = strength(group)
    return "" if exposures is None else f", {exposures:g} exposures"


def facts(count: float) -> str:
    """Formats a number of facts in a sentence, to three digits and never more: ``1,240`` or ``2.8 million``."""
    step = 10 ** max(math.floor(math.log10(count)) - 2, 0) if count >= 1 else 1
    whole = math.floor(count / step) * step
    for scale, word in ((1e9, "billion"), (1e6, "million")):
        if whole >= scale:
            return f"{_three(whole / scale)} {word}"
    return f"{whole:,}"


def dose(one: Slice, value: float | None) -> str:
    """Formats a dose with its symbol: ``K = 412``."""
    return "–" if value is None else f"{one.symbol} = {frequency(value)}"


def smallest_dose(one: Slice) -> str:
    """Returns the smallest dose there is, in words."""
    return "1 exposure of each fact" if one.axis == FREQUENCY else "1 fact"


def decided(decision: Decision) -> str:
    """Formats the dose of a decision."""
    if decision.dose is None:
        return f"none: not even {smallest_dose(decision.slice)}"
    return dose(decision.slice, decision.dose)


def amounts(of: Amounts | None) -> list[tuple[str, str]]:
    """Names and formats what a dose is in other units."""
    if of is None:
        return []
    known = (
        ("infusion ratio", of.infusion_ratio, ratio),
        ("tokens of domain data", of.tokens, size),
        ("exposures of all facts", of.exposures, size),
        ("bits of the facts", of.bits, size),
    )
    return [(name, text(value)) for name, value, text in known if value is not None]


def dose_at_transition(one: Slice, value: float | None) -> str:
    """Formats the dose of a transition with its symbol: ``K* = 412``."""
    return "–" if value is None else f"{one.symbol_at_transition} = {frequency(value)}"


def dose_name(one: Slice) -> str:
    """Names the dose of an axis within a sentence."""
    return "infusion frequency" if one.axis == FREQUENCY else "number of infused facts"


def level(one: Slice, value: float, infusion_ratio: float | None) -> str:
    """Describes a level for the tip of a point: ``K = 400 · ρ = 0.37 · F = 14``."""
    held = f" · {one.label}" if one.label and one.held_by != RATIO else ""
    return f"{one.symbol} = {value:g} · ρ = {ratio(infusion_ratio)}{held}"


def size(count: float) -> str:
    """Formats a count of parameters or tokens: 137M, 2.8B, 1T."""
    for scale, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= 0.9995 * scale:
            return f"{_three(count / scale)}{unit}"
    return f"{count:.0f}"


def _three(value: float) -> str:
    return f"{float(f'{value:.3g}'):g}"


def _power(value: float) -> str:
    """Formats as a power of ten: ``1.7 × 10⁶``."""
    mantissa, exponent = f"{value:.1e}".split("e")
    power = f"10{str(int(exponent)).translate(_RAISED)}"
    return power if mantissa == "1.0" else f"{mantissa.removesuffix('.0')} × {power}"


def frequency(value: float | None) -> str:
    """Formats a dose: F in exposures per fact, or K."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    if value >= 1e6 or value < 1e-3:
        return _power(value)
    if value >= 1000 and not float(value).is_integer():  # an estimate; frequencies that were tried are whole
        value = float(f"{value:.3g}")
    return f"{value:,.0f}" if value >= 20 else _three(value)


def ratio(value: float | None) -> str:
    """Formats an infusion ratio."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    if value < 1e-3:
        return _power(value)
    return f"{value:.2f}" if value >= 0.1 else f"{value:.3f}" if value >= 0.01 else f"{value:.2g}"


def rate(value: float | None) -> str:
    """Formats a rate or the probability of an answer."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.2f}"


def number(value: float | None, digits: int = 3) -> str:
    """Formats a plain number to ``digits`` significant digits, with a real minus sign."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}g}".replace("-", MINUS)


def estimate(value: float, low: float, high: float) -> str:
    """Formats ``value [low, high]`` with as many decimals as the width of the interval justifies."""
    width = high - low
    if not math.isfinite(width) or width <= 0:
        return f"{number(value)} [{number(low)}, {number(high)}]"
    decimals = min(max(2 - math.floor(math.log10(width)), 0), 12)
    shown = [f"{round(x, decimals) + 0.0:.{decimals}f}".replace("-", MINUS) for x in (value, low, high)]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"


def unbroken(text: str) -> str:
    """Keeps every ``F ≈ 759`` and ``b (log N)`` of a text on one line."""
    text = text.replace(" × 10", "\u00a0×\u00a010")
    text = re.sub(r"\b([abc]) \(log (?=[ND]\))", "\\1\u00a0(log\u00a0", text)
    return re.sub(r"\b([FK]\*?|[ND]|p|ρ) ([=≈<>]) (?=[\d.])", "\\1\u00a0\\2\u00a0", text)


def interval(ends: tuple[float, float] | None) -> str:
    """Formats the ends of an interval of a dose."""
    return "–" if ends is None else f"{frequency(ends[0])} – {frequency(ends[1])}"


def p_value(value: float | None) -> str:
    """Formats a p-value."""
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def bracket(point: Transition) -> str:
    """Formats the interval of a transition."""
    if point.low is None and point.high is None:
        return "–"
    low = frequency(point.low or 0)
    if point.high is None:
        return f"> {low}"
    return f"[{low}, {frequency(point.high)}]" if point.interval == "profile" else f"({low}, {frequency(point.high)}]"


def hit(found: bool, *, decided: bool) -> str:
    """Describes whether an interval held a measurement, or could not have missed it."""
    return "not contradicted" if not decided else "yes" if found else "no"


def false_collapses(points: Iterable[Transition], alpha: float) -> str:
    """Describes how many curves were tested for a collapse, and how likely a false one among them is; empty if none."""
    tests = sum(point.kind == "collapse" and point.p_value is not None for point in points)
    if not tests:
        return ""
    chance = 1 - (1 - alpha) ** tests
    return (
        f"{plural(tests, 'test')} for a collapse at level {alpha:g}: if nothing falls, at least one is called with a "
        f"chance of {chance:.0%}, were they independent."
    )


def finding(point: Transition) -> str:
    """Describes a transition in a few words that claim no more than its status."""
    if point.status in (COLLAPSED, OBSERVED):
        return f"{point.slice.symbol} ≈ {frequency(point.value)}"
    if point.status == RIGHT_CENSORED:
        return f"{not_seen(point)} up to {point.slice.symbol} = {frequency(point.low)}"
    if point.status == LEFT_CENSORED:
        return f"at or before {point.slice.symbol} = {frequency(point.high)}"
    return "not determined"


def not_seen(point: Transition) -> str:
    """Says up to which dose a transition was not seen: ``not reached`` where it lies beyond, else ``not shown``.

    A transition is reached later where the runs exclude it up to there. Facts that were not shown to be learned at all
    may have been learned a little: nothing is excluded.
    """
    unseen = point.kind == "onset" and point.steepness is None
    return "not shown" if unseen else "not reached"


def share(value: float) -> str:
    """Formats a share as a percentage within a sentence: ``6%``, ``0.4%``."""
    percent = 100 * value
    return f"{percent:.0f}%" if percent <= 0 or percent >= 1 else f"{percent:.1g}%"


def probability(value: float) -> str:
    """Formats a probability within a sentence, never as a certainty: ``92%``, ``over 99.9%``."""
    return "over 99.9%" if value >= 0.9995 else f"{100 * value:.3g}%"


def span(low: str, high: str) -> str:
    """Joins the ends of a range, which is one value where they read alike: ``55 to 186``."""
    return low if low == high else f"{low} to {high}"


def counted(value: str, noun: str) -> str:
    """Joins a formatted count and its noun: ``1 time``, ``1.2 million facts``."""
    return f"{value} {noun}{'' if value == '1' else 's'}"


def listed(items: list[str]) -> str:
    """Joins items: ``a``, ``a and b``, ``a, b and c``."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""
