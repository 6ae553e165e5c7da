"""lm-eval and LM-Pub-Quiz give every option of a model of others the score that we give it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_kis.common.terms import SPLITS
from megatron_kis.convert.lm_eval import export_questions
from megatron_kis.data_tools.facts.fact import load_facts
from megatron_kis.data_tools.rendering.templates import load_templates
from megatron_kis.data_tools.selection.exports import export_bear
from megatron_kis.huggingface import load_model
from megatron_kis.huggingface.ask import laid_out
from megatron_kis.probes.questions import QuestionSet, read_questions
from megatron_kis.probes.scoring import RULES
from tests.megatron_kis.huggingface.conftest import Asked

pytestmark = [pytest.mark.compare, pytest.mark.slow]


def option_scores(model: Path, questions: QuestionSet) -> list[np.ndarray]:
    """[options, rules] of each question, from prefix trees."""
    scorer, probe, because = laid_out(load_model(model), questions)
    assert not because
    scores, _ = probe._option_scores(scorer.score(probe.trees))
    return np.split(scores, np.cumsum([len(question.options) for question in questions.questions])[:-1])


@pytest.mark.parametrize("kind", ["statement", "answer"])
def test_lm_eval(asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    datasets = pytest.importorskip("datasets")
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    counts = export_questions(asked.questions, asked.model, tmp_path / "tasks")
    tasks = [task for task in counts if task.endswith(kind)]
    assert len(tasks) == 6
    found = lm_eval.simple_evaluate(
        model=HFLM(pretrained=str(asked.model), device="cpu", batch_size=16),
        tasks=tasks,
        task_manager=TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
    )
    questions = read_questions(asked.questions, dict.fromkeys(SPLITS))
    ours = {
        (f"kis_{question.group}_{question.split}_{kind}", question.fact, question.template): scores
        for question, scores in zip(questions.questions, option_scores(asked.model, questions), strict=True)
    }
    rule, compared = RULES.index("statement" if kind == "statement" else "sum"), 0
    for task in tasks:
        for sample in found["samples"][task]:
            scores = ours[task, sample["doc"]["fact"], sample["doc"]["template"]]
            theirs = [float(response[0][0]) for response in sample["resps"]]
            np.testing.assert_allclose(theirs, scores[:, rule], rtol=0, atol=1e-4)
            compared += 1
    assert compared == sum(counts[task]["questions"] for task in tasks) > 20


def test_lm_pub_quiz(asked: Asked, tmp_path: Path) -> None:
    lm_pub_quiz = pytest.importorskip("lm_pub_quiz")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    facts, templates = load_facts(asked.facts), load_templates(asked.templates)
    folders = export_bear(facts, templates, tmp_path / "data", split="train")
    questions = read_questions(asked.questions, {"train": None})
    subjects = {fact.id: fact.subject for fact in facts}
    ours = {
        (subjects[question.fact], question.template): (question, scores[:, RULES.index("statement")])
        for question, scores in zip(questions.questions, option_scores(asked.model, questions), strict=True)
    }
    evaluator = lm_pub_quiz.Evaluator.from_model(
        AutoModelForCausalLM.from_pretrained(asked.model),
        tokenizer=AutoTokenizer.from_pretrained(asked.model),
        model_type="CLM",
        capitalize=False,
    )
    compared = 0
    for folder in folders:
        labels = json.loads((folder / "metadata_relations.json").read_text())["capital"]["answer_space_labels"]
        result = evaluator.evaluate_dataset(lm_pub_quiz.Dataset.from_path(str(folder)), batch_size=16, reduction="sum")
        for relation in result:
            for row in relation.instance_table.to_dict("records"):
                question, scores = ours[row["sub_label"], row["template_index"]]
                theirs = dict(zip(labels, row["pll_scores"], strict=True))
                expected = [theirs[option.text] for option in question.options]
                np.testing.assert_allclose(expected, scores, rtol=0, atol=1e-4)
                compared += 1
    assert compared == len(ours) == 16
