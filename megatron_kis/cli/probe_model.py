"""``kis probe --model``: any causal model of Hugging Face asked what it knows."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_kis.cli.outputs import new_file, spare_inputs
from megatron_kis.cli.parser import naming_options, refuse_options
from megatron_kis.common.errors import InputError, printable
from megatron_kis.common.units import whole_quantity

if TYPE_CHECKING:
    from megatron_kis.probes.questions import QuestionSet

_OF_RUNS = (
    "step",
    "exposures",
    "all_templates",
    "batch_size",
    "tensor",
    "pipeline",
    "keep",
    "probes",
    "histories",
)
_OF_MODELS = ("questions", "dtype", "device_map", "batch_tokens", "plain", "curves", "tokens", "frequency", "seed")
_DEFAULTS = {"tensor": 1, "pipeline": 1}
_OF_CURVES = ("tokens", "frequency", "seed")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``--model``."""
    group = parser.add_argument_group("a model of Hugging Face instead of a run (needs the export extra)")
    model = "folder with config.json, *.safetensors and the tokenizer"
    group.add_argument("--model", type=Path, metavar="DIR", help=model)
    group.add_argument("--questions", type=Path, metavar="FILE", help="questions of kis data questions")
    kinds = "float32, bfloat16, float16, or auto: as stored (default: auto)"
    group.add_argument("--dtype", metavar="TYPE", help=kinds)
    spread = "spread the model over several GPUs with accelerate: auto, balanced, balanced_low_0 or sequential"
    group.add_argument("--device-map", metavar="MAP", help=spread)
    most = "largest number of tokens in a forward pass (default: 8192)"
    group.add_argument("--batch-tokens", type=whole_quantity, metavar="N", help=most)
    group.add_argument("--plain", action="store_true", help="score each statement by itself, not in prefix trees")
    curves = "add rows to curves.csv, for kis law --curves; needs --tokens and --frequency"
    group.add_argument("--curves", type=new_file, metavar="FILE.csv", help=curves)
    group.add_argument("--tokens", type=whole_quantity, metavar="D", help="tokens that the model was trained on")
    shown = "exposures of each infused fact in its training; 0 where none was shown"
    group.add_argument("--frequency", type=float, metavar="F", help=shown)
    group.add_argument("--seed", type=int, metavar="S", help="seed of its training (default: 0)")


def check_kind(options: argparse.Namespace) -> None:
    """Refuses options of a run with a model, options of a model with a run, and a call with neither.

    Raises:
        InputError: names the option.
    """
    if options.run is None and options.model is None:
        raise InputError(
            "nothing to ask", where="kis probe", remedy="give RUN_DIR, or --model DIR and --questions FILE"
        )
    if options.model is None:
        refuse_options(options, _OF_MODELS, other="a run", remedy="use it with --model DIR")
        return
    refuse_options(options, ("run",), other="--model", remedy="give one of them")
    refuse_options(options, _OF_RUNS, other="--model", remedy="use it with RUN_DIR", usual=_DEFAULTS)
    if options.questions is None:
        raise InputError("are missing", where="--questions", remedy="make them with kis data questions")
    for name in _OF_CURVES:
        given = getattr(options, name) is not None
        if options.curves is None and given:
            raise InputError("needs --curves", where=f"--{name}", remedy="add --curves FILE.csv")
        if options.curves is not None and not given and name != "seed":
            raise InputError("is missing", where=f"--{name}", remedy="a row of --curves needs it")
    if options.frequency is not None and not 0 <= options.frequency < math.inf:
        raise InputError(f"is {options.frequency}", where="--frequency", remedy="0 or more exposures")
    if options.seed is not None and options.seed < 0:
        raise InputError(f"is {options.seed}", where="--seed", remedy="0 or more")
    spare_inputs(options, ("outcomes", "curves"), ("questions",))


