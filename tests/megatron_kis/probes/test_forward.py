"""The trees through the real model, against one option at a time through the engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from megatron_kis.common.configuration import parse_config
from megatron_kis.config.run import RunConfig
from megatron_kis.distributed.groups import ParallelDims
from megatron_kis.engine.engine import Engine
from megatron_kis.evaluate.checkpoint import evaluate_checkpoint
from megatron_kis.evaluate.restore import restored
from megatron_kis.probes.forward import Scorer
from megatron_kis.probes.probe import Probe
from megatron_kis.probes.questions import QuestionSet, read_questions
from megatron_kis.probes.scoring import score_rules
from megatron_kis.training.artifacts import open_run
from megatron_kis.training.trainer import train
from tests.conftest import TINY_VOCABULARY
from tests.megatron_kis.ranks import Rank, free_port
from tests.run_files import losses
from tests.runs import trained

MakeRun = Callable[..., RunConfig]


def one_by_one(engine: Engine, questions: QuestionSet, bos_id: int) -> np.ndarray:
    """[options, rules but pmi], each option in a forward pass of its own."""
    scores = []
    for question in questions.questions:
        for option in question.options:
            labels = np.array([option.tokens])
            losses = engine.token_losses(np.array([[bos_id, *option.tokens[:-1]]]), labels, rows_per_pass=1)
            counts = {"characters": [len(option.text)], "byte_counts": [len(option.text.encode())]}
            own = score_rules(-losses, lengths=[labels.shape[1]], spans=[option.span], neutral=[0.0], **counts)
            scores.append(own[0, :-1])
    return np.array(scores)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """A trained run with grouped queries."""
    data = {
        "corpus": "corpus",
        "validation": "corpus.validation",
        "exposures": "exposures",
        "tokenizer": "tokenizer.model",
    }
    content = {
        "name": "probed",
        "output": tmp_path_factory.mktemp("probed") / "run",
        "device": "cpu",
        "data": {name: tiny_data / place for name, place in data.items()},
        "model": {"layers": 2, "width": 32, "heads": 4, "query_groups": 2},
        "training": {"token_budget": 20 * 8 * 64, "sequence_length": 64, "global_batch_size": 8},
        "infusion": {"frequency": 8, "background": {"frequency": 6}},
        "probes": {"moments": {"shares": [1.0]}, "templates": {"train": 1, "held_out": 1}},
    }
    return train(parse_config(RunConfig, content, source="probed"))


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["sdpa", "local"])
def test_rows_of_options_score_as_each_option_alone(run: Path, implementation: str) -> None:
    config = open_run(run).config
    model = config.model.model_copy(update={"transformer_impl": implementation})
    questions = read_questions(config.data.questions, {"held_out": 1, "question": 1})
    questions = QuestionSet(questions.header, questions.questions[::6])
    with restored(run, config.model_copy(update={"model": model}), vocabulary=TINY_VOCABULARY, step=None) as (
        engine,
        _,
    ):
        expected = one_by_one(engine, questions, bos_id=1)
        scorer = Scorer(engine)
        assert scorer.branching == (implementation == "sdpa")
        drawn = torch.get_rng_state()
        for width, batch_size in ((16, 1), (64, 30), (512, 10_000)):
            probe = Probe(questions, batch_size=batch_size, branching=scorer.branching, width=width)
            scores, _ = probe._option_scores(scorer.score(probe.trees, probe._rows_per_pass))
            np.testing.assert_allclose(scores[:, :-1], expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(torch.get_rng_state(), drawn)
        assert engine.chunks[0].training
        again = one_by_one(engine, questions, bos_id=1)
    assert (again == expected).all()  # the model is as it was


@pytest.mark.slow
def test_on_an_accelerator_a_probe_has_few_shapes_and_the_same_scores(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = open_run(run).config
    questions = read_questions(config.data.questions, {"train": 2, "held_out": 2, "question": 2})
    shapes: list[tuple[int, int]] = []
    forward = Engine.forward

    def counted(self: Engine, call: Callable[..., torch.Tensor], *, rows: int, length: int) -> torch.Tensor | None:
        shapes.append((rows, length))
        return forward(self, call, rows=rows, length=length)

    monkeypatch.setattr(Engine, "forward", counted)
    with restored(run, config, vocabulary=TINY_VOCABULARY, step=None) as (engine, _):
        probe = Probe(questions, batch_size=40, branching=True)
        scorer = Scorer(engine)
        tight, tight_shapes = scorer.score(probe.trees, 4), set(shapes)
        scorer._few_shapes = True
        shapes.clear()
        padded = scorer.score(probe.trees, 4)
    assert tight is not None
    assert padded is not None
    np.testing.assert_allclose(padded.log_probs, tight.log_probs, rtol=1e-5, atol=1e-5)
    assert (padded.greedy == tight.greedy).all()
    assert len(shapes) > len(tight_shapes) > 6
    assert len({rows for rows, _ in shapes}) == 1
    assert {length for _, length in shapes} <= {32, 64, 96, 128, 160, 192}


@pytest.mark.parametrize("nodes", [1, 32, 33, 512, 513, 700, 4000, 100_000])
def test_rows_of_few_widths_are_little_wider(nodes: int) -> None:
    layout = ParallelDims(8, 0, 4, 0, 1, 0, 1, 0, context_size=2)
    engine = SimpleNamespace(layout=layout, device=SimpleNamespace(torch_device=torch.device("cuda")), chunks=[])
    scorer = Scorer(engine)  # type: ignore[arg-type]
    width = scorer._width(nodes)
    assert width % 32 == 0  # 4 tensor ranks, 2 pieces of each of 2 context ranks
    assert nodes <= width < nodes + max(32, nodes / 8)
    assert len({scorer._width(number) for number in range(1, 4097)}) == 16 + 8 * 3


@pytest.mark.slow
def test_a_checkpoint_asked_again_answers_as_in_training(run: Path, tmp_path: Path) -> None:
    found = evaluate_checkpoint(run, device="cpu", outcomes=tmp_path / "again.npz")
    assert found is not None
    assert (found["step"], found["ties"], found["asked"]) == (20, "wrong", 96)
    then, now = np.load(run / "outcomes" / "step-20.npz"), np.load(tmp_path / "again.npz")
    assert sorted(then) == sorted(now)
    for name in then:
        np.testing.assert_array_equal(then[name], now[name])


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("layout", [("--tensor", "2"), ("--pipeline", "2"), ()], ids=["tensor", "pipeline", "data"])
def test_two_ranks_find_what_one_finds(run: Path, tmp_path: Path, layout: tuple[str, ...]) -> None:
    alone = evaluate_checkpoint(run, device="cpu", outcomes=tmp_path / "alone.npz")
    assert alone is not None
    command = ["probe", str(run), "--device", "cpu", "--json", *layout, "--outcomes", str(tmp_path / "two.npz")]
    shared = {
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
    }
    logs = [tmp_path / f"{rank}.log" for rank in (0, 1)]
    ranks = [
        Rank(command, {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, log) for rank, log in enumerate(logs)
    ]
    assert [rank.wait(120) for rank in ranks] == [0, 0]
    said = [log.read_text() for log in logs]
    (found,) = [json.loads(text) for text in said if text]
    one, two = np.load(tmp_path / "alone.npz"), np.load(tmp_path / "two.npz")
    for name in ("scores", "margins"):
        np.testing.assert_allclose(two[name], one[name], rtol=1e-5, atol=2e-5)
    assert [row["margin"] for row in found["rows"]] == pytest.approx([row["margin"] for row in alone["rows"]], abs=1e-4)


@pytest.mark.slow
def test_with_and_without_probes_the_losses_are_the_same(tiny_run: MakeRun) -> None:
    asked = train(tiny_run(name="asked", probes={"moments": {"every": 3}}))
    silent = trained(tiny_run())
    assert len(list((asked / "outcomes").glob("*.npz"))) >= 6
    assert len(list((silent / "outcomes").glob("*.npz"))) == 1
    first, second = ((folder / "exposures.json").read_text() for folder in (asked, silent))
    assert first == second
    assert list(losses(asked).values()) == list(losses(silent).values())
