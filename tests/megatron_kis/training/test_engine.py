"""The engine's weights, from where they come, and its scoring passes, shared by ranks and bounded in memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_kis.common.configuration import parse_config
from megatron_kis.config.run import RunConfig
from megatron_kis.distributed.determinism import seed_device
from megatron_kis.distributed.device import open_device
from megatron_kis.distributed.groups import close_groups, open_groups
from megatron_kis.engine.engine import Engine
from megatron_kis.evaluate.restore import restored
from megatron_kis.model import build, head
from megatron_kis.training import trainer as run_module
from megatron_kis.training.artifacts import open_run
from megatron_kis.training.trainer import train
from tests.conftest import TINY_VOCABULARY
from tests.megatron_kis.fake_rank import fake_rank
from tests.megatron_kis.ranks import SERVER, free_port
from tests.runs import trained

MakeRun = Callable[..., RunConfig]
ROWS, LENGTH, VOCABULARY = 7, 32, 256


def config_of(**parallel: Any) -> RunConfig:
    content = {
        "name": "engine",
        "output": "unused",
        "device": "cpu",
        "data": dict.fromkeys(("corpus", "validation", "exposures", "tokenizer"), "unused"),
        "model": {"layers": 2, "width": 32, "heads": 4, "init_std": 0.2},
        "infusion": {"frequency": 0},
        "training": {"token_budget": 256, "sequence_length": LENGTH, "global_batch_size": 4},
        "parallel": parallel,
    }
    return parse_config(RunConfig, content, source="test")


def plain(weights: dict[str, Any]) -> dict[str, Any]:
    return {chunk: {name: entry.data.clone() for name, entry in named.items()} for chunk, named in weights.items()}


class StateOfItsOwn(torch.nn.Module):
    """As each of Transformer Engine's layers has, whatever the precision."""

    def get_extra_state(self) -> torch.Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state: torch.Tensor) -> None:
        msg = "nothing is to be unpickled"
        raise AssertionError(msg)


def test_weights_load_beside_layers_with_states_of_their_own() -> None:
    with fake_rank(1, 1, 0) as layout:
        engine = Engine(config_of(), vocabulary=VOCABULARY, layout=layout, device=open_device("cpu"))
        saved = plain(engine.weights())
        engine.chunks[0].module.decoder.layers[1].add_module("own", StateOfItsOwn())
        for weight in engine.chunks[0].parameters():
            weight.data.zero_()
        engine.load_weights(saved)
        for name, weight in engine.weights()["0"].items():
            assert torch.equal(weight.data, saved["0"][name])


def test_weights_that_are_missing_or_too_many_are_named() -> None:
    with fake_rank(1, 1, 0) as layout:
        engine = Engine(config_of(), vocabulary=VOCABULARY, layout=layout, device=open_device("cpu"))
        saved = plain(engine.weights())
        saved["0"]["odd.weight"] = saved["0"].pop("decoder.final_layernorm.weight")
        with pytest.raises(ValueError, match=r"missing: \['decoder.final_layernorm.weight'\].*not: \['odd.weight'\]"):
            engine.load_weights(saved)


