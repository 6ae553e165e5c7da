"""What a study can show, judged before it is trained: falls, onsets, the law's interval, what the background knows.

The smallest fall that can be distinguished from chance follows from the facts, seeds and levels, by the criteria.
Studies of a known truth are then simulated with the same sizes, levels, seeds and facts (`analysis.simulate`), and go
through the declared criterion and the law: half of what can be known is known without infusion, every model begins to
lose it at the geometric middle of its levels, and models scatter around the law as in `Truth`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from megatron_kis.analysis.criteria import criteria_of
from megatron_kis.analysis.criteria.dispersion import expected_dispersion, with_dispersion
from megatron_kis.analysis.criteria.tests import detectable_drop, p_above, p_greater
from megatron_kis.analysis.criteria.tolerance_rule import needed_drop
from megatron_kis.analysis.design.known import Known, known_without, not_known
from megatron_kis.analysis.design.outline import Outline
from megatron_kis.analysis.design.requirements import main_slices, models_of
from megatron_kis.analysis.law.fit import VALIDATED_CELLS, LawRefused, fit_law
from megatron_kis.analysis.law.predict import predict as predict_of
from megatron_kis.analysis.runs.curves import Curve
from megatron_kis.analysis.runs.slices import FREQUENCY, Slice
from megatron_kis.analysis.runs.transitions import Transition
from megatron_kis.analysis.simulate import Truth, simulate_curve
from megatron_kis.common.terms import BACKGROUND, INFUSED
from megatron_kis.common.units import plural, rounded_up
from megatron_kis.config.analysis import AnalysisConfig
from megatron_kis.study.preflight import Remark

_CURVES = 30  # that are simulated: some seconds
_STUDIES = (2, 12)  # fewest and most that are simulated
_MODELS = 18  # of a study that are simulated
_SHARE = 0.5  # of what can be known that is known without infusion
_MORE_FACTS = (1.25, 1.5, 2, 3, 4, 6, 8, 12, 16)
_MORE_SEEDS = 8
_SHOWN = 4
_RESAMPLES = 199
LARGEST_FACTOR = 1e6
"""Factor from which on an interval says nothing."""


@dataclass(frozen=True)
class Power:
    """What the answers of one group can show at the model with the fewest runs."""

    group: str
    facts: int
    """Facts that a run is asked about."""
    seeds: int
    """Runs of a level."""
    levels: int
    detectable: float
    """Smallest fall, in rate, at the largest dose that is found with the declared power."""
    needed: float
    """Fall that must be found before "no collapse" can be said."""
    told: float
    """Smallest rate at a level that can be distinguished from chance."""

    @property
    def enough(self) -> bool:
        """Whether a model that loses nothing can be distinguished from one whose loss was not seen."""
        return self.detectable <= self.needed


@dataclass(frozen=True)
class Simulated:
    """What studies of a known truth found."""

    kind: str
    group: str
    slice: Slice
    """Along which dose, and what is held."""
    studies: int
    models: int
    found: float
    """Share of the models whose transition was found."""
    factor: float | None
    """Upper over lower end of the interval of one transition; median."""
    laws: int
    """Studies with a law."""
    validated: int
    """Studies with a law that rests on enough points."""
    law_factors: tuple[float | None, ...]
    """Upper over lower end of the prediction interval at each target; median, None where there is no law."""

    def record(self) -> dict[str, Any]:
        """Returns it for JSON."""
        return asdict(self) | {"slice": {"dose": self.slice.symbol, "held": self.slice.label}}


@dataclass(frozen=True)
class DesignCheck:
    """The design check of a study."""

    slice: Slice | None
    """Along which dose falls are judged, and what is held; None where nothing is infused."""
    targets: tuple[tuple[float, float], ...]
    """N and D of the predictions."""
    powers: tuple[Power, ...]
    known: tuple[Known, ...]
    simulated: tuple[Simulated, ...]
    remarks: tuple[Remark, ...]

    def record(self) -> dict[str, Any]:
        """Returns it for JSON."""
        return {
            "dose": None if self.slice is None else self.slice.symbol,
            "held": "" if self.slice is None else self.slice.label,
            "targets": [{"params": params, "tokens": tokens} for params, tokens in self.targets],
            "powers": [asdict(power) | {"enough": power.enough} for power in self.powers],
            "known": [asdict(known) | {"likely": known.likely} for known in self.known],
            "simulated": [one.record() for one in self.simulated],
        }


def design_check(outline: Outline, settings: AnalysisConfig, predict: Sequence[float]) -> DesignCheck:
    """Judges a study before it is trained; takes a few seconds, whatever its size.

    Args:
        outline: of the study.
        settings: the declared settings of its analysis.
        predict: sizes to predict for.

    Raises:
        InputError: the runs do not vary what ``analysis.axis`` asks for.
    """
    # Pairs of options are not simulated: accuracy stands for them.
    settings = settings.replace(resamples=_RESAMPLES, law_resamples=0, outcome="accuracy")
    known = tuple(known_without(outline, settings))
    slices = main_slices(outline, settings)
    one = slices[0] if slices else None
    if one is None or settings.criterion == "general_loss" or not outline.chance < 1:
        return DesignCheck(one, (), (), known, (), tuple(not_known(outline, known)))
    groups = [group for group in (INFUSED, *([BACKGROUND] if outline.background else [])) if outline.asked[group]]
    asked = [_asked(outline, one, group) for group in groups]
    powers = tuple(each.power(outline.chance, settings) for each in asked)
    largest = max(d for _, d in outline.levels(one))
    targets = tuple((params, float(largest)) for params in sorted({*predict})[:_SHOWN])
    simulated = []
    for each in slices:
        models = models_of(outline, each, settings)[:: -(-len(outline.levels(each)) // _MODELS)]
        if models and BACKGROUND in groups and settings.criterion != "half_margin":
            simulated.append(_simulated("collapse", BACKGROUND, outline, each, models, targets, settings))
        if models and INFUSED in groups and each.axis == FREQUENCY:
            simulated.append(_simulated("onset", INFUSED, outline, each, models, targets, settings))
    remarks = [*not_known(outline, known), *_weak(outline, powers, asked, settings), *_no_law(simulated)]
    return DesignCheck(one, targets, powers, known, tuple(simulated), tuple(remarks))


def _truth(outline: Outline, group: str) -> Truth:
    rate = outline.chance + _SHARE * (1 - outline.chance)
    return Truth(
        chance=outline.chance,
        base=rate,
        plateau=min(rate + 1e-3, 0.999),
        facts=outline.asked[group],
        fact_tokens=15.0 if math.isnan(outline.exposure_tokens) else outline.exposure_tokens,
    )


def _curve(
    outline: Outline,
    one: Slice,
    cell: tuple[int, int],
    group: str,
    generator: np.random.Generator,
    place: float,
) -> Curve:
    """Returns a simulated curve of a model; ``place`` is its transition, NaN for none."""
    levels = outline.levels(one)[cell]
    dose = np.array(list(levels), dtype=float)
    truth = _truth(outline, group)
    if math.isnan(place):
        truth, at = replace(truth, collapses=False), math.sqrt(dose[dose > 0][0] * dose[-1])
    else:
        at = place / truth.rise if group == INFUSED else place
    curve = simulate_curve(
        truth, cell, list(levels), max(levels.values()), generator, collapse=at, group=group, one=one
    )
    kept = list(levels.values())
    facts = [outline.facts(group, value, one) for value in levels]
    return replace(
        curve,
        seed_rates=tuple(rates[:count] for rates, count in zip(curve.seed_rates, kept, strict=True)),
        seed_facts=tuple(np.full(count, float(own)) for own, count in zip(facts, kept, strict=True)),
    )


@dataclass(frozen=True)
class _Asked:
    """What is asked about a group in one slice."""

    group: str
    facts: int
    """Facts of a run of the model with the fewest."""
    weakest: Sequence[int]
    """Runs at each level of that model."""
    models: Sequence[Sequence[int]]
    """The same of every model."""
    first: bool
    """Whether that model has a run without infusion."""

    def power(self, chance: float, settings: AnalysisConfig) -> Power:
        """Returns what the answers can show."""
        dispersion = expected_dispersion(self.facts, self.models, settings)
        runs = np.array([self.weakest[0], self.weakest[-1]])
        weight = dispersion.effective(self.facts * runs.astype(float), runs)
        peak = chance + _SHARE * (1 - chance)
        alpha, freedom = settings.alpha, dispersion.freedom
        found = float(detectable_drop(peak, weight[0], weight[-1], alpha, settings.power, freedom))
        rates = np.linspace(chance, 1.0, 201)[1:]
        p = p_above(rates, weight[-1], chance, freedom)
        if self.first:
            before = float(weight[0])
            p = np.maximum(p, [p_greater(float(r), float(weight[-1]), chance, before, freedom) for r in rates])
        above = rates[p <= alpha / max(len(self.weakest) - self.first, 1)]
        return Power(
            self.group,
            self.facts,
            self.weakest[-1],
            len(self.weakest),
            found,
            float(needed_drop(peak, chance, settings)),
            float(above[0]) if len(above) else 1.0,
        )

    def other(self, facts: float, seeds: int) -> _Asked:
        """Returns the same with other numbers of facts and seeds."""
        models = [[seeds] * len(levels) for levels in self.models]
        return replace(self, facts=round(facts), weakest=[seeds] * len(self.weakest), models=models)


def _asked(outline: Outline, one: Slice, group: str) -> _Asked:
    levels = outline.levels(one)
    curves = [at for at in levels.values() if len(at) > 1] or list(levels.values())
    some = curves[:: -(-len(curves) // _MODELS)]

    def in_all(at: dict[float, int]) -> float:
        return sum(outline.facts(group, dose, one) * runs for dose, runs in at.items()) / len(at)

    weakest = min(some, key=in_all)
    facts = outline.facts(group, max(weakest), one)  # falls are judged at the largest dose
    return _Asked(group, facts, list(weakest.values()), [list(at.values()) for at in some], first=0.0 in weakest)


def _weak(outline: Outline, powers: Sequence[Power], asked: Sequence[_Asked], settings: AnalysisConfig) -> list[Remark]:
    """Returns the remark that falls and rises are likely not seen, and what would show them."""
    found = []
    for power, each in zip(powers, asked, strict=True):
        if power.enough and power.told <= _half_known_rate(outline, settings):
            continue
        problem = f"{plural(power.facts, f'{power.group} fact')} and {plural(power.seeds, 'seed')} "
        if not power.enough:
            problem += (
                f"show a fall of {power.detectable:.2f} or more, and a model without one remains undecided (needed: "
                f"{power.needed:.2f})"
            )
        else:
            problem += f"distinguish a rate of {power.told:.2f} or more from chance ({outline.chance:.2f})"
        limited = power.facts < outline.there[power.group] and power.facts == outline.asked[power.group]
        key = "probes.facts_per_group" if limited else f"data.select.{power.group}"
        if power.group == INFUSED and power.facts < outline.asked[INFUSED]:
            key = "facts"  # fewer than there are, and than are asked, are shown
        found.append(Remark(key, problem, _more(outline, each, power, settings)))
    return found


def _half_known_rate(outline: Outline, settings: AnalysisConfig) -> float:
    """Returns the rate that the criterion of an onset must distinguish from chance."""
    return outline.chance + settings.reference_loss * (1 - outline.chance)


def _more(outline: Outline, asked: _Asked, power: Power, settings: AnalysisConfig) -> str:
    """Returns how many facts, or seeds, would show what is needed."""

    def shows(facts: float, seeds: int) -> bool:
        then = asked.other(facts, seeds).power(outline.chance, settings)
        return then.enough and then.told <= _half_known_rate(outline, settings)

    ways = []
    facts = next((power.facts * factor for factor in _MORE_FACTS if shows(power.facts * factor, power.seeds)), None)
    if facts is not None:
        cost = "the same compute" if power.group == BACKGROUND else "the same compute at each infusion ratio"
        ways.append(f"{rounded_up(facts):,} facts ({cost})")
    seeds = next((power.seeds + more for more in range(1, _MORE_SEEDS) if shows(power.facts, power.seeds + more)), None)
    if seeds is not None:
        ways.append(f"seeds: {list(range(seeds))} ({seeds / power.seeds:.1f} times the compute)")
    return ", or ".join(ways) or "several times as many facts and seeds"


def _simulated(
    kind: str,
    group: str,
    outline: Outline,
    one: Slice,
    models: Sequence[tuple[int, int]],
    targets: Sequence[tuple[float, float]],
    settings: AnalysisConfig,
) -> Simulated:
    """Simulates studies whose transitions are in the middle of their levels, and analyses them."""
    studies = int(np.clip(_CURVES // (2 * len(models)), *_STUDIES))
    levels = outline.levels(one)
    middle = {}
    for cell in models:
        doses = [dose for dose in levels[cell] if dose]
        middle[cell] = math.sqrt(doses[0] * doses[-1])
    criteria = tuple(criterion for criterion in criteria_of(settings) if criterion.kind == kind)
    scatter = Truth().scatter
    points: list[list[Transition]] = []
    for number in range(studies):
        generator = np.random.default_rng([settings.seed, 3, number])
        curves = []
        for cell in models:
            place = middle[cell] * math.exp(scatter * float(generator.standard_normal()))
            curves.append(_curve(outline, one, cell, group, generator, place))
        curves = with_dispersion(curves, settings)
        points.append([criteria[0].find(curve, settings) for curve in curves])
    informative = [point for found in points for point in found if point.informative]
    widths = [point.high / point.low for point in informative if point.low and point.high]
    laws, validated = 0, 0
    factors: list[list[float]] = [[] for _ in targets]
    for found in points:
        try:
            law = fit_law(found, kind, group, along=one, law=settings.law, bend=settings.bend, compare_laws=False)
        except LawRefused:
            continue
        laws += 1
        validated += not law.unvalidated
        for factor, target in zip(factors, targets, strict=True):
            low, high = predict_of(law, *target).prediction_interval
            factor.append(min(high / low, LARGEST_FACTOR) if low > 0 else LARGEST_FACTOR)
    return Simulated(
        kind,
        group,
        one,
        studies,
        len(models),
        len(informative) / (studies * len(models)),
        float(np.median(widths)) if widths else None,
        laws,
        validated,
        tuple(float(np.median(factor)) if factor else None for factor in factors),
    )


def _no_law(simulated: Sequence[Simulated]) -> list[Remark]:
    """Returns the remark that most simulated studies had no law along any dose, although they had enough models."""
    collapses = [one for one in simulated if one.kind == "collapse" and one.models >= VALIDATED_CELLS]
    if not collapses or any(2 * one.validated >= one.studies for one in collapses):
        return []
    one = max(collapses, key=lambda one: one.validated / one.studies)
    problem = (
        f"{one.studies - one.validated} of {one.studies} simulated studies have too few points for a law: the "
        f"{one.kind} of {one.group} facts is found in {one.found:.0%} of the models"
    )
    return [Remark("ladder", problem, "more sizes, more levels on both sides of the fall, or more seeds")]
