"""An engine of ``kis train`` on random sequences, for measurements that need no data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from megatron_kis.common.configuration import parse_config
from megatron_kis.config.run import RunConfig
from megatron_kis.config.vocabulary import padded_vocabulary
from megatron_kis.distributed.determinism import seed_device
from megatron_kis.distributed.device import Device, open_device
from megatron_kis.distributed.groups import ParallelDims, close_groups, open_groups

Samples = list[dict[str, torch.Tensor]]


@contextmanager
def opened(device: str, *, tensor: int = 1, pipeline: int = 1) -> Iterator[tuple[Device, ParallelDims]]:
    """This rank on its device, its random streams seeded; sizes as in a run's configuration."""
    place = open_device(device, in_order=tensor > 1)
    layout = open_groups(place, tensor=tensor, pipeline=pipeline)
    try:
        seed_device(place, 0, tensor_rank=layout.tensor_rank, pipeline_rank=layout.pipeline_rank)
        yield place, layout
    finally:
        close_groups()


def samples_of(batch: int, length: int, vocabulary: int) -> Samples:
    """Random sequences: their content affects neither speed nor memory."""
    window = torch.randint(0, vocabulary, (batch, length + 1), generator=torch.Generator().manual_seed(1))
    position, mask = torch.arange(length), torch.ones(length)
    return [{"tokens": row[:-1], "labels": row[1:], "loss_mask": mask, "position_ids": position} for row in window]


def build(
    device: Device,
    layout: ParallelDims,
    *,
    preset: str,
    vocabulary: int,
    length: int,
    batch: int,
    precision: str,
    implementation: str,
    parallel: Mapping[str, Any] | None = None,
) -> Any:
    """The engine.

    Args:
        device: where.
        layout: of one rank.
        preset: of the model.
        vocabulary: pieces, before padding.
        length: tokens per sequence.
        batch: sequences per step.
        precision: of the training.
        implementation: ``model.transformer_impl``.
        parallel: section of the configuration.
    """
    from megatron_kis.engine.engine import Engine

    content = {
        "name": "benchmark",
        "output": "unused",
        "device": device.kind,
        "data": dict.fromkeys(("corpus", "validation", "exposures", "tokenizer"), "unused"),
        "model": {"preset": preset, "transformer_impl": implementation},
        "infusion": {"frequency": 0},
        "training": {
            "token_budget": batch * length,
            "sequence_length": length,
            "global_batch_size": batch,
            "precision": precision,
        },
        "parallel": dict(parallel or {}),
    }
    config = parse_config(RunConfig, content, source="benchmark")
    return Engine(config, vocabulary=padded_vocabulary(vocabulary), layout=layout, device=device)
