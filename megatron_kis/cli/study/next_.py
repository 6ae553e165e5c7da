"""``kis study next``: the runs to add next."""

from __future__ import annotations

import argparse
import json
import logging
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from megatron_kis.cli.outputs import check_written
from megatron_kis.cli.study.common import add_step, load_study
from megatron_kis.common.console import print_table
from megatron_kis.common.errors import InputError, printable
from megatron_kis.common.units import in_table, plural, quantity

if TYPE_CHECKING:
    import pandas as pd

    from megatron_kis.analysis.criteria import Transition
    from megatron_kis.analysis.design.next_runs import Proposal
    from megatron_kis.analysis.findings.looks import Look
    from megatron_kis.analysis.runs.load import Runs
    from megatron_kis.config.analysis import AnalysisConfig
    from megatron_kis.config.study import LadderEntry, StudyConfig
    from megatron_kis.study.preflight import Remark
    from megatron_kis.study.proposals import PlannedRun

logger = logging.getLogger(__name__)


def add_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    proposed = add_step(
        steps, "next", "propose runs to add, with the expected gain of each, and one more size; trains nothing", _next
    )
    proposed.add_argument("--count", type=int, default=6, metavar="K", help="runs to propose")
    proposed.add_argument("--params", type=quantity, metavar="N", help="target size (default: the largest of predict)")
    proposed.add_argument("--tokens", type=quantity, metavar="D", help="target budget (default: the study's largest)")
    proposed.add_argument(
        "--write",
        action="store_true",
        help="add them to the runs of the study file, for kis study run to train, and count a look in looks.jsonl",
    )


def _next(options: argparse.Namespace) -> int:
    from dataclasses import asdict
    from datetime import date

    from megatron_kis.analysis.criteria import find_transitions
    from megatron_kis.analysis.design.new_sizes import new_sizes
    from megatron_kis.analysis.findings.looks import LOOKS_FILE, add_look
    from megatron_kis.analysis.findings.study_file import with_looks
    from megatron_kis.analysis.runs.curves import curve_table
    from megatron_kis.common.configuration import load_config
    from megatron_kis.config.study import StudyConfig
    from megatron_kis.study.proposals import (
        Wanted,
        add_runs,
        match_proposals,
        trained_cells,
    )

    study = load_study(options)
    if options.write:
        check_written(options.study)
        check_written(study.output / LOOKS_FILE)
    params, tokens = _target(study, options)
    settings = with_looks(study.analysis, study.output)
    _check(options, settings)
    runs = _runs(study)
    curves = curve_table(runs)
    points = find_transitions(curves, settings)
    look = _look(points, curves, (params, tokens), settings)
    found = _proposals(curves, points, (params, tokens), settings, options.count)
    remarks = _remarks(study, points, settings, whole=not found)
    sizes = new_sizes(curves, params, tokens, settings, points=points)
    planned = load_config(StudyConfig, options.study)  # as the file says, which they will be added to
    done = runs.runs[["run", "params", "tokens"]].itertuples(index=False, name=None)
    cells = trained_cells(planned, done)
    wanted = [Wanted(p.params, p.tokens, p.frequency, p.facts, p.infusion_ratio) for p in found]
    placed = match_proposals(planned, wanted, cells, runs.runs["run"])
    new = [item.run for item in placed if item.run and not item.planned]
    if options.write and new:
        comment = f"kis study next, {date.today().isoformat()}, for N = {params:.3g} and D = {tokens:.3g}"
        listed = [run.model_dump(exclude_none=True) for run in new]
        add_look(study.output, look, runs.runs["run"], listed, params=params, tokens=tokens)
        add_runs(options.study, new, remark=comment)
    labels = {rung.label: rung for rung in planned.ladder}
    rungs = {n: labels[label] for (n, _), (label, _) in cells.items()}
    more = [asdict(size) | _ladder_entry(size.params, rungs, planned.ladder) for size in sizes]
    rows = [asdict(proposal) | _entry(at) for proposal, at in zip(found, placed, strict=True)]
    if options.json:
        said = [remark.record() for remark in remarks]
        print(json.dumps({"look": look.record(), "runs": rows, "sizes": more, "change": said}, indent=1))
        return 0
    if found:
        _print_runs(rows, f"{study.name}: next runs for N = {params:.3g}, D = {tokens:.3g}")
    print(look.words())
    _print_remarks(study.name, remarks, nothing=not found)
    for n, d in {(row["params"], row["tokens"]): None for row in rows if row["size"] is None}:
        print(f"N = {n:,}, D = {d:,} is not a size and budget of the study; add it to the ladder to train more of it")
    _print_sizes(more, sizes[0].slice.symbol_at_transition if sizes else "")
    if options.write:
        print(f"{plural(len(new), 'run')} added to {options.study}" + ("; continue with kis study run" if new else ""))
    return 0


