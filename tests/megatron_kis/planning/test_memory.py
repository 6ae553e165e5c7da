"""The cost model against Megatron-Core's own modules: parameters on the meta device, activations in this process."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron_kis.common.configuration import parse_config
from megatron_kis.config.ladder import PRESETS, ModelShape
from megatron_kis.config.run import RunConfig
from megatron_kis.distributed.device import open_device
from megatron_kis.engine.engine import Engine
from megatron_kis.engine.optimizer import CpuOptimizer
from megatron_kis.model.build import ModelSpec, assemble_model
from megatron_kis.planning import activations
from megatron_kis.planning.activations import Operation, backward_peak, forward_peak
from megatron_kis.planning.memory import Memory, memory
from megatron_kis.planning.passes import pass_order
from megatron_kis.planning.split import Recompute, Split, rank_params
from megatron_kis.planning.work import Work
from tests.megatron_kis.fake_rank import fake_rank

VOCABULARY = 32_000
LIKE_QWEN = {
    "qwen2": ModelShape(8, 896, 14, 2, 4864, qkv_bias=True),
    "qwen3": ModelShape(8, 1024, 16, 8, 3072, head_width=128, qk_norm=True),
    "both": ModelShape(8, 1024, 16, 8, 3072, head_width=128, qkv_bias=True, qk_norm=True),
}
LAYOUTS = [(tensor, pipeline) for tensor in (1, 2, 8) for pipeline in (1, 2, 8)]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*PRESETS, *LIKE_QWEN])
def test_a_rank_holds_the_parameters_that_the_plan_says(name: str) -> None:
    shape, checked = (PRESETS | LIKE_QWEN)[name], 0
    for tensor, pipeline in LAYOUTS:
        parts = (shape.heads, shape.query_groups, shape.ffn_width)
        if any(part % tensor for part in parts) or shape.layers % pipeline:
            continue
        for stage in sorted({0, pipeline // 2, pipeline - 1}):
            with fake_rank(tensor, pipeline, stage) as layout, torch.device("meta"):
                model = assemble_model(ModelSpec(shape, VOCABULARY, 128, layout, open_device("cpu")))
                built = sum(parameter.numel() for parameter in model.parameters())
            split = Split(tensor=tensor, pipeline=pipeline)
            assert rank_params(shape, VOCABULARY, split, stage) == built, (tensor, pipeline, stage)
            checked += 1
    assert checked >= 2
    assert rank_params(shape, VOCABULARY, Split(), 0) == shape.params(VOCABULARY)


def kept(
    shape: ModelShape,
    tensor: int,
    recompute: Recompute,
    *,
    length: int,
    batch: int,
    vocabulary: int,
    sequence: bool = False,
) -> int:
    """Bytes that a forward pass keeps for the backward pass, weights apart; each storage counted once."""
    with fake_rank(tensor, 1, 0) as layout:
        spec = ModelSpec(
            shape,
            vocabulary=vocabulary,
            sequence_length=length,
            layout=layout,
            device=open_device("cpu"),
            recompute=recompute,
            sequence_parallel=sequence,
        )
        model = assemble_model(spec)
        own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        held: dict[int, torch.Tensor] = {}  # alive, so that no place is used twice

        def pack(saved: torch.Tensor) -> torch.Tensor:
            if saved.untyped_storage().data_ptr() not in own:
                held[saved.untyped_storage().data_ptr()] = saved
            return saved

        tokens = torch.zeros(batch, length, dtype=torch.long)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
            model(tokens, torch.arange(length).expand(batch, length), None, labels=tokens)
        return sum(saved.untyped_storage().nbytes() for saved in held.values())


def host(shape: ModelShape, split: Split) -> Work:
    """What the model of ``kept`` computes here: fp32, PyTorch's operators one by one."""
    return Work(shape, 512, split, 96, 3, precision="fp32", kernels="plain")


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("tensor", [1, 2])
@pytest.mark.parametrize("groups", [2, 4])
def test_a_layer_keeps_the_bytes_that_the_plan_says(recompute: Recompute, tensor: int, groups: int) -> None:
    one, three = (
        kept(ModelShape(layers, 64, 4, groups, 160, False), tensor, recompute, length=96, batch=3, vocabulary=512)
        for layers in (1, 3)
    )
    work = host(ModelShape(1, 64, 4, groups, 160, False), Split(tensor=tensor, recompute=recompute))
    assert (three - one) / 2 == pytest.approx(activations.kept(activations.layers(work, 1)), rel=0.01)


