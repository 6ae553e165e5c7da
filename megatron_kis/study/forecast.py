"""How long the rest of a study takes, predicted from its runs so far.

A run takes the time per token of other runs of its size: that of whole attempts, which includes probes, validation and
starting, or, while there is none, that of the training speed alone. A size of which nothing is known takes the time per
relative cost of the known ones. The study takes as long as the work that is left, shared by as many runs as run now,
and not less than its longest run.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_kis.study.status import RunStatus

_OPEN = ("running", "queued", "waiting", "stopped", "failed")


@dataclass(frozen=True)
class Forecast:
    """The rest of a study."""

    seconds: float | None
    """Time until all is done; None while nothing is known or nothing runs. What was given up does not count."""

    work: float | None
    """Run-seconds that are left; None while nothing is known."""

    runs: dict[str, float]
    """Seconds that each unfinished run of known speed still takes, once it runs."""


def forecast(rows: Sequence[RunStatus]) -> Forecast:
    """Predicts how long the rest takes."""
    whole: dict[str, list[float]] = defaultdict(list)
    speed: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row.whole and row.seconds:
            whole[row.size].append(row.seconds / (row.tokens * row.own))
        if row.tokens_per_second:
            speed[row.size].append(1 / row.tokens_per_second)
    per_token = {size: statistics.median(whole.get(size) or speed[size]) for size in (*whole, *speed)}
    if not per_token:
        return Forecast(None, None, {})
    costs = [
        per_token[row.size] * row.tokens * row.own / row.cost for row in rows if row.size in per_token and row.cost
    ]
    per_cost = statistics.median(costs) if costs else 0.0
    runs = {}
    for row in rows:
        if row.state not in _OPEN:
            continue
        left = min(1 - row.share, row.own)  # a branch begins where it leaves its trunk
        if row.state == "running" and row.tokens_per_second and not whole.get(row.size):
            runs[row.name] = left * row.tokens / row.tokens_per_second
        elif row.size in per_token:
            runs[row.name] = left * row.tokens * per_token[row.size]
        else:
            runs[row.name] = left / row.own * row.cost * per_cost
    work = sum(runs.values())
    running = sum(row.state == "running" for row in rows)
    if not runs:
        return Forecast(0.0, 0.0, {})
    return Forecast(max(work / running, *runs.values()) if running else None, work, runs)
