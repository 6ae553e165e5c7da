"""``kis data render``: facts to exposures and questions."""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_kis.cli.data.options import add_step, print_frame
from megatron_kis.cli.outputs import new_prefix
from megatron_kis.common.errors import printable
from megatron_kis.common.units import plural, whole_quantity


def add_render(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_step(steps, "render", "render facts into the exposure store and the probe questions")
    parser.add_argument("--facts", type=Path, required=True, metavar="FILE", help="facts.jsonl")
    parser.add_argument("--templates", type=Path, required=True, metavar="FILE", help="templates.yaml")
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="PATH", help="tokenizer of the corpus")
    parser.add_argument(
        "--output", type=new_prefix, required=True, metavar="PREFIX", help="prefix of the files to write"
    )
    longest = "refuse exposures of more tokens, end-of-document token included: the sequence length"
    parser.add_argument("--longest-exposure", type=whole_quantity, metavar="TOKENS", help=longest)
    add_question_options(parser)
    parser.set_defaults(handler=_render)


def add_question_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that decide which questions are asked."""
    own = "JSON lines of sentences about single facts, in addition to the templates: fact, split, text"
    parser.add_argument("--paraphrases", type=Path, metavar="FILE", help=own)
    wrong = "wrong options of each question, or all: every object of its group and relation"
    parser.add_argument("--distractors", type=_count_or_all, default=3, metavar="N", help=wrong)
    asked = "facts of each group to ask about, drawn at random; all by default"
    parser.add_argument("--asked", type=whole_quantity, metavar="K", help=asked)
    largest = "refuse questions of more bytes; --distractors all grows with the square of the facts"
    parser.add_argument("--largest-questions", type=whole_quantity, default="4G", metavar="BYTES", help=largest)
    parser.add_argument("--seed", type=int, default=0, help="seed of the distractors")


def _count_or_all(text: str) -> int | None:
    """Returns a number, or None for ``all``."""
    if text == "all":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"is {text!r}: 1 or more, or all")
    return int(text)


def _render(options: argparse.Namespace) -> int:
    from megatron_kis.common.progress import console_progress
    from megatron_kis.data_tools.facts.fact import load_facts
    from megatron_kis.data_tools.readers.files import refuse_own_outputs
    from megatron_kis.data_tools.rendering.paraphrases import load_paraphrases
    from megatron_kis.data_tools.rendering.render import outputs_of, render
    from megatron_kis.data_tools.rendering.templates import load_templates
    from megatron_kis.data_tools.tokenizers.base import side_file
    from megatron_kis.data_tools.tokenizers.registry import load_tokenizer, model_file

    model = model_file(options.tokenizer)
    read = [options.facts, options.templates, model, side_file(model)]
    refuse_own_outputs([*read, *([options.paraphrases] if options.paraphrases else [])], outputs_of(options.output))
    facts = load_facts(options.facts)
    templates = load_templates(options.templates, relations=sorted({fact.relation for fact in facts}))
    tokenizer = load_tokenizer(model)
    summary = render(
        facts,
        templates,
        tokenizer,
        options.output,
        distractors=options.distractors,
        seed=options.seed,
        longest_exposure=options.longest_exposure,
        asked=options.asked,
        paraphrases=load_paraphrases(options.paraphrases, facts) if options.paraphrases else None,
        largest_questions=options.largest_questions,
        progress=console_progress(),
    )
    print(
        f"{summary.prefix}: {plural(summary.exposures, 'exposure')}, {plural(summary.tokens, 'token')}, longest "
        f"{summary.longest}"
    )
    for group, mean in summary.mean_tokens.items():
        print(f"  {printable(group)}: {mean:.2f} tokens per exposure")
    for relation, counts in summary.relations.items():
        print(f"  {printable(relation)}: {counts.shortest} to {counts.longest} tokens, mean {counts.mean:.2f}")
    for remark in summary.remarks:
        print(f"remark: {printable(remark)}")
    left_out = f"; no question for {plural(summary.left_out, 'fact')}" if summary.left_out else ""
    print(f"{summary.questions_path}: {plural(summary.questions, 'question')}{left_out}")
    print_frame(tokenizer)
    return 0
