"""What `kis study next` saves: compute to reach the prediction interval of a full grid, over simulated studies.

    python -m benchmarks.next_runs [--studies 50] [--first 0] [--looks 8] [--ignore-looks] [--json FILE]

Each study has five sizes (30M to 500M) and asks for the collapse point at 7B. The full grid trains F = 0 and nine
levels with three seeds at each size. The planned study starts from F = 0 and five levels with one seed, and adds the
runs that `kis study next` proposes (`design.next_runs.bisect` names the same without simulating their gains), five at
a time, until its prediction interval is as narrow as the full grid's at 95% of the same truth. Compute is 6 N D summed
over runs. Its intervals have the level of their look (`law.looks`), of a number that is declared with --looks;
--ignore-looks leaves them at 95%.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from megatron_kis.analysis.criteria import Transition, find_transitions
from megatron_kis.analysis.design.next_runs import Proposal, bisect
from megatron_kis.analysis.law.fit import LawRefused, fit_law
from megatron_kis.analysis.law.looks import level_at_look
from megatron_kis.analysis.law.predict import predict
from megatron_kis.analysis.simulate import Cell, Truth, simulate_curve, table_of
from megatron_kis.config.analysis import AnalysisConfig

SIZES = (30_000_000, 60_000_000, 125_000_000, 250_000_000, 500_000_000)
TOKENS, TARGET = 2_000_000_000, 7e9
SETTINGS = AnalysisConfig(resamples=199, law="N")
FULL = [0.0, *np.geomspace(40, 1600, 9).round()]
COARSE = [0.0, *np.geomspace(40, 1600, 5).round()]
BATCH = 5  # runs trained before the plan is made again
BATCHES = 32


@dataclass(frozen=True)
class Outcome:
    """One study."""

    study: int
    full_width: float
    """log of the full grid's prediction interval, upper end over lower."""
    full_hit: bool
    """Whether it holds the new model's F*."""
    planned_share: float
    """Compute of the planned study over the full grid's when its interval was as narrow; 1 where it never was."""
    planned_width: float
    planned_hit: bool


class Study:
    """One simulated world: its models' true collapse points, and runs trained in it on demand."""

    def __init__(self, number: int) -> None:
        """The world ``number``."""
        self.truth = Truth(scatter=0.08, facts=200, size_exponent=0.25)
        self.generator = np.random.default_rng([11, number])
        self.cells: list[Cell] = [(n, TOKENS) for n in SIZES]
        scatter = self.truth.scatters(self.generator, len(self.cells) + 1)
        self.collapse = {
            cell: self.truth.collapse_point(*cell) * math.exp(s) for cell, s in zip(self.cells, scatter, strict=False)
        }
        self.new = math.log(self.truth.collapse_point(TARGET, TOKENS)) + float(scatter[-1])
        self._points: dict[bytes, list[Transition]] = {}

    def train(self, cell: Cell, frequencies: list[float], seeds: int) -> pd.DataFrame:
        """The rows of a cell's new runs."""
        curve = simulate_curve(
            self.truth, cell, frequencies, seeds, self.generator, collapse=self.collapse[cell], group="background"
        )
        return table_of([curve])

    def extend(self, table: pd.DataFrame, proposals: list[Proposal]) -> pd.DataFrame:
        """The table with the proposed runs trained."""
        rows = [self.train((p.params, p.tokens), [p.frequency], 1).assign(seed=p.seed) for p in proposals]
        return pd.concat([table, *rows], ignore_index=True)

    def points(self, table: pd.DataFrame) -> list[Transition]:
        """The transitions of every cell; those of a cell without a new run are remembered."""
        found: list[Transition] = []
        for _, rows in table.groupby("params", sort=True):
            key = rows[["params", "frequency", "seed", "correct"]].to_numpy(float).tobytes()
            if key not in self._points:
                self._points[key] = find_transitions(rows, SETTINGS)
            found += self._points[key]
        return found

    def told(self, table: pd.DataFrame, level: float = 0.95) -> tuple[float, bool]:
        """(log width of the prediction interval at the target, whether it holds the new model's log F*)."""
        points = self.points(table)
        try:
            law = fit_law(points, "collapse", "background", confidence=level, law="N", compare_laws=False, brief=True)
        except LawRefused:
            return math.inf, True
        low, high = predict(law, TARGET, TOKENS).prediction_interval
        return math.log(high / low), math.log(low) <= self.new <= math.log(high)


def cost(table: pd.DataFrame) -> float:
    """6 N D of every run, up to the 6."""
    return float((table["params"].astype(float) * table["tokens"]).sum())


def study(number: int, looks: int = 0, *, ignored: bool = False) -> Outcome:
    """Runs one simulated study both ways; ``looks`` are declared, or ``ignored``."""
    world = Study(number)
    full = pd.concat([world.train(cell, FULL, 3) for cell in world.cells], ignore_index=True)
    wanted, full_hit = world.told(full)
    start = pd.concat([world.train(cell, COARSE, 1) for cell in world.cells], ignore_index=True)

    def level(look: int) -> float:
        return 0.95 if ignored else level_at_look(0.95, look, looks)

    table = start
    width, hit = world.told(table, level(1))
    for look in range(2, (looks or BATCHES) + 1):
        if width <= wanted or cost(table) >= cost(full):
            break
        proposals = bisect(table, SETTINGS, group="background", count=BATCH, points=world.points(table))
        if not proposals:
            break
        table = world.extend(table, proposals)
        width, hit = world.told(table, level(look))
    share = cost(table) / cost(full) if width <= wanted else 1.0
    return Outcome(number, wanted, full_hit, share, width, hit)


def summary(outcomes: list[Outcome]) -> str:
    """The result in a few lines."""
    shares = [o.planned_share for o in outcomes]
    reached = sum(o.planned_width <= o.full_width for o in outcomes)
    return (
        f"{len(outcomes)} studies. Compute to the full grid's interval: {statistics.median(shares):.2f} of its (mean "
        f"{statistics.mean(shares):.2f}, at most half in {sum(s <= 0.5 for s in shares)}); reached in {reached}. "
        f"The new model lay in the planned study's interval in {sum(o.planned_hit for o in outcomes)}, "
        f"in the full grid's in {sum(o.full_hit for o in outcomes)}."
    )


def main() -> None:
    """Runs the studies and prints the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=50, help="simulated studies (50)")
    parser.add_argument("--first", type=int, default=0, help="number of the first (0)")
    parser.add_argument("--looks", type=int, default=0, help="looks that are declared, and made at most (0: none)")
    parser.add_argument("--ignore-looks", action="store_true", help="every look at 95%%")
    parser.add_argument("--json", type=Path, help="write the outcomes here")
    options = parser.parse_args()
    outcomes = []
    started = time.perf_counter()
    for number in range(options.first, options.first + options.studies):
        outcomes.append(study(number, options.looks, ignored=options.ignore_looks))
        print(outcomes[-1], flush=True)
    print(summary(outcomes), f"{time.perf_counter() - started:.0f} s")
    if options.json:
        options.json.write_text(json.dumps([asdict(o) for o in outcomes], indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
