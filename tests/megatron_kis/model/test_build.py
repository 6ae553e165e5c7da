"""The weights that a model begins with: those of one process, however ranks share them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_kis.config.ladder import ModelShape
from megatron_kis.distributed.device import open_device
from megatron_kis.distributed.megatron_imports import quiet_megatron
from megatron_kis.model.build import ModelSpec, build_model
from tests.megatron_kis.fake_rank import fake_rank

with quiet_megatron():
    from megatron.core import parallel_state
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories


def full_weights(tied: bool, *, tensor: int = 1, pipeline: int = 1, virtual: int = 1, seed: int = 0) -> dict[str, Any]:
    """Whole weights by name, put together from every rank's part by Megatron-Core's account of where it belongs."""
    whole: dict[str, torch.Tensor] = {}
    own: dict[str, Any] = {"head_width": 12, "qkv_bias": True, "qk_norm": True}
    shape = ModelShape(layers=4, width=32, heads=4, query_groups=2, ffn_width=48, tied_embeddings=tied, **own)
    for stage in range(pipeline):
        for tensor_rank in range(tensor):
            with fake_rank(tensor, pipeline, stage, tensor_rank=tensor_rank, virtual=virtual) as layout:
                for chunk in range(virtual):
                    model = build_model(ModelSpec(shape, 128, 16, layout, open_device("cpu")), seed=seed, chunk=chunk)
                    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
                    parts = model.sharded_state_dict(metadata={"dp_cp_group": group})
                    apply_factories(parts)
                    for part in nested_values(parts):
                        if isinstance(part, ShardedTensor):
                            full = whole.setdefault(part.key, torch.full(part.global_shape, torch.nan))
                            where = tuple(
                                slice(start, start + size)
                                for start, size in zip(
                                    part.global_offset,
                                    (1,) * part.prepend_axis_num + tuple(part.local_shape),
                                    strict=True,
                                )
                            )
                            full[where] = part.data.detach()
    return whole


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "layout",
    [{"tensor": 2}, {"pipeline": 2}, {"tensor": 2, "pipeline": 2}, {"pipeline": 2, "virtual": 2}],
    ids=str,
)
def test_a_seed_has_the_same_full_weights_under_every_layout(layout: dict[str, int], tied: bool) -> None:
    alone, shared = full_weights(tied), full_weights(tied, **layout)
    assert alone.keys() == shared.keys()
    for name, weight in alone.items():
        assert torch.isfinite(weight).all(), name
        assert torch.equal(shared[name], weight), name


def test_biases_begin_at_zero_and_norms_at_one() -> None:
    weights = {name.removeprefix("decoder.layers."): tensor for name, tensor in full_weights(True).items()}
    assert weights["self_attention.linear_qkv.bias"].eq(0).all()
    assert weights["self_attention.q_layernorm.weight"].eq(1).all()
    assert weights["self_attention.k_layernorm.weight"].shape == (4, 12)


def test_another_seed_has_other_weights() -> None:
    one, other = (full_weights(True, seed=seed) for seed in (0, 1))
    name = "embedding.word_embeddings.weight"
    assert not torch.equal(one[name], other[name])
