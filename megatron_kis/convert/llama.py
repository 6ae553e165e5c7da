"""Weights of a checkpoint under the names and shapes of Hugging Face's Llama architecture.

The model of ``megatron_kis.model.build`` is a Llama: RMSNorm, rotary embedding of half-split heads, grouped-query
attention, SwiGLU, no biases. Two matrices are laid out otherwise: Megatron-Core keeps query, key and value together,
group by group (the queries of a group, its key, its value), and SwiGLU's gate above its other input.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from megatron_kis.config.ladder import ModelShape

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
"""Name of the output layer's weights, where they are not the embedding's."""


def to_llama(stored: Mapping[str, torch.Tensor], shape: ModelShape) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields names and tensors of a ``LlamaForCausalLM``.

    Args:
        stored: whole tensors of ``STORED``, and ``STORED_OUTPUT`` if the embeddings are not tied.
        shape: shape of the model.
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
    """Splits Megatron-Core's joined matrix into query [width, width], key and value [groups * head, width].

    Args:
        joined: [groups * (heads / groups + 2) * head, width].
        shape: shape of the model.
    """
    head, queries = shape.width // shape.heads, shape.heads // shape.query_groups
    blocks = joined.view(shape.query_groups, queries + 2, head, shape.width)
    query, key, value = blocks.split([queries, 1, 1], dim=1)
    return tuple(part.reshape(-1, shape.width) for part in (query, key, value))


def from_llama(tensors: Mapping[str, torch.Tensor], shape: ModelShape) -> dict[str, torch.Tensor]:
    """Returns the tensors of ``STORED`` (and ``STORED_OUTPUT``) of a ``LlamaForCausalLM``: the inverse of ``to_llama``.

    Args:
        tensors: tensors of all names in ``llama_shapes``.
        shape: shape of the model.
    """
    stacked: dict[str, list[torch.Tensor]] = {name: [] for name in STORED[1:-1]}
    for layer in range(shape.layers):
        own = {name: tensors[f"model.layers.{layer}.{name}.weight"] for name in _LAYER}
        joined = (
            own["input_layernorm"],
            join_qkv(own["self_attn.q_proj"], own["self_attn.k_proj"], own["self_attn.v_proj"], shape),
            own["self_attn.o_proj"],
            own["post_attention_layernorm"],
            torch.cat([own["mlp.gate_proj"], own["mlp.up_proj"]]),
            own["mlp.down_proj"],
        )
        for name, tensor in zip(STORED[1:-1], joined, strict=True):
            stacked[name].append(tensor)
    stored = {STORED[0]: tensors["model.embed_tokens.weight"], STORED[-1]: tensors["model.norm.weight"]}
    stored |= {name: torch.stack(layers) for name, layers in stacked.items()}
    if not shape.tied_embeddings:
        stored[STORED_OUTPUT] = tensors["lm_head.weight"]
    return stored


_LAYER = (
    "input_layernorm",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "post_attention_layernorm",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


def llama_shapes(shape: ModelShape, *, vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Returns names and shapes of the weights of a ``LlamaForCausalLM`` with ``vocabulary`` rows in its tables."""
    width, ffn = shape.width, shape.ffn_width
    shared = width // shape.heads * shape.query_groups
    layer = dict(
        zip(
            _LAYER,
            [
                (width,),
                (width, width),
                (shared, width),
                (shared, width),
                (width, width),
                (width,),
                (ffn, width),
                (ffn, width),
                (width, ffn),
            ],
            strict=True,
        )
    )
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, width)}
    for number in range(shape.layers):
        shapes |= {f"model.layers.{number}.{name}.weight": size for name, size in layer.items()}
    shapes["model.norm.weight"] = (width,)
    if not shape.tied_embeddings:
        shapes["lm_head.weight"] = (vocabulary, width)
    return shapes


def join_qkv(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, shape: ModelShape) -> torch.Tensor:
    """Returns Megatron-Core's joined matrix: the inverse of ``split_qkv``."""
    head, groups = shape.width // shape.heads, shape.query_groups
    parts = [part.view(groups, -1, head, shape.width) for part in (query, key, value)]
    return torch.cat(parts, dim=1).reshape(-1, shape.width)


def llama_config(
    shape: ModelShape,
    *,
    vocabulary: int,
    sequence_length: int,
    eod_id: int,
    dtype: torch.dtype,
    bos_id: int | None = None,
    positions: int | None = None,
) -> dict[str, Any]:
    """Returns the content of ``config.json``.

    Args:
        shape: of the model.
        vocabulary: rows of the embedding, padding included: padding takes part in the softmax here as in training.
        sequence_length: the longest sequence it was trained on.
        eod_id: the token that ends documents.
        dtype: of the weights.
        bos_id: the token that the tokenizer puts before a document; None where it puts none there, so that the
            end-of-document token of the document before is the first one.
        positions: tokens of the longest sequence that the model it was trained from was made for, if there is one.
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
        "max_position_embeddings": max(sequence_length, positions or 0),
        "rms_norm_eps": shape.norm_epsilon,
        "rope_theta": float(shape.rope_base),  # transformers 4
        "rope_parameters": {"rope_type": "default", "rope_theta": float(shape.rope_base)},  # transformers 5
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": shape.tied_embeddings,
        "bos_token_id": eod_id if bos_id is None else bos_id,
        "eos_token_id": eod_id,
        "pad_token_id": None,
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
