"""Weights of a checkpoint under the names and shapes of Hugging Face's Llama, Qwen2 and Qwen3 architectures.

The model of ``megatron_kis.model.build`` is a Llama: RMSNorm, rotary embedding of half-split heads, grouped-query
attention, SwiGLU. With biases of queries, keys and values it is a Qwen2, with norms of each head's queries and keys a
Qwen3. Two matrices are laid out otherwise: Megatron-Core keeps query, key and value together, group by group (the
queries of a group, its key, its value), and SwiGLU's gate above its other input.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from megatron_kis.config.ladder import ModelShape

EMBEDDING = "embedding.word_embeddings.weight"
"""Name of the embedding in a checkpoint."""

OUTPUT = "output_layer.weight"
"""Name of the output layer's weights, where they are not the embedding's."""

LAYERS = "decoder.layers."
"""Beginning of the names of the layers' weights, which are stacked along the first dimension."""

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""Constants of Llama 3.1's stretched wavelengths, which Megatron-Core has in its code."""

_NORM = "decoder.final_layernorm.weight"
_QKV, _QKV_BIAS = "self_attention.linear_qkv.weight", "self_attention.linear_qkv.bias"
_FC1 = "mlp.linear_fc1.weight"
_ALIKE = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "self_attention.linear_proj.weight": "self_attn.o_proj.weight",
    "mlp.linear_fc1.layer_norm_weight": "post_attention_layernorm.weight",
    "mlp.linear_fc2.weight": "mlp.down_proj.weight",
}
_NORMS = {
    "self_attention.q_layernorm.weight": "self_attn.q_norm.weight",
    "self_attention.k_layernorm.weight": "self_attn.k_norm.weight",
}
_PARTS = ("q_proj", "k_proj", "v_proj")


def _alike(shape: ModelShape) -> dict[str, str]:
    """Returns the weights of a layer that are the same tensor here and there, by their names here."""
    return _ALIKE | (_NORMS if shape.qk_norm else {})


def _joined(shape: ModelShape) -> dict[str, str]:
    """Returns a layer's joined weights of queries, keys and values by name, and what their parts' names end in."""
    return {_QKV: "weight"} | ({_QKV_BIAS: "bias"} if shape.qkv_bias else {})


def stored_names(shape: ModelShape) -> list[str]:
    """Returns the names of a model's weights in a checkpoint."""
    layers = [LAYERS + name for name in (*_joined(shape), _FC1, *_alike(shape))]
    return [EMBEDDING, *layers, _NORM, *([] if shape.tied_embeddings else [OUTPUT])]