@pytest.mark.slow
def test_weights_are_drawn_only_for_a_run_that_begins(tiny_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    stream = build._stream

    def counted(seed: int, name: str) -> int:
        drawn.append(name)
        return stream(seed, name)

    monkeypatch.setattr(build, "_stream", counted)
    config = tiny_run(checkpoints={"moments": {"every": 10}})

    def cut_off(run: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(run_module.Trainer, "_finish", cut_off)
        train(config)
    assert len(drawn) == 9  # the tied table, and four matrices in each of two layers
    drawn.clear()
    train(config)  # resumes
    with restored(config.output, open_run(config.output).config, vocabulary=TINY_VOCABULARY, step=None) as (engine, _):
        norms = [float(weight.detach().norm()) for weight in engine.chunks[0].parameters()]
    assert not drawn
    assert all(norms)


def scored(config: RunConfig, *, rows_per_pass: int, **sizes: int) -> dict[str, Any]:
    """Losses of the labels, and the shapes of the batches that the model was given."""
    device = open_device("cpu")
    layout = open_groups(device, **sizes)
    seed_device(device, 0, tensor_rank=layout.tensor_rank, pipeline_rank=layout.pipeline_rank)
    try:
        engine = Engine(config, vocabulary=VOCABULARY, layout=layout, device=device)
        shapes = []
        forward = engine.forward

        def counted(call: Any, *, rows: int, length: int) -> Any:
            shapes.append((rows, length))
            return forward(call, rows=rows, length=length)

        engine.forward = counted  # type: ignore[method-assign]
        tokens = np.random.default_rng(1).integers(0, VOCABULARY, (ROWS, LENGTH + 1))
        losses = engine.token_losses(tokens[:, :-1], tokens[:, 1:], rows_per_pass=rows_per_pass)
        return {"losses": losses, "shapes": shapes}
    finally:
        close_groups()


def _rank(folder: Path, rank: int, port: int, sizes: dict[str, int], parallel: dict[str, Any]) -> None:
    os.environ.update(
        WORLD_SIZE="2", RANK=str(rank), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    found = scored(config_of(**parallel), rows_per_pass=2, **sizes)
    losses = np.empty(0) if found["losses"] is None else found["losses"]
    np.savez(folder / f"{rank}.npz", losses=losses, shapes=found["shapes"])


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(
    ("parallel", "shapes", "scores"),
    [
        pytest.param({}, [(2, LENGTH)] * 2, [True, True], id="data"),
        pytest.param({"tensor": 2, "sequence": True}, [(2, LENGTH)] * 4, [True, True], id="sequence"),
        pytest.param({"pipeline": 2}, [(2, LENGTH)] * 4, [False, True], id="pipeline"),
        pytest.param({"context": 2}, [(2, LENGTH // 2)] * 4, [True, True], id="context"),
    ],
)
def test_ranks_share_what_is_scored_and_find_what_one_finds(
    parallel: dict[str, Any], shapes: list[tuple[int, int]], scores: list[bool], tmp_path: Path
) -> None:
    alone = scored(config_of(), rows_per_pass=2)
    assert alone["shapes"] == [(2, LENGTH)] * 4  # the seventh row twice: one shape
    sizes = {name: size for name, size in parallel.items() if name != "sequence"}
    port = free_port()
    ranks = [SERVER.Process(target=_rank, args=(tmp_path, rank, port, sizes, parallel)) for rank in (0, 1)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    assert [process.exitcode for process in ranks] == [0, 0]
    for rank in (0, 1):
        found = np.load(tmp_path / f"{rank}.npz")
        assert list(map(tuple, found["shapes"])) == shapes
        if not scores[rank]:
            assert not len(found["losses"])
        elif parallel:
            np.testing.assert_allclose(found["losses"], alone["losses"], atol=1e-5)
        else:  # whole rows: the same numbers
            np.testing.assert_array_equal(found["losses"], alone["losses"])


@pytest.mark.parametrize("most", [VOCABULARY * 10, VOCABULARY - 1])
def test_scoring_holds_no_more_logits_than_a_block(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = scored(config_of(), rows_per_pass=4)["losses"]
    held: list[int] = []
    cross_entropy = head.cross_entropy

    def counted(logits: torch.Tensor, *others: Any) -> torch.Tensor:
        held.append(logits.numel())
        return cross_entropy(logits, *others)

    monkeypatch.setattr(head, "cross_entropy", counted)
    monkeypatch.setattr(head, "LOGITS_PER_BLOCK", most)
    np.testing.assert_allclose(scored(config_of(), rows_per_pass=4)["losses"], whole, atol=1e-6)
    assert max(held) <= max(most, VOCABULARY)  # a node at least
    assert sum(held) == 8 * LENGTH * VOCABULARY


@pytest.mark.slow
def test_a_checkpoint_of_fp8_is_asked_in_bf16_on_any_device(tiny_run: MakeRun) -> None:
    config = tiny_run()
    trained(config)
    training = config.training.model_copy(update={"precision": "fp8"})
    half = open_run(config.output).config.model_copy(update={"training": training})
    with restored(config.output, half, vocabulary=TINY_VOCABULARY, step=None) as (engine, _):
        assert engine.precision == "bf16"
        tokens = np.ones((1, 8), dtype=np.int64)
        losses = engine.token_losses(tokens, tokens, rows_per_pass=1)
    assert losses is not None
    assert np.isfinite(losses).all()
