"""``kis data corpus`` and ``merge``: text to tokens in Megatron's format."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_kis.cli.data.options import add_step, add_text_options, megabytes, print_frame
from megatron_kis.cli.outputs import new_prefix
from megatron_kis.cli.parser import naming_options
from megatron_kis.common.units import plural

if TYPE_CHECKING:
    from megatron_kis.data_tools.corpus.build import CorpusSummary


def add_corpus(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_step(steps, "corpus", "tokenize text into PREFIX.bin/.idx and PREFIX.validation.bin/.idx")
    add_text_options(parser)
    tokenizer = "SentencePiece model, tokenizer.json, .tiktoken or tekken.json file, or a folder with one of them"
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="PATH", help=tokenizer)
    parser.add_argument(
        "--output", type=new_prefix, required=True, metavar="PREFIX", help="prefix of the files to write"
    )
    facts = "facts.jsonl: leave out documents that state one of its facts"
    parser.add_argument("--facts", type=Path, metavar="FILE", help=facts)
    parser.add_argument(
        "--validation-share", type=float, default=0.02, metavar="SHARE", help="share of documents set aside; 0 for none"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the validation split")
    _add_content(parser)
    _add_work(parser)
    parser.set_defaults(handler=_corpus)


def _add_content(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is written, as in Megatron-LM's tools/preprocess_data.py")
    group.add_argument(
        "--append-eod",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="end every document with the end-of-document token (the default), or do not",
    )
    sentences = "make every sentence a sequence; Punkt is trained on the text and kept as PREFIX.punkt.json"
    group.add_argument("--split-sentences", action="store_true", help=sentences)
    group.add_argument("--punkt", type=Path, metavar="FILE", help="a PREFIX.punkt.json to split sentences with")
    group.add_argument("--keep-newlines", action="store_true", help="keep the white space between sentences")
    empty = "keep documents without visible characters; one without tokens becomes an empty entry"
    group.add_argument("--keep-empty", action="store_true", help=empty)


def _add_work(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how the work is done")
    errors = "at a line that holds no document: stop, or list it in PREFIX.quarantine.jsonl and continue"
    group.add_argument("--on-error", choices=("stop", "skip"), default="stop", help=errors)
    encoder = (
        "auto uses gigatoken where its ids equal those of the tokenizer's own library (reference); a corpus of another"
        " encoder, or another version of it, is made again"
    )
    group.add_argument("--encoder", choices=("auto", "gigatoken", "reference"), default="auto", help=encoder)
    group.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core)")
    shard = "do the i-th of n shards, for several machines; `kis data merge` joins them"
    group.add_argument("--shard", type=_shard, metavar="i/n", help=shard)
    part = "text between two restart points, in MB; 2 or more by default"
    group.add_argument("--part-size", type=megabytes, metavar="MB", help=part)


def _shard(text: str) -> tuple[int, int]:
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise argparse.ArgumentTypeError(f"{text!r} is not i/n with i from 1 to n")
    return int(number), int(of)


def _corpus(options: argparse.Namespace) -> int:
    from megatron_kis.common.errors import InputError
    from megatron_kis.common.progress import console_progress
    from megatron_kis.data_tools.corpus.build import build_corpus
    from megatron_kis.data_tools.corpus.plan import CorpusBuildConfig, check_validation_share
    from megatron_kis.data_tools.facts.fact import load_facts
    from megatron_kis.data_tools.tokenizers.base import side_file
    from megatron_kis.data_tools.tokenizers.registry import load_tokenizer, model_file

    if options.workers is not None and options.workers < 1:
        raise InputError(f"is {options.workers}", where="--workers", remedy="at least 1")
    if (options.punkt or options.keep_newlines) and not options.split_sentences:
        raise InputError("needs --split-sentences", where="--punkt" if options.punkt else "--keep-newlines")
    with naming_options(("validation_share",)):
        check_validation_share(options.validation_share)
    start = time.monotonic()
    tokenizer, model = load_tokenizer(options.tokenizer), model_file(options.tokenizer)
    with naming_options(("validation_share", "shard")):
        summary = build_corpus(
            options.input,
            tokenizer,
            options.output,
            text_key=options.text_key,
            facts=load_facts(options.facts) if options.facts else (),
            validation_share=options.validation_share,
            seed=options.seed,
            progress=console_progress(),
            config=CorpusBuildConfig(
                append_eod=options.append_eod,
                sentences=options.split_sentences,
                punkt=options.punkt,
                keep_newlines=options.keep_newlines,
                keep_empty=options.keep_empty,
                skip_errors=options.on_error == "skip",
                encoder=options.encoder,
                workers=options.workers,
                shard=options.shard,
                text_format=options.format,
                longest_line=options.longest_line,
                part_bytes=options.part_size,
            ),
            also_read=[model, side_file(model), *([options.facts] if options.facts else [])],
        )
    _describe(summary, time.monotonic() - start, facts=options.facts is not None)
    print_frame(tokenizer, ended=options.append_eod, sentences=options.split_sentences)
    return 0


def _describe(summary: CorpusSummary, seconds: float, *, facts: bool) -> None:
    speed = f"{summary.text_bytes / 1e6:.1f} MB of text, {seconds:.1f} s"
    print(f"{summary.prefix}: {plural(summary.documents, 'document')}, {plural(summary.tokens, 'token')} ({speed})")
    if summary.validation_prefix:
        counts = f"{plural(summary.validation_documents, 'document')}, {plural(summary.validation_tokens, 'token')}"
        print(f"{summary.validation_prefix}: {counts}")
    if facts:
        print(
            f"left out: {plural(summary.leaked_documents, 'document')} with leaks of "
            f"{plural(summary.leaked_facts, 'fact')}"
        )
    if summary.empty:
        print(f"empty: {plural(summary.empty, 'document')}")
    if summary.skipped:
        print(f"skipped: {plural(summary.skipped, 'line')}, listed in {summary.quarantine}")


def add_merge(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_step(steps, "merge", "join shards or corpora of one tokenizer, without decoding them")
    parser.add_argument("prefixes", type=Path, nargs="+", metavar="PREFIX", help="corpora, in their order")
    parser.add_argument(
        "--output", type=new_prefix, required=True, metavar="PREFIX", help="prefix of the files to write"
    )
    parser.set_defaults(handler=_merge)


def _merge(options: argparse.Namespace) -> int:
    from megatron_kis.data_tools.corpus.merge import merge_corpora

    for prefix, writer in merge_corpora(options.prefixes, options.output):
        print(f"{prefix}: {plural(writer.documents, 'document')}, {plural(writer.tokens, 'token')}")
    return 0
