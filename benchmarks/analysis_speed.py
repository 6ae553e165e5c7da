"""How long the analysis takes: the bootstrap through both stages next to a plain scipy loop, and loading many runs.

    python -m benchmarks.analysis_speed [--resamples 1000] [--loop 3] [--runs 10000] [--only-report]

The study has 5 sizes, 10 frequencies and 3 seeds. The loop fits each drawn curve with scipy's bounded minimizer from a
start in every bracket and for every level that the plateau may begin at, and each law with Nelder-Mead: the same model,
one resample at a time. Both are measured in this process, one after the other; the loop's few resamples are scaled up.

The report is that of 100 cells (10 sizes x 10 budgets), 20 levels and 5 seeds: 10,000 runs, 3 groups. Its seconds are
those of the processor, of one process.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.optimize import isotonic_regression, minimize

from megatron_kis.analysis.criteria import find_transitions
from megatron_kis.analysis.criteria.hinge_fit import rate_of
from megatron_kis.analysis.law.bootstrap import bootstrap_law
from megatron_kis.analysis.law.fit import fit_law
from megatron_kis.analysis.report import report
from megatron_kis.analysis.runs.curves import Array, Curve, curve_table, curves
from megatron_kis.analysis.runs.load import load_runs
from megatron_kis.analysis.simulate import Cell, Truth, simulate_curve, simulate_table, write_runs
from megatron_kis.config.analysis import AnalysisConfig

CELLS = [(n, 2_000_000_000) for n in (30_000_000, 60_000_000, 125_000_000, 250_000_000, 500_000_000)]
GRID = [0.0, *np.geomspace(60, 1500, 9).round()]


def loop_hinge(curve: Curve) -> float:
    """Log F* of one curve by scipy alone."""
    x, chance = np.log(np.maximum(curve.dose, 1e-300)), float(curve.chance[0])
    facts = np.array([f.sum() for f in curve.seed_facts])
    rate, weight = curve.rate, facts / (1 + (facts / len(curve.seed_facts[0]) - 1) * 0.01)
    best, tau = math.inf, math.nan
    for kappa in range(len(x) - 2):
        rise = 0.0
        if kappa:
            fit = np.clip(isotonic_regression(rate[:kappa], weights=weight[:kappa]).x, 1e-9, 1 - 1e-9)
            w, r = weight[:kappa], rate[:kappa]
            rise = -float((w * (r * np.log(fit) + (1 - r) * np.log1p(-fit))).sum())
        r, w, at = rate[kappa:], weight[kappa:], x[kappa:]

        def loss(theta: Array, r: Array = r, w: Array = w, at: Array = at, rise: float = rise) -> float:
            h = np.where(np.isfinite(at), np.maximum(at - theta[2], 0), 0)
            p = np.clip(rate_of(theta[0] - math.exp(theta[1]) * h, chance), 1e-9, 1 - 1e-9)
            return rise - float((w * (r * np.log(p) + (1 - r) * np.log1p(-p))).sum())

        for start in range(max(kappa, 1), len(x) - 2):
            middle = (x[start] + x[start + 1]) / 2
            bounds = [(-9, 9), (-4.6, 5.3), (max(x[1], at[0]), x[-2])]
            found = minimize(loss, [1.0, 1.5, middle], method="L-BFGS-B", bounds=bounds)
            if found.fun < best:
                best, tau = float(found.fun), float(found.x[2])
    return tau


def loop(truth: Truth, resamples: int, generator: np.random.Generator) -> float:
    """Seconds for ``resamples`` resamples of both stages, one at a time."""
    log_n = np.log([n for n, _ in CELLS])
    started = time.perf_counter()
    for _ in range(resamples):
        taus = np.array([loop_hinge(simulate_curve(truth, cell, GRID, 3, generator)) for cell in CELLS])

        def loss(theta: Array, taus: Array = taus) -> float:
            residual = taus - theta[0] - theta[1] * (log_n - log_n.mean())
            return float((residual**2 / (2 * math.exp(2 * theta[2]))).sum() + len(taus) * theta[2])

        minimize(loss, [taus.mean(), 0.2, -2.0], method="Nelder-Mead")
    return time.perf_counter() - started


def large_report(generator: np.random.Generator) -> None:
    """Prints how long points and report of 10,000 runs take, and how large the report is."""
    cells = [(int(n), int(d)) for n in np.geomspace(25e6, 3.2e9, 10) for d in np.geomspace(1e9, 64e9, 10)]
    truth = Truth(scatter=0.08, facts=200)
    points = {cell: truth.collapse_point(*cell) for cell in cells}
    doses: dict[Cell, Sequence[float]] = {
        cell: [0.0, *np.geomspace(f / 12, f * 5, 19).round(1)] for cell, f in points.items()
    }
    table, _ = simulate_table(truth, cells, doses, 5, generator)
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        path = report(table, Path(folder) / "report.html")
        seconds = time.process_time() - started
        print(f"report of 10,000 runs of 100 cells: {seconds:.0f} s, {path.stat().st_size / 1e6:.1f} MB")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--loop", type=int, default=3)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--only-report", action="store_true")
    options = parser.parse_args()
    large_report(np.random.default_rng(1))
    if options.only_report:
        return
    truth, settings = Truth(scatter=0.08, facts=200), AnalysisConfig()
    generator = np.random.default_rng(4)
    table, _ = simulate_table(truth, CELLS, GRID, 3, generator, groups=("background",))
    started = time.perf_counter()
    points = find_transitions(table, settings)
    print(f"collapse points of 5 curves, {settings.resamples} resamples each: {time.perf_counter() - started:.2f} s")
    law = fit_law(points, "collapse", "background", law="N")
    started = time.perf_counter()
    bootstrap_law(law, curves(table), points, settings, resamples=options.resamples)
    ours = time.perf_counter() - started
    theirs = loop(truth, options.loop, generator) / options.loop * options.resamples
    print(f"bootstrap of {options.resamples} resamples through both stages: {ours:.2f} s")
    print(f"plain scipy loop, scaled from {options.loop} resamples: {theirs:.0f} s, {theirs / ours:.0f} times as long")
    if options.runs:
        seeds = max(options.runs // (5 * len(GRID)), 1)
        many, _ = simulate_table(truth, CELLS, GRID, seeds, generator)
        with tempfile.TemporaryDirectory() as folder:
            count = write_runs(many, Path(folder) / "runs")
            started = time.perf_counter()
            runs = load_runs(folder)
            loaded = time.perf_counter() - started
            curve_table(runs)
            tabled = time.perf_counter() - started - loaded
            print(f"loading {count} runs: {loaded:.1f} s; their curve table: {tabled:.1f} s")


if __name__ == "__main__":
    main()
