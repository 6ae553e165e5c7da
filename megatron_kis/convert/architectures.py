"""The ``config.json`` of a Hugging Face model as the shape of a model here.

The architectures that Megatron-Core's ``GPTModel`` can be with the settings of ``megatron_kis.model.build`` are
Llama, Mistral without a window, Qwen2 and Qwen3. All others are refused by name, with what is missing, and so is every
feature that changes what the model computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_kis.common.errors import InputError
from megatron_kis.common.parsing import damage, kind_in_json
from megatron_kis.config.ladder import ModelShape
from megatron_kis.convert.llama import LLAMA3

_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {"num_key_value_heads": 32, "sliding_window": 4096},
    "qwen3": {"num_key_value_heads": 32, "sliding_window": 4096, "head_dim": 128},
}
"""By ``model_type``: what transformers takes a key to be that the file does not have, where it is not Llama's."""

_EXPERTS = "it has experts"
_GPT = "it has learned positions, LayerNorm, and biases in every layer"
_GEMMA = "it scales its embedding, its norms add 1 to their weights, and its gate is GELU"
_RECURRENT = "it has layers other than attention"

_OTHERS = {
    "olmo": "its norms have no weights, but Megatron-Core's do",
    "olmo2": "its norms come after attention and feed-forward block, and one norm covers the queries of all heads",
    "olmo3": "its norms come after attention and feed-forward block, and most layers have a window",
    "olmoe": _EXPERTS,
    "gemma": _GEMMA,
    "gemma2": f"{_GEMMA}; it has further norms, and caps its logits",
    "gemma3": f"{_GEMMA}; it has further norms, and most layers have a window",
    "gemma3_text": f"{_GEMMA}; it has further norms, and most layers have a window",
    "gpt2": _GPT,
    "opt": _GPT,
    "gpt_neo": _GPT,
    "gptj": "it has LayerNorm, and computes attention and feed-forward block from the same input",
    "gpt_neox": "it has LayerNorm and biases, and computes attention and feed-forward block from the same input",
    "bloom": "it has ALiBi in place of rotary embedding, LayerNorm, and biases in every layer",
    "falcon": "it has LayerNorm, and computes attention and feed-forward block from the same input",
    "phi": "it has LayerNorm, biases, and a rotary embedding of a part of each head",
    "phi3": "it joins its matrices in another order, and most of its models scale their rotary embedding",
    "stablelm": "it has LayerNorm, and a rotary embedding of a part of each head",
    "starcoder2": "it has LayerNorm, biases, and a feed-forward block without a gate",
    "cohere": "it has LayerNorm, scales its logits, and computes attention and feed-forward block from the same input",
    "granite": "it scales its embedding, its residuals, its attention and its logits",
    "smollm3": "it has layers without rotary embedding",
    "gpt_oss": f"{_EXPERTS}, attention sinks, and layers with a window",
    "llama4": f"{_EXPERTS}, and layers without rotary embedding",
    "llama4_text": f"{_EXPERTS}, and layers without rotary embedding",
    "mixtral": _EXPERTS,
    "qwen2_moe": _EXPERTS,
    "qwen3_moe": _EXPERTS,
    "deepseek_v2": f"{_EXPERTS}, and latent attention",
    "deepseek_v3": f"{_EXPERTS}, and latent attention",
    "qwen3_next": f"{_EXPERTS}, and layers other than attention",
    "mamba": _RECURRENT,
    "mamba2": _RECURRENT,
    "falcon_mamba": _RECURRENT,
    "jamba": _RECURRENT,
    "rwkv": _RECURRENT,
    "recurrent_gemma": _RECURRENT,
}
"""Other values of ``model_type``, and what they have that the model here has not."""

_NEEDED = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
)

_REMEDY = (
    "Llama, Mistral, Qwen2 and Qwen3 are supported: RMSNorm, rotary embedding, SwiGLU, no window, and no biases but"
    " those of Qwen2's queries, keys and values"
)


def read_positions(config: Any, path: Path) -> int | None:
    """Returns the longest sequence that a model was made for, in tokens; None where the file does not say.

    Args:
        config: content of its ``config.json``.
        path: the file, for the message.
    """
    found = config.get("max_position_embeddings") if isinstance(config, Mapping) else None
    if found is not None and (not isinstance(found, int) or isinstance(found, bool) or found < 1):
        raise InputError(f"max_position_embeddings is {found!r}", where=str(path), remedy="a number of tokens")
    return found


