"""``kis study plan``: what every run would feed."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from megatron_kis.cli.study.common import (
    DATA_FOLDER,
    add_step,
    check_first,
    data_config,
    load_study,
    look_over,
)
from megatron_kis.cli.study.design import Design
from megatron_kis.cli.study.table import MANY
from megatron_kis.common.console import print_table
from megatron_kis.common.units import in_bytes, in_table, plural

if TYPE_CHECKING:
    from megatron_kis.config.data import DataConfig
    from megatron_kis.config.study import StudyConfig

logger = logging.getLogger(__name__)

_RANGES = ("facts", "infusion_frequency", "infusion_ratio", "epochs")  # columns of the runs of a size and budget


def add_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    plan = add_step(
        steps,
        "plan",
        "show the runs of a study and their training data, and check its settings; changes nothing",
        _plan,
    )
    plan.add_argument("--all", action="store_true", help="list every run, however many there are")


def _plan(options: argparse.Namespace) -> int:
    from megatron_kis.data_tools.tokenizers.registry import load_tokenizer
    from megatron_kis.study.conflicts import conflicts, refuse
    from megatron_kis.study.data import fingerprints_of
    from megatron_kis.study.grid import plan_rows, runs_of
    from megatron_kis.study.preflight import check_study, relations_of_facts

    study = load_study(options)
    every = look_over(study)
    check_first(study)
    with _data(study) as files:
        found, tokenizer = fingerprints_of(files), load_tokenizer(files.tokenizer)
        if found.get("tokenizer") == tokenizer.model_sha256:  # data of an older version: runs are compared with today's
            found["tokenizer"] = tokenizer.fingerprint
        now = {run.model.init_from: found for run in every}
        refuse(study.output, conflicts(every, now, model_sha256=tokenizer.model_sha256))
        rows = plan_rows(study, runs_of(study, files))
        remarks = check_study(study, relations_of_facts(files.exposures.with_name("facts.jsonl")))
    design = Design(study, rows, remarks)
    if options.json:
        print(json.dumps({"runs": rows, "design": design.record()}, indent=1))
        return 0
    title = f"{study.name}: {plural(len(rows), 'run')}"
    columns: tuple[str, ...]
    if options.all or len(rows) <= MANY:
        columns = (
            "run",
            "params",
            "tokens",
            "facts",
            "infusion_frequency",
            "infusion_ratio",
            "background_frequency",
            "epochs",
        )
        print_table(title, columns, [[_cell(row, name) for name in columns] for row in rows], numbers=True)
    else:
        columns = ("size", "params", "tokens", "runs", *_RANGES, "flops")
        print_table(f"{title} (--all shows each)", columns, _summary(rows), numbers=True)
    shown = sum(group["facts"] for group in rows[0]["background_groups"])
    if 0 < shown < rows[0]["background_facts"]:
        print(f"{shown:,} of {rows[0]['background_facts']:,} background facts are shown and asked about")
    branches = sum(row["trunk"] is not None for row in rows)
    if study.trunk is not None:
        print(f"{branches:,} runs branch at {study.trunk.share:g} of their tokens; their FLOPs are those after it")
    flops = sum(row["flops"] for row in rows)
    print(f"{flops:.3g} training FLOPs in all")
    print(_checkpoints(study, rows))
    for line in design.lines():
        print(line)
    return 0


def _checkpoints(study: StudyConfig, rows: list[dict[str, Any]]) -> str:
    """Returns the size of the checkpoints that stay, from which runs are asked again and exported."""
    last = sum(row["checkpoint_bytes"] for row in rows)
    settings = study.checkpoints
    more = [f"keep_last: {settings.keep_last}"] if settings.keep_last > 1 else []
    more += ["keep_best"] if settings.keep_best else []
    most = settings.keep_last + settings.keep_best
    also = f"; up to {in_bytes(most * last)} with {' and '.join(more)}" if more else ""
    return f"{in_bytes(last)} for the last checkpoint of each run, which stays{also}"


def _cell(row: dict[str, Any], name: str) -> str:
    """Returns a value of a run as the table shows it; of several groups of background facts each frequency."""
    groups = row["background_groups"]
    if name == "background_frequency" and len(groups) > 1:
        return ", ".join(in_table(group["frequency"]) for group in groups)
    return in_table(row[name])


@contextmanager
def _data(study: StudyConfig) -> Iterator[DataConfig]:
    """Yields the data of the study: those in its folder, or made next to it for the plan alone."""
    from megatron_kis.common.files import locked
    from megatron_kis.common.progress import console_progress
    from megatron_kis.data_tools.preparation.prepare import outdated, prepare_data
    from megatron_kis.data_tools.preparation.stamps import VERSIONS
    from megatron_kis.study.data import fingerprints_of, planned_folder
    from megatron_kis.study.holders import holders_of, refused

    own = data_config(study)
    found = outdated(study.data, study.output / DATA_FOLDER)
    differences = found.reasons
    if not differences:
        yield own
        return
    holders = holders_of(study.output, fingerprints_of(own), lease=60 * study.executor.lease_minutes)
    if holders:
        questions = found.questions
        if others := [one for one in differences if one not in questions and not one.startswith(VERSIONS)]:
            raise refused(study.output, others, holders)
        changed = ", ".join(differences)
        if questions:
            logger.info(f"{study.name}: the study asks other questions than before ({', '.join(questions)})")
            logger.info(f"{study.name}: kis study probe asks the finished runs again, without training")
            yield own
            return
        logger.info(f"{study.name}: the data are kept because runs were trained on them ({changed})")
        yield own  # what kis study run does
        return
    place = planned_folder(study.output)
    logger.info(f"{study.name}: the data are prepared in {place}; kis study run uses them")
    with locked(place, "kis study plan"):
        prepare_data(study.data, place / DATA_FOLDER, progress=console_progress())
        yield data_config(study, place / DATA_FOLDER)


def _summary(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Returns one line per size and budget."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["size"], row["tokens"]), []).append(row)
    lines = []
    for (size, tokens), group in groups.items():
        ranges = []
        for name in _RANGES:
            values = [row[name] for row in group]
            ranges.append(" to ".join(dict.fromkeys((in_table(min(values)), in_table(max(values))))))
        flops = f"{sum(row['flops'] for row in group):.3g}"
        lines.append([size, in_table(group[0]["params"]), in_table(tokens), in_table(len(group)), *ranges, flops])
    return lines
