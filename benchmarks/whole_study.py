"""The law from all curves next to the law from points: coverage and width of a new model at ten times the largest size.

    python -m benchmarks.whole_study [--studies 40] [--only NAME]

Every study is simulated once and analysed by both: points by the hinge, with Student's t, as `predict` gives it; and
the likelihood of all curves, if the law is straight, and if it may bend. The measure of a new model is F* of each
one's own definition. The whole curve of the new model is predicted as well, by the law that may bend; it is compared
with the true one at doses from just before the fall on, and the share of them that is in the band is a mean over
studies. Truths are drawn by hand here, not by the forms that are fitted: a fall in the logit from a corner, a rounded
fall, a fall to a level above chance, a fall as a power of the dose, with a rise before it, or with a hump and a dip.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from megatron_kis.analysis.criteria import find_transitions
from megatron_kis.analysis.findings.analyse import fit_laws
from megatron_kis.analysis.law.new_model import NewModel
from megatron_kis.analysis.law.predict import predict
from megatron_kis.analysis.law.predicted_curve import predicted_curve
from megatron_kis.analysis.runs.curves import CURVE_COLUMNS, Array
from megatron_kis.config.analysis import AnalysisConfig

CHANCE = 0.25
TOKENS = 20_000_000_000
LARGEST, BEYOND = 3_200_000_000, 10
FALL = (-0.5, 2.0)  # log doses about the point at which a fall begins, where curves are compared
Shape = Callable[[Array, float], Array]


def corner(steepness: float, plateau: float = 0.8) -> Shape:
    """A straight fall of the log-odds from log F* on, after a rise."""

    def excess(x: Array, at: float) -> Array:
        top = (plateau - CHANCE) / (1 - CHANCE)
        rise = 1 - 0.45 / (1 + np.exp(2 * (x - at + 2.5)))
        odds = np.log(top / (1 - top)) - steepness * np.maximum(x - at, 0.0)
        return np.asarray(rise / (1 + np.exp(-odds)))

    return excess


def rounded(curvature: float) -> Shape:
    """A fall without a corner: a Gaussian of the log dose beyond its top."""
    return lambda x, at: 0.75 * np.exp(-curvature * np.maximum(x - at, 0.0) ** 2)


def to_a_level(level: float) -> Shape:
    """A fall to a level above chance."""
    return lambda x, at: 0.75 * (level + (1 - level) / (1 + np.exp(4 * (x - at - 0.6))))


def power(steepness: float, plateau: float) -> Shape:
    """A fall as a power of the dose, from a corner, as a limit of capacity gives it."""
    top = (plateau - CHANCE) / (1 - CHANCE)
    return lambda x, at: top * np.exp(-steepness * np.maximum(x - at, 0.0))


def after_a_hump(shape: Shape) -> Shape:
    """A curve that first rises to four fifths of its top, falls to three fifths, and rises to its top."""

    def excess(x: Array, at: float) -> Array:
        dip = 0.4 * np.exp(-0.5 * ((x - at + 1.8) / 0.5) ** 2)
        return np.asarray(shape(x, at) * (1 - np.maximum(dip, 0.2 * (x < at - 1.8))))

    return excess


STEEP = corner(6.0)


@dataclass(frozen=True)
class Design:
    """A study of sizes from 25M on, each with F = 0 and ``levels`` - 1 frequencies."""

    name: str
    sizes: int = 6
    levels: int = 9
    seeds: int = 3
    facts: int = 120
    shape: Shape = STEEP
    scatter: float = 0.1
    exponent: float = 0.3
    bend: float = 0.0
    icc: float = 0.01
    reach: float = 2.7
    """The largest frequency over the largest dose at which a model's fall is expected to begin."""
    steeper: float = 0.0
    """Exponent of N with which a fall of steepness 6 from a corner grows steeper; 0: ``shape`` is every model's."""

    def shape_of(self, params: float) -> Shape:
        """Returns the shape of a model's curve."""
        return corner(6.0 * (params / 280e6) ** self.steeper) if self.steeper else self.shape


DESIGNS = (
    Design("6 sizes, 9 levels, 3 seeds, 120 facts"),
    Design("6 sizes, 7 levels, 1 seed, 120 facts", levels=7, seeds=1),
    Design("6 sizes, 7 levels, 3 seeds, 60 facts, slow fall", levels=7, facts=60, shape=corner(2.0)),
    Design("5 sizes, 7 levels, 1 seed, 60 facts", sizes=5, levels=7, seeds=1, facts=60, shape=corner(4.0)),
    Design("6 sizes, 9 levels, 3 seeds, scatter 0.3", scatter=0.3),
    Design("6 sizes, 9 levels, 3 seeds, rounded fall", shape=rounded(0.5)),
    Design("6 sizes, 9 levels, 3 seeds, fall to a level", shape=to_a_level(0.4)),
    Design("6 sizes, 9 levels, 3 seeds, bent by -0.034", bend=-0.034),
    Design("8 sizes, 8 levels, 3 seeds, 35% beyond the grid", sizes=8, levels=8, shape=corner(4.0), reach=0.6),
    Design("6 sizes, 9 levels, 3 seeds, steeper with N", steeper=0.25),
    Design("6 sizes, 9 levels, 3 seeds, a power of F from 0.97", shape=power(1.0, 0.97)),
    Design("6 sizes, 9 levels, 3 seeds, two humps", shape=after_a_hump(power(6.0, 0.8))),
)


