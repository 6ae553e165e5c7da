"""What was asked and what was seen, in plain words made from results only."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_kis.analysis.findings.result import AnalysisResult
from megatron_kis.analysis.law.predict import Prediction
from megatron_kis.analysis.report import wording as w
from megatron_kis.analysis.report.figures import cell_label
from megatron_kis.analysis.runs.load import Runs
from megatron_kis.analysis.runs.transitions import (
    COLLAPSED,
    INCONCLUSIVE,
    LEFT_CENSORED,
    OBSERVED,
    RIGHT_CENSORED,
    Transition,
)
from megatron_kis.common.errors import first_of

_ORDER = (("onset", "infused"), ("collapse", "infused"), ("collapse", "background"), ("tolerance", "general"))


@dataclass(frozen=True)
class Badge:
    """A transition of one model in the matrix of findings."""

    status: str
    kind: str
    mark: str
    finding: str
    detail: str
    reason: str


@dataclass(frozen=True)
class Matrix:
    """Models down, transitions across."""

    heads: list[str]
    rows: list[tuple[str, list[Badge | None]]]


@dataclass(frozen=True)
class Fact:
    """A number for the strip under the title."""

    number: str
    label: str


def strip(result: AnalysisResult) -> list[Fact]:
    """The study in four or five numbers."""
    cells = {(p.params, p.tokens) for p in result.points}
    sizes = sorted({n for n, _ in cells})
    facts = [Fact(_span(sizes), w.plural(len(sizes), "model size"))]
    budgets = sorted({d for _, d in cells})
    facts.append(Fact(_span(budgets), "tokens a run, fixed" if len(budgets) == 1 else "token budgets"))
    if result.curves is not None:
        levels = sorted(set(result.curves["frequency"]))
        facts.append(Fact(f"{levels[0]:g} – {levels[-1]:g}", f"infusion frequency, {w.plural(len(levels), 'level')}"))
        ratios = result.curves["infusion_ratio"].dropna()
        if len(ratios):
            facts.append(Fact(w.ratio(float(ratios.max())), "largest infusion ratio"))
    if result.runs is not None:
        bad = len(result.runs.problems)
        facts.append(Fact(f"{len(result.runs.runs):,}", "complete runs" + (f", {bad} not counted" if bad else "")))
    return facts


def _span(values: list[int]) -> str:
    return w.size(values[0]) if len(values) == 1 else f"{w.size(values[0])} – {w.size(values[-1])}"


def asked(result: AnalysisResult) -> list[str]:
    """What the study did, as far as its data say so."""
    settings = result.settings
    sentences = []
    if result.curves is None:
        return [
            "This report starts from transition points that were found elsewhere; it fits the law and predicts from it."
        ]
    table = result.curves
    sizes = sorted(set(table["params"]))
    levels = sorted(set(table["frequency"]))
    seeds = sorted({int(n) for n in table.groupby(["params", "tokens", "frequency"])["seed"].nunique()})
    count = w.plural(seeds[0], "seed") if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    sentences.append(
        f"How many times may a fact be repeated in pretraining before a model forgets what it knew? "
        f"{w.plural(len(sizes), 'model size')} ({w.listed([w.size(n) for n in sizes])} parameters) "
        f"{'was' if len(sizes) == 1 else 'were'} trained with {w.plural(len(levels), 'level')} of infusion "
        f"({w.listed([f'{level:g}' for level in levels])} exposures of each infused fact), {count} a cell. "
        "The token budget is fixed: what infusion takes, general text loses."
    )
    groups = sorted(set(table["group"]))
    facts = {group: int(table[table["group"] == group]["facts"].max()) for group in groups}
    chance = table["chance"].dropna()
    sentences.append(
        f"Each model was probed with multiple-choice questions on {w.listed([f'{facts[g]} {g}' for g in groups])} facts"
        + (f" (chance {float(chance.mean()):.2f})" if len(chance) else "")
        + f". Findings rest on {w.SPLIT_TITLES[settings.split]} and the “{settings.scoring}” scoring rule, the "
        "declared primary choice; other splits are shown beside it."
    )
    return sentences


def matrix(result: AnalysisResult) -> Matrix:
    """Which transition was seen for each model."""
    columns = [key for key in _ORDER if any((p.kind, p.group) == key for p in result.points)]
    columns += sorted({(p.kind, p.group) for p in result.points} - set(columns))
    cells = sorted({(p.params, p.tokens) for p in result.points})
    by_key = {(p.kind, p.group, p.params, p.tokens): p for p in result.points}
    rows = []
    for cell in cells:
        found = [by_key.get((*column, *cell)) for column in columns]
        rows.append((cell_label(*cell, cells), [None if p is None else _badge(p) for p in found]))
    return Matrix([w.kind_title(*column) for column in columns], rows)


def _badge(point: Transition) -> Badge:
    detail = w.STATUS_WORDS[point.status]
    if point.informative:
        detail = w.bracket(point) + (f" · ρ ≈ {w.ratio(point.infusion_ratio)}" if point.infusion_ratio else "")
    return Badge(point.status, point.kind, w.STATUS_MARKS[point.status], w.finding(point), detail, point.reason)


def seen(result: AnalysisResult) -> list[str]:
    """One sentence a transition, counting statuses; nothing is called a collapse that was not found to be one."""
    sentences = []
    for kind, group in _ORDER:
        points = [p for p in result.points if (p.kind, p.group) == (kind, group)]
        if points:
            sentences.append(_sentence(kind, group, points))
    return sentences


def not_of_this_study(runs: Runs, *, most: int = 8) -> str:
    """The runs that are foreign, by name and what differs, in a line; empty where there is none.

    Args:
        runs: what was loaded.
        most: names per difference; of the others the number alone.
    """
    by_reason: dict[str, list[str]] = {}
    for row in runs.foreign.itertuples():
        by_reason.setdefault(str(row.reason), []).append(str(row.run))
    if not by_reason:
        return ""
    count = len(runs.foreign)
    parts = []
    for reason, names in by_reason.items():
        parts.append(f"{first_of(names, most)} ({reason})")
    verb = "is" if count == 1 else "are"
    return f"{w.plural(count, 'run')} {verb} not of this study: {'; '.join(parts)}"


def _sentence(kind: str, group: str, points: list[Transition]) -> str:
    by: dict[str, list[Transition]] = {}
    for point in points:
        by.setdefault(point.status, []).append(point)
    budgets = sorted({p.tokens for p in points})

    def names(status: str) -> str:
        if len(by[status]) == len(points) > 3:
            return f"all {len(points)} models"
        sizes = {d: [w.size(p.params) for p in by[status] if p.tokens == d] for d in budgets}
        if len(budgets) == 1:
            return w.listed(sizes[budgets[0]])
        return "; ".join(f"{w.listed(found)} at D = {w.size(d)}" for d, found in sizes.items() if found)

    parts = []
    for status in (COLLAPSED, OBSERVED):
        if status in by:
            values = sorted(p.value for p in by[status] if p.value is not None)
            ends = dict.fromkeys(w.frequency(value) for value in (values[0], values[-1]))  # one, if they read alike
            span = f"F ≈ {' to '.join(ends)}"
            parts.append(f"seen at {span} ({names(status)})")
    if LEFT_CENSORED in by:
        parts.append(f"already at or before the smallest F tried ({names(LEFT_CENSORED)})")
    if RIGHT_CENSORED in by:
        parts.append(f"not reached in the range tried ({names(RIGHT_CENSORED)})")
    if INCONCLUSIVE in by:
        parts.append(f"undecided ({names(INCONCLUSIVE)})")
    return f"{w.kind_title(kind, group)}: {'; '.join(parts)}."


def headline(result: AnalysisResult) -> tuple[str, list[str]] | None:
    """The answer of the law at the top for the largest size asked for, with its reservations."""
    law = result.law
    if law is None:
        return None
    mine = [p for p in result.predictions if (p.kind, p.group) == (law.kind, law.group)]
    if not mine:
        return None
    prediction = max(mine, key=lambda p: (p.params, p.tokens))
    return answer(prediction), list(prediction.warnings)


def answer(p: Prediction) -> str:
    """A prediction in a paragraph; an unvalidated law recommends nothing."""
    low, high = (w.frequency(value) for value in p.prediction_interval)
    where = f"For {w.size(p.params)} parameters and {w.size(p.tokens)} tokens"
    level = f"{100 * p.confidence:g}%"
    beyond = (
        f"{p.extrapolation_factor:.3g} times beyond the sizes trained"
        if p.extrapolation_factor > 1
        else "inside the sizes trained"
    )
    what = w.kind_title(p.kind, p.group).lower()
    interval = f"{level} prediction interval {low} to {high}; {beyond}"
    law = f"the law puts the {what} at F ≈ {w.frequency(p.centre)} ({interval})"
    tokens = ""
    if p.exposure_tokens_interval is not None:
        at = p.exposure_tokens_interval[1 if p.kind == "onset" else 0]
        tokens = f", {w.size(at)} tokens of domain data with the study’s facts"
    if p.unvalidated:
        return f"{where} {law}. This is a point estimate from few models: no amount can be recommended from it."
    if p.kind == "onset":
        return f"{where} show each fact at least {w.frequency(p.recommended)} times{tokens}, because {law}."
    return (
        f"{where} infuse each fact at most {w.frequency(p.recommended)} times{tokens}, because {law}: more risks the "
        "collapse, less only leaves facts less well learned."
    )
