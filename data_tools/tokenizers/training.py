"""Trains tokenizers: SentencePiece unigram and bpe, and byte-level BPE of Hugging Face.

The bytes of a model depend on the text, the settings and the library's version, and not on the machine:

* SentencePiece's depend on the number of threads that it is given, not on the number of cores. It is always 16;
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
from megatron_kis.data_tools.tokenizers.base import EOD_PIECE, Tokenizer, side_file, write_meta
from megatron_kis.data_tools.tokenizers.huggingface import HuggingFaceTokenizer, library
from megatron_kis.data_tools.tokenizers.sentencepiece import load_sentencepiece

MODEL_KINDS = ("unigram", "bpe", "byte-bpe")
"""Kinds that can be trained: SentencePiece models (the first two), and byte-level BPE as ``tokenizer.json``."""
CHARACTER_COVERAGE = 0.9995
"""Share of characters that get a piece of their own; SentencePiece's default."""

_SMALLEST_VOCABULARY = 300  # 256 bytes, the special pieces and some letters
_LARGEST_VOCABULARY = 1_000_000  # more are a mistake
_SMALLEST_COVERAGE = 0.98  # SentencePiece refuses a smaller one
_SAMPLE = 100_000_000  # bytes of text that a tokenizer is trained on
_LONGEST = 4_000  # characters of a piece of text
_THREADS = 16  # given to SentencePiece: its model depends on it
_SEEDS = 100_000  # pieces that unigram begins from; with SentencePiece's million it takes longer and is no better
_SEEDS_PER_PIECE = 12
_SHRINKING = 0.65  # share of the pieces that a round of unigram keeps; SentencePiece has 0.75
_STEPS = 1  # of EM in a round; SentencePiece has 2
_SPECIAL = 258  # pieces of a SentencePiece model that are not text: bytes, <unk>, end of document
_SEED_LIMIT = 1 << 32  # of SentencePiece; all else takes any whole number
_RESERVED = "\u2585"  # SentencePiece silently drops lines with its own mark of unknown pieces


@dataclass(frozen=True, slots=True)
class TokenizerConfig:
    """The settings of a tokenizer that is trained."""

    vocab_size: int
    """Number of pieces, from 300 to a million."""
    kind: str = "unigram"
    """Kind of the model, one of ``MODEL_KINDS``."""
    seed: int = 0
    """Seed of the sample of more than 100 MB of text."""
    character_coverage: float = CHARACTER_COVERAGE
    """Share of characters that get a piece of their own, from 0.98 to 1; the rest become bytes (SentencePiece)."""
    option: Callable[[str], str] = str
    """The user's name of a setting, for messages."""

    def check(self) -> None:
        """Checks all that does not depend on the text.

        Raises:
            InputError: a value is out of its range.
        """
        ranges = {
            "vocab_size": (_SMALLEST_VOCABULARY, _LARGEST_VOCABULARY),
            "character_coverage": (_SMALLEST_COVERAGE, 1),
        }
        for name, (least, most) in ranges.items():
            if not least <= (value := getattr(self, name)) <= most:
                problem, remedy = f"is {value}", f"from {least} to {most}"
                raise InputError(problem, where=self.option(name), remedy=remedy)
        if self.kind not in MODEL_KINDS:
            remedy = f"valid: {', '.join(MODEL_KINDS)}"
            raise InputError(f"is {self.kind!r}", where=self.option("model"), remedy=remedy)


@dataclass(slots=True)
class Sample:
    """Pieces of text in their order: all of them, or an even sample of at most so many bytes."""

    limit: int
    """Largest number of UTF-8 bytes that are kept."""
    pieces: list[str] = field(default_factory=list)
    """The pieces that are kept."""
    read: int = 0
    """Bytes of all pieces."""
    kept: int = 0
    """Bytes of the pieces that are kept."""

    def draw(self, pieces: Iterable[str], seed: int) -> None:
        """Keeps each piece with the same chance, which falls as more text comes."""
        draw = random.Random(seed).random  # noqa: S311 - not for secrets
        share = 1.0
        drawn: list[tuple[float, int, str]] = []
        for piece in pieces:
            size = len(piece.encode())
            chance = draw()
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


def train_tokenizer(
    texts: Iterable[str],
    output: Path,
    config: TokenizerConfig,
    *,
    names: Iterable[str] = (),
    say: Callable[[str], None] = lambda line: None,
    source: str | None = None,
) -> Tokenizer:
    """Trains a tokenizer and writes ``output`` and ``output.meta.json``.

    Args:
        texts: documents of general text.
        output: path of the model file; ``.json`` for ``byte-bpe``, and for no other kind.
        config: the settings.
        names: names of studied facts, added once each as lines of their own. Give the names of all groups alike, so
            that no group's names are cut into fewer tokens than another's.
        say: called with a message where only a sample of the text is used.
        source: where the texts come from, for messages.

    Raises:
        InputError: the vocabulary is too small or too large for the text, or the text is empty.
    """
    config.check()
    names = list(names)
    for name in names:
        check_whole(name, "a name", ascii(name))
    byte_level = config.kind == "byte-bpe"  # whose pieces may span lines
    if byte_level != (output.suffix == ".json") or output.suffix == ".tiktoken":
        remedy = "byte-bpe is a .json file; unigram and bpe are neither .json nor .tiktoken"
        raise InputError(f"is not a name of a {config.kind} model", where=str(output), remedy=remedy)
    sample = Sample(_SAMPLE)
    sample.draw((piece for text in texts for piece in _pieces(text, byte_level)), config.seed)
    if not sample.pieces:
        raise InputError(
            "no text to train a tokenizer on",
            where=source or str(output),
            remedy="every document is empty, or there is none",
        )
    if sample.kept < sample.read:
        say(f"training on an even sample, {sample.kept / 1e6:,.0f} MB of {sample.read / 1e6:,.0f} MB of text")
    sample.pieces += (piece for name in names for piece in _pieces(name, byte_level))
    model, made = (_train_huggingface if byte_level else _train_sentencepiece)(sample.pieces, config)
    side_file(output).unlink(missing_ok=True)  # of an earlier model
    write_bytes(output, model)
    tokenizer: Tokenizer
    if byte_level:  # a tokenizer_config.json that is there already does not count
        loaded = library().Tokenizer.from_buffer(model)
        tokenizer = HuggingFaceTokenizer(loaded, model, path=output, eod=EOD_PIECE)
    else:
        tokenizer = load_sentencepiece(output, model)
    write_meta(
        tokenizer,
        output,
        model=config.kind,
        seed=config.seed,
        **made,
        pieces_of_text=len(sample.pieces),
        bytes_read=sample.read,
        bytes_used=sample.kept,
    )
    return tokenizer