@pytest.mark.parametrize("recompute", ["none", "selective"])
@pytest.mark.parametrize("tensor", [1, 2])
def test_a_layer_of_normed_queries_keeps_the_bytes_that_the_plan_says(recompute: Recompute, tensor: int) -> None:
    shape = {
        layers: ModelShape(layers, 64, 4, 2, 160, False, head_width=24, qkv_bias=True, qk_norm=True)
        for layers in (1, 3)
    }
    one, three = (kept(shape[layers], tensor, recompute, length=96, batch=3, vocabulary=512) for layers in (1, 3))
    work = host(shape[1], Split(tensor=tensor, recompute=recompute))
    assert (three - one) / 2 == pytest.approx(activations.kept(activations.layers(work, 1)), rel=0.01)


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_a_layer_that_shares_its_sequences_keeps_the_bytes_that_the_plan_says(recompute: Recompute) -> None:
    shape = {layers: ModelShape(layers, 64, 4, 2, 160, False) for layers in (1, 3)}
    one, three = (
        kept(shape[layers], 2, recompute, length=96, batch=3, vocabulary=512, sequence=True) for layers in (1, 3)
    )
    work = host(shape[1], Split(tensor=2, recompute=recompute, sequence=True))
    assert (three - one) / 2 == pytest.approx(activations.kept(activations.layers(work, 1)), rel=0.01)


def test_a_model_keeps_the_bytes_that_the_plan_says() -> None:
    shape = ModelShape(4, 64, 4, 2, 160)
    real = kept(shape, 1, "none", length=96, batch=3, vocabulary=512)
    work = host(shape, Split())
    told = activations.kept([*activations.layers(work, 4), *activations.head(work, tied=True)])
    assert real == pytest.approx(told, rel=0.01)


def test_the_peak_of_a_pass_is_the_largest_sum_of_what_is_alive() -> None:
    found = [Operation("a", 10, forward=1, backward=30), Operation("b", 20, forward=5, backward=2, left=4)]
    assert forward_peak(found) == 35  # in b: what both keep, and 5
    assert backward_peak(found) == 44  # in a: its own 10, what b left, and 30
    assert backward_peak(found[1:]) == 22


def test_a_step_leaves_the_weights_gradients_and_moments_that_the_plan_says() -> None:
    content = {
        "name": "memory",
        "output": "unused",
        "device": "cpu",
        "data": dict.fromkeys(("corpus", "validation", "exposures", "tokenizer"), "unused"),
        "model": {"layers": 2, "width": 32, "heads": 2},
        "infusion": {"frequency": 0},
        "training": {"token_budget": 64, "sequence_length": 32, "global_batch_size": 2},
    }
    config = parse_config(RunConfig, content, source="test")
    tokens, ones = torch.arange(33), torch.ones(32)
    sample = {"tokens": tokens[:-1], "labels": tokens[1:], "loss_mask": ones, "position_ids": tokens[:-1]}
    with fake_rank(1, 1, 0) as layout:
        engine = Engine(config, vocabulary=256, layout=layout, device=open_device("cpu"))
        engine.train_step([sample] * 2, micro_batch_size=2, learning_rate=1e-3, accept=lambda loss, norm: True)
        weights = [weight for chunk in engine.chunks for weight in chunk.parameters()]
        assert isinstance(engine._optimizer, CpuOptimizer)
        moments = [state[name] for state in engine._optimizer._states.values() for name in ("exp_avg", "exp_avg_sq")]
    told = memory(
        config.model.shape(),
        256,
        Split(),
        length=32,
        micro_batch=2,
        micro_batches=1,
        precision="fp32",
        kernels="plain",
    )
    assert sum(weight.nbytes for weight in weights) == told.weights
    assert sum(weight.grad.nbytes for weight in weights if weight.grad is not None) == told.gradients
    assert sum(moment.nbytes for moment in moments) == told.optimizer


def most_held(split: Split, stage: int, micro_batches: int) -> int:
    """Chunks' passes whose backward pass is still to come, at most."""
    held = most = 0
    for forward, _ in pass_order(split, stage, micro_batches):
        held += 1 if forward else -1
        most = max(most, held)
    return most


