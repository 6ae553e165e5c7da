"""Arguments of Megatron-LM that make another model than this project's, and the values with which they do not."""

from __future__ import annotations

from typing import Any

OTHER_MODELS: dict[str, Any] = {
    "window_size": None,
    "window_attn_skip_freq": None,
    "softmax_type": "vanilla",
    "attention_output_gate": False,
    "experimental_attention_variant": None,
    "linear_attention_freq": None,
    "qk_l2_norm": False,
    "rotary_interleaved": False,
    "rotary_seq_len_interpolation_factor": None,
    "no_rope_freq": None,
    "openai_gelu": False,
    "quick_geglu": False,
    "glu_linear_offset": 0.0,
    "activation_func_clamp_value": None,
    "apply_residual_connection_post_layernorm": False,
    "layernorm_zero_centered_gamma": False,
    "use_mup": False,
    "spec": None,
    "hybrid_layer_pattern": None,
    "hybrid_override_pattern": None,
    "heterogeneous_layers_config_path": None,
    "heterogeneous_layers_config_encoded_json": None,
}
"""By name among the parsed arguments. A run's shape has no key for any of them."""
