"""``kis law survival``: which background facts the runs of a study still know, fact by fact."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_kis.cli.law.common import add_choices, analysis_config, counted
from megatron_kis.cli.outputs import new_file, spare_inputs
from megatron_kis.common.errors import InputError, nearest
from megatron_kis.common.units import plural

if TYPE_CHECKING:
    from megatron_kis.analysis.runs.load import Runs
    from megatron_kis.config.analysis import AnalysisConfig

_FACTS_REMEDY = "give the facts.jsonl of the runs' data with --facts"


def add_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = steps.add_parser(
        "survival",
        help="list the background facts that are still known, one by one, with possible reasons",
        description="Write a table with one row per background fact and cell of a study (model size, token budget and "
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
    from megatron_kis.probes.scoring import RULES

    settings = analysis_config(options, options.runs)
    if settings.scoring not in RULES:
        raise InputError(
            f"no scoring rule {settings.scoring!r}", where="--scoring", remedy=nearest(settings.scoring, RULES)
        )
    if options.facts is not None and not options.facts.is_file():
        problem = "is a folder" if options.facts.is_dir() else "no such file"
        raise InputError(problem, where=f"--facts {options.facts}", remedy=_FACTS_REMEDY)
    runs = counted(load_runs(options.runs))
    if runs.runs.empty:
        raise InputError("holds no complete run", where=str(options.runs), remedy="train first")
    path = options.facts or runs.folder.parent / "data" / "facts.jsonl"
    if not path.is_file():
        raise InputError("no such file", where=str(path), remedy=_FACTS_REMEDY)
    _check_asked(runs, settings)
    folders = [runs.folder / name for name in runs.runs["run"]]
    try:
        rows = write_survival(
            folders,
            load_facts(path),
            options.output,
            split=settings.split,
            rule=settings.scoring,
            answers=runs.answers,
        )
    except InputError as error:
        where = {"facts": str(path), "split": "--split"}.get(error.where or "", error.where)
        raise InputError(error.problem, where=where, remedy=error.remedy) from None
    print(f"written: {plural(rows, 'row')} of {plural(len(folders), 'run')} in {options.output}")
    return 0


def _check_asked(runs: Runs, settings: AnalysisConfig) -> None:
    """Refuses a split or a scoring rule that no run has, before the facts and what each run answered are read."""
    from megatron_kis.common.terms import BACKGROUND

    rows = runs.probes[runs.probes["group"] == BACKGROUND]
    splits, rules = sorted(set(rows["split"])), sorted(set(rows["scoring"]))
    if not splits:
        problem = "no run asked about background facts"
        raise InputError(problem, where=str(runs.folder), remedy="select background facts, and probe them")
    if settings.split not in splits:
        problem = f"no run asked about background facts with templates of split {settings.split!r}"
        raise InputError(problem, where="--split", remedy=f"valid: {', '.join(splits)}")
    if settings.scoring not in rules:
        problem = f"no run was scored by rule {settings.scoring!r}"
        raise InputError(problem, where="--scoring", remedy=f"valid: {', '.join(rules)}")
