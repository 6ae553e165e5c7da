"""What `kis study next` saves: compute to reach the prediction interval of a full grid, over simulated studies.

    python -m benchmarks.next_runs [--studies 40] [--first 0] [--looks 8] [--batch 10] [--json FILE]
    python -m benchmarks.next_runs --read FILE...     # the table of studies that were written by several such commands

Each study has five sizes (30M to 500M) and asks for the collapse point at 7B. The full grid trains F = 0 and nine
levels with three seeds at each size. The planned study starts from F = 0 and five levels with one seed. After each
look it adds the runs that `kis study next` proposes (`design.next_runs.bisect` names the same without simulating their
gains), until its prediction interval is as narrow as the full grid's at 95%, or the looks are used up. Compute is 6 N D
summed over runs.

Intervals are those that a study with default settings gets: points by `retention`, the likelihood of all curves, a law
that may bend. The truth is that criterion's: the dose at which the share r of the excess over chance is lost. The runs
that are proposed do not depend on the level of the interval, so that one series of runs serves all rules for it
(`RULES`); they differ in the look at which the study ends, and in what it then states.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.stopping import RULES, level
from megatron_kis.analysis.criteria import Transition, find_transitions
from megatron_kis.analysis.design.next_runs import Proposal, bisect
from megatron_kis.analysis.findings.analyse import fit_laws
from megatron_kis.analysis.law.predict import predict
from megatron_kis.analysis.simulate import Cell, Truth, simulate_curve, table_of
from megatron_kis.config.analysis import AnalysisConfig

SIZES = (30_000_000, 60_000_000, 125_000_000, 250_000_000, 500_000_000)
TOKENS, TARGET = 2_000_000_000, 7e9
CONFIDENCE = 0.95
SETTINGS = AnalysisConfig(resamples=199, law_resamples=99, law="N")
"""The criterion and the bend are the default ones; the resamples are of the test for a fall and of a check of the law,
and no interval rests on them."""
FULL = [0.0, *np.geomspace(40, 1600, 9).round()]
COARSE = [0.0, *np.geomspace(40, 1600, 5).round()]
WIDER = (1.0, 1.25, 1.5)
"""Log widths, in those of the full grid, at which a study may end."""


@dataclass(frozen=True)
class Told:
    """A prediction interval."""

    width: float
    """log of upper over lower end; inf where there is no law."""
    hit: bool
    """Whether it holds the new model's F*."""


@dataclass(frozen=True)
class Seen:
    """A study at one look."""

    share: float
    """Its compute over the full grid's."""
    surface: bool
    """Whether its law is that of all curves."""
    told: dict[str, Told]
    """Its prediction interval, by the rule for its level."""


@dataclass(frozen=True)
class Outcome:
    """One study."""

    study: int
    full: Told
    looks: list[Seen]

    def ended(self, rule: str, wider: float = 1.0) -> tuple[Seen, bool]:
        """Returns the look at which the study ends, and whether its interval was narrow enough there."""
        for seen in self.looks:
            if seen.told[rule].width <= wider * self.full.width:
                return seen, True
        return self.looks[-1], False


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
        corner = self.truth.collapse_point(TARGET, TOKENS) * math.exp(float(scatter[-1]))
        self.new = lost_at(self.truth, corner, SETTINGS.r)

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

    def told(self, table: pd.DataFrame, points: list[Transition], levels: list[float]) -> tuple[list[Told], bool]:
        """(prediction intervals at the target of each level, whether they are from all curves)."""
        laws, _ = fit_laws([p for p in points if p.kind == "collapse"], SETTINGS, table)
        if not laws:
            return [Told(math.inf, True)] * len(levels), False
        found = []
        for each in levels:
            low, high = predict(replace(laws[0], confidence=each), TARGET, TOKENS).prediction_interval
            found.append(Told(math.log(high / low), math.log(low) <= self.new <= math.log(high)))
        return found, laws[0].surface is not None


def lost_at(truth: Truth, collapse: float, share: float) -> float:
    """Returns the log dose at which ``share`` of the highest excess over chance is lost, of a fall at ``collapse``."""
    x = np.linspace(math.log(collapse) - 2, math.log(collapse) + 4, 12_001)
    excess = truth.rates(np.exp(x), collapse) - truth.chance
    top = int(excess.argmax())
    return float(x[top + np.argmax(excess[top:] <= (1 - share) * excess[top])])


