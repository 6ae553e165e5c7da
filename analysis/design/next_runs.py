"""The runs to train next for a prediction at a target.

Runs are added one at a time to one (N, D) cell: the level that halves the widest bracket that may contain F*, another
seed where the levels are close already, one beyond a censored end, or another seed where a fall that matters would not
have shown, in the cell with the largest width per cost (`bisect`), as if the ones before it had given the expected
results. A model that never knew anything gets none (`megatron_kis.analysis.design.advice`). The gain of a run is
simulated (`megatron_kis.analysis.design.gain`).

Choosing by the simulated gain itself, among seeds and levels, was tried and needed more compute for the same interval
(docs/LOG.md): with a few cells the gain of one run is small compared with the noise of its own estimate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count as numbers
from itertools import pairwise

import numpy as np
import pandas as pd

from megatron_kis.analysis.criteria import find_transitions
from megatron_kis.analysis.criteria.dispersion import with_dispersion
from megatron_kis.analysis.design.advice import undecided
from megatron_kis.analysis.design.gain import Cell, Step, cell_of, gain_of, with_run
from megatron_kis.analysis.law.fit import LawRefused, fit_law
from megatron_kis.analysis.runs.curves import Curve, curves, primary_rows
from megatron_kis.analysis.runs.slices import FREQUENCY, RATIO, USUAL, Slice, rows_of_slice
from megatron_kis.analysis.runs.transitions import LEFT_CENSORED, Transition, amount_at
from megatron_kis.common.errors import InputError
from megatron_kis.config.analysis import AnalysisConfig

_STEP = 1.5  # factor between a censored end and the level beyond it
_NEAR = 1.1  # levels closer than this factor count as one: a run between them would only be another seed


@dataclass(frozen=True)
class Proposal:
    """One run to train."""

    params: int
    tokens: int
    frequency: float
    """F; where an infusion ratio is held, the F that it gives (NaN if that is not known)."""
    seed: int
    flops: float
    """Cost of the run, 6 N D."""
    gain: float | None
    """Expected relative fall of the prediction variance at the target; None if no law can be fitted yet."""
    reason: str
    facts: int | None = None
    """Number K of infused facts that the run shows; None: all."""
    infusion_ratio: float | None = None
    """Infusion ratio to ask for in place of ``frequency``; None: ask for the frequency."""


def propose(
    table: pd.DataFrame,
    params: float,
    tokens: float,
    settings: AnalysisConfig | None = None,
    *,
    group: str | None = None,
    along: Slice | None = None,
    count: int = 6,
    largest_ratio: float = 0.95,
    points: Sequence[Transition] | None = None,
) -> list[Proposal]:
    """Proposes the next ``count`` runs for the prediction at N = ``params``, D = ``tokens``.

    Args:
        table: the curves so far.
        params: N of the target.
        tokens: D of the target.
        settings: the declared settings of the analysis.
        group: fact group whose collapse is predicted; the first one with a collapse, background last, if None.
        along: axis and what is held; the slice of which most collapses are known, if None.
        count: runs to propose.
        largest_ratio: the largest infusion ratio of a proposal, if the table has infusion ratios.
        points: the table's transitions, if they are known already.

    Raises:
        InputError: no curve of that group, or a criterion without a collapse by memory.
    """
    settings = settings or AnalysisConfig()
    check_criterion(settings)
    points = [p for p in points or find_transitions(table, settings) if p.kind == "collapse"]
    group = group or group_of(points)
    along = along or slice_to_extend(points, group)
    found = _cells(table, settings, group, along, points)
    steps = _steps(found, settings, count, largest_ratio, pool_of(table))
    curve_of = {(curve.params, curve.tokens): curve for curve, _, _ in found}
    try:
        law = fit_law(points, "collapse", group, along=along, law=settings.law, compare_laws=False, brief=True)
    except LawRefused:
        return [_proposal(step, curve_of[step.params, step.tokens], None) for step in steps]
    cells = {(c.params, c.tokens): cell_of(c, p, settings, seeds) for c, p, seeds in found}
    proposals: list[Proposal] = []
    for step in steps:
        own = step.params, step.tokens
        gain, variance = gain_of(cells, step, law, params, tokens, settings)
        proposals.append(_proposal(step, curve_of[own], gain))
        cells[own] = with_run(cells[own], step, variance)
    return proposals


def bisect(
    table: pd.DataFrame,
    settings: AnalysisConfig | None = None,
    *,
    group: str,
    along: Slice | None = None,
    count: int = 6,
    largest_ratio: float = 0.95,
    points: Sequence[Transition] | None = None,
) -> list[Proposal]:
    """Proposes the same runs without their gains: repeatedly halves the bracket that is widest for its cost.

    Raises:
        InputError: no curve of that group, or a criterion without a collapse by memory.
    """
    settings = settings or AnalysisConfig()
    check_criterion(settings)
    points = [p for p in points or find_transitions(table, settings) if p.kind == "collapse"]
    found = _cells(table, settings, group, along or slice_to_extend(points, group), points)
    curve_of = {(curve.params, curve.tokens): curve for curve, _, _ in found}
    steps = _steps(found, settings, count, largest_ratio, pool_of(table))
    return [_proposal(step, curve_of[step.params, step.tokens], None) for step in steps]


def check_criterion(settings: AnalysisConfig) -> None:
    """Checks that there is a collapse by memory, which the runs are proposed for.

    Raises:
        InputError: the criterion is ``general_loss``.
    """
    if settings.criterion == "general_loss":
        raise InputError(
            "is general_loss: runs are proposed for a collapse by memory, and this criterion finds none",
            where="analysis.criterion",
            remedy="choose the runs by hand, or another criterion",
        )


_Known = tuple[Curve, Transition, dict[float, set[int]]]
"""The curve of an (N, D), its collapse point, and the seeds of its levels."""


def _steps(
    known: Sequence[_Known], settings: AnalysisConfig, count: int, largest_ratio: float, pool: float
) -> list[Step]:
    cells = [Cell(curve, point, None, 0.0, seeds) for curve, point, seeds in known]
    found: list[Step] = []
    for _ in range(count):
        best = _bisect(cells, settings, largest_ratio, pool)
        if best is None:
            break
        step, index = best
        found.append(step)
        cells[index] = with_run(cells[index], step, 0.0)
    return found


def _cells(
    table: pd.DataFrame, settings: AnalysisConfig, group: str, along: Slice, points: Sequence[Transition]
) -> list[_Known]:
    """Returns what is known of each (N, D) of a group and slice."""
    primary = primary_rows(table, settings)
    mine = primary[primary["group"] == group]
    by_cell = {(p.params, p.tokens): p for p in points if p.group == group and p.slice == along}
    seeds = _seeds(rows_of_slice(mine, along))
    found = with_dispersion(curves(mine, [along]), settings)
    if not found:
        raise InputError(f"no curve of group {group!r}", where="group", remedy="infused or background")
    return [(c, by_cell[c.params, c.tokens], seeds[c.params, c.tokens]) for c in found]


def slice_to_extend(points: Sequence[Transition], group: str) -> Slice:
    """Returns the slice of a group in which most collapses are known; of several the first."""
    mine = [p for p in points if p.kind == "collapse" and p.group == group]
    slices = sorted({p.slice for p in mine}, key=lambda one: one.key)
    return max(slices, key=lambda one: sum(p.informative for p in mine if p.slice == one), default=USUAL)


def pool_of(table: pd.DataFrame) -> float:
    """Returns the number of facts that there are to infuse; inf if it is not known.

    A run without infusion is asked about all of them. In the table of another trainer it may have any K: a smaller one
    than was infused says nothing.
    """
    if "infused_facts" not in table:
        return math.inf
    base = table["frequency"] == 0
    there, most = table.loc[base, "infused_facts"].max(), table.loc[~base, "infused_facts"].max()
    return float(there) if there >= most else math.inf


def group_of(points: Sequence[Transition]) -> str:
    """Returns the group whose collapse is predicted: the first one with a collapse, background last."""
    found = {p.group for p in points if p.kind == "collapse" and p.informative}
    return "background" if "background" in found and "infused" not in found else "infused"


def _seeds(rows: pd.DataFrame) -> dict[tuple[int, int], dict[float, set[int]]]:
    """Returns the seeds trained at each dose of each (N, D)."""
    found: dict[tuple[int, int], dict[float, set[int]]] = {}
    for params, tokens, dose, seed in rows[["params", "tokens", "dose", "seed"]].itertuples(index=False):
        found.setdefault((int(params), int(tokens)), {}).setdefault(float(dose), set()).add(int(seed))
    return found


def _bisect(
    cells: Sequence[Cell], settings: AnalysisConfig, largest_ratio: float, pool: float
) -> tuple[Step, int] | None:
    """Returns the run with the largest width per cost, in a bracket or beyond a censored end, and the cell's index."""
    best: tuple[tuple[float, float], tuple[Step, int]] | None = None
    for index, cell in enumerate(cells):
        point, levels = cell.point, cell.curve.dose[cell.curve.dose > 0]
        one = cell.curve.slice
        if not len(levels):
            continue
        if point.informative and point.high:
            low = max(point.low or 0.0, float(levels[0]))
            inner = [(a, b) for a, b in pairwise(levels) if b > low and a < point.high]
            if not inner:
                continue
            a, b = max(inner, key=lambda pair: pair[1] / pair[0])
            dose, width = float(round(math.sqrt(a * b))), math.log(b / a)
            reason = f"halves a bracket that may hold {one.symbol_at_transition}"
            if dose < _NEAR * a or b < _NEAR * dose:
                dose, width = _again(cell, [level for pair in inner for level in pair])
                reason = f"another seed near {one.symbol_at_transition}: levels between would only be that"
        elif point.status == LEFT_CENSORED:
            dose, width = float(max(round(levels[0] / _STEP), 1)), 1.0
            if levels[0] < _NEAR * dose:
                continue
            reason = "below the censored end"
        elif (why := undecided(point, settings, cell.curve.assumed_chance)).never_known:
            continue  # more infusion teaches nothing that could be lost
        elif why.too_faint:
            dose = _fewest_seeds(cell)
            width = 1.0 / max(len(cell.seeds.get(dose, ())), 1)
            reason = "another seed: a fall that matters would not have shown"
        else:
            dose, width = _capped(cell.curve, float(levels[-1]) * _STEP, largest_ratio, pool), 1.0
            if dose < _NEAR * levels[-1]:
                continue
            reason = f"beyond the largest {one.symbol}"
        # Halving a bracket in a model of four times the cost is only worth it if it is four times as wide.
        rank = (width / cell.flops, width)
        if best is None or rank > best[0]:
            best = rank, (_step(cell, dose, reason), index)
    return best[1] if best else None


