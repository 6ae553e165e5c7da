"""What the declared criterion and law need of a study's sizes, budgets and levels, before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megatron_kis.analysis.criteria import hinge, retention
from megatron_kis.analysis.design.new_sizes import sizes_between
from megatron_kis.analysis.design.outline import Outline
from megatron_kis.analysis.law.candidates import AUTO, SIZE_AND_BUDGET, check_law, declared
from megatron_kis.analysis.law.fit import COLLINEAR, FEWEST_SIZES, VALIDATED_CELLS
from megatron_kis.analysis.runs.slices import FACTS, Slice
from megatron_kis.common.errors import first_of
from megatron_kis.common.units import in_table, plural
from megatron_kis.config.analysis import AnalysisConfig
from megatron_kis.config.study import LadderEntry
from megatron_kis.study.preflight import Remark
from megatron_kis.study.proposals import nearest_new_size, rate_words

_LEVELS = {"retention": retention.FEWEST_LEVELS, "hinge": hinge.FEWEST_LEVELS, "tolerance_rule": 3, "half_margin": 3}
_OTHERS = 3  # levels of an onset, and of a loss that leaves its tolerance
_SHOWN = 4  # models of a list


@dataclass(frozen=True)
class AddedSize:
    """A size that would add a point to the law."""

    params: int
    """N."""
    entry: LadderEntry | None
    """Its entry of the ladder; None where no shape comes near."""
    flops: float
    """6 N D of its runs."""

    def words(self) -> str:
        """Returns the entry as a study file has it, or its N, with the cost."""
        if self.entry is None:
            return f"N = {in_table(self.params)} ({self.flops:.1e} FLOPs)"
        shape = self.entry.model_dump(mode="json", exclude_defaults=True)
        inside = ", ".join(f"{name}: {_written(value)}" for name, value in shape.items())
        return f"{{{inside}}} (N = {in_table(self.params)}, {self.flops:.1e} FLOPs)"


def main_slices(outline: Outline, settings: AnalysisConfig) -> list[Slice]:
    """Returns the slice with the most models of enough levels, then with the most levels, along F and along K.

    The first one is the main one. Empty where nothing is infused.

    Raises:
        InputError: the runs do not vary what ``analysis.axis`` asks for.
    """
    if not (outline.table["frequency"] > 0).any():
        return []

    def size(one: Slice) -> tuple[int, int]:
        levels = outline.levels(one)
        return len(models_of(outline, one, settings)), sum(len(at) for at in levels.values())

    found: dict[str, Slice] = {}
    for one in sorted(outline.slices(settings.axis), key=size, reverse=True):
        found.setdefault(one.axis, one)
    return list(found.values())


def models_of(outline: Outline, one: Slice, settings: AnalysisConfig) -> list[tuple[int, int]]:
    """Returns (N, D) of the models with enough levels of a slice for the criterion."""
    fewest = _LEVELS.get(settings.criterion, _OTHERS)
    return [cell for cell, levels in outline.levels(one).items() if len(levels) >= fewest]


def requirements(outline: Outline, settings: AnalysisConfig, predict: Sequence[float]) -> list[Remark]:
    """Returns what is missing for the criterion and, where ``predict`` asks for a law, for the law.

    Raises:
        InputError: a law that does not exist, or an axis that the runs do not vary.
    """
    check_law(settings.law, "analysis.law")
    slices = main_slices(outline, settings)
    below = _below(outline, predict)
    if not slices:
        return below
    one = slices[0]
    return [
        *below,
        *_axis(outline, one, settings),
        *_levels(outline, one, settings),
        *_law(outline, one, settings, predict),
    ]


def _below(outline: Outline, predict: Sequence[float]) -> list[Remark]:
    """Returns the remark that a size to predict for is smaller than any that is trained: ``7`` in place of ``7e9``."""
    least = min(outline.sizes)
    small = [size for size in predict if size < least]
    if not small:
        return []
    problem = f"{in_table(small[0])} parameters are fewer than those of the smallest size, {in_table(least)}"
    return [Remark("predict", problem, "write sizes in parameters, such as 7e9 or 7b")]


def _axis(outline: Outline, one: Slice, settings: AnalysisConfig) -> list[Remark]:
    """Returns the remark that nothing varies along the declared axis."""
    doses = {dose for levels in outline.levels(one).values() for dose in levels if dose}
    if settings.axis == "auto" or len(doses) > 1:
        return []
    key, wanted = outline.key_of(one), "numbers of facts" if one.axis == FACTS else "frequencies"
    problem = f"is {settings.axis}, and the runs have one {one.symbol} only"
    return [Remark("analysis.axis", problem, f"several {key}, or axis: auto; a transition lies between {wanted}")]


def _levels(outline: Outline, one: Slice, settings: AnalysisConfig) -> list[Remark]:
    fewest = _LEVELS.get(settings.criterion, _OTHERS)
    levels = outline.levels(one)
    short = [(n, d, len(at)) for (n, d), at in levels.items() if len(at) < fewest]
    few = [f"{outline.sizes[n].label} at {in_table(d)} tokens ({count})" for n, d, count in short]
    if not few:
        return []
    least = min(len(at) for at in levels.values())
    problem = (
        f"{'every model has' if len(few) == len(levels) else first_of(few, _SHOWN) + ' have'} fewer than the {fewest} "
        f"levels of {one.symbol}, 0 included, that criterion {settings.criterion} needs"
    )
    return [Remark(outline.key_of(one), problem, f"add {fewest - least} or more")]


def _law(outline: Outline, one: Slice, settings: AnalysisConfig, predict: Sequence[float]) -> list[Remark]:
    if not predict:
        return []
    every = list(outline.levels(one))
    models = models_of(outline, one, settings) or every  # a remark on levels says so already
    sizes = {n for n, _ in models}
    budgets = {d for _, d in models}
    if len(sizes) < FEWEST_SIZES or len(models) < VALIDATED_CELLS:
        short = max(FEWEST_SIZES - len(sizes), VALIDATED_CELLS - len(models))
        carried = "none" if len(sizes) < FEWEST_SIZES else "only an unvalidated one, which recommends nothing"
        enough = " with enough levels" if len(models) < len(every) else ""
        problem = (
            f"predict asks for a law, and {plural(len(models), 'model')} of "
            f"{plural(len(sizes), 'size')}{enough} can carry {carried}: it needs {VALIDATED_CELLS} points of at least "
            f"{FEWEST_SIZES} sizes, and a point more for each that is not found"
        )
        added = added_sizes(outline, one, short)
        change = f"add {plural(short, 'size')}" + (": " if added else "")
        change += "; ".join(size.words() for size in added)
        return [Remark("ladder", problem, change + (f"; {rate_words(outline.sizes)}" if added else ""))]
    if len(budgets) > 1:
        return _budgets(models, settings)
    form = None if settings.law == AUTO else declared(settings.law, together=False)
    if form is not None and any(row[1] for row in form.rows) and not any(row[0] for row in form.rows):
        return [Remark("analysis.law", f"{settings.law} is a law of D, and there is one budget", "add token_budgets")]
    if form is not None and form.name == SIZE_AND_BUDGET.name:
        return [Remark("analysis.law", f"{settings.law} has a term in D, and there is one budget", "law: N")]
    return []


def _budgets(models: Sequence[tuple[int, int]], settings: AnalysisConfig) -> list[Remark]:
    """Returns what a law of N and D lacks."""
    mean_n, mean_d = (sum(math.log(cell[at]) for cell in models) / len(models) for at in (0, 1))
    pairs = [(math.log(n) - mean_n, math.log(d) - mean_d) for n, d in models]
    own = [sum(pair[at] ** 2 for pair in pairs) for at in (0, 1)]
    together = sum(a * b for a, b in pairs)
    if settings.law == AUTO and abs(together) > COLLINEAR * math.sqrt(own[0] * own[1]):
        problem = "N and D grow together in every model, so that their effects cannot be separated"
        return [Remark("token_budgets", problem, "give a size a second budget")]
    if settings.law == AUTO and len(models) <= SIZE_AND_BUDGET.size:
        problem = f"{plural(len(models), 'model')} for the {SIZE_AND_BUDGET.size} coefficients of a law of N and D"
        return [Remark("ladder", problem, f"add {plural(SIZE_AND_BUDGET.size + 1 - len(models), 'size')}")]
    return []


def added_sizes(outline: Outline, one: Slice, count: int) -> list[AddedSize]:
    """Returns sizes that would add points to the law, the cheapest first; each as many runs as the others have."""
    levels = outline.levels(one)
    if not levels:
        return []
    runs = math.ceil(sum(sum(at.values()) for at in levels.values()) / len(levels))
    tokens = min(d for _, d in levels)
    known: dict[int, LadderEntry] = dict(outline.sizes)
    found: list[AddedSize] = []
    tried: set[int] = set()
    smallest = 0.4 * min(known)  # one step below: much smaller models tell little of larger ones
    while len(found) < count:
        wanted = next((n for n in sorted(sizes_between(sorted(known))) if n not in tried and n > smallest), None)
        if wanted is None or len(tried) > 4 * count + 8:
            break
        tried.add(wanted)
        placed = _placed(wanted, outline.sizes, list(known.values()))
        if placed is None or placed[1] in known:
            continue
        entry, params = placed
        known[params] = entry
        found.append(AddedSize(params, entry, 6.0 * params * tokens * runs))
    return found


def _placed(
    params: float, trained: Mapping[int, LadderEntry], ladder: Sequence[LadderEntry]
) -> tuple[LadderEntry, int] | None:
    usual = {n: entry.model_copy(update=_NO_GRID) for n, entry in trained.items()}
    return nearest_new_size(params, usual, ladder)


_NO_GRID = {"token_budgets": None, "facts": None, "frequencies": None, "infusion_ratios": None, "seeds": None}


def _written(value: object) -> str:
    return f"{value:.1e}" if isinstance(value, float) and value < 0.1 else str(value)