def _proposals(
    curves: pd.DataFrame,
    points: list[Transition],
    target: tuple[float, float],
    settings: AnalysisConfig,
    count: int,
) -> list[Proposal]:
    """Returns the runs that are proposed for the first group that any can be proposed for."""
    from megatron_kis.analysis.design.next_runs import propose

    for group in _groups(points):
        found = propose(curves, *target, settings, group=group, count=count, points=points)
        if found:
            return found
    return []


def _groups(points: list[Transition]) -> list[str]:
    """Returns the groups that runs may be proposed for: the one whose collapse is predicted, then the others."""
    from megatron_kis.analysis.design.next_runs import group_of
    from megatron_kis.analysis.runs.groups import base_group

    there = dict.fromkeys(p.group for p in points if p.kind == "collapse" and base_group(p.group) == p.group)
    first = group_of(points)
    return [first, *(group for group in there if group != first)] if first in there else list(there)


def _remarks(study: StudyConfig, points: list[Transition], settings: AnalysisConfig, *, whole: bool) -> list[Remark]:
    """Returns what runs of the study's own sizes cannot fix; with ``whole`` also why none is proposed."""
    from megatron_kis.analysis.design.advice import advice
    from megatron_kis.analysis.design.outline import outline_of, sketch
    from megatron_kis.analysis.design.requirements import requirements

    outline = outline_of(study, sketch(study))
    found = advice(points, outline, settings, whole=whole)
    return [*found, *requirements(outline, settings, study.predict)]


def _check(options: argparse.Namespace, settings: AnalysisConfig) -> None:
    """Checks, before the runs are read, that there is something to propose.

    Raises:
        InputError: no run is asked for, or the criterion has no collapse by memory.
    """
    from megatron_kis.analysis.design.next_runs import check_criterion

    if options.count < 1:
        raise InputError(f"is {options.count}", where="--count", remedy="use at least 1")
    check_criterion(settings)


def _target(study: StudyConfig, options: argparse.Namespace) -> tuple[float, float]:
    """Returns N and D of the target.

    Raises:
        InputError: none is named, or it is not a number.
    """
    from megatron_kis.study.specs import expand_grid

    params = max(study.predict, default=None) if options.params is None else options.params
    if params is None:
        raise InputError("no target size", where="--params", remedy="for example 7e9, or predict: in the study")
    tokens = max(spot.tokens for spot in expand_grid(study)) if options.tokens is None else options.tokens
    for name, value in (("--params", params), ("--tokens", tokens)):
        if not (math.isfinite(value) and value >= 1):
            raise InputError(f"{value} is not a positive number", where=name, remedy="for example 7e9")
    return params, tokens


def _look(
    points: list[Transition], curves: pd.DataFrame, target: tuple[float, float], settings: AnalysisConfig
) -> Look:
    """Returns what the study predicts for the target (N, D), of the collapse that the proposed runs are for."""
    from megatron_kis.analysis.design.next_runs import group_of, slice_to_extend
    from megatron_kis.analysis.findings.looks import look_at

    group = group_of(points)
    one = slice_to_extend(points, group)
    mine = [point for point in points if (point.kind, point.group, point.slice) == ("collapse", group, one)]
    return look_at(mine, curves, *target, settings)