def _again(cell: Cell, doses: Sequence[float]) -> tuple[float, float]:
    """Returns the dose with the fewest runs, and by how much one more run there narrows the interval of log F*.

    Of several doses with equally few runs it is the nearest to F*. The width of an interval
    falls with the root of the number of runs.
    """
    point = cell.point
    assert point.high
    middle = math.log(point.value or point.high)
    dose = min(doses, key=lambda dose: (len(cell.seeds.get(dose, ())), abs(math.log(dose) - middle)))
    width = math.log(point.high / max(point.low or 0.0, min(doses)))
    runs = max(len(cell.seeds.get(dose, ())), 1)
    return dose, width * (1 - math.sqrt(runs / (runs + 1)))


def _fewest_seeds(cell: Cell) -> float:
    """Returns the dose, of those that a fall is judged by, with the fewest runs: the largest, or that of the peak."""
    known = np.where(np.isnan(cell.curve.rate), -np.inf, cell.curve.rate)
    doses = float(cell.curve.dose[-1]), float(cell.curve.dose[int(known.argmax())])
    return min(doses, key=lambda dose: len(cell.seeds.get(dose, ())))


def _step(cell: Cell, dose: float, reason: str) -> Step:
    taken = cell.seeds.get(dose, set())
    seed = next(number for number in numbers() if number not in taken)
    return Step(cell.curve.params, cell.curve.tokens, dose, seed, cell.flops, reason)


