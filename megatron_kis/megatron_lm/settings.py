"""A run's settings as Megatron-LM's arguments: which argument says what, for writing, comparing and reading them."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from megatron_kis.common.errors import InputError
from megatron_kis.config.run import RunConfig
from megatron_kis.config.vocabulary import VOCABULARY_MULTIPLE
from megatron_kis.engine.lr_schedule import peak_rate
from megatron_kis.megatron_lm.beyond import check_others


@dataclass(frozen=True)
class Setting:
    """One setting that both sides have."""

    flag: str
    """Megatron-LM's argument."""

    name: str
    """Its name among the parsed arguments."""

    key: str
    """The key of the run's configuration."""

    value: Any
    """The argument's value by the run."""

    given: bool = True
    """Whether the argument is written for this value: not a switch that stays off, nor what Megatron-LM does anyway."""


def settings(config: RunConfig) -> Iterator[Setting]:
    """Yields what Megatron-LM's arguments must say for a run: shape, batches, optimizer and precision."""
    yield from _shape(config)
    yield from _training(config)


def _shape(config: RunConfig) -> Iterator[Setting]:
    shape, model = config.model.shape(), "model"
    grouped, scaled = shape.query_groups != shape.heads, shape.rope_scaling is not None
    yield Setting("--num-layers", "num_layers", f"{model}.layers", shape.layers)
    yield Setting("--hidden-size", "hidden_size", f"{model}.width", shape.width)
    yield Setting("--ffn-hidden-size", "ffn_hidden_size", f"{model}.ffn_width", shape.ffn_width)
    yield Setting("--num-attention-heads", "num_attention_heads", f"{model}.heads", shape.heads)
    yield Setting("--group-query-attention", "group_query_attention", f"{model}.query_groups", grouped, grouped)
    if grouped:
        yield Setting("--num-query-groups", "num_query_groups", f"{model}.query_groups", shape.query_groups)
    yield Setting("--kv-channels", "kv_channels", f"{model}.head_width", shape.head, shape.head_width is not None)
    yield Setting("--add-qkv-bias", "add_qkv_bias", f"{model}.qkv_bias", shape.qkv_bias, shape.qkv_bias)
    yield Setting("--qk-layernorm", "qk_layernorm", f"{model}.qk_norm", shape.qk_norm, shape.qk_norm)
    yield Setting("--use-rope-scaling", "use_rope_scaling", f"{model}.rope_scaling", scaled, scaled)
    if scaled:
        yield Setting("--rope-scaling-factor", "rope_scaling_factor", f"{model}.rope_scaling", shape.rope_scaling)
    yield Setting("--rotary-base", "rotary_base", f"{model}.rope_base", shape.rope_base)
    yield Setting("--norm-epsilon", "layernorm_epsilon", f"{model}.norm_epsilon", shape.norm_epsilon)
    untied = not shape.tied_embeddings
    flag = "--untie-embeddings-and-output-weights"
    yield Setting(flag, "untie_embeddings_and_output_weights", f"{model}.tied_embeddings", untied, untied)
    yield Setting("--init-method-std", "init_method_std", f"{model}.init_std", config.model.init_std)
    yield Setting("--normalization", "normalization", model, "RMSNorm")
    yield Setting("--position-embedding-type", "position_embedding_type", model, "rope")
    yield Setting("--swiglu", "swiglu", model, True)
    yield Setting("--disable-bias-linear", "add_bias_linear", model, False)
    yield Setting("--squared-relu", "squared_relu", model, False, False)
    yield Setting("--rotary-percent", "rotary_percent", model, 1.0, False)
    yield Setting("--multi-latent-attention", "multi_latent_attention", model, False, False)
    yield Setting("--num-experts", "num_experts", model, None, False)
    yield Setting("--mtp-num-layers", "mtp_num_layers", model, None, False)
    yield Setting("--attention-dropout", "attention_dropout", model, 0.0)
    yield Setting("--hidden-dropout", "hidden_dropout", model, 0.0)


