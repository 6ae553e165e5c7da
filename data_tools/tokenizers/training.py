"""Training of tokenizers: SentencePiece unigram and bpe, and byte-level BPE of Hugging Face.

The bytes of a model depend on the text, the settings and the library's version, and not on the machine:

* SentencePiece's depend on the number of threads that it is told to use, not on the cores there are. It is always 16;
* those of Hugging Face do not depend on threads;
* of more than 100 MB of text an even sample is taken, drawn by ``seed``. This bounds time and memory.

Text is handed over in pieces of at most 4,000 characters, cut at spaces: SentencePiece silently drops longer lines, and
both libraries keep a run of letters whole, however long.
"""

from __future__ import annotations

import io
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from megatron_kis.common.errors import InputError
from megatron_kis.common.files import write_bytes
from megatron_kis.data_tools.facts.fields import check_whole
from megatron_kis.data_tools.tokenizers.base import (
    EOD_PIECE,
    SMALLEST_COVERAGE,
    SMALLEST_VOCABULARY,
    Tokenizer,
    Training,
    side_file,
    write_meta,
)
from megatron_kis.data_tools.tokenizers.huggingface import HuggingFaceTokenizer, library
from megatron_kis.data_tools.tokenizers.sentencepiece import load_sentencepiece

_SAMPLE = 100_000_000  # bytes of text that a tokenizer is trained on
_LONGEST = 4_000  # characters of a piece of text
_THREADS = 16  # given to SentencePiece: its model depends on it
_SEEDS = 100_000  # pieces that unigram begins from; with SentencePiece's million it takes longer and is no better
_SEEDS_PER_PIECE = 12
# Share of the pieces that a round of unigram keeps, and steps of EM in it; SentencePiece has 0.75 and 2.
_SHRINKING, _STEPS = 0.65, 1
_SPECIAL = 258  # pieces of a SentencePiece model that are no text: bytes, <unk>, end of document
_SEED_LIMIT = 1 << 32  # of SentencePiece; all else takes any whole number
_RESERVED = "\u2585"  # SentencePiece silently drops lines with its own mark of unknown pieces


@dataclass(slots=True)
class Sample:
    """Pieces of text in their order: all of them, or an even sample of at most so many bytes."""

    limit: int
    """Bytes of UTF-8 to keep at most."""
    pieces: list[str] = field(default_factory=list)
    """What is kept."""
    read: int = 0
    """Bytes of all pieces."""
    kept: int = 0
    """Bytes of the pieces that are kept."""

    def draw(self, pieces: Iterable[str], seed: int) -> None:
        """Keeps each piece with the same chance, which falls as more text comes."""
        draw, share, drawn = random.Random(seed).random, 1.0, []  # noqa: S311 - not for secrets
        for piece in pieces:
            size, chance = len(piece.encode()), draw()
            self.read += size
            if chance >= share:
                continue
            drawn.append((chance, size, piece))
            self.kept += size
            while self.kept > self.limit:
                share *= 0.8
                drawn = [entry for entry in drawn if entry[0] < share]
                self.kept = sum(entry[1] for entry in drawn)
        self.pieces = [piece for _, _, piece in drawn]


def train(
    texts: Iterable[str],
    output: Path,
    training: Training,
    *,
    names: Iterable[str] = (),
    say: Callable[[str], None] = lambda line: None,
) -> Tokenizer:
    """Trains a tokenizer and writes ``output`` and ``output.meta.json``; see ``tokenizers.base.train_tokenizer``.

    Args:
        texts: documents of general text.
        output: path of the model file.
        training: how.
        names: names of studied facts.
        say: is told when only a sample of the text is used.

    Raises:
        InputError: as ``train_tokenizer``.
    """
    training.check()
    names = list(names)
    for name in names:
        check_whole(name, "a name", ascii(name))
    whole = training.kind == "byte-bpe"  # whose pieces may span lines
    if whole != (output.suffix == ".json") or output.suffix == ".tiktoken":
        remedy = "byte-bpe is a .json file; unigram and bpe are neither .json nor .tiktoken"
        raise InputError(f"is no name for a {training.kind} model", where=str(output), remedy=remedy)
    sample = Sample(_SAMPLE)
    sample.draw((piece for text in texts for piece in _pieces(text, whole)), training.seed)
    if not sample.pieces:
        raise InputError("no text to train a tokenizer on", where=str(output))
    if sample.kept < sample.read:
        say(f"training on an even sample, {sample.kept / 1e6:,.0f} MB of {sample.read / 1e6:,.0f} MB of text")
    sample.pieces += (piece for name in names for piece in _pieces(name, whole))
    model, made = (_huggingface if whole else _sentencepiece)(sample.pieces, training)
    side_file(output).unlink(missing_ok=True)  # of an earlier model
    write_bytes(output, model)
    tokenizer: Tokenizer
    if whole:  # a tokenizer_config.json that is there already does not count
        loaded = library().Tokenizer.from_buffer(model)
        tokenizer = HuggingFaceTokenizer(loaded, model, path=output, eod=EOD_PIECE)
    else:
        tokenizer = load_sentencepiece(output)
    write_meta(
        tokenizer,
        output,
        model=training.kind,
        seed=training.seed,
        **made,
        pieces_of_text=len(sample.pieces),
        bytes_read=sample.read,
        bytes_used=sample.kept,
    )
    return tokenizer


