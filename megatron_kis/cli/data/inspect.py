"""``kis data inspect``: whether what was written is whole, and what is in it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from megatron_kis.cli.data.options import JSON_HELP, add_step
from megatron_kis.common.errors import InputError, JobError
from megatron_kis.common.units import plural


def add_inspect(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    summary = "check a corpus or exposure store and show its content; for a run, compare planned and received exposures"
    parser = add_step(steps, "inspect", summary)
    parser.add_argument(
        "prefix", type=Path, metavar="PREFIX|RUN_DIR", help="prefix of .bin and .idx, or a run's folder"
    )
    again = "for a run: also count the exposures in the sequences that its data give now"
    parser.add_argument("--recount", action="store_true", help=again)
    parser.add_argument("--tokenizer", type=Path, metavar="PATH", help="decode the sample with this tokenizer")
    parser.add_argument("--sample", type=int, default=3, metavar="N", help="documents to show")
    parser.add_argument("--json", action="store_true", help=JSON_HELP)
    parser.set_defaults(handler=_inspect)


def _inspect(options: argparse.Namespace) -> int:
    from megatron_kis.training.audit import is_run

    if options.sample < 0:
        raise InputError(f"is {options.sample}", where="--sample", remedy="use 0 or more documents")
    if is_run(options.prefix):
        if options.tokenizer:
            raise InputError("cannot be combined with a run", where="--tokenizer", remedy="give the PREFIX of a corpus")
        return _inspect_run(options)
    if options.recount:
        raise InputError("needs a run", where="--recount", remedy="give RUN_DIR, or leave it out")
    from megatron_kis.data_tools.inspect import describe, inspect_corpus
    from megatron_kis.data_tools.tokenizers.registry import load_tokenizer

    tokenizer = load_tokenizer(options.tokenizer) if options.tokenizer else None
    result = inspect_corpus(options.prefix, tokenizer=tokenizer, sample=options.sample)
    print(json.dumps(result, ensure_ascii=False, indent=1) if options.json else _lines(describe(result)))
    return 0


def _inspect_run(options: argparse.Namespace) -> int:
    from megatron_kis.common.progress import console_progress
    from megatron_kis.training.audit import audit_run, describe_audit, differences_of

    result = audit_run(options.prefix, recount=console_progress() if options.recount else None)
    print(json.dumps(result, ensure_ascii=False, indent=1) if options.json else _lines(describe_audit(result)))
    if different := differences_of(result):
        raise JobError(f"{options.prefix}: {plural(different, 'fact')} did not get the planned exposures")
    return 0


def _lines(lines: Iterable[str]) -> str:
    """Returns lines that are safe to print on a terminal: a corpus may contain anything."""
    from megatron_kis.common.errors import printable

    return "\n".join(printable(line, keep="\t") for line in lines)
