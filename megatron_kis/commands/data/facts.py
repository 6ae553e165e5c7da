"""``kis data facts``, ``leaks`` and ``render``: triples to exposures and questions."""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_kis.commands.data.options import add_step, add_text_options


def add_facts(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describes ``kis data facts``."""
    parser = add_step(
        steps, "facts", "import triples, drop ambiguous ones, split them into infused, background, control"
    )
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


def add_leaks(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describes ``kis data leaks``."""
    parser = add_step(steps, "leaks", "list the documents that state a studied fact")
    add_text_options(parser)
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


def add_render(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describes ``kis data render``."""
    parser = add_step(steps, "render", "render facts into the exposure store and the probe questions")
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