def to_llama(stored: Mapping[str, torch.Tensor], shape: ModelShape) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields names and tensors of a ``LlamaForCausalLM``, a ``Qwen2ForCausalLM`` or a ``Qwen3ForCausalLM``.

    Args:
        stored: whole tensors of ``stored_names``.
        shape: shape of the model.
    """
    yield "model.embed_tokens.weight", stored[EMBEDDING]
    for layer in range(shape.layers):
        name = f"model.layers.{layer}"
        for ours, kind in _joined(shape).items():
            for part, tensor in zip(_PARTS, split_qkv(stored[LAYERS + ours][layer], shape), strict=True):
                yield f"{name}.self_attn.{part}.{kind}", tensor
        if shape.qkv_bias and shape.qk_norm:  # a Qwen3 that has biases has one here, too
            yield f"{name}.self_attn.o_proj.bias", stored[EMBEDDING].new_zeros(shape.width)
        for ours, theirs in _alike(shape).items():
            yield f"{name}.{theirs}", stored[LAYERS + ours][layer]
        for theirs, tensor in zip(("gate", "up"), stored[LAYERS + _FC1][layer].chunk(2), strict=True):
            yield f"{name}.mlp.{theirs}_proj.weight", tensor
    yield "model.norm.weight", stored[_NORM]
    if not shape.tied_embeddings:
        yield "lm_head.weight", stored[OUTPUT]


def from_llama(tensors: Mapping[str, torch.Tensor], shape: ModelShape) -> dict[str, torch.Tensor]:
    """Returns the tensors of ``stored_names``: the inverse of ``to_llama``.

    Args:
        tensors: tensors of all names in ``llama_shapes``.
        shape: shape of the model.
    """
    stacked: dict[str, list[torch.Tensor]] = {}
    for layer in range(shape.layers):
        name = f"model.layers.{layer}"
        own = {ours: tensors[f"{name}.{theirs}"] for ours, theirs in _alike(shape).items()}
        for ours, kind in _joined(shape).items():
            query, key, value = (tensors[f"{name}.self_attn.{part}.{kind}"] for part in _PARTS)
            own[ours] = join_qkv(query, key, value, shape)
        own[_FC1] = torch.cat([tensors[f"{name}.mlp.{part}_proj.weight"] for part in ("gate", "up")])
        for ours, tensor in own.items():
            stacked.setdefault(LAYERS + ours, []).append(tensor)
    stored = {EMBEDDING: tensors["model.embed_tokens.weight"], _NORM: tensors["model.norm.weight"]}
    stored |= {name: torch.stack(layers) for name, layers in stacked.items()}
    if not shape.tied_embeddings:
        stored[OUTPUT] = tensors["lm_head.weight"]
    return stored


def split_qkv(joined: torch.Tensor, shape: ModelShape) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Splits Megatron-Core's joined matrix into query [heads * head, width], key and value [groups * head, width].

    Args:
        joined: [groups * (heads / groups + 2) * head, width]; of biases without the last axis.
        shape: shape of the model.
    """
    blocks = joined.view(shape.query_groups, -1, shape.head, *joined.shape[1:])
    query, key, value = blocks.split([shape.heads // shape.query_groups, 1, 1], dim=1)
    return query.flatten(0, 2), key.flatten(0, 2), value.flatten(0, 2)


def join_qkv(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, shape: ModelShape) -> torch.Tensor:
    """Returns Megatron-Core's joined matrix: the inverse of ``split_qkv``."""
    parts = [part.view(shape.query_groups, -1, shape.head, *part.shape[1:]) for part in (query, key, value)]
    return torch.cat(parts, dim=1).flatten(0, 2)


def stored_shapes(shape: ModelShape, *, vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of ``stored_names`` with ``vocabulary`` rows in the tables."""
    with torch.device("meta"):
        theirs = {name: torch.empty(size) for name, size in llama_shapes(shape, vocabulary=vocabulary).items()}
        return {name: tuple(tensor.shape) for name, tensor in from_llama(theirs, shape).items()}


def llama_shapes(shape: ModelShape, *, vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Returns names and shapes of the weights of an imported model with ``vocabulary`` rows in its tables."""
    width, ffn = shape.width, shape.ffn_width
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (width,),
        "self_attn.o_proj.weight": (width, shape.queries),
        "post_attention_layernorm.weight": (width,),
        "mlp.gate_proj.weight": (ffn, width),
        "mlp.up_proj.weight": (ffn, width),
        "mlp.down_proj.weight": (width, ffn),
    }
    for part, rows in zip(_PARTS, (shape.queries, shape.keys, shape.keys), strict=True):
        layer[f"self_attn.{part}.weight"] = (rows, width)
        if shape.qkv_bias:
            layer[f"self_attn.{part}.bias"] = (rows,)
    if shape.qk_norm:
        layer |= dict.fromkeys(_NORMS.values(), (shape.head,))
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, width)}
    for number in range(shape.layers):
        shapes |= {f"model.layers.{number}.{name}": size for name, size in layer.items()}
    shapes["model.norm.weight"] = (width,)
    if not shape.tied_embeddings:
        shapes["lm_head.weight"] = (vocabulary, width)
    return shapes


def _architecture(shape: ModelShape) -> dict[str, Any]:
    """Returns the entries of ``config.json`` that name an architecture, and those that only it has."""
    own: dict[str, Any]
    if shape.qk_norm:
        kind, name, own = "qwen3", "Qwen3", {"attention_bias": shape.qkv_bias, "use_sliding_window": False}
    elif shape.qkv_bias:
        kind, name, own = "qwen2", "Qwen2", {"use_sliding_window": False}
    elif shape.width % shape.heads:  # a Mistral without a window is a Llama, which must not have such heads
        kind, name, own = "mistral", "Mistral", {"sliding_window": None}
    else:
        kind, name, own = "llama", "Llama", {"attention_bias": False, "mlp_bias": False}
    return {"architectures": [f"{name}ForCausalLM"], "model_type": kind, **own}


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
    """Returns the content of ``config.json``: a Llama's, or that of the architecture that has such a shape.

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
    rope = {"rope_type": "default", "rope_theta": float(shape.rope_base)}
    if shape.rope_scaling:
        rope |= {"rope_type": "llama3", "factor": shape.rope_scaling, **LLAMA3}
    return {
        **_architecture(shape),
        "vocab_size": vocabulary,
        "hidden_size": shape.width,
        "intermediate_size": shape.ffn_width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.query_groups,
        "head_dim": shape.head,
        "hidden_act": "silu",
        "max_position_embeddings": max(sequence_length, positions or 0),
        "rms_norm_eps": shape.norm_epsilon,
        "rope_theta": float(shape.rope_base),  # transformers 4, as rope_scaling
        **({"rope_scaling": rope} if shape.rope_scaling else {}),
        "rope_parameters": rope,  # transformers 5
        "attention_dropout": 0.0,
        "tie_word_embeddings": shape.tied_embeddings,
        "bos_token_id": eod_id if bos_id is None else bos_id,
        "eos_token_id": eod_id,
        "pad_token_id": None,
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