def cost(table: pd.DataFrame) -> float:
    """6 N D of every run, up to the 6."""
    return float((table["params"].astype(float) * table["tokens"]).sum())


def study(number: int, looks: int, batch: int) -> Outcome:
    """Runs one simulated study both ways, until it would have ended by every rule."""
    world = Study(number)
    grid = pd.concat([world.train(cell, FULL, 3) for cell in world.cells], ignore_index=True)
    (full,), _ = world.told(grid, find_transitions(grid, SETTINGS), [CONFIDENCE])
    table = pd.concat([world.train(cell, COARSE, 1) for cell in world.cells], ignore_index=True)
    seen: list[Seen] = []
    for look in range(1, looks + 1):
        points = find_transitions(table, SETTINGS)
        told, surface = world.told(table, points, [level(rule, look, looks) for rule in RULES])
        seen.append(Seen(cost(table) / cost(grid), surface, dict(zip(RULES, told, strict=True))))
        if all(one.width <= full.width for one in told) or seen[-1].share >= 1 or look == looks:
            break
        proposals = bisect(table, SETTINGS, group="background", count=batch, points=points)
        if not proposals:
            break
        table = world.extend(table, proposals)
    return Outcome(number, full, seen)


def summary(outcomes: list[Outcome]) -> str:
    """The result as a table."""
    count = len(outcomes)
    fulls = [o.full for o in outcomes]
    lines = [
        "| ends at | level | as narrow | new model in its interval | compute where narrow, median | at the end, mean | "
        "log width, median |",
        "|---|---|---|---|---|---|---|",
    ]
    for wider in WIDER:
        for rule in RULES:
            ends = [o.ended(rule, wider) for o in outcomes]
            narrow = [seen.share for seen, reached in ends if reached]
            shares = [seen.share for seen, _ in ends]
            told = [seen.told[rule] for seen, _ in ends]
            lines.append(
                f"| {wider:g} x | {rule} | {len(narrow)} of {count} | {sum(t.hit for t in told)} | "
                f"{statistics.median(narrow) if narrow else math.nan:.2f} | {statistics.mean(shares):.2f} | "
                f"{statistics.median(t.width for t in told):.2f} |"
            )
    lines.append(
        f"full grid: log width {statistics.median(t.width for t in fulls):.2f}, new model in it in "
        f"{sum(t.hit for t in fulls)} of {count}; looks {statistics.mean(len(o.looks) for o in outcomes):.1f}, "
        f"of them from points {sum(not s.surface for o in outcomes for s in o.looks)}"
    )
    return "\n".join(lines)


def read(paths: Sequence[Path]) -> list[Outcome]:
    """Reads outcomes that were written with --json."""

    def told(record: dict[str, Any]) -> Told:
        return Told(record["width"], record["hit"])

    def seen(record: dict[str, Any]) -> Seen:
        return Seen(record["share"], record["surface"], {rule: told(each) for rule, each in record["told"].items()})

    records = [record for path in paths for record in json.loads(path.read_text(encoding="utf-8"))]
    return [Outcome(r["study"], told(r["full"]), [seen(look) for look in r["looks"]]) for r in records]


def main() -> None:
    """Runs the studies and prints the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=40, help="simulated studies (40)")
    parser.add_argument("--first", type=int, default=0, help="number of the first (0)")
    parser.add_argument("--looks", type=int, default=8, help="looks at most, which one rule declares (8)")
    parser.add_argument("--batch", type=int, default=10, help="runs added after a look (10)")
    parser.add_argument("--json", type=Path, help="write the outcomes here")
    parser.add_argument("--read", type=Path, nargs="+", metavar="FILE", help="only print the table of these files")
    options = parser.parse_args()
    if options.read:
        print(summary(read(options.read)))
        return
    outcomes = []
    started = time.perf_counter()
    for number in range(options.first, options.first + options.studies):
        outcomes.append(study(number, options.looks, options.batch))
        print(outcomes[-1], flush=True)
        if options.json:
            options.json.write_text(json.dumps([asdict(o) for o in outcomes], indent=1), encoding="utf-8")
    print(summary(outcomes))
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
