"""``kis law import``: results of other programs as curves.csv."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_kis.cli.outputs import new_file, spare_inputs
from megatron_kis.common.errors import InputError, first_of, printable
from megatron_kis.common.units import plural

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)
_SHOWN = 8


def add_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    summary = "make curves.csv from results of lm-evaluation-harness or Weights & Biases"
    parser = steps.add_parser("import", help=summary, description=summary)
    formats = parser.add_subparsers(dest="format", metavar="FORMAT", required=True)
    harness = formats.add_parser(
        "lm-eval",
        help="evaluations of lm-evaluation-harness (results_*.json, samples_*.jsonl)",
        description="Count the right answers in the evaluations that RUNS.csv names. Tasks of kis export lm-eval are "
        "recognised by their names.",
    )
    runs = "one row per model: results,params,tokens,frequency,seed; results is the folder of its evaluation"
    harness.add_argument("source", type=Path, metavar="RUNS.csv", help=runs)
    _add_output(harness)
    tasks = "tasks that ask about a group of facts: --group infused my_task, --group background/train t1 t2"
    harness.add_argument(
        "--group", nargs="+", action="append", default=[], metavar=("GROUP[/SPLIT]", "TASK"), help=tasks
    )
    metrics = (
        "metrics of these tasks, of which the first that a task has is read: acc, or with a filter "
        "exact_match,strict-match (default: acc exact_match)"
    )
    harness.add_argument("--metric", nargs="+", action="extend", metavar="NAME", help=metrics)
    fact = "key of a task's documents that names their fact (default: fact, if they have it)"
    harness.add_argument("--fact", metavar="KEY", help=fact)
    harness.add_argument("--chance", type=float, metavar="X", help="rate of guessing, if there are no samples")
    harness.set_defaults(handler=_lm_eval)
    wandb = formats.add_parser(
        "wandb",
        help="a table of runs exported from Weights & Biases (CSV)",
        description="Read the CSV export of a table of runs; NAME=COLUMN names its columns. A number instead "
        "of a column applies to all runs. Unfinished runs are left out.",
    )
    wandb.add_argument("source", type=Path, metavar="EXPORT.csv", help="the export, one row per run")
    _add_output(wandb)
    about = "what describes a run: params=COLUMN tokens=COLUMN frequency=COLUMN seed=COLUMN, validation_loss=COLUMN ..."
    wandb.add_argument("--run", nargs="+", action="extend", required=True, metavar="NAME=COLUMN", help=about)
    answers = (
        "answers about a group of facts: --group infused n=600 rate=eval/infused; or correct=COLUMN; facts, chance"
    )
    wandb.add_argument(
        "--group", nargs="+", action="append", required=True, metavar=("GROUP[/SPLIT]", "NAME=COLUMN"), help=answers
    )
    wandb.set_defaults(handler=_wandb)


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", required=True, type=new_file, metavar="CSV", help="where curves.csv is written")


def _lm_eval(options: argparse.Namespace) -> int:
    spare_inputs(options, ("output",), ("source",))
    from megatron_kis.analysis.runs.elsewhere import read_groups
    from megatron_kis.analysis.runs.import_lm_eval import Choices, import_lm_eval

    if options.chance is not None and not 0 <= options.chance < 1:
        raise InputError(f"is {options.chance:g}", where="--chance", remedy="the rate of guessing, from 0 to below 1")
    groups = tuple(read_groups(options.group, what="task"))
    found = import_lm_eval(
        options.source, Choices(groups, tuple(options.metric or Choices.metrics), options.fact, options.chance)
    )
    if found.left_out:
        logger.warning(printable(f"tasks without a group: {first_of(sorted(found.left_out), _SHOWN)}"))
    _write(found.table, options.output)
    for (group, split, rule), tasks in found.tasks.items():
        print(printable(f"{group} {split} {rule}: {first_of(sorted(tasks), _SHOWN)}"))
    return 0


def _wandb(options: argparse.Namespace) -> int:
    spare_inputs(options, ("output",), ("source",))
    from megatron_kis.analysis.runs.elsewhere import read_groups
    from megatron_kis.analysis.runs.import_wandb import import_wandb

    table, left_out = import_wandb(options.source, options.run, read_groups(options.group, what="NAME=COLUMN"))
    if left_out:
        logger.warning(printable(f"left out because they are not finished: {first_of(left_out, _SHOWN)}"))
    _write(table, options.output)
    return 0


def _write(table: pd.DataFrame, output: Path) -> None:
    from megatron_kis.analysis.runs.curves import write_curves_csv

    write_curves_csv(table, output)
    runs = len(table[["params", "tokens", "frequency", "seed"]].drop_duplicates())
    print(f"written: {plural(len(table), 'row')} of {plural(runs, 'run')} in {output}")
