"""``kis data leaks``: which facts the general text states already, and the text without them."""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_kis.cli.data.options import add_skipping, add_step, add_text_options, documents_of
from megatron_kis.cli.outputs import new_file


def add_leaks(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_step(steps, "leaks", "list the text that states a studied fact, and write the text without it")
    add_text_options(parser)
    add_skipping(parser)
    parser.add_argument("--facts", type=Path, required=True, metavar="FILE", help="facts.jsonl")
    level = "the unit of text in which subject and object must both occur; --clean leaves out the same unit"
    parser.add_argument("--level", choices=("document", "sentence"), default="document", help=level)
    parser.add_argument("--output", type=new_file, metavar="FILE", help="JSON lines: source, line, ids of the facts")
    clean = "JSON lines to write: the text without its leaks, under the text key; .gz to compress"
    parser.add_argument("--clean", type=new_file, metavar="FILE", help=clean)
    parser.set_defaults(handler=_leaks)


def _leaks(options: argparse.Namespace) -> int:
    from megatron_kis.common.errors import InputError
    from megatron_kis.common.progress import console_progress
    from megatron_kis.data_tools.facts.fact import load_facts
    from megatron_kis.data_tools.mentions.decontaminate import DecontaminationStats, decontaminate
    from megatron_kis.data_tools.readers.files import check_text_files, expand, file_identities, refuse_own_outputs

    paths = expand(options.input)
    check_text_files(paths, options.format)
    refuse_own_outputs([*options.input, options.facts], [path for path in (options.output, options.clean) if path])
    if options.output and options.clean and {*file_identities(options.output)} & {*file_identities(options.clean)}:
        raise InputError("is the same file as --output", where="--clean", remedy="write the two into different files")
    facts, count = load_facts(options.facts), DecontaminationStats()
    with documents_of(options, paths) as documents:
        decontaminate(
            console_progress().track(documents, description="documents"),
            facts,
            count,
            level=options.level,
            listing=options.output,
            clean=options.clean,
            text_key=options.text_key,
        )
    for line in count.summary(len(facts), options.level):
        print(line)
    return 0
