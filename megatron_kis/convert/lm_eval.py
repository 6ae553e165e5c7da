"""``kis export lm-eval``: questions as tasks of lm-evaluation-harness: a run's, for its ``kis export hf``, or others.

Two tasks for each group and split, each a YAML file with its documents next to it:

| task | what it scores | our rule |
|---|---|---|
| ``kis_<group>_<split>_statement`` | whole statements after an empty context | ``acc``: ``statement`` |
| ``kis_<group>_<split>_answer`` | the object after what precedes it | ``acc``: ``sum``; ``acc_norm``: ``mean_char`` |

The harness cuts texts into tokens itself. A question is left out, and counted, where one of its options would be cut
otherwise than it was asked here. The context of ``answer`` begins with the end-of-document token, spelled out, and ends
with the space before the object, which the harness gives to the object.

Where the tokenizer puts a token of its own before every document, that token is spelled out after the end-of-document
token, for ``statement`` too, and the harness must be told not to put it there once more: ``add_bos_token=False`` among
its ``model_args`` (``export.json`` says so).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_kis.common.files import atomic_folder, check_empty, sha256_content, write_json, write_json_lines
from megatron_kis.common.terms import LM_EVAL_RULES, SPLITS
from megatron_kis.data_tools.tokenizers.base import Tokenizer
from megatron_kis.huggingface.tokens import tokenizer_of
from megatron_kis.probes.questions import Option, Question, QuestionSet, check_lengths
from megatron_kis.probes.texts import questions_for
from megatron_kis.training.artifacts import open_run

TASKS_SCHEMA = "kis.lm-eval/1"


def export_lm_eval(
    run: Path, output: Path, *, exposures: Path | None = None, all_templates: bool = False
) -> dict[str, dict[str, int]]:
    """Writes the tasks.

    Args:
        run: the run's folder.
        output: a folder that does not exist, or is empty; the tasks name their documents by its absolute path.
        exposures: prefix of other questions, made with the run's tokenizer; None for the run's own.
        all_templates: every template instead of the run's choice.

    Returns:
        Task to the ``questions`` that are in it and that are ``left_out``.

    Raises:
        InputError: no such run or questions, questions of another tokenizer, or the folder is taken.
    """
    check_empty(output)
    past = open_run(run)
    config, tokenizer = past.config, past.tokenizer
    templates = dict.fromkeys(SPLITS) if all_templates else config.probes.templates
    path, questions, sha256 = past.select_questions(exposures, templates)
    check_lengths(questions, config.training.sequence_length, where=str(path))
    return _write_tasks(questions, tokenizer, output, {"run": config.name, "questions_sha256": sha256})


def export_questions(path: Path, tokenizer: Path, output: Path) -> dict[str, dict[str, int]]:
    """Writes the tasks of questions that belong to no run.

    Args:
        path: what ``kis data questions`` wrote.
        tokenizer: tokenizer of the models that are asked, or the folder of one of them.
        output: as for ``export_lm_eval``.

    Returns:
        As ``export_lm_eval``.

    Raises:
        InputError: no such questions or tokenizer, or the folder is taken.
    """
    check_empty(output)
    own, first = tokenizer_of(tokenizer)
    questions = questions_for(path, own, first)
    return _write_tasks(questions, own, output, {"questions": str(path), "questions_sha256": sha256_content(path)})


def _write_tasks(
    questions: QuestionSet, tokenizer: Tokenizer, output: Path, source: dict[str, str]
) -> dict[str, dict[str, int]]:
    """Writes the tasks, and a record that begins with their ``source``."""
    with atomic_folder(output) as partial:
        counts = {}
        for task, (rows, left_out) in _documents(questions, tokenizer).items():
            counts[task] = {"questions": len(rows), "left_out": left_out}
            if rows:
                write_json_lines(partial / f"{task}.jsonl", rows)
                # JSON is YAML, too
                write_json(partial / f"{task}.yaml", _task(task, output.absolute() / f"{task}.jsonl"))
        record = {
            "schema": TASKS_SCHEMA,
            **source,
            "tokenizer": tokenizer.fingerprint,
            "first_tokens": list(questions.first_tokens),
            "model_args": "add_bos_token=False" if len(questions.first_tokens) > 1 else "",
            "tasks": counts,
        }
        write_json(partial / "export.json", record)
    return counts


def _task(name: str, documents: Path) -> dict[str, Any]:
    kind = name.rpartition("_")[2]
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(documents)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "context",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in LM_EVAL_RULES[kind]
        ],
        "metadata": {"version": 1.0},
    }


def _documents(questions: QuestionSet, tokenizer: Tokenizer) -> Mapping[str, tuple[list[dict[str, Any]], int]]:
    """Returns the documents of each task, and the number of questions that it leaves out."""
    found: dict[str, list[dict[str, Any] | None]] = defaultdict(list)
    first = questions.first_tokens
    # The harness puts the model's first token before an empty context: two tokens must be spelled out.
    spelled = "".join(map(tokenizer.piece, first)) if len(first) > 1 else ""
    for question in questions.questions:
        name = f"kis_{question.group}_{question.split}"
        whole = [_statement(option, tokenizer, first, spelled) for option in question.options]
        found[f"{name}_statement"].append(_row(question, spelled, whole))
        parts = [_parts(option, tokenizer, first) for option in question.options]
        contexts = {part[0] for part in parts if part is not None}
        same = len(contexts) == 1  # a(n): the words before the object go by the object
        choices = [part[1] if part is not None and same else None for part in parts]
        found[f"{name}_answer"].append(_row(question, next(iter(contexts), ""), choices))
    return {
        task: ([row for row in rows if row is not None], sum(row is None for row in rows))
        for task, rows in found.items()
    }


def _row(question: Question, context: str, choices: Sequence[str | None]) -> dict[str, Any] | None:
    if None in choices:
        return None
    return {
        "fact": question.fact,
        "relation": question.relation,
        "template": question.template,
        "context": context,
        "choices": choices,
        "answer": question.answer,
    }


def _statement(option: Option, tokenizer: Tokenizer, first: Sequence[int], spelled: str) -> str | None:
    """Returns the statement's text, if it (after the ``first`` tokens where they are spelled) is tokenized the same."""
    text = tokenizer.decode(list(option.tokens))
    expected = (*first, *option.tokens) if spelled else option.tokens
    return text if tuple(tokenizer.encode(spelled + text)) == expected else None


def _parts(option: Option, tokenizer: Tokenizer, first: Sequence[int]) -> tuple[str, str] | None:
    """Returns the text before the object, and the object, if both together are tokenized as the option is."""
    start, stop = option.span
    before = tokenizer.decode(list(option.tokens[:start]))
    until = tokenizer.decode(list(option.tokens[:stop]))
    spelled = "".join(map(tokenizer.piece, first))
    seen = tuple(first) if tuple(tokenizer.encode(spelled)) == tuple(first) else ()
    if len(first) > 1 and not seen:
        return None
    within = spelled if seen else ""
    cut_again = tuple(tokenizer.encode(within + before)) == (*seen, *option.tokens[:start])
    cut_again &= tuple(tokenizer.encode(within + until)) == (*seen, *option.tokens[:stop])
    space = " " if start and until == f"{before} {option.text}" else ""
    if not cut_again or until != f"{before}{space}{option.text}":
        return None
    return f"{spelled}{before}{space}", option.text
