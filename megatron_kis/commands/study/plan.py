"""``kis study plan``: what every run would feed."""

from __future__ import annotations

import argparse
import json
from typing import Any

from megatron_kis.commands.study.common import add_step, load_study, prepare, print_table, shown
from megatron_kis.commands.study.table import MANY


def add_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describes the step."""
    plan = add_step(
        steps, "plan", "show the runs of a study and what each feeds, and check its settings; trains nothing", _plan
    )
    plan.add_argument("--all", action="store_true", help="every run, however many there are")


def _plan(options: argparse.Namespace) -> int:
    from megatron_kis.study.executor import study_lock
    from megatron_kis.study.plan import plan_rows

    study, data, _ = load_study(options)
    with study_lock(study.output):
        rows = plan_rows(prepare(study, data))
    if options.json:
        print(json.dumps(rows, indent=1))
        return 0
    title = f"{study.name}: {len(rows):,} runs"
    columns: tuple[str, ...]
    if options.all or len(rows) <= MANY:
        columns = ("run", "params", "tokens", "infusion_frequency", "infusion_ratio", "background_frequency", "epochs")
        print_table(title, columns, [[shown(row[name]) for name in columns] for row in rows])
    else:
        columns = ("size", "params", "tokens", "runs", "infusion_frequency", "infusion_ratio", "epochs", "flops")
        print_table(f"{title} (--all shows each)", columns, _summary(rows))
    flops = sum(row["flops"] for row in rows)
    print(f"{flops:.3g} training FLOPs in all")
    return 0


def _summary(rows: list[dict[str, Any]]) -> list[list[str]]:
    """A line a size and budget."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["size"], row["tokens"]), []).append(row)
    lines = []
    for (size, tokens), group in groups.items():
        ranges = []
        for name in ("infusion_frequency", "infusion_ratio", "epochs"):
            values = [row[name] for row in group]
            ranges.append(" to ".join(dict.fromkeys((shown(min(values)), shown(max(values))))))
        flops = f"{sum(row['flops'] for row in group):.3g}"
        lines.append([size, shown(group[0]["params"]), shown(tokens), shown(len(group)), *ranges, flops])
    return lines