def log_point(design: Design, params: float) -> float:
    """Returns log of the dose at which the fall begins, without scatter."""
    z = math.log(params / 280e6)
    return math.log(400.0) + design.exponent * z + design.bend * z * z


def lost_at(shape: Shape, at: float, share: float) -> float:
    """Returns the log dose at which ``share`` of the excess is lost, of a fall that begins at ``at``."""
    x = np.linspace(at - 3, at + 9, 6000)
    excess = shape(x, at)
    top = int(excess.argmax())
    return float(x[top + np.argmax(excess[top:] <= (1 - share) * excess[top])])


def simulated(design: Design, generator: np.random.Generator) -> pd.DataFrame:
    """Returns the curve table of one study."""
    sizes = np.geomspace(25e6, LARGEST, design.sizes).round()
    points = [log_point(design, n) + design.scatter * generator.standard_normal() for n in sizes]
    means = [log_point(design, n) for n in sizes]
    doses = [
        0.0,
        *np.geomspace(math.exp(min(means)) / 5, design.reach * math.exp(max(means)), design.levels - 1).round(),
    ]
    strength = 1 / design.icc - 1
    rows = []
    for n, at in zip(sizes, points, strict=True):
        with np.errstate(divide="ignore"):
            x = np.maximum(np.log(doses), -20.0)
        p = CHANCE + (1 - CHANCE) * design.shape_of(n)(x, at)
        for dose, rate in zip(doses, p, strict=True):
            for seed in range(design.seeds):
                own = generator.beta(rate * strength, (1 - rate) * strength)
                right = int(generator.binomial(design.facts, own))
                rows.append((int(n), TOKENS, dose, seed, design.facts, right, design.facts))
    table = pd.DataFrame(rows, columns=CURVE_COLUMNS[:7])
    constant: dict[str, Any] = {"chance": CHANCE, "group": "background", "split": "held_out", "scoring": "statement"}
    return table.assign(**constant).reindex(columns=CURVE_COLUMNS)


def in_band(shape: Shape, model: NewModel, at: float) -> float:
    """Returns the share of doses about a fall that begins at ``at`` at which the true rate is in the predicted band."""
    curve = predicted_curve(model, confidence=0.95)
    x = np.linspace(at + FALL[0], at + FALL[1], 26)
    truth = CHANCE + (1 - CHANCE) * shape(x, at)
    low, high = (np.interp(x, np.log(curve.dose[1:]), ends[1:]) for ends in (curve.low, curve.high))
    return float(((low <= truth) & (truth <= high)).mean())


def measured(design: Design, studies: int, seed: int = 0) -> dict[str, list[tuple[float, ...]]]:
    """Returns (in its interval, log width, error of the centre, share of the curve in its band) by method.

    Of every study; only the law that may bend is asked for the curve.
    """
    generator = np.random.default_rng([seed, design.sizes, design.levels, design.seeds, design.facts])
    target = LARGEST * BEYOND
    shape = design.shape_of(target)
    found: dict[str, list[tuple[float, ...]]] = {"points": [], "straight": [], "may bend": []}
    for _ in range(studies):
        table = simulated(design, generator)
        at = log_point(design, target)
        deviation = design.scatter * float(generator.standard_normal())
        for criterion, name in (("hinge", "points"), ("retention", "may bend")):
            settings = AnalysisConfig(criterion=criterion, law="N", resamples=499, law_resamples=99)
            laws, _ = fit_laws(find_transitions(table, settings), settings, table)
            law = next((law for law in laws if law.kind == "collapse"), None)
            if law is None or (name != "points" and law.surface is None):
                continue
            told = predict(law, target, TOKENS)
            truth = at if criterion == "hinge" else lost_at(shape, at, settings.r)
            intervals = {name: told.prediction_interval}
            band = math.nan if name == "points" else in_band(shape, NewModel(law, target, TOKENS), at + deviation)
            if told.straight_interval is not None and name != "points":
                intervals["straight"] = told.straight_interval
            for method, (low, high) in intervals.items():
                hit = math.log(low) <= truth + deviation <= math.log(high)
                error = math.log(told.centre) - truth - deviation
                found[method].append((hit, math.log(high / low), error, band if method == name else math.nan))
    return found


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=40, help="studies per row (40)")
    parser.add_argument("--only", help="designs whose name has this")
    options = parser.parse_args()
    began = time.process_time()
    print("| study | method | laws | coverage | log width | error of the centre | curve in its band |")
    print("|---|---|---|---|---|---|---|")
    for design in DESIGNS:
        if options.only and options.only not in design.name:
            continue
        for method, rows in measured(design, options.studies).items():
            if rows:
                hits, widths, errors, bands = np.array(rows, dtype=float).T
                rmse = math.sqrt(float(np.mean(errors**2)))
                band = "" if np.isnan(bands).any() else f"{bands.mean():.2f}"
                print(
                    f"| {design.name} | {method} | {len(rows)} of {options.studies} | {hits.mean():.2f} | "
                    f"{widths.mean():.2f} | {rmse:.2f} | {band} |",
                    flush=True,
                )
    print(f"{time.process_time() - began:.0f} s of processor time", file=sys.stderr)


if __name__ == "__main__":
    main()