def read_shape(config: Any, path: Path) -> ModelShape:
    """Returns the shape in a ``config.json``; other architectures are refused.

    Args:
        config: content of the file.
        path: the file, for the message.

    Raises:
        InputError: another architecture, a feature that the model here has not, or no configuration of such a model.
    """
    kind = config.get("model_type") if isinstance(config, Mapping) else None
    if kind is not None and kind not in _DEFAULTS:
        why = f": {_OTHERS[kind]}" if kind in _OTHERS else ""
        raise InputError(f"model_type {kind!r} is not supported{why}", where=str(path), remedy=_REMEDY)
    try:
        full = {**_DEFAULTS[config["model_type"]], **config}
        values = {name: int(full[name]) for name in _NEEDED}
        heads = values["num_attention_heads"]
        groups = int(full.get("num_key_value_heads") or heads)
        head = full.get("head_dim")
        rope = full.get("rope_parameters") or {}
        base = float(rope.get("rope_theta", full.get("rope_theta", 10_000)))
        scaling = _scaling(full, path)
        epsilon = float(full.get("rms_norm_eps", 1e-6))
        int(base)  # no infinity
        head_width = None if head is None else int(head)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        problem = f"not the configuration of a Llama, Mistral or Qwen ({damage(error)})"
        raise InputError(problem, where=str(path)) from None
    for feature, there in _foreign(full, base):
        if there:
            raise InputError(f"{feature} is not supported", where=str(path), remedy=_REMEDY)
    _check_window(full, path, given="sliding_window" in config)
    try:
        return ModelShape(
            layers=values["num_hidden_layers"],
            width=values["hidden_size"],
            heads=heads,
            query_groups=groups,
            ffn_width=values["intermediate_size"],
            tied_embeddings=bool(full.get("tie_word_embeddings", False)),
            rope_base=int(base),
            norm_epsilon=epsilon,
            head_width=head_width,
            qkv_bias=kind == "qwen2",
            qk_norm=kind == "qwen3",
            rope_scaling=scaling,
        )
    except InputError as error:  # which names a key of ours
        raise InputError(f"{error.where} {error.problem}", where=str(path), remedy=error.remedy) from None


def _scaling(config: Mapping[str, Any], path: Path) -> float | None:
    """Returns the factor of Llama 3.1's stretched wavelengths; None where there are none."""
    for name in ("rope_parameters", "rope_scaling"):
        rope = config.get(name) or {}
        if rope.get("rope_type", rope.get("type")) == "llama3":
            if any(rope.get(key) != value for key, value in LLAMA3.items()) or not float(rope["factor"]) >= 1:
                constants = ", ".join(f"{key} {value}" for key, value in LLAMA3.items())
                problem = "rope_type 'llama3' is not supported with other constants than Llama 3.1's"
                raise InputError(problem, where=str(path), remedy=f"needed are {constants}, and a factor")
            return float(rope["factor"])
    return None


def _foreign(config: Mapping[str, Any], base: float) -> Iterator[tuple[str, bool]]:
    """Yields the features that are not supported, and whether the model has them."""
    rope = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or {}
    for where in (rope, scaling):
        kind = where.get("rope_type", where.get("type", "default"))
        yield f"rope_type {kind!r}", kind not in ("default", "llama3")
        yield from ((f"rope_parameters.{name}", isinstance(value, Mapping)) for name, value in where.items())
    yield f"hidden_act {config.get('hidden_act')!r}", config.get("hidden_act", "silu") != "silu"
    yield f"rope_theta {base}", base != int(base)
    for where in (config, rope):
        part = where.get("partial_rotary_factor")
        yield f"partial_rotary_factor {part}", part not in (None, 1)
    own = config["model_type"] == "qwen2"  # its queries, keys and values have biases whatever this says
    yield "attention_bias", bool(config.get("attention_bias")) and not own
    for name in ("mlp_bias", "quantization_config"):
        yield name, bool(config.get(name))


def _check_window(config: Mapping[str, Any], path: Path, *, given: bool) -> None:
    """Refuses a window of attention that hides any token of the longest sequence."""
    window, positions = config.get("sliding_window"), config.get("max_position_embeddings")
    kind = config["model_type"]
    if kind.startswith("qwen") and not config.get("use_sliding_window"):
        window = None
    types = config.get("layer_types") or []
    if not isinstance(types, list):
        raise InputError(f"layer_types is {kind_in_json(types)}", where=str(path), remedy="a list of names")
    if others := sorted({str(one) for one in types} - {"full_attention", "sliding_attention"}):
        raise InputError(f"layer_types {', '.join(others)} are not supported", where=str(path), remedy=_REMEDY)
    if window is not None and (not isinstance(window, int) or isinstance(window, bool)):
        raise InputError(f"sliding_window is {window!r}", where=str(path), remedy="a number of tokens, or null")
    if window is None or (kind != "llama" and positions is not None and window >= positions):
        return
    said = "" if given else " (the default of transformers)"
    remedy = f"set max_position_embeddings to {window}: up to there full attention is the same"
    raise InputError(f"sliding_window is not supported{said}: it is {window}", where=str(path), remedy=remedy)
