"""A run's tokenizer as Hugging Face's ``tokenizer.json`` and ``tokenizer_config.json``.

SentencePiece models of ours change nothing in a text except its spaces, so ``tokenizers`` can do the same with the same
pieces. Texts are encoded with both, awkward ones and the model's user-defined pieces too; a difference is an error. One
is allowed in awkward texts: of splits that are equally likely, because they have the same pieces in another order, the
two libraries may take different ones.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_kis.common.errors import InputError, printable
from megatron_kis.common.files import atomic_path, write_json
from megatron_kis.data_tools.tokenizers.base import EOD_PIECE, Tokenizer
from megatron_kis.data_tools.tokenizers.encoder import AWKWARD
from megatron_kis.data_tools.tokenizers.registry import load_tokenizer

logger = logging.getLogger(__name__)

_SPACE = "▁"


def write_tokenizer(source: Path, folder: Path, *, longest: int, samples: Sequence[list[int]]) -> None:
    """Writes the tokenizer's files.

    Args:
        source: tokenizer that the run was trained with.
        folder: folder to write to.
        longest: length of the training sequences, in tokens.
        samples: token sequences, which are decoded, and encoded again by both.

    Raises:
        InputError: a tokenizer that ``tokenizers`` cannot express.
    """
    ours = load_tokenizer(source)
    if ours.library == "tokenizers":
        text, eod = ours.model.decode(), str(getattr(ours, "eod", EOD_PIECE))
    elif ours.library == "sentencepiece":
        eod = ours.piece(ours.eod_id)
        theirs = _converted(ours)
        _check(ours, theirs, samples, source)
        text = theirs.to_str(pretty=True)
    else:
        remedy = "export with --no-tokenizer, and pass the tokenizer to the other tool yourself"
        raise InputError(f"{ours.library} files cannot be written as tokenizer.json", where=str(source), remedy=remedy)
    with atomic_path(folder / "tokenizer.json") as partial:
        partial.write_text(text, encoding="utf-8")
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": ours.piece(before[0]) if (before := ours.frame[0]) else eod,
            "eos_token": eod,
            "pad_token": eod,
            "clean_up_tokenization_spaces": False,
            "model_max_length": longest,
        },
    )


def _converted(ours: Tokenizer) -> Any:
    import sentencepiece
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    processor = sentencepiece.SentencePieceProcessor(model_proto=ours.model)
    pieces = [(processor.id_to_piece(piece), processor.get_score(piece)) for piece in range(ours.vocab_size)]
    if _is_bpe(pieces):
        vocabulary = {piece: number for number, (piece, _) in enumerate(pieces)}
        model: Any = models.BPE(
            vocabulary, _merges(pieces), unk_token=pieces[processor.unk_id()][0], fuse_unk=True, byte_fallback=True
        )
    else:
        model = models.Unigram(pieces, unk_id=processor.unk_id(), byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(ours.piece(ours.eod_id), special=True, normalized=False)])
    return tokenizer


def _is_bpe(pieces: list[tuple[str, float]]) -> bool:
    """Returns whether the scores are ranks (0, -1, -2, ...): SentencePiece's for byte-pair encoding."""
    scores = [score for _, score in pieces if score < 0]
    return all(score == int(score) for score in scores)


def _merges(pieces: list[tuple[str, float]]) -> list[tuple[str, str]]:
    """Returns the merges in the order in which they apply: every way to make a piece of two, likelier pieces first."""
    known = {piece: number for number, (piece, _) in enumerate(pieces)}
    merges = [
        (-score, known[piece[:at]], known[piece[at:]], piece[:at], piece[at:])
        for piece, score in pieces
        for at in range(1, len(piece))
        if piece[:at] in known and piece[at:] in known
    ]
    return [(left, right) for *_, left, right in sorted(merges)]


def _check(ours: Tokenizer, theirs: Any, samples: Sequence[list[int]], source: Path) -> None:
    texts = [*(ours.decode(tokens) for tokens in samples), *AWKWARD]
    texts += [f"a {spelling} b" for spelling in ours.normal_spellings]
    for number, (text, expected) in enumerate(zip(texts, ours.encode_batch(texts), strict=True)):
        found = theirs.encode(text, add_special_tokens=False).ids
        if found == expected:
            continue
        tied = type(theirs.model).__name__ == "Unigram" and sorted(found) == sorted(expected)
        if tied and number >= len(samples):
            logger.warning(
                f"kis: tokenizer.json chooses another of the equally likely splits of {printable(repr(text))}"
            )
            continue
        at = next((n for n, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]), len(found))
        shown = [" ".join(ours.piece(token) for token in tokens[at : at + 6]) for tokens in (expected, found)]
        problem = f"in {text!r}, token {at} and its followers are {shown[0]!r}, and {shown[1]!r} in tokenizer.json"
        raise InputError(problem, where=str(source), remedy="export with --no-tokenizer")
