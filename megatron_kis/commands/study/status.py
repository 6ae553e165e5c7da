"""``kis study status``: where the runs stand."""

from __future__ import annotations

import argparse
import json

from megatron_kis.commands.study.common import add_step, data_config, load_study, print_table, shown


def add_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describes the step."""
    add_step(steps, "status", "where the runs of a study stand", _status)


def _status(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from megatron_kis.study.grid import runs_of
    from megatron_kis.study.status import status_of

    study, data, _ = load_study(options)
    rows = status_of(runs_of(study, data_config(study, data)))
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
        return 0
    done = sum(row.state == "done" for row in rows)
    table = [
        [row.name, row.state, f"{row.share:.0%}", shown(row.loss), shown(row.tokens_per_second), row.last_line]
        for row in rows
    ]
    columns = ("run", "state", "steps", "loss", "tokens/s", "last line")
    print_table(f"{study.name}: {done} of {len(rows)} runs done", columns, table)
    return 0
