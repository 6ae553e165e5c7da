"""The exported model under the tools of others, on the exported questions: the same score of every option."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_kis.cli.main import main
from megatron_kis.common.configuration import parse_config
from megatron_kis.config.run import RunConfig
from megatron_kis.convert.lm_eval import _parts, export_lm_eval
from megatron_kis.convert.to_huggingface import export_huggingface
from megatron_kis.data_tools.facts.fact import load_facts
from megatron_kis.data_tools.rendering.statements import tokenize_option
from megatron_kis.data_tools.rendering.templates import load_templates
from megatron_kis.data_tools.selection.exports import export_bear
from megatron_kis.data_tools.tokenizers.registry import load_tokenizer
from megatron_kis.evaluate.restore import restored
from megatron_kis.probes.forward import Scorer
from megatron_kis.probes.probe import Probe
from megatron_kis.probes.questions import Option, Question, QuestionSet, read_questions
from megatron_kis.probes.scoring import RULES
from megatron_kis.training.artifacts import open_run
from megatron_kis.training.trainer import train
from tests.conftest import TINY_VOCABULARY
from tests.sources import Sources

pytestmark = pytest.mark.compare


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """A trained run whose probe asks with every template: the object first, in the middle and last."""
    content = {
        "name": "compared",
        "output": tmp_path_factory.mktemp("compared") / "run",
        "device": "cpu",
        "data": {
            "corpus": tiny_data / "corpus",
            "validation": tiny_data / "corpus.validation",
            "exposures": tiny_data / "exposures",
            "tokenizer": tiny_data / "tokenizer.model",
        },
        "model": {"layers": 2, "width": 32, "heads": 4, "query_groups": 2},
        "training": {"token_budget": 20 * 8 * 64, "sequence_length": 64, "global_batch_size": 8},
        "infusion": {"frequency": 8, "background": {"frequency": 6}},
        "probes": {"moments": {"shares": [1.0]}, "templates": {"train": None, "held_out": None, "question": None}},
    }
    return train(parse_config(RunConfig, content, source="compared"))


@pytest.fixture(scope="module")
def model(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's export."""
    return export_huggingface(run, tmp_path_factory.mktemp("exported") / "hf")


