"""A tokenizer that puts a token of its own before every text: one frame for documents, exposures and questions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_kis.cli.main import main
from megatron_kis.common.configuration import parse_config
from megatron_kis.config.run import RunConfig
from megatron_kis.convert.lm_eval import export_lm_eval
from megatron_kis.convert.to_huggingface import export_huggingface
from megatron_kis.data_tools.facts.fact import load_facts
from megatron_kis.data_tools.preparation.prepare import DataPrepConfig, prepare_data
from megatron_kis.data_tools.readers.documents import iter_documents
from megatron_kis.data_tools.selection.select import SelectConfig
from megatron_kis.data_tools.storage.indexed import IndexedReader
from megatron_kis.data_tools.tokenizers.base import Tokenizer
from megatron_kis.data_tools.tokenizers.registry import load_tokenizer
from megatron_kis.engine.engine import Engine
from megatron_kis.evaluate.checkpoint import evaluate_checkpoint
from megatron_kis.evaluate.restore import restored
from megatron_kis.probes.forward import Scorer
from megatron_kis.probes.probe import Probe
from megatron_kis.probes.questions import QuestionSet, read_questions
from megatron_kis.probes.scoring import RULES, score_rules
from megatron_kis.training.artifacts import open_run
from megatron_kis.training.trainer import train
from tests.conftest import TINY_SELECTION, TINY_VOCABULARY
from tests.frames import BOS, EOD, write_framed_tokenizer
from tests.sources import Sources

pytestmark = pytest.mark.slow

ALL = {"train": None, "held_out": None, "question": None}


@dataclass(frozen=True)
class Framed:
    """A run on a tokenizer with a frame, and its data."""

    data: Path
    run: Path
    tokenizer: Tokenizer

    @property
    def first(self) -> list[int]:
        return list(self.tokenizer.frame[0])

    def questions(self) -> QuestionSet:
        return read_questions(self.data / "exposures.questions.jsonl", ALL)


@pytest.fixture(scope="module")
def framed(tmp_path_factory: pytest.TempPathFactory, tiny_sources: Sources) -> Framed:
    folder = tmp_path_factory.mktemp("framed")
    texts = [document.text for document in iter_documents([tiny_sources.text])]
    path = write_framed_tokenizer(folder / "tokenizer", texts, vocabulary=TINY_VOCABULARY)
    settings = DataPrepConfig(
        text=(tiny_sources.text,),
        facts=tiny_sources.triples,
        templates=tiny_sources.templates,
        tokenizer=path,
        select=SelectConfig(**TINY_SELECTION),
        validation_share=0.05,
    )
    prepare_data(settings, folder / "data")
    data = folder / "data"
    content = {
        "name": "framed",
        "output": folder / "run",
        "device": "cpu",
        "data": {
            "corpus": data / "corpus",
            "validation": data / "corpus.validation",
            "exposures": data / "exposures",
            "tokenizer": path,
        },
        "model": {"layers": 2, "width": 32, "heads": 4, "query_groups": 2},
        "training": {"token_budget": 20 * 8 * 96, "sequence_length": 96, "global_batch_size": 8},
        "infusion": {"frequency": 8, "background": {"frequency": 6}},
        "probes": {"moments": {"shares": [1.0]}, "templates": ALL},
    }
    run = train(parse_config(RunConfig, content, source="framed"))
    return Framed(data, run, load_tokenizer(path))


def test_documents_exposures_and_questions_begin_alike(framed: Framed) -> None:
    tokenizer, [bos] = framed.tokenizer, framed.first
    eod = tokenizer.eod_id
    assert (tokenizer.piece(eod), tokenizer.piece(bos)) == (EOD, BOS)
    for prefix in ("corpus", "exposures"):
        reader = IndexedReader(framed.data / prefix)
        for row in range(len(reader)):
            tokens = reader[row].tolist()
            assert (tokens[0], tokens[-1], tokens.count(bos), tokens.count(eod)) == (bos, eod, 1, 1)
    facts = {fact.id: fact for fact in load_facts(framed.data / "facts.jsonl")}
    exposures = IndexedReader(framed.data / "exposures")
    shown = {tuple(exposures[row].tolist()[1:-1]) for row in range(len(exposures))}
    for question in framed.questions().questions:
        option = question.options[question.answer]
        assert bos not in option.tokens
        if question.split == "train" and question.group != "control":
            assert option.tokens in shown
            assert option.text == facts[question.fact].object
    header = json.loads((framed.data / "exposures.json").read_text())
    assert header["frame"] == {"before": [bos], "after": []}
    assert list(framed.questions().first_tokens) == framed.first


def one_by_one(engine: Engine, questions: QuestionSet) -> tuple[np.ndarray, list[int]]:
    """[options, rules] of each option in a forward pass of its own, and whether greedy completion gives the answer."""
    first, scores, generated = list(questions.first_tokens), [], []

    def log_probs(tokens: tuple[int, ...]) -> np.ndarray:
        row = np.array([[*first, *tokens]])
        return -engine.token_losses(row[:, :-1], row[:, 1:], rows_per_pass=1)[:, len(first) - 1 :]

    for question in questions.questions:
        for option in question.options:
            own, neutral = log_probs(option.tokens), log_probs(option.tokens[slice(*option.span)]).sum()
            counts = {"characters": [len(option.text)], "byte_counts": [len(option.text.encode())]}
            facts = {"lengths": [len(option.tokens)], "spans": [option.span], **counts}
            scores.append(score_rules(own, neutral=[neutral], **facts)[0])
        right = question.options[question.answer]
        generated.append(_greedy(engine, [*first, *right.tokens], len(first) + right.span[0]))
    return np.array(scores), generated


def _greedy(engine: Engine, tokens: list[int], start: int) -> int:
    row = torch.tensor([tokens])
    with torch.no_grad():
        logits = engine.chunks[0](row, torch.arange(row.shape[1])[None], None)[0]
    return int(all(logits[at - 1].argmax() == tokens[at] for at in range(start, len(tokens))))


def test_the_probe_asks_after_the_first_tokens_which_are_not_scored(framed: Framed) -> None:
    questions = framed.questions()
    questions = QuestionSet(questions.header, questions.questions[::9])
    with restored(framed.run, open_run(framed.run).config, vocabulary=TINY_VOCABULARY, step=None) as (engine, _):
        engine.chunks[0].eval()
        expected, generated = one_by_one(engine, questions)
        engine.chunks[0].train()
        scorer = Scorer(engine)
        for width, batch_size in ((16, 1), (512, 10_000)):
            probe = Probe(questions, batch_size=batch_size, branching=scorer.branching, width=width)
            scores, _ = probe._option_scores(scorer.score(probe.trees, probe._rows_per_pass))
            np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)
            result = probe.evaluate(scorer.score)
            assert result is not None
            asked = result.generated >= 0
            assert asked.any()
            assert result.generated[asked].tolist() == np.array(generated)[asked].tolist()
        without = QuestionSet({**questions.header, "first_tokens": [framed.tokenizer.eod_id]}, questions.questions)
        probe = Probe(without, batch_size=64, branching=scorer.branching)
        other, _ = probe._option_scores(scorer.score(probe.trees, probe._rows_per_pass))
        assert np.abs(other - expected).max() > 1e-3


def test_a_checkpoint_asked_again_has_the_frame_of_training(framed: Framed, tmp_path: Path) -> None:
    found = evaluate_checkpoint(framed.run, device="cpu", outcomes=tmp_path / "again.npz")
    assert found is not None
    assert (found["first_tokens"], found["first_tokens_scored"]) == (framed.first, False)
    then, now = np.load(framed.run / "outcomes" / "step-20.npz"), np.load(tmp_path / "again.npz")
    for name in then:
        np.testing.assert_array_equal(then[name], now[name])
    assert main(["probe", str(framed.run), "--histories", str(tmp_path / "h.csv")]) == 0
    rows = (tmp_path / "h.csv").read_text().splitlines()[1:]
    assert len(rows) == len(framed.questions().questions)
    assert float(rows[0].rpartition(",")[2]) == pytest.approx(float(then["scores"][0, 0]), rel=1e-4)


def test_the_export_frames_a_text_as_documents_were(framed: Framed, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = export_huggingface(framed.run, tmp_path / "hf")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    text = "The river crosses the town."
    assert theirs(text)["input_ids"] == framed.tokenizer.encode_documents([text])[0]
    assert (theirs.bos_token, theirs.eos_token) == (BOS, EOD)
    config, generation = (json.loads((folder / name).read_text()) for name in ("config.json", "generation_config.json"))
    for content in (config, generation):
        assert [content["eos_token_id"], content["bos_token_id"]] == [framed.tokenizer.eod_id, *framed.first]


@pytest.mark.compare
@pytest.mark.parametrize("kind", ["statement", "answer"])
def test_lm_eval_gives_every_option_our_score(
    framed: Framed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    datasets = pytest.importorskip("datasets")
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    model = export_huggingface(framed.run, tmp_path / "hf")
    assert main(["export", "lm-eval", str(framed.run), "--output", str(tmp_path / "tasks")]) == 0
    assert "add_bos_token" not in capsys.readouterr().out
    record = json.loads((tmp_path / "tasks" / "export.json").read_text())
    assert (record["first_tokens"], record["model_args"]) == (framed.first, "")
    tasks = [f"kis_infused_{split}_{kind}" for split in ("train", "held_out", "question")]
    assert all(record["tasks"][task]["questions"] > 10 * record["tasks"][task]["left_out"] for task in tasks)
    found = lm_eval.simple_evaluate(
        model=HFLM(pretrained=str(model), device="cpu", batch_size=64),
        tasks=tasks,
        task_manager=TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
    )
    questions = framed.questions()
    with restored(framed.run, open_run(framed.run).config, vocabulary=TINY_VOCABULARY, step=None) as (engine, _):
        scorer = Scorer(engine)
        probe = Probe(questions, batch_size=256, branching=scorer.branching)
        edges = scorer.score(probe.trees, probe._rows_per_pass)
        scores, _ = probe._option_scores(edges)  # type: ignore[arg-type]
    sizes = np.cumsum([len(question.options) for question in questions.questions])[:-1]
    ours: dict[Any, np.ndarray] = {
        (f"kis_{question.group}_{question.split}_{kind}", question.fact, question.template): own
        for question, own in zip(questions.questions, np.split(scores, sizes), strict=True)
    }
    compared, rule = 0, RULES.index("statement" if kind == "statement" else "sum")
    for task in tasks:
        for sample in found["samples"][task]:
            expected = ours[task, sample["doc"]["fact"], sample["doc"]["template"]][:, rule]
            theirs = [float(response[0][0]) for response in sample["resps"]]
            np.testing.assert_allclose(theirs, expected, rtol=0, atol=1e-4)
            compared += len(theirs)
    assert compared > 300


def test_a_question_whose_frame_the_harness_would_not_read_is_left_out(framed: Framed, tmp_path: Path) -> None:
    header, rows = (framed.data / "exposures.questions.jsonl").read_text().split("\n", 1)
    space = framed.tokenizer.encode(" ")  # its piece, a letter that stands for a space, is cut into other tokens
    for first, left_out in ((framed.first, False), ([*framed.first, *space], True)):
        content = {**json.loads(header), "first_tokens": first}
        (tmp_path / "q.questions.jsonl").write_text(json.dumps(content) + "\n" + rows)
        counts = export_lm_eval(framed.run, tmp_path / f"tasks{len(first)}", exposures=tmp_path / "q")
        assert all((count["questions"] == 0) == left_out for count in counts.values())
