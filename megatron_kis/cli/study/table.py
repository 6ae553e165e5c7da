"""The tables of ``kis study status`` and ``watch``, drawn by rich."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from statistics import median
from typing import TYPE_CHECKING

from megatron_kis.common.console import plain
from megatron_kis.common.errors import printable
from megatron_kis.common.units import duration, in_table, plural

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

    from megatron_kis.study.forecast import Forecast
    from megatron_kis.study.status import RunStatus

MANY = 60
"""Number of runs beyond which they are shown by size, and one by one only if they run or failed."""

_MOST_RUNNING, _MOST_FAILED = 40, 8


def headline(name: str, rows: Sequence[RunStatus], ahead: Forecast) -> str:
    """Returns one line: runs by state, and when all is done."""
    from megatron_kis.study.status import STATES

    counts = Counter(row.state for row in rows)
    states = ", ".join(f"{counts[state]:,} {state}" for state in STATES if counts[state])
    line = f"{printable(name)}: {plural(len(rows), 'run')}: {states or 'none'}"
    if ahead.seconds:
        line += f"; about {duration(ahead.seconds)} left"
    elif ahead.work:
        line += f"; about {duration(ahead.work)} of work left, and nothing is running"
    return line


def tables(rows: Sequence[RunStatus], ahead: Forecast, *, every: bool) -> Iterable[RenderableType]:
    """Yields what is shown below the headline: the runs, or a summary of many; then what failed."""
    if every or len(rows) <= MANY:
        yield _runs(rows, ahead)
    else:
        yield _sizes(rows, ahead)
        running = [row for row in rows if row.state == "running"]
        if running:
            yield _runs(running[:_MOST_RUNNING], ahead)
        if len(running) > _MOST_RUNNING:
            yield f"and {len(running) - _MOST_RUNNING:,} more running (--all shows every run)"
    yield from _failures(rows)
    yield from _others(rows)


def _runs(rows: Sequence[RunStatus], ahead: Forecast) -> RenderableType:

    columns = ("run", "state", "steps", "left", "tokens/s", "loss", "attempts", "where")
    table = _table(columns)
    for row in rows:
        left = duration(ahead.runs[row.name]) if row.name in ahead.runs else "-"
        table.add_row(
            plain(row.name),
            _state(row.state),
            f"{row.share:.0%}",
            left,
            in_table(_float(row.tokens_per_second)),
            in_table(_float(row.loss)),
            str(row.attempts or "-"),
            plain(row.where or "-"),
        )
    return table


def _sizes(rows: Sequence[RunStatus], ahead: Forecast) -> RenderableType:
    from megatron_kis.study.status import STATES

    by_size: dict[str, list[RunStatus]] = defaultdict(list)
    for row in rows:
        by_size[row.size].append(row)
    states = [state for state in STATES if any(row.state == state for row in rows)]
    table = _table(("size", "runs", *states, "progress", "tokens/s", "work left"))
    for size, group in by_size.items():
        counts = Counter(row.state for row in group)
        speeds = [row.tokens_per_second for row in group if row.tokens_per_second]
        progress = sum(row.share * row.tokens for row in group) / sum(row.tokens for row in group)
        work = sum(ahead.runs.get(row.name, 0.0) for row in group)
        table.add_row(
            plain(size),
            f"{len(group):,}",
            *(f"{counts[state]:,}" for state in states),
            f"{progress:.0%}",
            in_table(float(median(speeds)) if speeds else None),
            duration(work) if ahead.runs else "-",
        )
    return table


def _failures(rows: Sequence[RunStatus]) -> Iterable[RenderableType]:
    from rich.text import Text

    from megatron_kis.executor.logs import for_terminal

    failed = sorted((row for row in rows if row.state in ("failed", "given up")), key=lambda row: row.state == "failed")
    for row in failed[:_MOST_FAILED]:
        tries = f"{row.attempts} attempt" + ("s" if row.attempts != 1 else "")
        status = f", exit status {row.status}" if row.status is not None else ""
        lines = [f"{printable(row.name)}: {row.state} after {tries}{status}"]
        lines += [f"    {line}" for text in row.log for line in for_terminal(text).splitlines()]
        yield Text("\n".join(lines))
    if len(failed) > _MOST_FAILED:
        yield f"and {len(failed) - _MOST_FAILED:,} more that failed (--json lists all)"


def _others(rows: Sequence[RunStatus]) -> Iterable[RenderableType]:
    """Yields what differs in complete runs with other settings, or asked other questions, and in how many."""
    from rich.text import Text

    groups: dict[tuple[str, tuple[str, ...]], list[str]] = defaultdict(list)
    for row in rows:
        if row.state in ("unasked", "other settings"):
            groups[row.state, row.differs].append(row.name)
    for (state, differs), names in list(groups.items())[:_MOST_FAILED]:
        count = plural(len(names), "complete run")
        what = "has" if len(names) == 1 else "have"
        what = f"{what} other settings" if state == "other settings" else f"{what} answers to other questions"
        first = names[0] if len(names) == 1 else f"first {names[0]}"
        remedy = "" if state == "other settings" else "; kis study probe asks those of the study"
        yield Text(f"{count} {what}: {', '.join(differs)} ({first}){remedy}")
    if len(groups) > _MOST_FAILED:
        yield f"and {len(groups) - _MOST_FAILED:,} more kinds (--json lists all)"


def _table(columns: Sequence[str]) -> Table:
    from rich.table import Table

    table = Table()
    left = ("run", "size", "state", "where")
    for column in columns:
        first = column == columns[0]
        table.add_column(column, justify="left" if column in left else "right", no_wrap=first, overflow="fold")
    return table


def _state(state: str) -> Text:
    from rich.text import Text

    colours = {"done": "green", "running": "cyan", "stopped": "yellow", "failed": "yellow", "given up": "red"}
    colours["unasked"] = "yellow"
    colours["other settings"] = "red"
    return Text(state, style=colours.get(state, ""))


def _float(value: float | None) -> float | None:
    return None if value is None else float(value)
