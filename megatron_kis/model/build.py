"""Builds Megatron-Core's ``GPTModel`` for a shape, with weights that do not depend on the parallel layout."""

from __future__ import annotations

import functools
import hashlib
import math
from dataclasses import dataclass
from typing import Any

import torch

from megatron_kis.common.errors import InputError
from megatron_kis.config.ladder import ModelShape
from megatron_kis.config.layout import check_layers, check_shape
from megatron_kis.config.training import ParallelConfig
from megatron_kis.distributed.device import Device
from megatron_kis.distributed.groups import ParallelDims
from megatron_kis.distributed.megatron_imports import quiet_megatron
from megatron_kis.model.attention import SdpaAttention
from megatron_kis.model.loss import cross_entropy
from megatron_kis.model.norm import RmsNorm
from megatron_kis.model.support import fuses, warn_if_transformer_engine_is_unused, why_no_transformer_engine

with quiet_megatron():
    from megatron.core.models.gpt.gpt_layer_specs import (
        get_gpt_layer_local_spec,
        get_gpt_layer_with_transformer_engine_spec,
    )
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.transformer.module import MegatronModule
    from megatron.core.transformer.spec_utils import ModuleSpec
    from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
    from megatron.core.transformer.transformer_config import TransformerConfig


# Of the modules that Megatron-Core can compute again, only the feed-forward block saves memory: attention keeps no
# scores, and norms ("layernorm") are part of Transformer Engine's layers and fail without it (CheckpointWithoutOutput
# needs FP8).
_RECOMPUTE: dict[str, dict[str, Any]] = {
    "none": {},
    "selective": {"recompute_granularity": "selective", "recompute_modules": ["mlp"]},
    "full": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
}


class SwiGlu(MegatronModule):
    """``silu(gate) * up`` (Shazeer 2020), for layers in which nothing is fused.

    Megatron-Core's own copies one of its inputs to add an offset of 0.
    """

    def __init__(self, config: TransformerConfig) -> None:
        """Takes the keyword that Megatron-Core gives an activation."""
        super().__init__(config=config)

    def forward(self, gate_and_up: torch.Tensor) -> torch.Tensor:
        """Maps [..., 2 F], gate and up next to each other, to [..., F]."""
        gate, up = gate_and_up.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate) * up


