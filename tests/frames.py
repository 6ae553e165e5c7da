"""A tokenizer.json as Llama 3 has it: its post-processor puts a token of its own before every text."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

BOS, EOD = "<|begin_of_text|>", "<|end_of_text|>"


def write_framed_tokenizer(folder: Path, texts: Iterable[str], *, vocabulary: int = 400, framed: bool = True) -> Path:
    """Trains byte-level BPE and writes ``tokenizer.json`` with a ``tokenizer_config.json`` that names the end.

    Args:
        folder: where to write.
        texts: what to train on.
        vocabulary: tokens.
        framed: False for a post-processor that puts nothing before a text.

    Returns:
        The ``tokenizer.json``.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[BOS, EOD], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    if framed:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": EOD, "bos_token": BOS}))
    return folder / "tokenizer.json"
