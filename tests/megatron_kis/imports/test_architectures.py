"""The configuration of a model: what of it the model here can be, and what is refused by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_kis.common.errors import InputError
from megatron_kis.convert.architectures import read_shape

CONFIG: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 64,
}
LLAMA_31 = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
PATH = Path("config.json")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"model_type": "llama"}, {"head_width": None, "qkv_bias": False, "qk_norm": False}),
        ({"model_type": "llama", "num_key_value_heads": None}, {"query_groups": 4}),
        ({"model_type": "mistral", "sliding_window": 64}, {"head_width": None}),
        ({"model_type": "mistral", "sliding_window": None, "head_dim": 8}, {"head_width": None}),
        ({"model_type": "qwen2", "attention_bias": True}, {"qkv_bias": True, "qk_norm": False}),
        ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 64}, {"qkv_bias": True}),
        ({"model_type": "qwen2", "sliding_window": 8}, {"qkv_bias": True}),
        (
            {"model_type": "llama", "rope_theta": 5e5, "rope_scaling": {"factor": 32.0, **LLAMA_31}},
            {"rope_scaling": 32.0, "rope_base": 500_000},
        ),
        ({"model_type": "qwen3"}, {"head_width": 128, "qkv_bias": False, "qk_norm": True}),
        ({"model_type": "qwen3", "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, {"rope_base": 10**6}),
    ],
    ids=str,
)
def test_the_shape_is_that_which_transformers_would_read(change: dict[str, Any], expected: dict[str, Any]) -> None:
    shape = read_shape({**CONFIG, **change}, PATH)
    assert {name: getattr(shape, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"model_type": "olmo2"}, "model_type 'olmo2' is not supported: its norms come after attention"),
        ({"model_type": "gemma3_text"}, "model_type 'gemma3_text' is not supported: it scales its embedding"),
        ({"model_type": "qwen3_moe"}, "model_type 'qwen3_moe' is not supported: it has experts"),
        ({"model_type": "mamba2"}, "it has layers other than attention"),
        ({"model_type": "of_tomorrow"}, "model_type 'of_tomorrow' is not supported; Llama"),
        ({"model_type": None}, "not the configuration of a Llama, Mistral or Qwen"),
        (
            {"model_type": "mistral", "sliding_window": 63},
            "sliding_window is not supported: it is 63; .*max_position_embeddings to 63",
        ),
        ({"model_type": "mistral", "max_position_embeddings": 8192}, "the default of transformers.*: it is 4096"),
        ({"model_type": "mistral", "sliding_window": 9, "max_position_embeddings": None}, "sliding_window is not"),
        ({"model_type": "mistral", "sliding_window": "no"}, "sliding_window is 'no'"),
        ({"model_type": "llama", "sliding_window": 128}, "sliding_window is not supported"),
        ({"model_type": "qwen3", "use_sliding_window": True, "sliding_window": 8}, "sliding_window is not supported"),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "max_position_embeddings": 8192},
            "the default.*: it is 4096",
        ),
        (
            {"model_type": "qwen3", "use_sliding_window": True, "max_position_embeddings": 8192},
            "the default.*: it is 4096",
        ),
        ({"model_type": "qwen3", "attention_bias": True}, "attention_bias is not supported"),
        ({"model_type": "qwen2", "layer_types": ["linear_attention"]}, "layer_types .*linear_attention"),
        ({"model_type": "llama", "layer_types": [1, ["a"], None]}, r"layer_types 1, None, \['a'\] are not supported"),
        ({"model_type": "llama", "layer_types": "full_attention"}, "layer_types is a string; a list of names"),
        ({"model_type": "llama", "layer_types": 5}, "layer_types is a number; a list of names"),
        ({"model_type": "qwen2", "rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_type 'yarn' is not supported"),
        (
            {"model_type": "qwen3", "rope_parameters": {"full_attention": {"rope_type": "yarn"}}},
            r"rope_parameters\.full_attention is not supported",
        ),
        (
            {"model_type": "llama", "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "partial_rotary_factor 0.5 is not supported",
        ),
        (
            {"model_type": "llama", "rope_scaling": {**LLAMA_31, "factor": 8.0, "high_freq_factor": 8.0}},
            "'llama3' is not supported with other constants",
        ),
        ({"model_type": "llama", "rope_scaling": LLAMA_31}, "not the configuration"),
        ({"model_type": "qwen3", "num_attention_heads": 3}, r"model\.query_groups 3 heads cannot share 2"),
    ],
    ids=str,
)
def test_what_the_model_here_cannot_be_is_refused_by_its_name(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint) as refused:
        read_shape({**CONFIG, **change}, PATH)
    assert str(refused.value).startswith("config.json")