def _proposal(step: Step, curve: Curve, gain: float | None) -> Proposal:
    """Returns a step along the slice of its curve as a run: its F, and its K where that varies."""
    one = curve.slice
    if not step.dose:
        return Proposal(step.params, step.tokens, 0.0, step.seed, step.flops, gain, step.reason)
    if one.axis == FREQUENCY:
        frequency, facts = step.dose, None if one.held is None else round(one.held)
    else:
        frequency, facts = _frequency_at(curve, step.dose), round(step.dose)
    return Proposal(
        step.params,
        step.tokens,
        frequency,
        step.seed,
        step.flops,
        gain,
        step.reason,
        facts=facts,
        infusion_ratio=one.held if one.held_by == RATIO else None,
    )


def _frequency_at(curve: Curve, facts: float) -> float:
    """Returns F at K along the number of facts: the held one, or what the held ratio leaves each fact."""
    one = curve.slice
    if one.held is not None and one.held_by != RATIO:
        return one.held
    exposures = amount_at(curve, curve.exposures, facts, jumps=True)
    return math.nan if exposures is None else exposures / facts


def _capped(curve: Curve, dose: float, largest_ratio: float, pool: float) -> float:
    """Returns ``dose``, or the largest whole one within ``largest_ratio`` and the number of facts that there are.

    The ratio limits it only if the curve has infusion ratios, which grow with the dose.
    """
    if curve.slice.axis != FREQUENCY:
        dose = min(dose, pool)
    known = np.isfinite(curve.ratio) & (curve.dose > 0)
    if known.any() and curve.slice.held_by != RATIO:
        cost = float(np.max(curve.ratio[known] / curve.dose[known]))
        if cost > 0:
            dose = min(dose, math.floor(largest_ratio / cost))
    return float(round(dose))