def _runs(study: StudyConfig) -> Runs:
    """Returns the complete runs of the study; names those that are not counted, of other settings or questions."""
    from megatron_kis.analysis.report.summary import not_asked, not_counted, not_of_this_study
    from megatron_kis.analysis.runs.load import load_runs
    from megatron_kis.cli.study.report import belonging

    runs = load_runs(study.output, belonging(study))
    for line in (not_of_this_study(runs), not_asked(runs), not_counted(runs)):
        if line:
            logger.warning(printable(line))
    return runs


def _print_remarks(study: str, remarks: list[Remark], *, nothing: bool) -> None:
    """Prints what more runs of these sizes cannot fix; ``nothing``: no run was proposed."""
    if nothing:
        print(f"{printable(study)}: no run of these sizes, budgets and facts would add information")
    if remarks:
        print("to change:")
    for remark in remarks:
        print(printable(f"- {remark}"))


def _print_runs(rows: list[dict[str, Any]], title: str) -> None:
    """Prints the proposed runs."""
    columns = ("size", "params", "tokens", "facts", "infusion_frequency", "seed", "FLOPs", "variance off", "why")
    table = [
        [
            row["size"] or "none",
            in_table(row["params"]),
            in_table(row["tokens"]),
            "all" if row["facts"] is None else in_table(row["facts"]),
            f"{row['frequency']:g}",
            str(row["seed"]),
            f"{row['flops']:.2g}",
            "-" if row["gain"] is None else f"{row['gain']:.1%}",
            row["reason"] + (" (planned already)" if row["planned"] else ""),
        ]
        for row in rows
    ]
    print_table(title, columns, table, numbers=True)


def _print_sizes(sizes: list[dict[str, Any]], symbol: str) -> None:
    """Prints how much one more size would narrow the law, and its entry of the ladder; ``symbol`` is F* or K*."""
    import yaml

    if not sizes:
        return
    print()
    print_table(
        "what one more size in the ladder would add",
        ("params", "tokens", f"{symbol} expected", "runs", "FLOPs", "interval narrower by"),
        [
            [
                in_table(size["params"]),
                in_table(size["tokens"]),
                f"{size['frequency']:.3g}",
                str(size["runs"]),
                f"{size['flops']:.2g}",
                f"{size['narrower']:.0%}",
            ]
            for size in sizes
        ],
        numbers=True,
    )
    entries = [size for size in sizes if size["rung"]]
    if entries:
        print("the nearest entries of the ladder:")
    for size in entries:
        line = yaml.safe_dump(size["rung"], default_flow_style=True, sort_keys=False, width=1000).strip()
        print(f"  - {line}  # N = {in_table(size['rung_params'])}")
    if entries:
        print(entries[0]["learning_rate_from"])


def _ladder_entry(params: float, rungs: dict[int, LadderEntry], ladder: Iterable[LadderEntry]) -> dict[str, Any]:
    """Returns the nearest new entry as the study file would have it, its N, and where its learning rate comes from."""
    from megatron_kis.study.proposals import nearest_new_size, rate_words

    found = nearest_new_size(params, rungs, ladder) if rungs else None
    if found is None:
        return {"rung": None, "rung_params": None, "learning_rate_from": None}
    rung = found[0].model_dump(mode="json", exclude_defaults=True)
    return {"rung": rung, "rung_params": found[1], "learning_rate_from": rate_words(rungs)}


def _entry(at: PlannedRun) -> dict[str, Any]:
    """Returns what the study has of a proposal."""
    if at.run is None:
        return {"size": None, "planned": False}
    return {"size": at.run.size, "seed": at.run.seed, "planned": at.planned}