def ask_model(options: argparse.Namespace) -> int:
    """Asks the model, and prints or writes what it answered."""
    from megatron_kis.common.extras import import_extra
    from megatron_kis.common.files import sha256_content
    from megatron_kis.common.progress import console_progress
    from megatron_kis.huggingface.folder import PURPOSE

    import_extra("transformers", PURPOSE, extra="export")
    from megatron_kis.huggingface.ask import BATCH_TOKENS, check_fits, count_parameters, probe_model
    from megatron_kis.huggingface.load import check_choices, empty_model, load_model, read_config
    from megatron_kis.huggingface.tokens import tokenizer_of
    from megatron_kis.probes.texts import CUT_AGAIN, questions_for

    given = {"dtype": options.dtype or "auto", "device": options.device, "device_map": options.device_map}
    batch_tokens = options.batch_tokens or BATCH_TOKENS
    with naming_options((*given, "batch_tokens")):
        check_choices(**given)
    config = read_config(options.model)
    tokenizer, first = tokenizer_of(options.model)
    questions = questions_for(options.questions, tokenizer, first)
    check_fits(questions, config, where=str(options.questions))
    if options.curves is not None:
        _add_to_curves(options, _unanswered(questions), count_parameters(empty_model(config)), write=False)
    model = load_model(options.model, **given)
    answers = probe_model(
        model,
        None,
        questions,
        batch_tokens=batch_tokens,
        trees=not options.plain,
        progress=console_progress(),
    )
    if options.outcomes is not None:
        answers.write_outcomes(options.outcomes)
    found = {
        "model": str(options.model),
        "questions_file": str(options.questions),
        "questions_sha256": sha256_content(options.questions),
        **answers.record(),
    }
    if options.json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        how = f"{found['computed']}, {found['dtype']} on {found['device']}"
        print(printable(f"{options.model}, {answers.parameters:,} parameters, rule {options.scoring}; {how}"))
        if found["because"]:
            print(printable(f"each statement by itself: {found['because']}"))
        if CUT_AGAIN in questions.header:
            print("the statements were tokenized again with the tokenizer of the model")
        before = " ".join(tokenizer.piece(token) for token in questions.first_tokens)
        print(printable(f"before each statement: {before} ({questions.header.get('bos', 'as the questions say')})"))
        print_answers(answers.rows, options.scoring)
    if options.curves is not None:
        _add_to_curves(options, answers.rows, answers.parameters)
    return 0


def _add_to_curves(
    options: argparse.Namespace, rows: Iterable[dict[str, Any]], params: int, *, write: bool = True
) -> None:
    """Adds rows of answers to ``--curves``, or checks that they can be added."""
    from megatron_kis.analysis.runs.append_csv import add_to_curves_csv

    cell = {"params": params, "tokens": options.tokens, "frequency": options.frequency, "seed": options.seed or 0}
    add_to_curves_csv(options.curves, rows, **cell, write=write)


def _unanswered(questions: QuestionSet) -> list[dict[str, Any]]:
    """Returns rows that the answers will have, with none right."""
    from collections import Counter, defaultdict

    counts: Counter[tuple[str, str]] = Counter()
    facts: dict[tuple[str, str], set[str]] = defaultdict(set)
    for question in questions.questions:
        key = (question.group, question.split)
        counts[key] += 1
        facts[key].add(question.fact)
    empty = {"correct": 0, "chance": 0.0, "scoring": "statement"}
    return [
        {"group": group, "split": split, "n": count, "facts": len(facts[group, split]), **empty}
        for (group, split), count in counts.items()
    ]


def print_answers(rows: Iterable[dict[str, Any]], rule: str) -> None:
    """Prints a table of the answers by one rule.

    Args:
        rows: of a probe.
        rule: the scoring rule.
    """
    names = ("questions", "facts", "right", "chance", "corrected", "margin", "always", "ever", "completed", "bits")
    print(f"{'group':<12}{'split':<10}" + "".join(f"{name:>10}" for name in names))
    for row in rows:
        if row["scoring"] != rule:
            continue
        completed, facts = row["generated"], row["facts"]
        cells = [
            str(row["n"]),
            str(facts),
            f"{row['correct'] / row['n']:.3f}",
            f"{row['chance']:.3f}",
            f"{row['corrected']:+.3f}",
            f"{row['margin']:+.2f}",
            f"{row['facts_always'] / facts:.3f}",
            f"{row['facts_ever'] / facts:.3f}",
            f"{completed['correct'] / completed['n']:.3f}" if completed["n"] else "-",
            f"{row['bits']:.1f}",
        ]
        print(f"{row['group']:<12}{row['split']:<10}" + "".join(f"{cell:>10}" for cell in cells))
    print("right: share of questions; always, ever: of facts, under all or some templates; completed: of answers at")
    print("the end of a statement, those that greedy decoding gives; bits: log2 of the options of each fact that is")
    print("known beyond guessing; bits divided by parameters are a capacity where learning has saturated")
