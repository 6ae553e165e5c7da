"""The ladder: Llama-like shapes by name, and their parameter counts.

The large rungs follow the shapes that Llama 2 and 3, OLMo and Pythia made usual (width 128 per head, feed-forward of
8/3 widths rounded up); the ``cpu-*`` rungs are for studies on a laptop, where the vocabulary is small too.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from megatron_kis.common.errors import InputError, nearest


@dataclass(frozen=True)
class ModelShape:
    """The shape of a decoder with RMSNorm, SwiGLU, RoPE and grouped-query attention.

    That of Llama; with ``qkv_bias`` that of Qwen2, with ``qk_norm`` that of Qwen3.
    """

    layers: int
    """Number of transformer layers."""

    width: int
    """Hidden size."""

    heads: int
    """Number of query heads; width must be a multiple of it, unless ``head_width`` is given."""

    query_groups: int
    """Number of key-value heads; heads must be a multiple of it."""

    ffn_width: int
    """Hidden size of the feed-forward block (of each of SwiGLU's two inputs)."""

    tied_embeddings: bool = True
    """Whether the output layer shares the embedding's weights (saves vocabulary x width parameters)."""

    rope_base: int = 10_000
    """Base of the rotary embedding's wavelengths."""

    norm_epsilon: float = 1e-5
    """Constant that is added to the mean square in RMSNorm."""

    head_width: int | None = None
    """Width of a head; None where it is ``width / heads``."""

    qkv_bias: bool = False
    """Whether queries, keys and values have biases."""

    qk_norm: bool = False
    """Whether the queries and the keys of each head are normalised, each with one weight for all heads of a layer."""

    rope_scaling: float | None = None
    """Factor by which long wavelengths of the rotary embedding are stretched, as in Llama 3.1; None for none."""

    def __post_init__(self) -> None:
        for name in ("layers", "width", "heads", "query_groups", "ffn_width"):
            if getattr(self, name) < 1:
                raise InputError(f"is {getattr(self, name)}", where=f"model.{name}", remedy="must be at least 1")
        if self.head_width is None and (self.width % self.heads or (self.width // self.heads) % 2):
            raise InputError(
                f"width {self.width} over {self.heads} heads",
                where="model.heads",
                remedy="a head's width must be a whole, even number (rotary embedding)",
            )
        if self.head_width is not None and (self.head_width < 2 or self.head_width % 2):
            raise InputError(
                f"is {self.head_width}",
                where="model.head_width",
                remedy="a head's width must be an even number of at least 2 (rotary embedding)",
            )
        if self.head_width is not None and self.head_width * self.heads == self.width:
            object.__setattr__(self, "head_width", None)  # one way to say it, so that equal shapes are equal
        if self.heads % self.query_groups:
            raise InputError(
                f"{self.heads} heads cannot share {self.query_groups} key-value groups",
                where="model.query_groups",
                remedy="heads must be a multiple of it",
            )

    @property
    def head(self) -> int:
        """Width of a head."""
        return self.width // self.heads if self.head_width is None else self.head_width

    @property
    def queries(self) -> int:
        """Width of all heads together: of the queries, and of what attention gives to its output matrix."""
        return self.heads * self.head

    @property
    def keys(self) -> int:
        """Width of all key-value heads together: of the keys, and of the values."""
        return self.query_groups * self.head

    @property
    def layer_matrices(self) -> int:
        """Number of parameters of a layer's matrices."""
        return self.width * (2 * self.queries + 2 * self.keys) + 3 * self.width * self.ffn_width

    def layer_vectors(self, ranks: int = 1) -> int:
        """Returns the number of parameters of a layer's norms and biases that each of ``ranks`` tensor ranks holds."""
        biases = self.qkv_bias * (self.queries + 2 * self.keys)
        return 2 * self.width + 2 * self.qk_norm * self.head + biases // ranks

    def nonembedding_params(self) -> int:
        """Returns the number of parameters of the layers and the final norm."""
        return self.layers * (self.layer_matrices + self.layer_vectors()) + self.width

    def as_dict(self) -> dict[str, Any]:
        """Returns the shape for a record; what came later is named only where it is another than older shapes have."""
        return {name: value for name, value in asdict(self).items() if name not in _LATER or value}

    def params(self, vocabulary: int) -> int:
        """Returns the number of all parameters, with ``vocabulary`` rows in the embedding (after padding)."""
        tables = 1 if self.tied_embeddings else 2
        return self.nonembedding_params() + tables * vocabulary * self.width

    def flops_per_token(self, vocabulary: int, sequence_length: int) -> float:
        """Returns training FLOPs per token: 6 per matrix weight, plus causal attention's 6 x layers x length x queries.

        The count of PaLM's appendix B with the causal half taken once; the embedding look-up costs none, the output
        layer does.
        """
        weights = self.layers * self.layer_matrices
        return 6.0 * (weights + vocabulary * self.width) + 6.0 * self.layers * sequence_length * self.queries


_LATER = ("head_width", "qkv_bias", "qk_norm", "rope_scaling")


def _small(layers: int, width: int, heads: int) -> ModelShape:
    ffn = -(-(8 * width // 3) // 16) * 16
    return ModelShape(layers=layers, width=width, heads=heads, query_groups=heads, ffn_width=ffn)


def _large(layers: int, width: int, groups: int, ffn: int) -> ModelShape:
    return ModelShape(
        layers=layers,
        width=width,
        heads=width // 128,
        query_groups=groups,
        ffn_width=ffn,
        tied_embeddings=False,
        rope_base=500_000,
    )


PRESETS: dict[str, ModelShape] = {
    "cpu-32": _small(2, 32, 2),
    "cpu-48": _small(2, 48, 2),
    "cpu-64": _small(2, 64, 2),
    "cpu-96": _small(2, 96, 3),
    "cpu-128": _small(4, 128, 4),
    "cpu-256": _small(6, 256, 4),
    "70m": ModelShape(layers=6, width=512, heads=8, query_groups=8, ffn_width=1536),
    "137m": ModelShape(layers=12, width=768, heads=12, query_groups=12, ffn_width=2048),
    "410m": ModelShape(layers=24, width=1024, heads=16, query_groups=16, ffn_width=2816),
    "1b": _large(16, 2048, 16, 5632),
    "3b": _large(28, 3072, 8, 8192),
    "7b": _large(32, 4096, 32, 11008),
    "13b": _large(40, 5120, 40, 13824),
    "70b": _large(80, 8192, 8, 28672),
}
"""Shapes by name. Counts of parameters are those of ``ModelShape.params`` and need the vocabulary."""


def preset(name: str) -> ModelShape:
    """Returns the shape called ``name``.

    Raises:
        InputError: there is none of that name.
    """
    if name not in PRESETS:
        raise InputError(f"no model preset {name!r}", where="model.preset", remedy=nearest(name, PRESETS))
    return PRESETS[name]
