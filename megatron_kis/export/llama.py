"""Weights of a checkpoint under the names and shapes of Hugging Face's Llama architecture.

The model of ``megatron_kis.model.build`` is a Llama: RMSNorm, rotary embedding of half-split heads, grouped-query
attention, SwiGLU, no biases. Two matrices are laid out otherwise: Megatron-Core keeps query, key and value together,
group by group (the queries of a group, its key, its value), and SwiGLU's gate above its other input.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from megatron_kis.model.ladder import ModelShape

NORM_EPSILON = 1e-5  # of `megatron_kis.model.build`

STORED = (
    "embedding.word_embeddings.weight",
    "decoder.layers.self_attention.linear_qkv.layer_norm_weight",
    "decoder.layers.self_attention.linear_qkv.weight",
    "decoder.layers.self_attention.linear_proj.weight",
    "decoder.layers.mlp.linear_fc1.layer_norm_weight",
    "decoder.layers.mlp.linear_fc1.weight",
    "decoder.layers.mlp.linear_fc2.weight",
    "decoder.final_layernorm.weight",
)
"""Names of the weights in a checkpoint; layers are stacked along the first dimension."""

STORED_OUTPUT = "output_layer.weight"
"""Where the output layer does not share the embedding's weights."""


def to_llama(stored: Mapping[str, torch.Tensor], shape: ModelShape) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields names and tensors of a ``LlamaForCausalLM``.

    Args:
        stored: the tensors of ``STORED``, whole, and ``STORED_OUTPUT`` if the embeddings are not tied.
        shape: of the model.
    """
    yield "model.embed_tokens.weight", stored[STORED[0]]
    for layer in range(shape.layers):
        own = {name.removeprefix("decoder.layers."): stored[name][layer] for name in STORED[1:-1]}
        name = f"model.layers.{layer}"
        query, key, value = split_qkv(own["self_attention.linear_qkv.weight"], shape)
        gate, up = own["mlp.linear_fc1.weight"].chunk(2)
        yield f"{name}.input_layernorm.weight", own["self_attention.linear_qkv.layer_norm_weight"]
        yield f"{name}.self_attn.q_proj.weight", query
        yield f"{name}.self_attn.k_proj.weight", key
        yield f"{name}.self_attn.v_proj.weight", value
        yield f"{name}.self_attn.o_proj.weight", own["self_attention.linear_proj.weight"]
        yield f"{name}.post_attention_layernorm.weight", own["mlp.linear_fc1.layer_norm_weight"]
        yield f"{name}.mlp.gate_proj.weight", gate
        yield f"{name}.mlp.up_proj.weight", up
        yield f"{name}.mlp.down_proj.weight", own["mlp.linear_fc2.weight"]
    yield "model.norm.weight", stored[STORED[-1]]
    if not shape.tied_embeddings:
        yield "lm_head.weight", stored[STORED_OUTPUT]


def split_qkv(joined: torch.Tensor, shape: ModelShape) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query [width, width], key and value [groups * head, width] of Megatron-Core's joined matrix.

    Args:
        joined: [groups * (heads / groups + 2) * head, width].
        shape: of the model.
    """
    head, queries = shape.width // shape.heads, shape.heads // shape.query_groups
    blocks = joined.view(shape.query_groups, queries + 2, head, shape.width)
    query, key, value = blocks.split([queries, 1, 1], dim=1)
    return tuple(part.reshape(-1, shape.width) for part in (query, key, value))


def llama_config(
    shape: ModelShape, *, vocabulary: int, sequence_length: int, eod_id: int, dtype: torch.dtype
) -> dict[str, Any]:
    """The content of ``config.json``.

    Args:
        shape: of the model.
        vocabulary: rows of the embedding, padding included: padding takes part in the softmax here as in training.
        sequence_length: the longest sequence it was trained on.
        eod_id: the token that ends documents, and so stands before each.
        dtype: of the weights.
    """
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": shape.width,
        "intermediate_size": shape.ffn_width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.query_groups,
        "head_dim": shape.width // shape.heads,
        "hidden_act": "silu",
        "max_position_embeddings": sequence_length,
        "rms_norm_eps": NORM_EPSILON,
        "rope_theta": float(shape.rope_base),  # transformers 4
        "rope_parameters": {"rope_type": "default", "rope_theta": float(shape.rope_base)},  # transformers 5
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": shape.tied_embeddings,
        "bos_token_id": eod_id,
        "eos_token_id": eod_id,
        "pad_token_id": None,
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