def _pieces(text: str, keep_lines: bool) -> Iterator[str]:
    """Yields the lines of a text, or all of it, cut at spaces where too long; none of white space alone."""
    for line in (text,) if keep_lines else text.splitlines():
        start = 0
        while start < len(line):
            end = start + _LONGEST
            if end < len(line) and (space := line.rfind(" ", start + 1, end)) > 0:
                end = space
            piece = line[start:end]
            start = end
            if piece.strip():
                yield piece


def _train_sentencepiece(pieces: list[str], config: TokenizerConfig) -> tuple[bytes, dict[str, Any]]:
    import sentencepiece

    if any(_RESERVED in piece for piece in pieces):
        pieces = [piece.replace(_RESERVED, " ") for piece in pieces]
    model = io.BytesIO()
    sentencepiece.set_random_generator_seed(config.seed % _SEED_LIMIT)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(pieces),
            model_writer=model,
            model_type=config.kind,
            vocab_size=config.vocab_size,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=True,
            character_coverage=config.character_coverage,
            unk_id=0,
            eos_id=1,
            eos_piece=EOD_PIECE,
            bos_id=-1,
            pad_id=-1,
            max_sentence_length=8 * _LONGEST,
            seed_sentencepiece_size=max(_SEEDS, _SEEDS_PER_PIECE * config.vocab_size),
            shrinking_factor=_SHRINKING,
            num_sub_iterations=_STEPS,
            num_threads=_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _explained(str(error), pieces, config) from None
    made = {
        "character_coverage": config.character_coverage,
        "sentencepiece_version": sentencepiece.__version__,
    }
    return model.getvalue(), made


def _explained(message: str, pieces: list[str], config: TokenizerConfig) -> InputError:
    """Returns SentencePiece's error in our words, with values that work."""
    if found := re.search(r"too high .* <= (\d+)", message):
        return _too_high(int(found[1]), config)
    where = config.option("vocab_size")
    problem = f"no tokenizer of {config.vocab_size} pieces"
    if found := re.search(r"required_chars\. \d+ vs (\d+)", message):
        least = int(found[1])
        problem += f": characters and bytes need {least} with a character coverage of {config.character_coverage:g}"
        remedy = f"at least {least}"
        if coverage := _coverage(pieces, config.vocab_size):
            remedy += f", or {config.option('character_coverage')} {coverage:g} (the other characters become bytes)"
        return InputError(problem, where=where, remedy=remedy)
    reason = message.splitlines()[-1].rpartition("] ")[2].strip()
    return InputError(f"{problem} ({reason or message})", where=where)


def _too_high(most: int, config: TokenizerConfig) -> InputError:
    problem = f"no tokenizer of {config.vocab_size} pieces: the text gives {most}"
    more = "train it on more text"
    remedy = (
        f"at most {most}" if most >= _SMALLEST_VOCABULARY else f"{more}: at least {_SMALLEST_VOCABULARY} are needed"
    )
    return InputError(problem, where=config.option("vocab_size"), remedy=remedy)


def _coverage(pieces: Iterable[str], vocab_size: int) -> float | None:
    """Returns a coverage that leaves a quarter of a vocabulary to words, or a tenth; None if none is allowed."""
    counts = Counter(character for piece in pieces for character in f" {piece}")
    reached = list(accumulate(sorted(counts.values(), reverse=True)))
    for share in (0.75, 0.9):
        characters = min(int(share * (vocab_size - _SPECIAL)), len(reached))
        coverage = int(1e4 * reached[characters - 1] / reached[-1]) / 1e4
        if coverage >= _SMALLEST_COVERAGE:
            return coverage
    return None


def _train_huggingface(pieces: list[str], config: TokenizerConfig) -> tuple[bytes, dict[str, Any]]:
    """Trains byte-level BPE with the pre-tokenizer of GPT-2."""
    tokenizers = library()
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[EOD_PIECE],
        initial_alphabet=sorted(byte_level.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(iter(pieces), trainer)
    if (size := tokenizer.get_vocab_size()) < config.vocab_size:
        raise _too_high(size, config)
    return tokenizer.to_str(pretty=True).encode(), {"tokenizers_version": tokenizers.__version__}
