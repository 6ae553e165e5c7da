"""Arguments of Megatron-LM that can change a result and that a run's configuration does not have."""

from __future__ import annotations

import argparse
from typing import Any

from megatron_kis.common.errors import InputError
from megatron_kis.config.megatron_model import OTHER_MODELS

ALWAYS = (
    "optimizer",
    "lr_decay_style",
    "lr_decay_iters",
    "lr_decay_samples",
    "lr_wsd_decay_style",
    "normalization",
    "swiglu",
    "squared_relu",
    "add_bias_linear",
    "position_embedding_type",
    "rotary_percent",
    "kv_channels",
    "qk_layernorm",
    "multi_latent_attention",
    "attention_dropout",
    "hidden_dropout",
    "num_experts",
    "moe_router_topk",
    "moe_ffn_hidden_size",
    "mtp_num_layers",
    "weight_decay_incr_style",
    "reset_position_ids",
    "split",
)
"""Those that the record of a run without a file has, whatever they are."""

UNUSUAL: dict[str, Any] = OTHER_MODELS | {
    "qk_clip": False,
    "embedding_init_method_std": None,
    "init_method_xavier_uniform": False,
    "freeze_all_layers": False,
    "lr_warmup_init": 0.0,
    "decoupled_lr": None,
    "decoupled_min_lr": None,
    "apply_wd_to_qk_layernorm": False,
    "no_weight_decay_cond_type": None,
    "exp_avg_dtype": "fp32",
    "exp_avg_sq_dtype": "fp32",
    "main_params_dtype": "fp32",
    "main_grads_dtype": "fp32",
    "fp4": None,
    "first_last_layers_bf16": False,
    "moe_layer_freq": 1,
    "moe_aux_loss_coeff": 0.0,
    "logits_load_dir": None,
}
"""Those that the record has where they are not what Megatron-LM does without them. A run's file excludes them."""

_FLAGS = {"layernorm_zero_centered_gamma": "--apply-layernorm-1p", "fp4": "--fp4-format"}


def flag_of(name: str) -> str:
    """Returns the argument of a name among the parsed ones."""
    return _FLAGS.get(name) or f"--{name.replace('_', '-')}"


def other_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the settings that can change a result and that only Megatron-LM has, as JSON has them."""
    always = {name: value for name in ALWAYS if (value := getattr(args, name, None)) not in (None, False)}
    return always | {name: _plain(value) for name, value in _unusual(args).items()}


def check_others(args: argparse.Namespace) -> None:
    """Refuses arguments with which Megatron-LM would train another model than the run's, or train it otherwise.

    Raises:
        InputError: names the first.
    """
    for name, value in _unusual(args).items():
        problem = f"is {value}, which no run of this project has"
        remedy = f"leave it out, or use --kis-exposures in place of --kis-run {args.kis_run}"
        raise InputError(problem, where=flag_of(name), remedy=remedy)


def _unusual(args: argparse.Namespace) -> dict[str, Any]:
    found = {name: getattr(args, name, usual) for name, usual in UNUSUAL.items()}
    return {name: value for name, value in found.items() if not _is_usual(value, UNUSUAL[name])}


def _is_usual(value: Any, usual: Any) -> bool:
    """Returns whether a value is the usual one: Megatron-LM's checks replace ``fp32`` with PyTorch's type."""
    return value == usual or not (value or usual) or (usual == "fp32" and str(value) == "torch.float32")


def _plain(value: Any) -> Any:
    """Returns a value of an argument as JSON has it."""
    return value if isinstance(value, bool | int | float | str) else str(value)