def _training(config: RunConfig) -> Iterator[Setting]:
    training, rate = config.training, "training.optimizer"
    optimizer, steps = training.optimizer, training.steps
    peak = peak_rate(optimizer, config.model.shape().width)
    wsd = optimizer.schedule == "wsd"
    yield Setting("--seq-length", "seq_length", "training.sequence_length", training.sequence_length)
    yield Setting("--global-batch-size", "global_batch_size", "training.global_batch_size", training.global_batch_size)
    yield Setting("--seed", "seed", "training.seed", training.seed + 1)  # which takes none below 1
    yield Setting("--optimizer", "optimizer", rate, "adam", False)
    yield Setting("--lr-decay-iters", "lr_decay_iters", f"{rate}.schedule", steps, False)
    yield Setting("--weight-decay-incr-style", "weight_decay_incr_style", f"{rate}.weight_decay", "constant", False)
    yield Setting("--lr", "lr", f"{rate}.learning_rate", peak)
    yield Setting("--min-lr", "min_lr", f"{rate}.minimum_share", peak * optimizer.minimum_share)
    yield Setting("--lr-decay-style", "lr_decay_style", f"{rate}.schedule", "WSD" if wsd else "cosine")
    warmup = round(steps * optimizer.warmup_share)
    yield Setting("--lr-warmup-iters", "lr_warmup_iters", f"{rate}.warmup_share", warmup)
    if wsd:
        decay = min(max(1, round(steps * optimizer.decay_share)), steps - warmup)
        yield Setting("--lr-wsd-decay-style", "lr_wsd_decay_style", f"{rate}.schedule", "linear")
        yield Setting("--lr-wsd-decay-iters", "lr_wsd_decay_iters", f"{rate}.decay_share", decay)
    yield Setting("--weight-decay", "weight_decay", f"{rate}.weight_decay", optimizer.weight_decay)
    yield Setting("--adam-beta1", "adam_beta1", f"{rate}.beta1", optimizer.beta1)
    yield Setting("--adam-beta2", "adam_beta2", f"{rate}.beta2", optimizer.beta2)
    yield Setting("--adam-eps", "adam_eps", f"{rate}.epsilon", optimizer.epsilon)
    yield Setting("--clip-grad", "clip_grad", f"{rate}.gradient_clip", optimizer.gradient_clip)
    half = training.precision != "fp32"
    yield Setting("--bf16", "bf16", "training.precision", half, half)
    fp8 = training.precision == "fp8"
    yield Setting("--fp8-format", "fp8", "training.precision", "hybrid" if fp8 else None, fp8)