def test_the_first_stage_holds_the_most_micro_batches() -> None:
    for virtual in (1, 2, 4):
        held = [most_held(Split(pipeline=4, virtual=virtual), stage, 64) for stage in range(4)]
        assert held == sorted(held, reverse=True)
    assert most_held(Split(pipeline=4), 0, 64) == 4
    assert most_held(Split(pipeline=4), 0, 2) == 2
    assert most_held(Split(pipeline=4, virtual=2), 0, 64) == 8 + 3  # Korthikanti et al. 2022, section 4.2.3
    assert most_held(Split(), 0, 64) == 1


@pytest.mark.parametrize(("pipeline", "virtual"), [(1, 1), (2, 1), (4, 1), (2, 2), (4, 2), (2, 3)])
def test_the_order_of_passes_is_that_of_megatron_core(pipeline: int, virtual: int) -> None:
    from megatron.core.pipeline_parallel import schedules

    count = 8
    for stage in range(pipeline):
        order = list(pass_order(Split(pipeline=pipeline, virtual=virtual), stage, count))
        table = schedules.get_schedule_table(count, virtual, pipeline)
        assert [chunk for forward, chunk in order if forward] == [chunk for _, chunk in table]
        assert [chunk for forward, chunk in order if not forward] == [virtual - 1 - chunk for _, chunk in table]
        place = SimpleNamespace(
            pp_group=SimpleNamespace(size=lambda: pipeline, rank=lambda stage=stage: stage),
            virtual_pipeline_model_parallel_size=virtual if virtual > 1 else None,
        )
        _, _, ahead, _ = schedules.get_pp_rank_microbatches(count, virtual, pipeline, p2p_communicator=place)
        assert next(number for number, (forward, _) in enumerate(order) if not forward) == ahead + 1


@pytest.fixture
def seven() -> Callable[[Split], float]:
    return lambda split: memory(PRESETS["7b"], VOCABULARY, split, length=2048, micro_batch=1, micro_batches=16).total


def test_every_way_to_save_memory_saves_memory(seven: Callable[[Split], float]) -> None:
    base = seven(Split(data=8))
    for cheaper in (
        Split(data=8, distributed_optimizer=True),
        Split(data=8, recompute="full"),
        Split(tensor=2, data=4),
        Split(pipeline=2, data=4),
    ):
        assert seven(cheaper) < base


def test_mixed_precision_adam_takes_eighteen_bytes_a_parameter() -> None:
    parts = memory(PRESETS["1b"], VOCABULARY, Split(), length=128, micro_batch=1, micro_batches=1)
    params = PRESETS["1b"].params(VOCABULARY)
    assert parts.weights + parts.gradients + parts.optimizer == 18 * params  # ZeRO's 16, gradients in fp32: 18


def told(split: Split, **given: Any) -> Memory:
    return memory(PRESETS["7b"], VOCABULARY, split, **{"length": 2048, "micro_batch": 1, "micro_batches": 16} | given)


def test_the_part_that_takes_the_most_sets_the_peak() -> None:
    usual, short = told(Split()), told(Split(recompute="full"), length=128)
    assert (usual.peak, short.peak) == ("passes", "load")  # to load joins matrices, which no short sequence outweighs
    for found in (usual, short):
        assert found.total == found.static + found.context + max(found.parts.values())
        assert all(size >= found.remains for size in found.parts.values())


def test_layers_that_are_not_known_yet_are_those_that_take_more() -> None:
    for split in (Split(), Split(tensor=8, pipeline=4, data=8, distributed_optimizer=True, sequence=True)):
        each = {layers: told(split, layers=layers).total for layers in ("sdpa", "transformer_engine")}
        assert len(set(each.values())) == 2
        assert told(split).total == max(each.values())
    assert told(Split(), precision="fp8").layers == "transformer_engine"
    assert told(Split(), own_mask=True).layers == "sdpa"


def test_masks_of_documents_are_counted() -> None:
    plain, masked = (told(Split(), layers="sdpa", own_mask=own).parts["passes"] for own in (False, True))
    of_layers, of_batches = 32 * 2048 * 2048 * 2, 16 * 2048 * 2048  # bf16 to add to the scores; as they come, 1 byte
    assert masked - plain == of_layers + of_batches


def test_each_group_of_ranks_that_talks_takes_memory() -> None:
    contexts = [
        told(split).context
        for split in (
            Split(),
            Split(data=8, distributed_optimizer=True),
            Split(tensor=8),
            Split(tensor=8, pipeline=4, data=8, distributed_optimizer=True),
        )
    ]
    assert contexts == pytest.approx([1e9 + 0.7e9 * groups for groups in (0, 3, 3, 5)])
