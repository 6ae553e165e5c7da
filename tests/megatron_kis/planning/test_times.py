"""The parts of a step's time: what each depends on, and that published times are met."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from megatron_kis.config.ladder import PRESETS
from megatron_kis.planning.communication import Message
from megatron_kis.planning.hardware import GPUS
from megatron_kis.planning.split import Split
from megatron_kis.planning.times import Program, Seconds, link, message_seconds, step_time

H100 = GPUS["h100"]


def time(name: str = "7b", **given: Any) -> Seconds:
    known = {"length", "micro_batch", "micro_batches", "gpu", "program"}
    split = Split(**{key: value for key, value in given.items() if key not in known})
    split = replace(split, distributed_optimizer=split.data * split.context > 1)
    arguments: dict[str, Any] = {
        "length": 2048,
        "micro_batch": 1,
        "micro_batches": 16,
        "gpu": H100,
        "program": Program(),
    }
    arguments |= {key: value for key, value in given.items() if key in known}
    return step_time(PRESETS[name], 32_000, split, **arguments)


def test_one_gpu_only_computes() -> None:
    alone = time("1b", micro_batch=8)
    assert alone.tensor == alone.context == alone.pipeline == alone.bubble == alone.data == 0
    flops = PRESETS["1b"].flops_per_token(32_000, 2048) * 16 * 8 * 2048
    assert 0.3 < flops / (alone.total * H100.peak_bf16) < H100.products
    double = time("1b", micro_batch=8, gpu=replace(H100, peak_bf16=2 * H100.peak_bf16, bandwidth=2 * H100.bandwidth))
    assert double.compute == pytest.approx(alone.compute / 2)
    assert time("1b", micro_batch=8, gpu=replace(H100, nvlink=1.0, network=1.0)) == alone


def test_fp32_is_computed_without_tensor_cores_and_sent_in_twice_the_bytes() -> None:
    half, full = time("1b", tensor=2), time("1b", tensor=2, program=Program(precision="fp32"))
    assert 9 < full.compute / half.compute < H100.peak_bf16 / H100.peak_fp32
    assert 1.5 < full.tensor / half.tensor < 2  # the links are as fast; a message's latency is the same
    assert time("1b", program=Program(precision="fp8")) == time("1b")  # not measured, and kis plan says so


def test_what_is_split_over_tensor_ranks_is_computed_once_and_talked_about() -> None:
    one, eight = time(tensor=1), time(tensor=8)
    assert one.compute / 8 < eight.compute < one.compute / 4  # norms and residuals are on every rank
    assert time(tensor=8, sequence=True).compute < eight.compute
    assert one.tensor == 0 < eight.tensor
    assert eight.tensor / eight.total > 0.15
    assert time(tensor=8, gpu=replace(H100, nvlink=H100.nvlink / 4)).tensor > 2 * eight.tensor


def test_whole_layers_computed_again_cost_a_third_and_their_messages() -> None:
    kept, again = time(tensor=2), time(tensor=2, recompute="full")
    assert 1.25 < again.compute / kept.compute < 4 / 3
    assert again.tensor > 1.4 * kept.tensor
    some = time(tensor=2, recompute="selective")  # the feed-forward block has over half of a layer's products
    assert 1.1 < some.compute / kept.compute < again.compute / kept.compute - 0.05
    assert kept.tensor < some.tensor < again.tensor


def test_stages_wait_as_long_as_the_others_take_for_one_micro_batch() -> None:
    whole = time(pipeline=4, micro_batches=12)
    assert 0.19 < whole.bubble / whole.compute <= 3 / 12  # the last stage has the output layer and sets the pace
    assert time(pipeline=4, virtual=2, micro_batches=12).bubble == pytest.approx(whole.bubble / 2, rel=0.02)
    assert time(pipeline=4, virtual=2, micro_batches=12).pipeline == 0  # sent while the next chunk computes
    assert whole.pipeline > 0
    # the stages of 8 GPUs are in one node; those of 64 are in eight
    assert time(pipeline=4, data=16, micro_batches=12).pipeline > 3 * time(pipeline=4, micro_batches=12).pipeline


def test_gradients_are_hidden_by_a_long_backward_pass_but_for_a_bucket() -> None:
    slow = replace(H100, network=5e9)
    long = time(data=64, micro_batch=16, gpu=slow, program=Program(overlap_gather=True))
    short = time(data=64, micro_batch=1, gpu=slow, program=Program(overlap_gather=True))
    assert 0 < long.data < short.data
    exposed = time(data=64, micro_batch=16, gpu=slow, program=Program(overlap_gather=False))
    assert exposed.data > long.data  # the weights are waited for


def test_sequences_that_ranks_share_are_gathered_or_passed_round() -> None:
    gathered = time(context=4, length=32_768)
    ring = time(context=4, length=32_768, program=Program(ring=True))
    assert 0 == ring.context < gathered.context  # passed round while attention computes
    assert gathered.compute < time(length=32_768).compute / 3


def test_a_small_model_waits_for_its_kernels() -> None:
    small = time("70m")
    assert small.launch > small.compute / 2
    assert small.limit.startswith("launch")
    assert time("70m", micro_batch=64).limit == "compute"


def test_a_group_within_a_node_talks_over_nvlink() -> None:
    split = Split(tensor=4, pipeline=2, context=2, data=8)
    inside = link("tensor", 4, split, H100)
    assert inside == link("context", 2, split, H100) == H100.nvlink * 0.8
    # one rank in each half of a node: a ring leaves over the network of its two members
    assert link("data", 16, split, H100) == 2 * H100.network * 0.8
    assert link("data", 64, Split(data=64), H100) == 8 * H100.network * 0.8
    assert link("pipeline", 2, split, H100) == H100.network * 0.8
    assert link("pipeline", 2, Split(tensor=2, pipeline=4), H100) == H100.nvlink * 0.8


def test_a_ring_moves_a_tensor_once_or_twice() -> None:
    split, size = Split(tensor=4), 1e9
    rate = link("tensor", 4, split, H100)

    def seconds(operation: Any) -> float:
        return message_seconds(Message("tensor", operation, 4, 1, size), split, H100)

    assert seconds("all_gather") == seconds("reduce_scatter") == pytest.approx(0.75 * size / rate, rel=0.01)
    assert seconds("all_reduce") == pytest.approx(1.5 * size / rate, rel=0.01)
    assert seconds("send") == pytest.approx(size / rate, rel=0.01)


def test_the_largest_loss_is_named() -> None:
    parts = {"launch": 0.0, "tensor": 0.1, "context": 0.0, "pipeline": 0.0, "bubble": 0.2, "data": 0.0, "update": 0.0}
    assert Seconds(compute=0.7, **parts).limit == "bubble 20%"
    assert Seconds(compute=9.0, **parts).limit == "compute"
