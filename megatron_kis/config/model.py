"""Settings of the model: a preset of the ladder, or an explicit shape."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from megatron_kis.common.configuration import Config, SafeName
from megatron_kis.common.errors import nearest
from megatron_kis.config.ladder import PRESETS, ModelShape, preset


class ModelConfig(Config):
    """The model: a preset by name, or an explicit shape."""

    preset: str | None = None
    """Name of a shape in the ladder (``kis train --help`` lists them)."""

    name: SafeName | None = None
    """Name of the model in the names of runs; its preset or its widths if not given."""

    layers: int | None = None
    """Number of transformer layers of an explicit shape."""

    width: int | None = None
    """Hidden size of an explicit shape."""

    heads: int | None = None
    """Number of attention heads of an explicit shape."""

    query_groups: int | None = None
    """Number of key-value heads; as many as ``heads`` if not given."""

    ffn_width: int | None = None
    """Feed-forward width; 8/3 of ``width`` rounded up to a multiple of 16 if not given (SwiGLU at 4x cost)."""

    tied_embeddings: bool = True
    """Whether the output layer shares the embedding's weights."""

    rope_base: int = 10_000
    """Base of the rotary embedding."""

    norm_epsilon: float = Field(1e-5, gt=0)
    """Constant that is added to the mean square in RMSNorm."""

    head_width: int | None = None
    """Width of a head, if it is not ``width / heads`` (Hugging Face's ``head_dim``, Megatron's ``kv_channels``)."""

    qkv_bias: bool = False
    """Whether queries, keys and values have biases, as in Qwen2."""

    qk_norm: bool = False
    """Whether the queries and keys of each head are normalised (RMSNorm), as in Qwen3."""

    rope_scaling: float | None = Field(None, ge=1)
    """Factor by which long wavelengths of the rotary embedding are stretched, as in Llama 3.1 (8) and 3.2 (32)."""

    init_from: Path | None = None
    """Folder of ``kis import`` with the initial weights. The other keys must be those that it names."""

    init_std: float = Field(0.02, gt=0)
    """Standard deviation of the initial weights (GPT-2's value)."""

    transformer_impl: Literal["auto", "transformer_engine", "sdpa", "local"] = "auto"
    """Implementation of the layers: Transformer Engine's; Megatron-Core's with PyTorch's fused attention; or all
    Megatron-Core's own (to compare). ``auto``: Transformer Engine if it can be imported and there is CUDA, else
    ``sdpa``. In fp32 ``auto`` is ``sdpa``, because Transformer Engine's attention then writes its scores to memory."""

    @field_validator("preset")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        if name is not None and name not in PRESETS:
            msg = f"no model preset {name!r}; {nearest(name, PRESETS)}"
            raise ValueError(msg)
        return name

    @model_validator(mode="after")
    def _one_of_both(self) -> ModelConfig:
        explicit = [self.layers, self.width, self.heads]
        if self.preset is None and None in explicit:
            msg = "needs either 'preset' or all of 'layers', 'width' and 'heads'"
            raise ValueError(msg)
        explicit += [self.query_groups, self.ffn_width, self.head_width]
        names = ("tied_embeddings", "rope_base", "norm_epsilon", "qkv_bias", "qk_norm", "rope_scaling")
        changed = any(getattr(self, name) != ModelConfig.model_fields[name].default for name in names)
        if self.preset is not None and (changed or any(value is not None for value in explicit)):
            msg = "has both a 'preset' and an explicit shape; give one"
            raise ValueError(msg)
        return self

    @property
    def label(self) -> str:
        """Short name of the shape, for run names."""
        return self.name or self.preset or f"{self.layers}x{self.width}"

    def shape(self) -> ModelShape:
        """Returns the shape of the preset or of the explicit keys."""
        if self.preset is not None:
            return preset(self.preset)
        assert self.layers is not None and self.width is not None and self.heads is not None
        return ModelShape(
            layers=self.layers,
            width=self.width,
            heads=self.heads,
            query_groups=self.heads if self.query_groups is None else self.query_groups,
            ffn_width=-(-(8 * self.width // 3) // 16) * 16 if self.ffn_width is None else self.ffn_width,
            tied_embeddings=self.tied_embeddings,
            rope_base=self.rope_base,
            norm_epsilon=self.norm_epsilon,
            head_width=self.head_width,
            qkv_bias=self.qkv_bias,
            qk_norm=self.qk_norm,
            rope_scaling=self.rope_scaling,
        )
