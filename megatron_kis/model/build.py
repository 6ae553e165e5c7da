"""Builds Megatron-Core's ``GPTModel`` for a shape, with weights that do not depend on the parallel layout."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch

from megatron_kis.device import Device, quiet_megatron
from megatron_kis.errors import InputError
from megatron_kis.model.attention import SdpaAttention
from megatron_kis.model.ladder import ModelShape
from megatron_kis.parallel import Layout

with quiet_megatron():
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.transformer.transformer_config import TransformerConfig


def transformer_config(
    shape: ModelShape, *, vocabulary: int, layout: Layout, device: Device, precision: str, init_std: float
) -> TransformerConfig:
    """Megatron's configuration of a shape under a layout.

    Raises:
        InputError: the layout does not divide the shape.
    """
    split = {"heads": shape.heads, "query_groups": shape.query_groups, "ffn_width": shape.ffn_width}
    for name, value in {**split, "rows of the vocabulary": vocabulary}.items():
        if value % layout.tensor_size:
            raise InputError(
                f"{value} {name} cannot be split {layout.tensor_size} ways", where="parallel.tensor",
                remedy=f"use a divisor of {value}",
            )  # fmt: skip
    if shape.layers % layout.pipeline_size:
        raise InputError(
            f"{shape.layers} layers cannot be split into {layout.pipeline_size} stages", where="parallel.pipeline",
            remedy=f"use a divisor of {shape.layers}",
        )  # fmt: skip
    half = precision == "bf16"
    on_cuda = not device.is_host
    return TransformerConfig(
        num_layers=shape.layers,
        hidden_size=shape.width,
        num_attention_heads=shape.heads,
        num_query_groups=shape.query_groups,
        ffn_hidden_size=shape.ffn_width,
        normalization="RMSNorm",
        layernorm_epsilon=1e-5,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        init_method_std=init_std,
        perform_initialization=True,  # tags the weights with their split; `initialise` draws the values
        use_cpu_initialization=device.is_host,
        tensor_model_parallel_size=layout.tensor_size,
        pipeline_model_parallel_size=layout.pipeline_size,
        pipeline_dtype=torch.bfloat16 if half else torch.float32,
        params_dtype=torch.bfloat16 if half else torch.float32,
        bf16=half,
        calculate_per_token_loss=True,
        batch_p2p_sync=False,
        masked_softmax_fusion=False,  # a kernel of NVIDIA apex's that SDPA does not need
        bias_activation_fusion=on_cuda,
        bias_dropout_fusion=on_cuda,
        apply_rope_fusion=False,  # needs Transformer Engine
        gradient_accumulation_fusion=False,  # needs NVIDIA apex
        persist_layer_norm=False,
    )


def build_model(
    shape: ModelShape,
    *,
    vocabulary: int,
    sequence_length: int,
    layout: Layout,
    device: Device,
    precision: str = "fp32",
    attention: str = "sdpa",
    init_std: float = 0.02,
    seed: int = 0,
) -> GPTModel:
    """This rank's part of the model, on its device.

    Args:
        shape: the model's shape.
        vocabulary: rows of the embedding, padded (``padded_vocabulary``).
        sequence_length: the longest sequence, tokens.
        layout: this rank's place.
        device: where the weights live.
        precision: ``fp32`` or ``bf16``.
        attention: ``sdpa`` or ``local`` (Megatron-Core's own, to compare).
        init_std: standard deviation of the weights.
        seed: seed of the weights; equal seeds give equal full weights under every layout.

    Raises:
        InputError: the layout does not divide the shape.
    """
    with quiet_megatron():
        config = transformer_config(
            shape, vocabulary=vocabulary, layout=layout, device=device, precision=precision, init_std=init_std
        )
        spec = get_gpt_layer_local_spec(normalization="RMSNorm")
        if attention == "sdpa":
            spec.submodules.self_attention.submodules.core_attention = SdpaAttention
        model = GPTModel(
            config=config,
            transformer_layer_spec=spec,
            vocab_size=vocabulary,
            max_sequence_length=sequence_length,
            pre_process=layout.is_first_stage,
            post_process=layout.is_last_stage,
            share_embeddings_and_output_weights=shape.tied_embeddings,
            position_embedding_type="rope",
            rotary_base=shape.rope_base,
        )
    initialise(model, layers=shape.layers, layout=layout, init_std=init_std, seed=seed)
    return model.to(device.torch_device)


@torch.no_grad()
def initialise(model: GPTModel, *, layers: int, layout: Layout, init_std: float, seed: int) -> None:
    """Draws every weight from a stream named by the seed and the weight's place in the whole model.

    Each rank draws the full weight and keeps its part, so that the full weights are those of one process. Norms are
    one; matrices are normal with ``init_std``; those that write to the residual stream are scaled by
    1 / sqrt(2 layers) (GPT-2, section 2.3, and Megatron-LM's ``scaled_init_method_normal``).
    """
    parameter: Any  # carries Megatron's tags
    for name, parameter in _global_names(model):
        if parameter.dim() == 1:
            parameter.fill_(1.0)
            continue
        residual = name.endswith(("linear_proj.weight", "linear_fc2.weight"))
        std = init_std / math.sqrt(2 * layers) if residual else init_std
        split = getattr(parameter, "tensor_model_parallel", False) and layout.tensor_size > 1
        full_shape = list(parameter.shape)
        if split:
            full_shape[parameter.partition_dim] *= layout.tensor_size
        generator = torch.Generator().manual_seed(_stream(seed, name))
        full = torch.empty(full_shape, dtype=torch.float32).normal_(0.0, std, generator=generator)
        parameter.copy_(_part(full, parameter, layout) if split else full)


def _part(full: torch.Tensor, parameter: Any, layout: Layout) -> torch.Tensor:
    """The rows or columns of ``full`` that this tensor rank holds.

    With a stride (SwiGLU's two inputs in one matrix) the rank holds its share of each of the ``stride`` blocks.
    """
    dim, stride = parameter.partition_dim, parameter.partition_stride
    blocks = full.chunk(stride, dim=dim)
    return torch.cat([block.chunk(layout.tensor_size, dim=dim)[layout.tensor_rank] for block in blocks], dim=dim)


def _stream(seed: int, name: str) -> int:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _global_names(model: GPTModel) -> list[tuple[str, torch.nn.Parameter]]:
    """Parameters with the layer numbers of the whole model, and the tied output layer under the embedding's name."""
    named: list[tuple[str, torch.nn.Parameter]] = []
    for name, parameter in model.named_parameters():
        global_name = name
        if name.startswith("decoder.layers."):
            _, _, local, rest = name.split(".", 3)
            number = model.decoder.layers[int(local)].layer_number - 1
            global_name = f"decoder.layers.{number}.{rest}"
        elif name == "output_layer.weight" and model.share_embeddings_and_output_weights:
            global_name = "embedding.word_embeddings.weight"
        named.append((global_name, parameter))
    return named
