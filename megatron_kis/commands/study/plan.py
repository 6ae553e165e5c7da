"""``kis study plan``: what every run would feed."""

from __future__ import annotations

import argparse
import json

from megatron_kis.commands.study.common import add_step, load_study, prepare, print_table, shown


def add_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describes the step."""
    add_step(
        steps, "plan", "show the runs of a study and what each feeds, and check its settings; trains nothing", _plan
    )


def _plan(options: argparse.Namespace) -> int:
    from megatron_kis.study.executor import study_lock
    from megatron_kis.study.plan import plan_rows

    study, data, _ = load_study(options)
    with study_lock(study.output):
        rows = plan_rows(prepare(study, data))
    if options.json:
        print(json.dumps(rows, indent=1))
        return 0
    columns = ("run", "params", "tokens", "infusion_frequency", "infusion_ratio", "background_frequency", "epochs")
    print_table(f"{study.name}: {len(rows)} runs", columns, [[shown(row[name]) for name in columns] for row in rows])
    flops = sum(row["flops"] for row in rows)
    print(f"{flops:.3g} training FLOPs in all")
    return 0
