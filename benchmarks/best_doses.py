"""How good the dose is that `kis law decide --recall 1 --retention 1` names, over simulated studies with whole curves.

    python -m benchmarks.best_doses [--studies 30] [--only NAME]

Six sizes from 25M to 3.2B have curves of infused facts, which rise, and of background facts, which fall. Laws are
fitted to them as `kis law fit` does by default, and asked for the dose of the largest utility of a model of 32B. The
truth is that model's own curves, with its own deviations from the laws: its truly best dose, and how much utility it
loses at the dose that is named. Truths are drawn by hand (`benchmarks.whole_study`), not by the forms that are fitted.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.whole_study import BEYOND, CHANCE, LARGEST, STEEP, TOKENS, Shape, rounded
from megatron_kis.analysis.criteria import find_transitions
from megatron_kis.analysis.findings.analyse import fit_laws
from megatron_kis.analysis.law.new_model import NewModel
from megatron_kis.analysis.law.utility import Weights, best_dose
from megatron_kis.analysis.runs.curves import CURVE_COLUMNS, Array
from megatron_kis.common.errors import InputError
from megatron_kis.config.analysis import AnalysisConfig

WEIGHTS = Weights(recall=1.0, retention=1.0)
CONFIDENCE = 0.95
SETTINGS = AnalysisConfig(law="N", resamples=199, law_resamples=99)
NO_INFUSION = -20.0  # log dose that means none
RECALLED = 0.9  # of the infused facts, after the rise
FACTS, SEEDS, LEVELS, ICC = 120, 3, 12, 0.01
_GRID = np.append(NO_INFUSION, np.linspace(0.0, 12.0, 12_001))


@dataclass(frozen=True)
class Design:
    """A truth: log doses at which the fall begins, and half of the rise is reached, grow as ``exponent`` log N."""

    name: str
    shape: Shape
    scatter: float = 0.1
    """Of both log doses between models, independent of each other."""
    exponent: float = 0.3
    rise: float = 0.3
    """Dose of half of the rise over that at which the fall begins."""


DESIGNS = (
    Design("rounded fall, scatter 0.1", rounded(0.5)),
    Design("corner after a rise, scatter 0.1", STEEP),
    Design("rounded fall, scatter 0.3", rounded(0.5), scatter=0.3),
)


@dataclass(frozen=True)
class World:
    """One model: log doses at which its fall begins, and half of its rise is reached."""

    shape: Shape
    fall: float
    rise: float

    def recall(self, x: Array) -> Array:
        """Returns the share of the infused facts that it knows at log doses ``x``."""
        return np.asarray(RECALLED * -np.expm1(-math.log(2) * np.exp(1.5 * (x - self.rise))))

    def excess(self, x: Array) -> Array:
        """Returns the share of the background facts that it knows."""
        return self.shape(x, self.fall)

    def utility(self, x: Array) -> Array:
        """Returns recall, and the share of what is known without infusion that is kept, with their weights."""
        retention = self.excess(x) / self.excess(np.array([NO_INFUSION]))
        return np.asarray(WEIGHTS.recall * self.recall(x) + WEIGHTS.retention * retention)


@dataclass(frozen=True)
class Chosen:
    """A dose that was named in one study."""

    hit: bool
    """Whether its interval holds the truly best dose."""
    off: float
    """log of the dose over the truly best one."""
    width: float
    """log width of the interval."""
    told: float
    """Regret that was stated."""
    regret: float
    """Utility that the new model really loses at the dose."""


def world(design: Design, params: float, generator: np.random.Generator) -> World:
    """Draws a model."""
    mean = math.log(400.0) + design.exponent * math.log(params / 280e6)
    fall, rise = design.scatter * generator.standard_normal(2)
    return World(design.shape, mean + float(fall), mean + math.log(design.rise) + float(rise))


def simulated(design: Design, generator: np.random.Generator) -> pd.DataFrame:
    """Returns the curve table of one study."""
    sizes = np.geomspace(25e6, LARGEST, 6).round()
    ends = [math.log(400.0) + design.exponent * math.log(n / 280e6) for n in (sizes[0], sizes[-1])]
    doses = np.append(0.0, np.geomspace(math.exp(ends[0]) / 20, 4 * math.exp(ends[1]), LEVELS - 1).round())
    x = np.log(np.maximum(doses, math.exp(NO_INFUSION)))
    strength = 1 / ICC - 1
    rows = []
    for n in sizes:
        model = world(design, n, generator)
        for group, known in (("infused", model.recall(x)), ("background", model.excess(x))):
            for dose, rate in zip(doses, CHANCE + (1 - CHANCE) * known, strict=True):
                for seed in range(SEEDS):
                    own = generator.beta(rate * strength, (1 - rate) * strength)
                    right = int(generator.binomial(FACTS, own))
                    rows.append((int(n), TOKENS, dose, seed, FACTS, right, FACTS, group))
    table = pd.DataFrame(rows, columns=[*CURVE_COLUMNS[:7], "group"])
    constant: dict[str, Any] = {"chance": CHANCE, "split": "held_out", "scoring": "statement"}
    return table.assign(**constant).reindex(columns=CURVE_COLUMNS)


def choose(table: pd.DataFrame, new: World) -> Chosen | None:
    """Returns the dose that is named for the new model; None where the laws predict no whole curves."""
    laws, _ = fit_laws(find_transitions(table, SETTINGS), SETTINGS, table)
    models = [NewModel(law, LARGEST * BEYOND, TOKENS) for law in laws]
    try:
        best = best_dose(models, WEIGHTS, None, most=None, confidence=CONFIDENCE, where="the laws")
    except InputError:
        return None
    utility = new.utility(_GRID)
    at = int(utility.argmax())
    named = math.log(best.dose) if best.dose else NO_INFUSION
    low, high = (math.log(end) if end else NO_INFUSION for end in best.interval)
    return Chosen(
        hit=bool(low <= _GRID[at] <= high),
        off=float(named - _GRID[at]),
        width=high - low,
        told=best.regret,
        regret=float(utility[at] - new.utility(np.array([named]))[0]),
    )


def simulate(design: Design, studies: int, seed: int = 0) -> list[Chosen]:
    """Returns the doses that are named in ``studies`` studies."""
    generator = np.random.default_rng([seed, 31, DESIGNS.index(design)])
    found = []
    for _ in range(studies):
        table = simulated(design, generator)
        found.append(choose(table, world(design, LARGEST * BEYOND, generator)))
    return [one for one in found if one is not None]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=30, help="studies per row (30)")
    parser.add_argument("--only", help="designs whose name has this")
    options = parser.parse_args()
    began = time.process_time()
    print(
        "| study | dose named | best dose in its interval | log width, median | log of dose over best, median, rms | "
        "predicted regret, mean | real regret, mean, highest |"
    )
    print("|---|---|---|---|---|---|---|")
    for design in DESIGNS:
        if options.only and options.only not in design.name:
            continue
        found = simulate(design, options.studies)
        off, width, told, regret = np.array([(c.off, c.width, c.told, c.regret) for c in found]).T
        print(
            f"| {design.name} | {len(found)} of {options.studies} | {sum(c.hit for c in found)} | "
            f"{np.median(width):.2f} | {np.median(off):+.2f}, {np.sqrt(np.mean(off**2)):.2f} | {told.mean():.3f} | "
            f"{regret.mean():.3f}, {regret.max():.3f} |",
            flush=True,
        )
    print(f"{time.process_time() - began:.0f} s of processor time", file=sys.stderr)


if __name__ == "__main__":
    main()
