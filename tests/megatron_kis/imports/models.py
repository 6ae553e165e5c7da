"""Small models as Hugging Face saves them, and runs that begin with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_kis.config.run import RunConfig
from megatron_kis.convert.tokenizer_json import write_tokenizer
from megatron_kis.distributed.device import open_device
from megatron_kis.distributed.groups import close_groups, open_groups
from megatron_kis.engine.engine import Engine

transformers = pytest.importorskip("transformers")

MakeRun = Callable[..., RunConfig]

ROWS = 512  # 400 pieces, padded


def make_model(
    folder: Path, tiny_data: Path, *, kind: str = "Llama", vocabulary: int = ROWS, dtype: Any = None, **changes: Any
) -> Path:
    """A small model of an architecture of transformers with loud random weights, and the tiny tokenizer."""
    torch.manual_seed(3)
    settings = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "initializer_range": 0.15,
        "bos_token_id": 1,
        "eos_token_id": 1,
        "max_position_embeddings": 64,
    }
    config = getattr(transformers, f"{kind}Config")(**{**settings, **changes})
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, 0.0, 0.5)
    (model if dtype is None else model.to(dtype)).save_pretrained(folder)
    write_tokenizer(tiny_data / "tokenizer.model", folder, longest=64, samples=[])
    return folder


def run_from(start: Path, make: MakeRun, **changes: Any) -> RunConfig:
    """A run that begins with a start; its data keep the tokenizer that the start's has been made from."""
    model = json.loads((start / "start.json").read_text())["model"]
    return make(model={**model, "init_from": start}, **changes)


def our_logits(config: RunConfig, rows: torch.Tensor) -> torch.Tensor:
    device = open_device("cpu")
    layout = open_groups(device)
    try:
        engine = Engine(config, vocabulary=ROWS, layout=layout, device=device)
        engine.chunks[0].eval()
        with torch.no_grad():
            logits: torch.Tensor = engine.chunks[0](rows, torch.arange(rows.shape[1]).expand_as(rows), None)
        return logits
    finally:
        close_groups()
