"""The study's design and findings in plain words, made from results only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

from megatron_kis.analysis.findings.analyse import law_keys
from megatron_kis.analysis.findings.result import AnalysisResult
from megatron_kis.analysis.report import formatting as fmt
from megatron_kis.analysis.report.figures import cell_label
from megatron_kis.analysis.runs.curves import rows_of
from megatron_kis.analysis.runs.groups import group_key, strength
from megatron_kis.analysis.runs.load import Runs
from megatron_kis.analysis.runs.slices import FACTS, FREQUENCY, RATIO, Slice, levels_of_frequency, varies_facts
from megatron_kis.analysis.runs.transitions import (
    COLLAPSED,
    INCONCLUSIVE,
    LEFT_CENSORED,
    OBSERVED,
    RIGHT_CENSORED,
    Transition,
)
from megatron_kis.common.errors import first_of
from megatron_kis.common.units import plural

_ORDER = (("onset", "infused"), ("collapse", "infused"), ("collapse", "background"), ("tolerance", "general"))


@dataclass(frozen=True)
class Badge:
    """A transition of one model in the table of findings."""

    status: str
    kind: str
    mark: str
    finding: str
    detail: str
    reason: str


@dataclass(frozen=True)
class FindingsTable:
    """Transitions by model: one row per model, one column per kind of transition."""

    heads: list[str]
    rows: list[tuple[str, list[Badge | None]]]


@dataclass(frozen=True)
class SliceFindings:
    """What was found along one slice."""

    title: str
    """What the dose is and what is held; empty where there is one slice, of F."""
    sentences: list[str]
    table: FindingsTable
    strengths: FindingsTable | None
    """Collapse of background facts by how often they are shown, where a run has several strengths."""


@dataclass(frozen=True)
class KeyNumber:
    """A number shown under the title."""

    number: str
    label: str


def key_numbers(result: AnalysisResult) -> list[KeyNumber]:
    """Describes the study in four or five numbers."""
    cells = {(p.params, p.tokens) for p in result.points}
    sizes = sorted({n for n, _ in cells})
    numbers = [KeyNumber(_span(sizes), plural(len(sizes), "model size"))]
    budgets = sorted({d for _, d in cells})
    numbers.append(KeyNumber(_span(budgets), "tokens per run, fixed" if len(budgets) == 1 else "token budgets"))
    if result.curves is not None:
        levels = sorted(set(levels_of_frequency(result.curves)))
        numbers.append(
            KeyNumber(
                f"{fmt.frequency(levels[0])} – {fmt.frequency(levels[-1])}",
                f"infusion frequency, {plural(len(levels), 'level')}",
            )
        )
        if varies_facts(result.curves):
            counts = _facts_levels(result.curves)
            numbers.append(
                KeyNumber(f"{counts[0]:g} – {counts[-1]:,g}", f"infused facts, {plural(len(counts), 'level')}")
            )
        ratios = result.curves["infusion_ratio"].dropna()
        if len(ratios):
            numbers.append(KeyNumber(fmt.ratio(float(ratios.max())), "largest infusion ratio"))
    if result.runs is not None:
        bad = len(result.runs.problems)
        numbers.append(
            KeyNumber(f"{len(result.runs.runs):,}", "complete runs" + (f", {bad} not counted" if bad else ""))
        )
    return numbers


def _span(values: list[int]) -> str:
    return fmt.size(values[0]) if len(values) == 1 else f"{fmt.size(values[0])} – {fmt.size(values[-1])}"


def _facts_levels(table: pd.DataFrame) -> list[float]:
    """Returns the numbers of infused facts of a table, 0 for runs without infusion."""
    return sorted(set(table["infused_facts"].where(table["frequency"] > 0, 0.0).dropna()))


def study_design(result: AnalysisResult) -> list[str]:
    """Describes what the study did, as far as its data show it."""
    settings = result.settings
    if result.curves is None:
        return [
            "This report starts from transition points that were found elsewhere. It fits the law and predicts from it."
        ]
    table = result.curves
    sizes = sorted(set(table["params"]))
    level = levels_of_frequency(table)
    levels = sorted(set(level))
    varied = varies_facts(table)
    cell = ["params", "tokens", level.rename("level"), *(["infused_facts"] if varied else [])]
    seeds = sorted({int(n) for n in table.groupby(cell, dropna=False)["seed"].nunique()})
    count = plural(seeds[0], "seed") if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    design = (
        f"How many times may a fact be repeated in pretraining before a model forgets what it knew? "
        f"{plural(len(sizes), 'model size')} ({fmt.listed([fmt.size(n) for n in sizes])} parameters) "
        f"{'was' if len(sizes) == 1 else 'were'} trained with {plural(len(levels), 'level')} of infusion "
        f"({fmt.listed([f'{level:g}' for level in levels])} exposures of each infused fact), {count} per cell. "
        "The token budget is fixed: infused tokens replace general text."
    )
    if varied:
        facts_levels = [f"{count:,g}" for count in _facts_levels(table)]
        shown = fmt.listed(list(dict.fromkeys(_shown(result.slices))))
        design = (
            f"How many facts may be infused in pretraining, and how often, before a model forgets what it knew? "
            f"{plural(len(sizes), 'model size')} ({fmt.listed([fmt.size(n) for n in sizes])} parameters) "
            f"{'was' if len(sizes) == 1 else 'were'} trained with {fmt.listed(facts_levels)} infused facts, {shown}; "
            f"{count} per cell. The token budget is fixed: infused tokens replace general text."
        )
    groups = sorted(set(table["group"]), key=group_key)
    facts = {group: int(table[table["group"] == group]["facts"].max()) for group in groups}
    chance = table["chance"].dropna()
    strengths = [f"{facts[group]} shown {strength(group):g} times" for group in groups if strength(group) is not None]
    of_them = {"background": f" (of them {fmt.listed(strengths)})" if strengths else ""}
    whole = [group for group in groups if strength(group) is None]
    probed = fmt.listed([f"{facts[group]:,} {group}{of_them.get(group, '')}" for group in whole])
    probes = (
        f"Each model was probed with multiple-choice questions on {probed} facts"
        + (f" (chance {float(chance.mean()):.2f})" if len(chance) else "")
        + f". Findings are based on {fmt.SPLIT_TITLES[settings.split]} and the “{settings.scoring}” scoring rule, the "
        "declared primary choice; other splits are shown for comparison."
    )
    return [design, probes]


def _shown(slices: list[Slice]) -> list[str]:
    """Says of each slice how often facts are shown, or how many."""
    words = {
        FREQUENCY: "each {} times",
        RATIO: "in a share of {} of the tokens",
        FACTS: "{} of them at several frequencies",
    }
    return [words[one.held_by].format(f"{one.held:,g}") for one in slices if one.held_by is not None]


def findings_by_slice(result: AnalysisResult) -> list[SliceFindings]:
    """Puts findings into words and tables, slice by slice; strengths have a table of their own."""
    slices = list(dict.fromkeys(p.slice for p in sorted(result.points, key=lambda point: point.slice.key)))
    found = []
    for one in slices:
        points = [p for p in result.points if p.slice == one]
        keys = [(kind, group) for kind, group, _ in law_keys(points, _ORDER)]
        apart = [key for key in keys if strength(key[1]) is not None]
        whole = [key for key in keys if key not in apart]
        sentences = [
            _sentence(kind, group, [p for p in points if (p.kind, p.group) == (kind, group)])
            for kind, group in whole
            if (kind, group) in _ORDER
        ]
        table = _findings_table(points, whole, fmt.kind_title)
        by_strength = _findings_table(points, apart, lambda _, group: fmt.strength_title(group)) if apart else None
        found.append(SliceFindings(fmt.slice_title(one), sentences, table, by_strength))
    return found


def _findings_table(
    points: list[Transition], columns: list[tuple[str, str]], head: Callable[[str, str], str]
) -> FindingsTable:
    """Tabulates the transitions of each model that a slice has points of."""
    cells = sorted({(p.params, p.tokens) for p in points})
    by_key = {((p.kind, p.group), (p.params, p.tokens)): p for p in points}
    rows = []
    for cell in cells:
        found = [by_key.get((column, cell)) for column in columns]
        rows.append((cell_label(*cell, cells), [None if p is None else _badge(p) for p in found]))
    return FindingsTable([head(*column) for column in columns], rows)


def _badge(point: Transition) -> Badge:
    detail = point.reason
    if point.informative:
        told = point.infusion_ratio and point.slice.held_by != RATIO  # where it is held, the heading says so
        detail = fmt.bracket(point) + (f" · ρ ≈ {fmt.ratio(point.infusion_ratio)}" if told else "")
    return Badge(point.status, point.kind, fmt.STATUS_MARKS[point.status], fmt.finding(point), detail, point.reason)


def not_of_this_study(runs: Runs, *, most: int = 8) -> str:
    """Lists the foreign runs in one line, by name and what differs; empty where there is none.

    Args:
        runs: what was loaded.
        most: names listed per difference; further ones are only counted.
    """
    reasons = [(str(row.reason), str(row.run)) for row in rows_of(runs.foreign)]
    are, listed = _grouped(reasons, most)
    return f"{are} not of this study: {listed}" if reasons else ""


def not_asked(runs: Runs, *, most: int = 8) -> str:
    """Names the runs without answers to the study's questions in one line; empty where there is none.

    Args:
        runs: what was loaded.
        most: names listed; further ones are only counted.
    """
    names = [str(row.run) for row in rows_of(runs.unasked)]
    if not names:
        return ""
    verb = "was" if len(names) == 1 else "were"
    told = f"{plural(len(names), 'complete run')} {verb} not asked the study's questions yet: {first_of(names, most)}"
    return f"{told}; kis study probe asks them, without training"


def not_counted(runs: Runs, *, most: int = 8) -> str:
    """Names the runs whose results cannot be read or are not complete, in one line; empty where there is none.

    Args:
        runs: what was loaded.
        most: names listed per reason; further ones are only counted.
    """
    reasons = [
        (f"{row.status}: {row.reason}", str(row.run))
        for row in rows_of(runs.problems)
        if row.status not in ("foreign", "unasked")  # these have lines of their own
    ]
    are, listed = _grouped(reasons, most)
    return f"{are} not counted: {listed}" if reasons else ""


def _grouped(reasons: Sequence[tuple[str, str]], most: int) -> tuple[str, str]:
    """Returns how many runs there are, and their names by reason; ``reasons`` are pairs of a reason and a run."""
    names: dict[str, list[str]] = {}
    for reason, run in reasons:
        names.setdefault(reason, []).append(run)
    parts = [f"{first_of(runs, most)} ({reason})" for reason, runs in names.items()]
    verb = "is" if len(reasons) == 1 else "are"
    return f"{plural(len(reasons), 'run')} {verb}", first_of(parts, most, separator="; ")


def _sentence(kind: str, group: str, points: list[Transition]) -> str:
    """Describes the transitions of one kind, group and slice."""
    by: dict[str, list[Transition]] = {}
    for point in points:
        by.setdefault(point.status, []).append(point)
    budgets = sorted({p.tokens for p in points})
    one = points[0].slice

    def names(status: str, mine: list[Transition] | None = None) -> str:
        mine = by[status] if mine is None else mine
        if len(mine) == len(points) > 3:
            return f"all {len(points)} models"
        sizes = {d: [fmt.size(p.params) for p in mine if p.tokens == d] for d in budgets}
        if len(budgets) == 1:
            return fmt.listed(sizes[budgets[0]])
        return "; ".join(f"{fmt.listed(found)} at D = {fmt.size(d)}" for d, found in sizes.items() if found)

    parts = []
    for status in (COLLAPSED, OBSERVED):
        if status in by:
            values = sorted(p.value for p in by[status] if p.value is not None)
            ends = dict.fromkeys(fmt.frequency(value) for value in (values[0], values[-1]))  # one, if they read alike
            span = f"{one.symbol} ≈ {' to '.join(ends)}"
            parts.append(f"seen at {span} ({names(status)})")
    if LEFT_CENSORED in by:
        parts.append(f"already at or before the smallest {one.symbol} tried ({names(LEFT_CENSORED)})")
    if RIGHT_CENSORED in by:
        for said in sorted({fmt.not_seen(p) for p in by[RIGHT_CENSORED]}):
            mine = [p for p in by[RIGHT_CENSORED] if fmt.not_seen(p) == said]
            bounds = sorted(p.low or 0.0 for p in mine)
            span = fmt.span(fmt.frequency(bounds[0]), fmt.frequency(bounds[-1]))
            parts.append(f"{said} up to {one.symbol} = {span} ({names(RIGHT_CENSORED, mine)})")
    if INCONCLUSIVE in by:
        parts.append(f"cannot be determined ({names(INCONCLUSIVE)})")
    return f"{fmt.kind_title(kind, group)}: {'; '.join(parts)}."