class LanguageModel(GPTModel):
    """Megatron-Core's model with ``loss`` for its loss."""

    def compute_language_model_loss(self, labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Returns negative log-likelihoods.

        Args:
            labels: [batch, sequence].
            logits: [sequence, batch, vocabulary / TP], overwritten.

        Returns:
            [batch, sequence] nats.
        """
        return cross_entropy(logits, labels.t().contiguous(), self.pg_collection.tp).t().contiguous()


def resolve_implementation(asked: str, device: Device, *, own_mask: bool = False, precision: str = "bf16") -> str:
    """Returns the layers that ``model.transformer_impl`` means on a device.

    Args:
        asked: the setting.
        device: the model's device.
        own_mask: whether attention has a mask in addition to the causal one (documents that do not see each other).
        precision: ``fp8`` needs Transformer Engine. In ``fp32`` its attention has no fused kernel and writes its scores
            to memory; PyTorch's has one.

    Raises:
        InputError: Transformer Engine is requested where it is not installed, where there is no CUDA, or where its
            causal attention would ignore a mask; or FP8 without it.
    """
    if asked == "transformer_engine" and (why := why_no_transformer_engine(device)) is not None:
        raise InputError(
            f"Transformer Engine is asked for, and {why}",
            where="model.transformer_impl",
            remedy="pip install 'megatron-kis[gpu]' on a machine with CUDA, or use auto",
        )
    check_layers(asked, own_mask=own_mask, precision=precision)
    if precision == "fp8" and (why := why_no_transformer_engine(device)) is not None:
        raise InputError(
            f"FP8 needs Transformer Engine's layers on CUDA; {why}",
            where="training.precision",
            remedy="pip install 'megatron-kis[gpu]' on a machine with CUDA, or use bf16",
        )
    if asked == "auto":
        if own_mask or precision == "fp32":
            return "sdpa"
        warn_if_transformer_engine_is_unused(device)
        return "sdpa" if why_no_transformer_engine(device) is not None else "transformer_engine"
    return asked


@dataclass(frozen=True)
class ModelSpec:
    """All that this rank's part of a model is built from."""

    shape: ModelShape
    vocabulary: int
    """Rows of the embedding, padded (``padded_vocabulary``)."""

    sequence_length: int
    """Tokens of the longest sequence."""

    layout: ParallelDims
    """This rank's place in the parallel layout."""

    device: Device
    """Device of the weights."""

    precision: str = "fp32"
    """``fp32``, ``bf16`` or ``fp8`` (bf16 weights, matrix products in FP8)."""

    implementation: str = "sdpa"
    """Layers: ``transformer_engine``, ``sdpa`` or ``local`` (``resolve_implementation``)."""

    sequence_parallel: bool = False
    """Whether norms and residuals, too, are split along the sequence over the tensor ranks."""

    recompute: str = "none"
    """Activations that the backward pass computes again: ``none``, ``selective`` or ``full``."""

    deterministic: bool = False
    """Whether kernels on CUDA must repeat their bits; after ``set_determinism``."""

    init_std: float = 0.02
    """Standard deviation of the initial weights."""


def transformer_config(spec: ModelSpec) -> TransformerConfig:
    """Returns Megatron-Core's configuration of a model.

    Raises:
        InputError: the layout does not divide the shape, or the attention cannot share a sequence.
    """
    _check_layout(spec)
    shape, layout = spec.shape, spec.layout
    half = spec.precision in ("bf16", "fp8")
    fused = fuses(spec.device)
    engine = spec.implementation == "transformer_engine"
    return TransformerConfig(
        num_layers=shape.layers,
        hidden_size=shape.width,
        num_attention_heads=shape.heads,
        num_query_groups=shape.query_groups,
        ffn_hidden_size=shape.ffn_width,
        kv_channels=shape.head,
        qk_layernorm=shape.qk_norm,
        add_qkv_bias=shape.qkv_bias,
        normalization="RMSNorm",
        layernorm_epsilon=shape.norm_epsilon,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        init_method_std=spec.init_std,
        perform_initialization=True,  # tags the weights with their split; `initialise` draws the values
        use_cpu_initialization=spec.device.is_cpu,
        pipeline_dtype=torch.bfloat16 if half else torch.float32,
        params_dtype=torch.bfloat16 if half else torch.float32,
        bf16=half,
        fp8="hybrid" if spec.precision == "fp8" else None,
        calculate_per_token_loss=True,
        masked_softmax_fusion=False,  # a kernel of NVIDIA apex's that SDPA does not need
        bias_activation_fusion=fused,
        # Megatron-Core's name for an activation given in the layers' specification, as `_layers` gives its own
        use_te_activation_func=not fused and not engine,
        bias_dropout_fusion=fused,
        apply_rope_fusion=engine,
        deterministic_mode=spec.deterministic and not spec.device.is_cpu,
        gradient_accumulation_fusion=False,  # the output layer's needs NVIDIA apex; see ``_accumulate_in_place``
        persist_layer_norm=False,
        tensor_model_parallel_size=layout.tensor_size,
        pipeline_model_parallel_size=layout.pipeline_size,
        context_parallel_size=layout.context_size,
        sequence_parallel=spec.sequence_parallel and layout.tensor_size > 1,
        batch_p2p_sync=False,
        **_schedule(layout),
        **_RECOMPUTE[spec.recompute],
    )


def _check_layout(spec: ModelSpec) -> None:
    layout = spec.layout
    parallel = ParallelConfig(
        tensor=layout.tensor_size,
        pipeline=layout.pipeline_size,
        virtual=layout.virtual_size,
        context=layout.context_size,
    )
    check_shape(spec.shape, parallel, rows=spec.vocabulary, implementation=spec.implementation)


def _schedule(layout: ParallelDims) -> dict[str, Any]:
    """Returns settings of the pipeline's schedule.

    Between two stages the messages of the interleaved schedule go both ways at once, to and from the same rank: only
    with overlapping messages does Megatron-Core keep the two apart. These are still being sent when the schedule would
    free a stage's output, so that it may be overwritten (seen with gloo); the other schedule waits for them.
    """
    if layout.virtual_size == 1:
        return {"deallocate_pipeline_outputs": True}
    return {
        "virtual_pipeline_model_parallel_size": layout.virtual_size,
        "overlap_p2p_comm": True,
        "batch_p2p_comm": False,
    }


def build_model(spec: ModelSpec, *, seed: int | None = 0, chunk: int = 0) -> GPTModel:
    """Builds this rank's part of the model, or one chunk of it under the interleaved schedule, on its device.

    Args:
        spec: what is built.
        seed: seed of the weights; equal seeds give equal full weights under every layout. None: the weights are set
            later, by ``initialise`` or from a checkpoint.
        chunk: which of the stage's ``layout.virtual_size`` chunks of layers.

    Raises:
        InputError: the layout does not divide the shape.
    """
    model = assemble_model(spec, chunk=chunk)
    if seed is not None:
        initialise(model, layers=spec.shape.layers, layout=spec.layout, init_std=spec.init_std, seed=seed)
    if spec.precision in ("bf16", "fp8"):
        for parameter in model.parameters():  # norms are made in fp32; mixed types miss PyTorch's fused kernel
            parameter.data = parameter.data.bfloat16()
    return model.to(spec.device.torch_device)


def assemble_model(spec: ModelSpec, *, chunk: int = 0) -> GPTModel:
    """Builds this rank's part of the model as Megatron-Core makes it, before ``initialise``.

    Under ``torch.device("meta")`` it takes no memory: the shapes of a 70B model on a laptop.

    Raises:
        InputError: the layout does not divide the shape.
    """
    layout = spec.layout
    with quiet_megatron("full scope is deprecated", "MLP requires ffn_hidden_size"):  # concern settings not used here
        config = transformer_config(spec)
        stage = chunk if layout.virtual_size > 1 else None
        model = LanguageModel(
            config=config,
            transformer_layer_spec=_layers(spec, get_num_layers_to_build(config, stage)),
            vocab_size=spec.vocabulary,
            max_sequence_length=spec.sequence_length,
            pre_process=layout.is_first_stage and chunk == 0,
            post_process=layout.is_last_stage and chunk == layout.virtual_size - 1,
            share_embeddings_and_output_weights=spec.shape.tied_embeddings,
            position_embedding_type="rope",
            rotary_base=spec.shape.rope_base,
            rope_scaling=spec.shape.rope_scaling is not None,
            rope_scaling_factor=spec.shape.rope_scaling or 1.0,
            vp_stage=stage,
        )
    if not spec.device.is_cpu:
        _accumulate_in_place(model)
    return model


def _accumulate_in_place(model: GPTModel) -> None:
    """Lets Transformer Engine's layers add their weight gradients to the replica's fp32 buffers as they multiply.

    Otherwise each gradient is written in bf16 first. Megatron-Core has one setting for these layers, which can do it,
    and for its own output layer, which refuses it without a kernel of NVIDIA apex.
    """
    for layer in model.decoder.modules():
        if hasattr(layer, "fuse_wgrad_accumulation"):
            layer.fuse_wgrad_accumulation = True


def _layers(spec: ModelSpec, count: int) -> ModuleSpec | TransformerBlockSubmodules:
    """Returns the modules of ``count`` layers and of the norm after them."""
    normed = spec.shape.qk_norm
    if spec.implementation == "transformer_engine":
        return get_gpt_layer_with_transformer_engine_spec(qk_layernorm=normed)
    layer = get_gpt_layer_local_spec(normalization="RMSNorm", qk_layernorm=normed)
    layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = RmsNorm
    attention = layer.submodules.self_attention.submodules
    if normed:
        attention.q_layernorm = attention.k_layernorm = RmsNorm
    mlp = layer.submodules.mlp  # a specification; from megatron-core 0.19 on a function that lacks the configuration
    parts = mlp.keywords["submodules"] if isinstance(mlp, functools.partial) else mlp.submodules
    parts.activation_func = SwiGlu
    if spec.implementation == "sdpa":
        attention.core_attention = SdpaAttention
    return TransformerBlockSubmodules(layer_specs=[layer] * count, layer_norm=RmsNorm)


@torch.no_grad()
def initialise(model: GPTModel, *, layers: int, layout: ParallelDims, init_std: float, seed: int) -> None:
    """Draws every weight from a stream named by the seed and the weight's place in the whole model.

    Each rank draws the full weight and keeps its part, so that the full weights are those of one process. Norms are
    one, biases zero; matrices are normal with ``init_std``; those that write to the residual stream are scaled by
    1 / sqrt(2 layers) (GPT-2, section 2.3, and Megatron-LM's ``scaled_init_method_normal``).
    """
    parameter: Any  # carries Megatron's tags
    for name, parameter in _global_names(model):
        if parameter.dim() == 1:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
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


def _part(full: torch.Tensor, parameter: Any, layout: ParallelDims) -> torch.Tensor:
    """Returns the rows or columns of ``full`` that this tensor rank holds.

    With a stride (SwiGLU's two inputs in one matrix) the rank holds its share of each of the ``stride`` blocks.
    """
    dim, stride = parameter.partition_dim, parameter.partition_stride
    blocks = full.chunk(stride, dim=dim)
    return torch.cat([block.chunk(layout.tensor_size, dim=dim)[layout.tensor_rank] for block in blocks], dim=dim)


def _stream(seed: int, name: str) -> int:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def global_name(model: GPTModel, name: str) -> str:
    """Returns the name of a parameter or a module of this rank with its layer's number in the whole model."""
    if not name.startswith("decoder.layers."):
        return name
    _, _, local, rest = name.split(".", 3)
    return f"decoder.layers.{model.decoder.layers[int(local)].layer_number - 1}.{rest}"


def _global_names(model: GPTModel) -> list[tuple[str, torch.nn.Parameter]]:
    """Returns parameters under their global names, and the tied output layer under the embedding's."""
    tied = {"output_layer.weight": "embedding.word_embeddings.weight"}
    renamed = tied if model.share_embeddings_and_output_weights else {}
    return [(renamed.get(name, global_name(model, name)), parameter) for name, parameter in model.named_parameters()]
