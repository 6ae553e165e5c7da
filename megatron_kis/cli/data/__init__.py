"""``kis data``: sources, tokenizer, corpus, facts, leaks, exposures and questions."""

from __future__ import annotations

import argparse

from megatron_kis.cli.data import corpus, facts, inspect, leaks, questions, render, text

_STEPS = (
    text.add_demo,
    text.add_tokenizer,
    corpus.add_corpus,
    corpus.add_merge,
    facts.add_facts,
    facts.add_templates,
    leaks.add_leaks,
    render.add_render,
    questions.add_questions,
    inspect.add_inspect,
    facts.add_export,
)


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    summary = "turn text and facts into tokenized files"
    order = (
        "The order is demo, facts, tokenizer, corpus, render. templates, leaks and inspect check what exists;"
        " questions are for models that were trained elsewhere."
    )
    parser = commands.add_parser("data", help=summary, description=f"{summary}. {order}")
    steps = parser.add_subparsers(dest="step", metavar="STEP", required=True)
    for add in _STEPS:
        add(steps)
