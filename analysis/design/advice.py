"""Why more runs of a study cannot determine its collapse points, and what to change instead."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from megatron_kis.analysis.criteria.tolerance_rule import needed_drop
from megatron_kis.analysis.design.known import enough, half_known_by
from megatron_kis.analysis.design.outline import Outline
from megatron_kis.analysis.runs.groups import base_group
from megatron_kis.analysis.runs.slices import FACTS
from megatron_kis.analysis.runs.transitions import INCONCLUSIVE, LEFT_CENSORED, RIGHT_CENSORED, Transition
from megatron_kis.common.errors import first_of
from megatron_kis.common.terms import BACKGROUND, INFUSED
from megatron_kis.common.units import in_table
from megatron_kis.config.analysis import AnalysisConfig
from megatron_kis.study.preflight import Remark

_SHOWN = 4
_MOST_SEEDS = 12


@dataclass(frozen=True)
class Undecided:
    """What kept a collapse from being decided; see `undecided`."""

    never_known: bool
    """No level was reliably above chance."""
    too_faint: bool
    """A fall large enough to matter would not have been seen."""


def undecided(point: Transition, settings: AnalysisConfig, chance: float) -> Undecided:
    """Returns why a collapse point is inconclusive; neither where the reason is another one, such as too few levels."""
    if point.status != INCONCLUSIVE or point.peak is None:
        return Undecided(never_known=False, too_faint=False)
    if point.p_value is None:
        return Undecided(never_known=True, too_faint=False)
    needed = float(needed_drop(point.peak, chance, settings))
    faint = point.detectable is not None and point.detectable > needed
    return Undecided(never_known=False, too_faint=faint or "rests on one run" in point.flags)


def advice(
    points: Iterable[Transition],
    outline: Outline,
    settings: AnalysisConfig,
    *,
    whole: bool = True,
    largest_ratio: float = 0.95,
) -> list[Remark]:
    """Returns what would help more than another run of the present levels, from what the collapse points are.

    Args:
        points: the study's transitions.
        outline: of the study.
        settings: the declared settings.
        whole: whether to say so of every model, not only of those that more runs of these sizes cannot help.
        largest_ratio: infusion ratio beyond which no run is proposed.
    """
    mine = [point for point in points if point.kind == "collapse"]
    groups = {point.group for point in mine}
    found: list[Remark] = []
    for group in sorted(groups):
        if base_group(group) != group and base_group(group) in groups:
            continue  # a part of a group that is there
        own = [point for point in mine if point.group == group]
        causes = [(point, undecided(point, settings, outline.chance)) for point in own]
        say = _Words(group, len(own))
        unknown = [point for point, why in causes if why.never_known]
        begun = [point for point in own if _has_only_begun(point, settings)]
        faint = [point for point, why in causes if why.too_faint and point not in begun]
        open_ = [point for point in own if point.status == RIGHT_CENSORED or point in begun]
        early = [point for point in own if point.status == LEFT_CENSORED]
        known = [point for point in own if point.informative]
        found += _never_known(say, unknown, outline, settings) if unknown else []
        if not whole:
            continue
        found += _too_faint(say, faint, settings, outline) if faint else []
        found += _never_lost(say, open_, outline, largest_ratio) if open_ else []
        found += _lost_at_once(say, early, outline) if early else []
        found += _bracketed(say, known) if known else []
        said = [*unknown, *faint, *open_]
        others = [p for p in own if p.status == INCONCLUSIVE and p not in said]
        found += (
            [Remark(outline.key_of(others[0].slice), f"{say(others)}: {others[0].reason}", "more levels")]
            if others
            else []
        )
    return found


def _has_only_begun(point: Transition, settings: AnalysisConfig) -> bool:
    """Whether a fall is certain, and smaller than what counts as one."""
    if point.status != INCONCLUSIVE or point.drop is None or point.p_value is None:
        return False
    return point.p_value <= settings.alpha and point.drop < settings.delta_min


@dataclass(frozen=True)
class _Words:
    """Names the models of some points."""

    group: str
    every: int

    def __call__(self, points: Sequence[Transition]) -> str:
        if len(points) == self.every:
            return f"{self.group} facts, every model"
        names = [f"N = {in_table(point.params)}, D = {in_table(point.tokens)}" for point in points]
        return f"{self.group} facts, {first_of(names, _SHOWN, separator='; ')}"


_Say = Callable[[Sequence[Transition]], str]


def _never_known(say: _Say, points: Sequence[Transition], outline: Outline, settings: AnalysisConfig) -> list[Remark]:
    peak = max(point.peak or 0.0 for point in points)
    problem = f"{say(points)}: never reliably above chance ({outline.chance:.2f}; highest rate {peak:.2f}), so that "
    problem += "nothing can be lost"
    if base_group(points[0].group) != BACKGROUND:
        return [Remark(outline.key_of(points[0].slice), problem, "larger ones, more tokens, or larger models")]
    if not outline.background:
        return [Remark("background.frequency", problem, "show background facts, 300 times each, say")]
    most = max(outline.background)
    halves = [half_known_by(point.params, point.tokens, outline, settings) for point in points]
    wanted = max([2 * most, *(enough(half) for half in halves if half is not None)])
    key = "background.groups" if len(outline.background) > 1 else "background.frequency"
    change = f"{key}: {wanted} instead of {most}, in another study with an output of its own; or more tokens"
    return [Remark(key, problem, change)]


def _too_faint(say: _Say, points: Sequence[Transition], settings: AnalysisConfig, outline: Outline) -> list[Remark]:
    worst = max(points, key=lambda point: point.detectable or 0.0)
    seeds = min(point.seeds or 1 for point in points)
    needed = float(needed_drop(worst.peak or 0.0, outline.chance, settings))
    detectable = worst.detectable or needed
    problem = f"{say(points)}: only a fall of {detectable:.2f} or more would have shown (needed: {needed:.2f})"
    # The variance of a level falls with its seeds; facts of one run move together, and help less.
    wanted = min(max(math.ceil(seeds * (detectable / needed) ** 2), seeds + 1), _MOST_SEEDS)
    change = f"seeds: {list(range(wanted))}, or several times as many facts in another study"
    return [Remark("seeds", problem, change)]


def _never_lost(say: _Say, points: Sequence[Transition], outline: Outline, largest_ratio: float) -> list[Remark]:
    lost = "little" if any(point.status == INCONCLUSIVE for point in points) else "nothing"
    problem = f"{say(points)}: {lost} is lost up to the largest {points[0].slice.symbol}"
    if points[0].slice.axis == FACTS:
        there = outline.there[INFUSED]
        most = max(dose for levels in outline.levels(points[0].slice).values() for dose in levels)
        if most < there:
            return [Remark("facts", problem, f"up to {there:,} (now {most:,.0f})")]
        return [Remark("data.select.infused", problem, "more infused facts, or a smaller background.frequency")]
    used = float(outline.table["infusion_ratio"].max())
    if used * 1.1 > largest_ratio:
        change = (
            f"a fact cannot be shown more often, {used:.0%} of the tokens are exposures: larger token_budgets, fewer "
            "infused facts, or a background that is shown less often"
        )
        return [Remark("token_budgets", problem, change)]
    return [
        Remark(outline.key_of(points[0].slice), problem, f"more up to a ratio of {largest_ratio:g} (now {used:.2f})")
    ]


def _lost_at_once(say: _Say, points: Sequence[Transition], outline: Outline) -> list[Remark]:
    key = outline.key_of(points[0].slice)
    return [Remark(key, f"{say(points)}: lost from the first level on", f"smaller {key} than any that were tried")]


def _bracketed(say: _Say, points: Sequence[Transition]) -> list[Remark]:
    widths = [point.high / point.low for point in points if point.low and point.high]
    width = f" within a factor of {max(widths):.2g}" if widths else ""
    problem = f"{say(points)}: known{width}, and levels between would be too close to show more"
    return [Remark("ladder", problem, "more sizes, which narrow the law, or more seeds")]
