"""Do the intervals mean what they say? The proofs of the statistics by simulation, as the tables of docs/statistics.md.

    python -m benchmarks.coverage [--simulations 1000] [--single 200] [--nested 40] [--output FILE]

The studies are those of `benchmarks.simulated`; some 20 minutes on one core.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.simulated import DESIGNS, TRUTH, WHOLE, chain, end_to_end, nested, tau_coverage


def markdown(simulations: int, single: int, inner: int) -> str:
    """Returns the tables as the documentation has them."""
    started = time.perf_counter()
    lines = [
        f"Law and predictions, {simulations} simulated studies per row that could carry the law (nominal 95%; 200 "
        "facts, 3 seeds, 12 levels). Scatter: of log F* between models:",
        "",
        "| cells | beyond the grid | scatter | noise | censored | inconclusive | refused in addition | F* | b | c | "
        "next model, 4 x N | 10 x N | bias of b (s.e.) | censored cells dropped | width at 4 x N (log) |",
        "|" + 15 * "---|",
    ]
    for cells, censored, scatter, noise in product(DESIGNS, (0.0, 0.3), (0.1, 0.3), ("gaussian", "t4")):
        r = chain(cells, censored, noise, simulations, truth=replace(TRUTH, scatter=scatter))
        lines.append(
            f"| {cells} | {censored:.0%} | {scatter} | {noise} | {r.seen_censored:.0%} | {r.inconclusive:.1%} | "
            f"{r.refused} | {r.tau:.3f} | {r.b:.3f} | {r.c:.3f} | {r.at_4:.3f} | {r.at_10:.3f} | "
            f"{r.bias_in_errors:.2f} | {r.dropped_bias:.2f} | {r.width:.2f} |"
        )
    lines += [
        "",
        f"End to end, {simulations} studies per row: six sizes from 1M to 1B, then 7B and 70B. Curvature: coefficient "
        "of (log N)^2 in the truth; the fitted law is straight.",
        "",
        "| curvature | 7B in its interval | 70B | median error at 7B (log) | at 70B | lack of fit flagged |",
        "|" + 6 * "---|",
    ]
    for curvature in (0.0, -0.02, -0.05):
        e = end_to_end(simulations, curvature)
        lines.append(
            f"| {e.curvature:g} | {e.at_7b:.3f} | {e.at_70b:.3f} | {e.error_7b:.2f} | {e.error_70b:.2f} | "
            f"{e.flagged:.2f} |"
        )
    lines += [
        "",
        f"Whole studies, every bootstrap included (199 resamples), {inner} per row; 95% intervals of the coverage in "
        "brackets, then the mean log width. A new model at 4 times the largest N, by what `predict` says (Student's "
        "t), and by the two bootstraps that check it; last, the law's mean there.",
        "",
        "| design | refused | t, straight | may bend | bootstrap of curves | bootstrap of points | the mean |",
        "|" + 7 * "---|",
    ]
    rows = {design_.name: nested(design_, inner) for design_ in WHOLE}
    rows["all"] = _pooled(list(rows.values()))
    for name, row in rows.items():
        told = " | ".join(_said(row, which) for which in ("used", "bent", "bootstrap", "points", "mean"))
        lines.append(f"| {name} | {row['refused']} | {told} |")
    lines += [
        "",
        f"Collapse points, {single} curves per row, each with its own test and calibration:",
        "",
        "| facts | seeds | steepness | levels | called collapsed | F* in its interval | median width (log) |",
        "|" + 7 * "---|",
    ]
    for row in tau_coverage(single):
        lines.append(
            f"| {row['facts']} | {row['seeds']} | {row['steepness']:g} | {row['levels']} | {row['collapsed']} of "
            f"{row['simulations']} | {row['covered']:.3f} | {row['width']:.2f} |"
        )
    lines += ["", f"Run time {time.perf_counter() - started:.0f} s on one core."]
    return "\n".join(lines) + "\n"


def _pooled(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the studies of all designs together."""
    studies = [row["studies"] for row in rows]
    return {
        "studies": sum(studies),
        "refused": sum(row["refused"] for row in rows),
        "covered": {name: sum(row["covered"][name] for row in rows) for name in rows[0]["covered"]},
        "width": {
            name: float(np.average([row["width"][name] for row in rows], weights=studies)) for name in rows[0]["width"]
        },
    }


def _said(row: dict[str, Any], name: str) -> str:
    """Returns a coverage with its exact 95% interval, and the mean log width."""
    found = stats.binomtest(row["covered"][name], row["studies"])
    low, high = found.proportion_ci()
    return f"{found.statistic:.3f} [{low:.2f}, {high:.2f}], {row['width'][name]:.2f}"


def main() -> None:
    """Prints or writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=1000, help="studies per row (1000)")
    parser.add_argument("--single", type=int, default=200, help="single curves per row (200)")
    parser.add_argument("--nested", type=int, default=40, help="whole studies per design, every bootstrap (40)")
    parser.add_argument("--output", type=Path, help="write the tables here instead of printing them")
    options = parser.parse_args()
    text = markdown(options.simulations, options.single, options.nested)
    if options.output:
        options.output.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