def option_scores(run: Path, questions: QuestionSet) -> list[np.ndarray]:
    """[options, rules] of each question."""
    with restored(run, open_run(run).config, vocabulary=TINY_VOCABULARY, step=None) as (engine, _):
        scorer = Scorer(engine)
        probe = Probe(questions, batch_size=256, branching=scorer.branching)
        edges = scorer.score(probe.trees, probe._rows_per_pass)
        assert edges is not None
        scores, _ = probe._option_scores(edges)
    return np.split(scores, np.cumsum([len(question.options) for question in questions.questions])[:-1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["statement", "answer"])
def test_lm_eval_gives_every_option_our_score(
    run: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    datasets = pytest.importorskip("datasets")
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    counts = export_lm_eval(run, tmp_path / "tasks")
    groups = [f"kis_{group}_{split}" for group in ("infused", "control") for split in ("train", "held_out")]
    tasks = [f"{name}_{kind}" for name in groups]
    assert all(counts[task]["questions"] > 20 * counts[task]["left_out"] for task in tasks), counts
    found = lm_eval.simple_evaluate(
        model=HFLM(pretrained=str(model), device="cpu", batch_size=64),
        tasks=tasks,
        task_manager=TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
    )
    config = open_run(run).config
    questions = read_questions(config.data.questions, config.probes.templates)
    ours = {
        (f"kis_{question.group}_{question.split}_{kind}", question.fact, question.template): (question, scores)
        for question, scores in zip(questions.questions, option_scores(run, questions), strict=True)
    }
    compared, starts = 0, set()
    rule = RULES.index("statement" if kind == "statement" else "sum")
    for task in tasks:
        right = {"acc,none": rule, "acc_norm,none": RULES.index("mean_char")}
        marks: dict[str, list[bool]] = {name: [] for name in right}
        for sample in found["samples"][task]:
            question, scores = ours[task, sample["doc"]["fact"], sample["doc"]["template"]]
            theirs = [float(response[0][0]) for response in sample["resps"]]
            np.testing.assert_allclose(theirs, scores[:, rule], rtol=0, atol=1e-4)
            for name, column in right.items():
                marks[name].append(int(scores[:, column].argmax()) == question.answer)
            starts.add(question.options[0].span[0] == 0)
            compared += len(theirs)
        for name, own in marks.items():
            if name in found["results"][task]:
                assert found["results"][task][name] == pytest.approx(np.mean(own))
    assert compared > 500
    assert starts == {True, False}


@pytest.mark.slow
def test_lm_pub_quiz_gives_every_option_our_score(
    run: Path, model: Path, tmp_path: Path, tiny_data: Path, tiny_sources: Sources
) -> None:
    lm_pub_quiz = pytest.importorskip("lm_pub_quiz")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    folders = export_bear(
        load_facts(tiny_data / "facts.jsonl"), load_templates(tiny_sources.templates), tmp_path / "data", split="train"
    )
    tokenizer, compared = load_tokenizer(open_run(run).config.data.tokenizer), 0
    evaluator = lm_pub_quiz.Evaluator.from_model(
        AutoModelForCausalLM.from_pretrained(model), tokenizer=AutoTokenizer.from_pretrained(model), model_type="CLM"
    )
    assert len(folders) == 3
    for folder in folders[:2]:
        metadata = json.loads((folder / "metadata_relations.json").read_text())
        asked, keys = [], []
        for relation, content in metadata.items():
            for line in (folder / f"{relation}.jsonl").read_text().splitlines():
                row = json.loads(line)
                for number, template in enumerate(content["templates"]):
                    encoded = [
                        tokenize_option(template, row["sub_label"], label, tokenizer)
                        for label in content["answer_space_labels"]
                    ]
                    options = tuple(Option(o["text"], tuple(o["tokens"]), tuple(o["span"])) for o in encoded)
                    asked.append(Question("f", "infused", relation, "train", number, row["answer_idx"], options))
                    keys.append((relation, row["sub_label"], number))
        ours = dict(zip(keys, option_scores(run, QuestionSet({"eod_id": 1}, tuple(asked))), strict=True))
        result = evaluator.evaluate_dataset(lm_pub_quiz.Dataset.from_path(str(folder)), batch_size=64, reduction="sum")
        for relation in result:
            for row in relation.instance_table.to_dict("records"):
                scores = ours.pop((relation.relation_code, row["sub_label"], row["template_index"]))
                np.testing.assert_allclose(row["pll_scores"], scores[:, 0], rtol=0, atol=1e-4)
                compared += len(scores)
        assert not ours
    assert compared > 500


def test_an_option_that_would_be_cut_otherwise_is_left_out(tiny_data: Path) -> None:
    tokenizer = load_tokenizer(tiny_data / "tokenizer.model")
    tokens = tuple(tokenizer.encode("The river crosses"))
    assert len(tokens) >= 3
    start = next(at for at in range(1, len(tokens)) if tokenizer.decode(list(tokens[:at])) == "The river")
    assert _parts(Option("crosses", tokens, (start, len(tokens))), tokenizer, (1,)) == (
        "<|endoftext|>The river ",
        "crosses",
    )
    pieces = {tokenizer.piece(token): token for token in range(tokenizer.vocab_size)}
    letters = (*tokens[:start], pieces["▁"], *(pieces[letter] for letter in "crosses"))  # another way to write it
    assert letters != tokens
    assert tokenizer.decode(list(letters)) == "The river crosses"
    assert _parts(Option("crosses", letters, (start, len(letters))), tokenizer, (1,)) is None
    assert _parts(Option("crosse", tokens, (start, len(tokens))), tokenizer, (1,)) is None


@pytest.mark.slow
def test_the_command_writes_tasks_and_refuses_a_folder_that_is_taken(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[Any]
) -> None:
    assert main(["export", "lm-eval", str(run), "--output", str(tmp_path / "tasks")]) == 0
    assert "kis_infused_held_out_answer: 24 questions, 0 left out" in capsys.readouterr().out
    record = json.loads((tmp_path / "tasks" / "export.json").read_text())
    assert record["schema"] == "kis.lm-eval/1"
    assert record["tasks"]["kis_control_question_statement"] == {"questions": 16, "left_out": 0}
    assert main(["export", "lm-eval", str(run), "--output", str(tmp_path / "tasks")]) == 2
    assert "not empty" in capsys.readouterr().err
