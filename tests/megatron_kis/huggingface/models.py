"""Small random models of many architectures, with questions and a tokenizer that all of them take."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_kis.probes.questions import QuestionSet

ROWS = 320
POSITIONS = 64
_WIDE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.15}
_USUAL = {**_WIDE, "intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": POSITIONS}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": POSITIONS, "initializer_range": 0.15}
_STATE = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "initializer_range": 0.15}

TREES: dict[str, dict[str, Any]] = {
    "llama": _USUAL,
    "qwen2": _USUAL,
    "qwen3": {**_USUAL, "head_dim": 8},
    "mistral": {**_USUAL, "sliding_window": None},
    "gemma": {**_USUAL, "head_dim": 8},
    "gemma2": {**_USUAL, "head_dim": 8, "sliding_window": POSITIONS, "final_logit_softcapping": 2.0},
    "gemma3_text": {**_USUAL, "head_dim": 8, "sliding_window": POSITIONS},
    "olmo": _USUAL,
    "olmo2": _USUAL,
    "gpt_neox": {**_WIDE, "intermediate_size": 48, "max_position_embeddings": POSITIONS},
    "gpt2": _GPT,
    "phi": _USUAL,  # its output layer has a bias
    "granite": {**_USUAL, "logits_scaling": 3.0},
}
"""Architectures that take trees, by model_type, with their settings."""

PLAIN: dict[str, dict[str, Any]] = {
    "mamba": _STATE,
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.15},
    "mistral": {**_USUAL, "sliding_window": 5},
    "gemma2": {**_USUAL, "head_dim": 8, "sliding_window": 5},
    "gemma3_text": {**_USUAL, "head_dim": 8, "sliding_window": 5},
}
"""Architectures, and settings of them, that do not."""


def make_model(kind: str, settings: dict[str, Any], *, seed: int = 0) -> Any:
    """A model whose random weights are loud enough for every mistake to show."""
    import transformers

    torch.manual_seed(seed)
    usual = {"vocab_size": ROWS, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = transformers.AutoConfig.for_model(kind, **{**usual, **settings})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 and "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        elif "bias" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def write_model(folder: Path, kind: str = "llama", *, texts: Iterable[str], **changes: Any) -> Path:
    """A model and its tokenizer as ``save_pretrained`` writes them."""
    make_model(kind, {**TREES[kind], **changes}).save_pretrained(folder)
    write_tokenizer(folder, texts)
    return folder


def write_tokenizer(
    folder: Path, texts: Iterable[str], *, vocabulary: int = 300, bos: str | None = None, end: str = "<|endoftext|>"
) -> Path:
    """A byte-level tokenizer, trained on a few texts."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    special = [end, *([bos] if bos else [])]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end, "bos_token": bos or end}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def one_at_a_time(model: Any, questions: QuestionSet) -> list[np.ndarray]:
    """Log-likelihoods of the statements of each question's options, each alone in a pass."""
    first = list(questions.first_tokens)
    found = []
    for question in questions.questions:
        own = []
        for option in question.options:
            tokens = torch.tensor([[*first, *option.tokens]])
            with torch.no_grad():
                given = model(tokens)
            log_probs = getattr(given, "logits", given)[0].float().log_softmax(dim=-1)
            targets = tokens[0, len(first) :]
            own.append(log_probs[len(first) - 1 : -1].gather(1, targets[:, None]).sum().item())
        found.append(np.array(own))
    return found