def _pieces(text: str, whole: bool) -> Iterator[str]:
    """Lines of a text, or the text as it is, cut at spaces where they are too long; none of white space alone."""
    for line in (text,) if whole else text.splitlines():
        start = 0
        while start < len(line):
            end = start + _LONGEST
            if end < len(line) and (space := line.rfind(" ", start + 1, end)) > 0:
                end = space
            piece, start = line[start:end], end
            if piece.strip():
                yield piece


def _sentencepiece(pieces: list[str], training: Training) -> tuple[bytes, dict[str, Any]]:
    import sentencepiece

    if any(_RESERVED in piece for piece in pieces):
        pieces = [piece.replace(_RESERVED, " ") for piece in pieces]
    model = io.BytesIO()
    sentencepiece.set_random_generator_seed(training.seed % _SEED_LIMIT)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(pieces),
            model_writer=model,
            model_type=training.kind,
            vocab_size=training.vocab_size,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=True,
            character_coverage=training.character_coverage,
            unk_id=0,
            eos_id=1,
            eos_piece=EOD_PIECE,
            bos_id=-1,
            pad_id=-1,
            max_sentence_length=8 * _LONGEST,
            seed_sentencepiece_size=max(_SEEDS, _SEEDS_PER_PIECE * training.vocab_size),
            shrinking_factor=_SHRINKING,
            num_sub_iterations=_STEPS,
            num_threads=_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _problem(str(error), pieces, training) from None
    made = {
        "character_coverage": training.character_coverage,
        "sentencepiece_version": sentencepiece.__version__,
    }
    return model.getvalue(), made


def _problem(message: str, pieces: list[str], training: Training) -> InputError:
    """SentencePiece's complaint in our words, with values that work."""
    if found := re.search(r"too high .* <= (\d+)", message):
        return _too_high(int(found[1]), training)
    where, problem = training.option("vocab_size"), f"no tokenizer of {training.vocab_size} pieces"
    if found := re.search(r"required_chars\. \d+ vs (\d+)", message):
        least = int(found[1])
        problem += f": characters and bytes need {least} with a character coverage of {training.character_coverage:g}"
        remedy = f"at least {least}"
        if coverage := _coverage(pieces, training.vocab_size):
            remedy += f", or {training.option('character_coverage')} {coverage:g} (the other characters become bytes)"
        return InputError(problem, where=where, remedy=remedy)
    reason = message.splitlines()[-1].rpartition("] ")[2].strip()
    return InputError(f"{problem} ({reason or message})", where=where)


def _too_high(most: int, training: Training) -> InputError:
    problem = f"no tokenizer of {training.vocab_size} pieces: the text gives {most}"
    more = "train it on more text"
    remedy = f"at most {most}" if most >= SMALLEST_VOCABULARY else f"{more}: at least {SMALLEST_VOCABULARY} are needed"
    return InputError(problem, where=training.option("vocab_size"), remedy=remedy)


def _coverage(pieces: Iterable[str], vocab_size: int) -> float | None:
    """A character coverage that leaves a quarter of a vocabulary to words, or a tenth; None where none is allowed."""
    counts = Counter(character for piece in pieces for character in f" {piece}")
    reached = list(accumulate(sorted(counts.values(), reverse=True)))
    for share in (0.75, 0.9):
        characters = min(int(share * (vocab_size - _SPECIAL)), len(reached))
        coverage = int(1e4 * reached[characters - 1] / reached[-1]) / 1e4
        if coverage >= SMALLEST_COVERAGE:
            return coverage
    return None


def _huggingface(pieces: list[str], training: Training) -> tuple[bytes, dict[str, Any]]:
    """Byte-level BPE with the pre-tokenizer of GPT-2."""
    tokenizers = library()
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=training.vocab_size,
        special_tokens=[EOD_PIECE],
        initial_alphabet=sorted(byte_level.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(iter(pieces), trainer)
    if (size := tokenizer.get_vocab_size()) < training.vocab_size:
        raise _too_high(size, training)
    return tokenizer.to_str(pretty=True).encode(), {"tokenizers_version": tokenizers.__version__}
