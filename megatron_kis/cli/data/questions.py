"""``kis data questions``: questions about facts for any model, without a run and its exposures."""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_kis.cli.data.options import add_step
from megatron_kis.cli.data.render import add_question_options
from megatron_kis.cli.outputs import new_file
from megatron_kis.common.errors import printable
from megatron_kis.common.units import plural


def add_questions(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_step(steps, "questions", "make only the questions, for kis probe --model")
    parser.add_argument("--facts", type=Path, required=True, metavar="FILE", help="facts.jsonl")
    parser.add_argument("--templates", type=Path, required=True, metavar="FILE", help="templates.yaml")
    model = "tokenizer of the model, or its folder; a model with another one tokenizes the statements again"
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="PATH", help=model)
    parser.add_argument("--output", type=new_file, required=True, metavar="FILE", help="questions.jsonl to write")
    add_question_options(parser)
    parser.set_defaults(handler=_questions)


def _questions(options: argparse.Namespace) -> int:
    from megatron_kis.common.progress import console_progress
    from megatron_kis.data_tools.facts.fact import load_facts
    from megatron_kis.data_tools.readers.files import refuse_own_outputs
    from megatron_kis.data_tools.rendering.paraphrases import load_paraphrases
    from megatron_kis.data_tools.rendering.question_file import QuestionDraft
    from megatron_kis.data_tools.rendering.render import question_remarks
    from megatron_kis.data_tools.rendering.templates import load_templates
    from megatron_kis.data_tools.tokenizers.first_tokens import first_of_model
    from megatron_kis.data_tools.tokenizers.registry import load_tokenizer, model_file

    model = model_file(options.tokenizer)
    read = [options.facts, options.templates, model, *([options.paraphrases] if options.paraphrases else [])]
    refuse_own_outputs(read, [options.output])
    facts = load_facts(options.facts)
    templates = load_templates(options.templates, relations=sorted({fact.relation for fact in facts}))
    tokenizer, progress = load_tokenizer(model), console_progress()
    first = first_of_model(tokenizer, model)
    paraphrases = load_paraphrases(options.paraphrases, facts) if options.paraphrases else {}
    draft = QuestionDraft(
        facts,
        templates,
        tokenizer,
        distractors=options.distractors,
        seed=options.seed,
        asked=options.asked,
        paraphrases=paraphrases,
        first=first,
        texts=True,
    )
    draft.check_size(options.largest_questions, where=str(options.output))
    draft.choose(progress)
    count = draft.write(options.output, progress)
    for remark in question_remarks(facts, templates, paraphrases):
        print(f"remark: {printable(remark)}")
    left_out = f"; no question for {plural(draft.left_out, 'fact')}" if draft.left_out else ""
    print(f"{options.output}: {plural(count, 'question')}{left_out}")
    before = " ".join(tokenizer.piece(token) for token in first.tokens)
    print(printable(f"before each statement: {before} ({first.rule})"))
    return 0