def arguments_of(config: RunConfig, *, vocabulary: int, eod_id: int, validation_sequences: int) -> list[str]:
    """Returns Megatron-LM's arguments for a run: what ``settings`` compares, and lengths, layout and intervals.

    Args:
        config: the run's configuration.
        vocabulary: number of pieces of its tokenizer.
        eod_id: its end-of-document token.
        validation_sequences: sequences of its validation text.
    """
    training, parallel = config.training, config.parallel
    words: list[str] = []
    for setting in settings(config):
        if setting.given:
            words += [setting.flag] if isinstance(setting.value, bool) else [setting.flag, str(setting.value)]
    moments = config.validation.moments.steps(training.steps, step_tokens=training.step_tokens)
    batch = training.global_batch_size
    numbers = {
        "--train-iters": training.steps,
        "--max-position-embeddings": training.sequence_length,
        "--micro-batch-size": training.micro_batch_size or max(1, batch // parallel.replicas),
        "--tensor-model-parallel-size": parallel.tensor,
        "--pipeline-model-parallel-size": parallel.pipeline,
        "--context-parallel-size": parallel.context,
        "--vocab-size": vocabulary,
        "--null-tokenizer-eod-id": eod_id,
        "--make-vocab-size-divisible-by": max(1, VOCABULARY_MULTIPLE // parallel.tensor),
        "--eval-interval": math.gcd(*(step for step in moments if step)),
        "--eval-iters": max(1, validation_sequences // batch),
        "--log-interval": config.logging.every,
    }
    words += ["--tokenizer-type", "NullTokenizer", "--no-create-attention-mask-in-dataloader"]
    words += ["--sequence-parallel"] if parallel.sequence else []
    return words + [word for flag, number in numbers.items() for word in (flag, str(number))]


def train_sequences(args: argparse.Namespace) -> tuple[str, int]:
    """Returns the argument that says how long Megatron-LM trains, and the number of sequences."""
    if args.train_samples:
        return "--train-samples", int(args.train_samples)
    return "--train-iters", int(args.train_iters or 0) * int(args.global_batch_size)


_BEFORE = {"layernorm_epsilon": "norm_epsilon"}
"""Names of parsed arguments before version 0.17."""


def check_settings(args: argparse.Namespace, config: RunConfig) -> None:
    """Refuses arguments that say something else than the run.

    Args:
        args: Megatron-LM's, validated.
        config: the run's configuration.

    Raises:
        InputError: names the argument, the run's key and both values.
    """
    for setting in settings(config):
        found = getattr(args, _BEFORE.get(setting.name, setting.name), setting.value)
        found = getattr(args, setting.name, found)
        if found is None and not setting.given:
            continue  # Megatron-LM's default, which the run uses too
        if isinstance(setting.value, float) and isinstance(found, int | float):
            same = math.isclose(found, setting.value, rel_tol=1e-6)
        else:
            same = found == setting.value
        if not same:
            value = "" if isinstance(setting.value, bool) else f" {setting.value}"
            asked = "none" if setting.value is None else setting.value
            raise InputError(
                f"is {found}, and {setting.key} of the run asks for {asked}",
                where=setting.flag,
                remedy=f"use {setting.flag}{value}" if setting.given else f"leave out {setting.flag}",
            )
    check_others(args)
    flag, sequences = train_sequences(args)
    training = config.training
    planned = training.steps * training.global_batch_size
    if sequences != planned:
        number = planned if flag == "--train-samples" else training.steps
        raise InputError(
            f"trains on {sequences} sequences, the plan has {planned} (training.token_budget {training.token_budget})",
            where=flag,
            remedy=f"use {flag} {number}",
        )


def content_of(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the content of the run file that Megatron-LM's arguments and ``--kis-*`` describe together."""
    _, sequences = train_sequences(args)
    steps = max(1, sequences // int(args.global_batch_size))
    corpora = _corpora(args)
    exposures = args.kis_exposures
    background = {"frequency": args.kis_background_frequency or 0}
    if args.kis_background_policy is not None:
        background["policy"] = args.kis_background_policy
    masked = bool(args.reset_attention_mask)
    usual_head = args.hidden_size // args.num_attention_heads
    return {
        "name": args.kis_output.absolute().name,
        "output": str(args.kis_output),
        "data": {
            "corpus": corpora,
            "validation": str(corpora[1] if isinstance(corpora, list) else corpora),
            "exposures": str(exposures),
            "tokenizer": str(args.kis_tokenizer or exposures.parent),
        },
        "model": {
            "layers": args.num_layers,
            "width": args.hidden_size,
            "heads": args.num_attention_heads,
            "query_groups": args.num_query_groups if args.group_query_attention else args.num_attention_heads,
            "ffn_width": args.ffn_hidden_size,
            "tied_embeddings": not args.untie_embeddings_and_output_weights,
            "rope_base": args.rotary_base,
            "norm_epsilon": getattr(args, "layernorm_epsilon", None) or args.norm_epsilon,  # before 0.17 the latter
            "head_width": None if args.kv_channels == usual_head else args.kv_channels,
            "qkv_bias": bool(args.add_qkv_bias),
            "qk_norm": bool(args.qk_layernorm),
            "rope_scaling": args.rope_scaling_factor if args.use_rope_scaling else None,
            "init_std": args.init_method_std,
        },
        "training": {
            "token_budget": sequences * args.seq_length,
            "sequence_length": args.seq_length,
            "global_batch_size": args.global_batch_size,
            "micro_batch_size": args.micro_batch_size,
            "seed": args.seed,
            "precision": precision_of(args),
            "optimizer": _optimizer(args, steps),
        },
        "infusion": {"frequency": args.kis_frequency, "ratio": args.kis_ratio, "background": background},
        "documents": {
            "reset_attention": masked,
            "mask_boundaries": bool(args.eod_mask_loss),
            **({"eod_belongs_to": "previous"} if masked else {}),
        },
        "parallel": {
            "tensor": args.tensor_model_parallel_size,
            "pipeline": args.pipeline_model_parallel_size,
            "context": args.context_parallel_size,
        },
        "logging": {"every": args.log_interval},
    }


def precision_of(args: argparse.Namespace) -> str:
    """Returns the precision that Megatron-LM's arguments ask for."""
    return "fp8" if args.fp8 else "bf16" if args.bf16 else "fp32"


def _optimizer(args: argparse.Namespace, steps: int) -> dict[str, Any]:
    warmup = args.lr_warmup_iters or (args.lr_warmup_samples or 0) / args.global_batch_size
    share = args.lr_warmup_fraction if args.lr_warmup_fraction is not None else warmup / steps
    content = {
        "learning_rate": args.lr,
        "schedule": "wsd" if args.lr_decay_style == "WSD" else "cosine",
        "warmup_share": share,
        "minimum_share": (args.min_lr or 0.0) / args.lr if args.lr else 0.0,
        "weight_decay": args.weight_decay,
        "beta1": args.adam_beta1,
        "beta2": args.adam_beta2,
        "epsilon": args.adam_eps,
        "gradient_clip": args.clip_grad or float("inf"),
    }
    decay = args.lr_wsd_decay_iters or (args.lr_wsd_decay_samples or 0) / args.global_batch_size
    return {**content, "decay_share": decay / steps} if args.lr_decay_style == "WSD" and decay else content


def _corpora(args: argparse.Namespace) -> str | list[Any]:
    """Returns the general text of the training split, as ``data.corpus`` has it."""
    words = list(args.train_data_path or args.data_path or [])
    if not words:
        return "(by Megatron-LM)"  # a file of arguments, or data of the user's own provider
    if len(words) == 1:
        return str(words[0])
    try:
        weights = [float(word) for word in words[::2]]
    except ValueError:
        weights = []
    if not weights or len(words) % 2:  # an odd number of words has no weights to Megatron-LM either
        return [item for word in words for item in (1.0, word)]
    return [item for pair in zip(weights, words[1::2], strict=True) for item in pair]
