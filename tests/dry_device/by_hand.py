"""A model small enough to count by hand, on the dry device: what ``test_counts.py`` looks at."""

from __future__ import annotations

from typing import Any

from tests.dry_device import cuda, kernels, world
from tests.dry_device.counts import Counts, read_from_the_host

import torch  # isort: skip


def counted() -> dict[str, Any]:
    """Rank 1 of 4: a product, attention, what the host reads, and two messages."""
    counts: Counts = Counts()
    found: dict[str, Any] = {}
    world.open_world(1, 4, counts.say)
    mode = cuda.install(counts.sync)
    read_from_the_host(counts)
    with mode, counts:
        layer = torch.nn.Linear(256, 512, bias=False, device="cuda", dtype=torch.bfloat16)
        inputs = torch.zeros(128, 256, device="cuda", dtype=torch.bfloat16)
        found["layer and inputs"] = counts.alive
        counts.restart()
        counts.begin("passes")
        outputs = layer(inputs)
        found["with outputs"] = counts.alive
        outputs.sum().backward()
        found |= {"flops": dict(counts.flops), "peak": counts.peaks["passes"][0], "launches": counts.launches["passes"]}
        del outputs
        layer.weight.grad = None
        found["in the end"] = counts.alive
        q = torch.zeros(2, 4, 64, 32, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        counts.restart()
        kernels.attention(q, q, q, is_causal=True).sum().backward()
        found["attention"], found["kernel"] = dict(counts.flops), list(kernels.CHOSEN)
        counts.restart()
        here = torch.tensor(3)
        found["known"] = [here.item(), torch.arange(6).view(2, 3)[1].tolist(), bool((torch.arange(3) == 1)[1])]
        found["syncs of the host alone"] = sum(counts.syncs.values())
        inputs[0, 0].item()
        inputs.cpu()
        found |= {"syncs": dict(counts.syncs), "copied": counts.copied_to_host}
        torch.distributed.init_process_group("nccl")
        pair = torch.distributed.new_group([1, 3], backend="nccl", group_desc="TENSOR_MODEL_PARALLEL_GROUP")
        torch.distributed.all_reduce(inputs, group=pair)
        torch.distributed.send(inputs, 3, group=pair)
        found["messages"] = counts.messages
        del layer, inputs, q
        found["after all"] = counts.alive
        try:
            torch.zeros(2, device="cuda") + torch.zeros(2)
        except RuntimeError as error:
            found["mixed"] = str(error)
    return found
