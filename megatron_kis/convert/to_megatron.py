"""``kis export megatron``: a checkpoint of any layout as one that Megatron-LM loads (``--ckpt-format torch_dist``).

The weights' names and their format are Megatron-Core's already. What Megatron-LM asks for besides are the names of
folders, and its arguments: a ``release`` checkpoint, from which training starts at iteration 0 without an optimizer.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from megatron_kis.checkpoint import shards
from megatron_kis.checkpoint.initial_weights import write_whole
from megatron_kis.common.files import atomic_folder, check_empty
from megatron_kis.config.ladder import ModelShape
from megatron_kis.convert.llama import EMBEDDING, stored_names
from megatron_kis.evaluate.restore import open_checkpoint
from megatron_kis.training.artifacts import open_run

_RELEASE = "release"


def export_megatron(run: Path, output: Path, *, step: int | None = None) -> Path:
    """Writes a folder for Megatron-LM's ``--load``.

    Args:
        run: the run's folder.
        output: a folder that does not exist, or is empty.
        step: step of the checkpoint; None for the newest.

    Returns:
        ``output``.

    Raises:
        InputError: no such run or checkpoint, or the folder is taken.
    """
    check_empty(output)
    past = open_run(run)
    shape, length = past.config.model.shape(), past.config.training.sequence_length
    checkpoint = open_checkpoint(run, step)
    past.check_checkpoint(checkpoint)
    stored = shards.read_tensors(checkpoint.folder, stored_names(shape))
    positions = max(length, past.record.get("max_position_embeddings") or 0)
    arguments = arguments_of(shape, rows=stored[EMBEDDING].shape[0], positions=positions, length=length)
    with atomic_folder(output) as partial:
        (partial / _RELEASE).mkdir()
        common = {"args": argparse.Namespace(**arguments), "checkpoint_version": 3.0, "iteration": 0}
        write_whole(partial / _RELEASE, stored, common)
        (partial / "latest_checkpointed_iteration.txt").write_text(_RELEASE, encoding="utf-8")
    return output


def arguments_of(shape: ModelShape, *, rows: int, positions: int, length: int) -> dict[str, Any]:
    """Returns Megatron-LM's arguments of a model, which it compares or takes (``--use-checkpoint-args``).

    Args:
        shape: shape of the model.
        rows: rows of the embedding.
        positions: longest sequence that the model was made for, in tokens.
        length: tokens of a training sequence.
    """
    return {
        "num_layers": shape.layers,
        "hidden_size": shape.width,
        "num_attention_heads": shape.heads,
        "group_query_attention": shape.query_groups != shape.heads,
        "num_query_groups": shape.query_groups,
        "kv_channels": shape.head,
        "ffn_hidden_size": shape.ffn_width,
        "untie_embeddings_and_output_weights": not shape.tied_embeddings,
        "position_embedding_type": "rope",
        "add_position_embedding": True,
        "use_rotary_position_embeddings": True,
        "rotary_base": shape.rope_base,
        "rotary_percent": 1.0,
        "rotary_interleaved": False,
        "use_rope_scaling": shape.rope_scaling is not None,
        "rope_scaling_factor": shape.rope_scaling or 8.0,
        "normalization": "RMSNorm",
        "norm_epsilon": shape.norm_epsilon,
        "apply_layernorm_1p": False,
        "swiglu": True,
        "squared_relu": False,
        "add_bias_linear": False,
        "add_qkv_bias": shape.qkv_bias,
        "qk_layernorm": shape.qk_norm,
        "apply_query_key_layer_scaling": False,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "num_experts": None,
        "mtp_num_layers": None,
        "max_position_embeddings": positions,
        "seq_length": length,
        "padded_vocab_size": rows,
        "make_vocab_size_divisible_by": 128,
        "ckpt_format": "torch_dist",
    }
