"""The first sentences of the report: what was measured, what follows for the target, and what to add to learn more."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from megatron_kis.analysis.findings.result import AnalysisResult
from megatron_kis.analysis.law.fit import VALIDATED_CELLS
from megatron_kis.analysis.law.looks import percent
from megatron_kis.analysis.report import formatting as fmt
from megatron_kis.analysis.report.target import FORGOTTEN, KEPT, LEARNED, WORSE, doses, target
from megatron_kis.analysis.runs.groups import base_group
from megatron_kis.analysis.runs.slices import RATIO, USUAL, Slice
from megatron_kis.analysis.runs.transitions import INCONCLUSIVE, LEFT_CENSORED, RIGHT_CENSORED, Transition
from megatron_kis.common.configuration import parse_config
from megatron_kis.common.errors import InputError
from megatron_kis.common.units import duration, plural
from megatron_kis.config.study import StudyConfig

_NAMED = 3
"""Models that a sentence names."""


@dataclass(frozen=True)
class Answer:
    """What the report says first."""

    measured: list[str]
    """Sentences on what the runs show."""
    target: list[str]
    """Sentences on a model that was not trained; empty where none was asked about."""
    more: str
    """What to add to learn more, and its cost; empty where nothing is missing."""
    changes: list[str]
    """What to change in the study file for it, by key, with numbers; empty where the file is not known."""
    terms: list[str]
    """What the words of the sentences mean."""


def answer(result: AnalysisResult) -> Answer:
    """Returns the answer that a study gives, of the slice that its law is about.

    What this slice does not show of a kind of transition, and another one does, is said of that one.
    """
    one = main_slice(result)
    points = [point for point in result.points if point.slice == one]
    changes = _changes(result, points)
    more = _more(result, points)
    if changes:
        notes = "; ".join(part for part in ("kis study next proposes the runs", _cost(result)) if part)
        more = f"To learn more, change these keys of the study file ({notes}):"
    shown = [point for key in _TOLD for point in _best_shown(result, key, one)]
    return Answer(_measured(result, shown), target(result, one), more, changes, _terms(result, shown))


def main_slice(result: AnalysisResult) -> Slice:
    """Returns the slice that the answer is about: that of the first law, else of most transitions that were seen."""
    law = next((law for law in result.laws if law.range_held is None), None)
    if law is not None:
        return law.slice
    slices = sorted({point.slice for point in result.points}, key=lambda one: one.key)
    seen = [sum(p.informative for p in result.points if p.slice == one) for one in slices]
    return slices[seen.index(max(seen))] if slices else USUAL


def _best_shown(result: AnalysisResult, key: tuple[str, str], main: Slice) -> list[Transition]:
    """Returns the transitions of a kind along the slice in which most models show it; the main one if none shows more.

    The loss that infusion costs is no question of K at a fixed share of the tokens, for example.
    """
    mine: dict[Slice, list[Transition]] = {}
    for point in result.points:
        if (point.kind, point.group) == key:
            mine.setdefault(point.slice, []).append(point)
    return max(mine.values(), key=lambda of: (sum(p.informative for p in of), of[0].slice == main), default=[])


# what was measured


@dataclass(frozen=True)
class _Words:
    """How a kind of transition is described; each takes a dose in words."""

    seen: str
    before: str
    """It was there at the smallest dose."""
    not_reached: str
    unknown: str


_TOLD: dict[tuple[str, str], _Words] = {
    LEARNED: _Words(
        "new facts are learned from about {}",
        "new facts are learned at {} already",
        "new facts are still being learned at {}",
        "it is not clear from which dose new facts are learned",
    ),
    KEPT: _Words(
        "earlier knowledge is kept up to about {}",
        "earlier knowledge is being lost at {} already",
        "earlier knowledge is kept up to at least {}",
        "it is not clear whether earlier knowledge is lost",
    ),
    FORGOTTEN: _Words(
        "the new facts themselves are lost again from about {}",
        "the new facts themselves are being lost at {} already",
        "the new facts themselves are kept up to at least {}",
        "it is not clear whether the new facts themselves are lost again",
    ),
    WORSE: _Words(
        "the loss on general text is {tolerance} worse from about {}",
        "the loss on general text is {tolerance} worse at {} already",
        "the loss on general text stays within {tolerance} up to at least {}",
        "it is not clear from which dose the loss on general text is {tolerance} worse",
    ),
}


def _measured(result: AnalysisResult, points: Sequence[Transition]) -> list[str]:
    """Returns a sentence for each kind of transition."""
    sentences = []
    for key in (LEARNED, KEPT, FORGOTTEN, WORSE):
        mine = [point for point in points if (point.kind, point.group) == key]
        if not mine or (key == FORGOTTEN and not any(p.informative or p.status == LEFT_CENSORED for p in mine)):
            continue
        sentences.append(_sentence(result, key, mine))
    return sentences or ["These runs show no transition: nothing was measured along one dose."]


def _sentence(result: AnalysisResult, key: tuple[str, str], points: Sequence[Transition]) -> str:
    words = _TOLD[key]
    tolerance = f"{100 * result.settings.tolerance:g}%"
    parts: list[tuple[list[Transition], str]] = []

    def add(mine: list[Transition], said: Callable[[list[Transition]], str]) -> None:
        if mine:
            parts.append((mine, said(mine)))

    def filled(text: str, dose: str) -> str:
        return text.format(dose, tolerance=tolerance)

    add(
        [p for p in points if p.informative],
        lambda mine: filled(words.seen, _seen_dose(mine)) + (_lost(result, mine) if key[0] == "collapse" else ""),
    )
    add([p for p in points if p.status == LEFT_CENSORED], lambda mine: filled(words.before, _bound(mine, "high")))
    right = [p for p in points if p.status == RIGHT_CENSORED]
    add([p for p in right if fmt.not_seen(p) == "not reached"], lambda m: filled(words.not_reached, _bound(m, "low")))
    add([p for p in right if fmt.not_seen(p) == "not shown"], lambda mine: _not_learned(result, mine))
    unknown = [p for p in points if p.status == INCONCLUSIVE]
    if len(unknown) == len(points):
        parts.append((unknown, f"{filled(words.unknown, '')}: {'; '.join(_reasons(result, unknown))}"))
    elif unknown:
        parts.append((unknown, "this is not clear"))
    text = "; ".join(f"{_of_models(mine, points)}{said}" for mine, said in parts)
    return f"{text[0].upper()}{text[1:]}."


def _of_models(mine: Sequence[Transition], every: Sequence[Transition]) -> str:
    """Says which models it was, where it was not all."""
    if len(mine) == len(every):
        return ""
    sizes = f" ({fmt.listed([fmt.size(p.params) for p in mine])})" if len(mine) <= _NAMED else ""
    return f"in {len(mine)} of {len(every)} models{sizes}, "


def _seen_dose(points: Sequence[Transition]) -> str:
    """Describes the doses at which transitions were seen, with their share of the tokens and intervals."""
    one = points[0].slice
    values = sorted(p.value for p in points if p.value is not None)
    notes = [*_tokens([p.infusion_ratio for p in points], one)]
    ends = [end for p in points for end in (p.low, p.high) if end is not None]
    if ends:
        level = {p.confidence for p in points if p.interval == "profile"}
        which = f"{percent(max(level))} interval" if level else "interval"
        many = "s" if len(points) > 1 else ""
        notes.append(f"{which}{many} {fmt.frequency(min(ends))} to {fmt.frequency(max(ends))}")
    return doses(values[0], values[-1], one) + (f" ({'; '.join(notes)})" if notes else "")


def _bound(points: Sequence[Transition], end: str) -> str:
    """Describes the least certain of one-sided bounds."""
    one = points[0].slice
    pick = min if end == "low" else max
    at = pick(points, key=lambda p: getattr(p, end) or 0.0)
    notes = _tokens([at.ratio_low if end == "low" else at.ratio_high], one)
    value = getattr(at, end) or 0.0
    return doses(value, value, one) + (f" ({notes[0]})" if notes else "")


def _tokens(ratios: Iterable[float | None], one: Slice) -> list[str]:
    known = sorted(ratio for ratio in ratios if ratio)
    if not known or one.held_by == RATIO:
        return []
    return [f"{fmt.span(fmt.share(known[0]), fmt.share(known[-1]))} of the training tokens"]


def _lost(result: AnalysisResult, points: Sequence[Transition]) -> str:
    """Says how much is lost at the largest dose, where the points show it."""
    by_cell = {(*curve.cell, curve.group): curve for curve in result.primary_curves}
    shares, largest = [], []
    for p in points:
        curve = by_cell.get((*p.cell, p.group))
        if curve is None or p.drop is None or p.peak is None:
            continue
        known = p.peak - curve.assumed_chance
        if known > 0:
            shares.append(min(p.drop / known, 1.0))
            largest.append(float(curve.dose[-1]))
    if not shares:
        return ""
    most = fmt.span(fmt.frequency(min(largest)), fmt.frequency(max(largest)))
    return f", and at {most}, the most tried, {fmt.span(fmt.share(min(shares)), fmt.share(max(shares)))} of it is lost"


def _not_learned(result: AnalysisResult, points: Sequence[Transition]) -> str:
    one = points[0].slice
    chance = next((c.mean_chance for c in result.primary_curves if c.group == "infused"), None)
    most = max((p.peak for p in points if p.peak is not None), default=None)
    right = "" if most is None else f": at most {fmt.share(most)} were answered right"
    guess = "" if chance is None or not right else f", where guessing gives {fmt.share(chance)}"
    return f"new facts were not shown to be learned up to {doses(*_ends(points), one)}{right}{guess}"


def _ends(points: Sequence[Transition]) -> tuple[float, float]:
    lows = [p.low or 0.0 for p in points]
    return min(lows), max(lows)


def _reasons(result: AnalysisResult, points: Sequence[Transition]) -> list[str]:
    """Returns why transitions cannot be determined, each reason once."""
    alpha = result.settings.alpha
    known = [p for p in points if p.kind == "collapse" and p.detectable is not None]
    never = [p for p in known if p.p_value is None]
    unseen = [p for p in known if p.p_value is not None and p.p_value > alpha]
    found = []
    if never:
        what = "background facts" if never[0].group == "background" else "they"
        most = max(p.peak or 0.0 for p in never)
        found.append(f"{what} were not reliably known at any dose, 0 included ({fmt.share(most)} right at most)")
    if unseen:
        shown = max(p.detectable or 0.0 for p in unseen)
        found.append(f"no reliable fall was seen, and one of less than {shown:.2f} in the rate would not have shown")
    others = [p.reason for p in points if p not in never and p not in unseen]
    return [*found, *dict.fromkeys(others)]


# what to add


def _changes(result: AnalysisResult, points: Sequence[Transition]) -> list[str]:
    """Returns what to write into the study file for a firmer answer."""
    if result.runs is None or not result.study:
        return []
    from megatron_kis.analysis.design.advice import advice
    from megatron_kis.analysis.design.outline import outline_of, sketch
    from megatron_kis.analysis.design.requirements import requirements

    try:
        study = parse_config(StudyConfig, result.study, source="study.yaml")
        outline = outline_of(study, sketch(study))
    except InputError:  # a file of another version, say: the answer does not depend on it
        return []
    open_ = [p for p in points if (p.kind, p.group) == KEPT and p.status == INCONCLUSIVE]
    found = [*advice(open_, outline, result.settings), *requirements(outline, result.settings, study.predict)]
    return list(dict.fromkeys(r.change if r.change.startswith(r.key) else f"{r.key}: {r.change}" for r in found))


def _more(result: AnalysisResult, points: Sequence[Transition]) -> str:
    """Says what is missing, and its cost as far as the runs show it."""
    if not points:
        return ""
    wanted = []
    onset = [p for p in points if (p.kind, p.group) == LEARNED]
    if onset and not any(p.informative or p.status == LEFT_CENSORED for p in onset):
        wanted.append("more exposures, or a larger token budget, for facts to be learned")
    kept = [p for p in points if (p.kind, p.group) == KEPT and p.status == INCONCLUSIVE]
    if any(p.p_value is None and p.peak is not None for p in kept):
        wanted.append("background facts that are shown more often (background.frequency), so that they can be lost")
    if any(p.p_value is not None and p.p_value > result.settings.alpha for p in kept):
        wanted.append("more facts or seeds, so that smaller falls show")
    sizes = len({p.params for p in points})
    seen = [sum(p.informative for p in points if (p.kind, p.group) == key) for key in (KEPT, WORSE)]
    if max(seen, default=0) < VALIDATED_CELLS or (any(law.unvalidated for law in result.laws)):
        missing = VALIDATED_CELLS - sizes
        if missing > 0:
            cost = _cost(result)
            wanted.append(plural(missing, "more model size") + (f" ({cost})" if cost else ""))
    if not wanted:
        return ""
    where = " kis study next proposes runs, with their cost." if result.study and result.runs is not None else ""
    return f"To learn more: {'; '.join(wanted)}.{where}"


def _cost(result: AnalysisResult) -> str:
    """Says what the runs of the largest size took."""
    if result.runs is None or not result.runs.seconds:
        return ""
    known = result.runs.runs.assign(seconds=result.runs.runs["run"].map(result.runs.seconds)).dropna(subset=["seconds"])
    if known.empty:
        return ""
    largest = known[known["params"] == known["params"].max()]
    size, each = fmt.size(int(largest["params"].iloc[0])), duration(float(largest["seconds"].mean()))
    took = f"{len(largest)} runs took {each} each" if len(largest) > 1 else f"a run took {each}"
    return f"at the largest size, {size}, {took}"


def _terms(result: AnalysisResult, points: Sequence[Transition]) -> list[str]:
    """Defines the words that the sentences use."""
    kinds = {(p.kind, base_group(p.group)) for p in points}
    settings = result.settings
    said = []
    if LEARNED in kinds:
        half = "half" if settings.onset_share == 0.5 else f"{100 * settings.onset_share:g}%"
        said.append(f"Facts are learned where the rate has made {half} of its rise from chance to the plateau")
    if KEPT in kinds:
        rule = {
            "retention": f"less than {100 * settings.r:g}% of it is lost",
            "tolerance_rule": f"less than {100 * settings.r:g}% of the highest rate is lost",
            "half_margin": f"the mean margin is above {100 * settings.margin_share:g}% of its highest value",
        }.get(settings.criterion, "its fall has not begun")
        said.append("Earlier knowledge means the background facts, which are part of the general text")
        said.append(f"It is kept as long as {rule}")
    if WORSE in kinds:
        said.append("The general loss is compared with that of the run without infusion")
    return said
