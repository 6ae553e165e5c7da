"""``kis law survival``: which background facts the runs of a study still know, fact by fact."""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_kis.cli.law.common import add_choices, analysis_config, counted
from megatron_kis.cli.outputs import new_file, spare_inputs
from megatron_kis.common.errors import InputError


def add_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = steps.add_parser(
        "survival",
        help="the background facts that are still known, one by one, with what may decide it",
        description="Writes a table with one row per background fact and cell of a study (model size, token budget and "
        "what is infused): in how many runs it is known at the end, how often it was shown, and how similar it is to "
        "the infused facts.",
    )
    parser.add_argument("runs", type=Path, metavar="RUNS_DIR", help="a folder of runs, or a study folder")
    parser.add_argument("--output", required=True, type=new_file, metavar="CSV", help="where the table is written")
    facts = "facts.jsonl of the runs' data (default: of the study's data)"
    parser.add_argument("--facts", type=Path, metavar="FILE", help=facts)
    add_choices(parser, ("split", "scoring"))
    parser.set_defaults(handler=_survival)


def _survival(options: argparse.Namespace) -> int:
    spare_inputs(options, ("output",), ("facts",))
    from megatron_kis.analysis.runs.load import load_runs
    from megatron_kis.data_tools.facts.fact import load_facts
    from megatron_kis.evaluate.survival import write_survival

    settings = analysis_config(options, options.runs)
    runs = counted(load_runs(options.runs))
    if runs.runs.empty:
        raise InputError("holds no complete run", where=str(options.runs), remedy="train first")
    path = options.facts or runs.folder.parent / "data" / "facts.jsonl"
    if not path.exists():
        remedy = "name the facts.jsonl of the runs' data with --facts"
        raise InputError("no such file", where=str(path), remedy=remedy)
    folders = [runs.folder / name for name in runs.runs["run"]]
    try:
        rows = write_survival(folders, load_facts(path), options.output, split=settings.split, rule=settings.scoring)
    except InputError as error:
        where = {"facts": str(path), "split": "--split"}.get(error.where or "", error.where)
        raise InputError(error.problem, where=where, remedy=error.remedy) from None
    print(f"written: {rows} rows of {len(folders)} runs in {options.output}")
    return 0
