"""``kis export lm-eval``: a run's questions as tasks of lm-evaluation-harness, to be asked of its ``kis export hf``.

Two tasks for each group and split, each a YAML file and its documents beside it:

| task | what it scores | our rule |
|---|---|---|
| ``kis_<group>_<split>_statement`` | whole statements after an empty context | ``acc``: ``statement`` |
| ``kis_<group>_<split>_answer`` | the object after what precedes it | ``acc``: ``sum``; ``acc_norm``: ``mean_char`` |

The harness cuts texts into tokens itself. A question is left out, and counted, where one of its options would be cut
otherwise than it was asked here. The context of ``answer`` begins with the end-of-document token, spelled out, and ends
with the space before the object, which the harness gives to the object.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_tools.tokenizer import Tokenizer
from megatron_kis.errors import InputError
from megatron_kis.files import write_json, write_json_lines
from megatron_kis.probes.questions import SPLITS, Option, Question
from megatron_kis.training.kept import open_run

TASKS_SCHEMA = "kis.lm-eval/1"
_METRICS = {"statement": ("acc",), "answer": ("acc", "acc_norm")}


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
    if output.exists() and any(output.iterdir()):
        raise InputError("the folder is not empty", where=str(output), remedy="choose another output")
    past = open_run(run)
    config, tokenizer = past.config, past.tokenizer
    templates = dict.fromkeys(SPLITS) if all_templates else config.probes.templates
    _, questions, sha256 = past.asked(exposures, templates)
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        counts = {}
        for task, (rows, left_out) in _documents(questions.questions, tokenizer).items():
            counts[task] = {"questions": len(rows), "left_out": left_out}
            if rows:
                write_json_lines(partial / f"{task}.jsonl", rows)
                # JSON is YAML, too
                write_json(partial / f"{task}.yaml", _task(task, output.absolute() / f"{task}.jsonl"))
        record = {
            "schema": TASKS_SCHEMA,
            "run": config.name,
            "questions_sha256": sha256,
            "tokenizer": tokenizer.fingerprint,
            "tasks": counts,
        }
        write_json(partial / "export.json", record)
        if output.exists():
            output.rmdir()
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
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
        "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in _METRICS[kind]],
        "metadata": {"version": 1.0},
    }


def _documents(questions: Sequence[Question], tokenizer: Tokenizer) -> Mapping[str, tuple[list[dict[str, Any]], int]]:
    """Task to its documents and how many questions cannot be asked so."""
    found: dict[str, list[dict[str, Any] | None]] = defaultdict(list)
    for question in questions:
        name = f"kis_{question.group}_{question.split}"
        whole = [_statement(option, tokenizer) for option in question.options]
        found[f"{name}_statement"].append(_row(question, "", whole))
        parts = [_parts(option, tokenizer) for option in question.options]
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
        "fact": question.fact, "relation": question.relation, "template": question.template,
        "context": context, "choices": choices, "answer": question.answer,
    }  # fmt: skip


def _statement(option: Option, tokenizer: Tokenizer) -> str | None:
    """The statement, if its text is cut into these tokens again."""
    text = tokenizer.decode(list(option.tokens))
    return text if tuple(tokenizer.encode(text)) == option.tokens else None


def _parts(option: Option, tokenizer: Tokenizer) -> tuple[str, str] | None:
    """What precedes the object, and the object, if both texts together are cut where the tokens are."""
    start, stop = option.span
    before, until = (tokenizer.decode(list(option.tokens[:end])) for end in (start, stop))
    cut_again = tuple(tokenizer.encode(before)) == option.tokens[:start]
    cut_again &= tuple(tokenizer.encode(until)) == option.tokens[:stop]
    space = " " if start and until == f"{before} {option.text}" else ""
    if not cut_again or until != f"{before}{space}{option.text}":
        return None
    return f"{tokenizer.piece(tokenizer.eod_id)}{before}{space}", option.text
