"""SentencePiece models: training, loading, encoding with character offsets.

Choices, so that text comes back as it was:

* normalisation ``identity``, no whitespace is removed: NFC, NFD, case and double spaces stay. (The one exception is the
  character U+2581, SentencePiece's own mark of a space, which comes back as a space);
* one space is put before the text (``add_dummy_prefix``), so that a word has the same piece at the start and within a
  sentence; decoding takes it away;
* byte fallback: what no piece covers, newlines included, becomes bytes, so nothing is ever unknown;
* piece 0 is ``<unk>`` (unused), piece 1 ``<|endoftext|>`` ends documents. It is a control piece: the same characters in
  a text are encoded as text and can never end a document.

Training is deterministic: one thread, a fixed seed, no sampling below two million lines.
``PATH.meta.json`` (schema ``kis.tokenizer/1``) names kind, vocab_size, eod_id, and fingerprint (sha256 of the model).
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.tokenizer import EOD_PIECE, META_SCHEMA, Encoding, Tokenizer, read_model, side_file, write_meta
from data_tools.tokenizer_sentencepiece_file import only_marks_spaces, special_pieces
from megatron_kis.errors import InputError
from megatron_kis.files import atomic_path, read_json

_SMALLEST_VOCABULARY = 300  # 256 bytes, two special pieces, and the letters
_SAMPLED_LINES = 2_000_000  # beyond this SentencePiece trains on a seeded sample: its memory is about 1 kB a line
_LONGEST_LINE = 4_000  # characters; SentencePiece would silently skip longer lines


_NO_TEXT = 1 << 32  # more than any text has: a token whose text is not its piece


class SentencePieceTokenizer(Tokenizer):
    """A loaded SentencePiece model."""

    library = "sentencepiece"
    kind = "sentencepiece"
    file_name = "tokenizer.model"

    def __init__(self, processor: Any, model: bytes) -> None:
        """Wraps a loaded ``SentencePieceProcessor``; use ``data_tools.tokenizer.load_tokenizer``."""
        super().__init__(model, vocab_size=processor.get_piece_size(), eod_id=processor.eos_id())
        self._processor = processor
        pieces = range(self.vocab_size)
        kept, unused = special_pieces(model)
        never = [piece for piece in pieces if processor.is_control(piece) or processor.is_unknown(piece)]
        self.spellings = tuple(map(processor.id_to_piece, [*never, *kept]))
        self.normal_spellings = tuple(map(processor.id_to_piece, [*kept, *unused]))
        self._plain = bool(self.normal_spellings) and only_marks_spaces(model)
        self.remarks = self._remarks()
        self._characters = np.array(
            [len(processor.id_to_piece(piece)) if _is_text(processor, piece) else _NO_TEXT for piece in pieces]
        )

    def _remarks(self) -> tuple[str, ...]:
        if (bos := self._processor.bos_id()) < 0:
            return ()
        begins = self.piece(bos)
        return (f"the file does not say that {begins} begins documents, and none begins with it; tokenizer.json may",)

    def normalise(self, text: str) -> str:
        """The text as the model cuts it: with marks for spaces."""
        if self._plain:
            return f"▁{text}".replace(" ", "▁")
        normal: str = self._processor.normalize(text)
        return normal

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without an end-of-document token."""
        tokens: list[int] = self._processor.encode(text)
        return tokens

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Token ids of several texts, as :meth:`encode` of each."""
        tokens: list[list[int]] = self._processor.encode(texts, num_threads=1)
        return tokens

    def encode_with_spans(self, text: str) -> Encoding:
        """Token ids and the characters that each covers."""
        tokens, spans = self._offsets(text)
        # SentencePiece gives the character to the last of its bytes and empty ranges to the bytes before.
        for index in range(len(spans) - 2, -1, -1):
            if spans[index][0] == spans[index][1] and self._processor.is_byte(tokens[index]):
                spans[index] = spans[index + 1]
        return Encoding(tokens, spans)

    def encode_batch_with_spans(self, texts: list[str]) -> tuple[list[list[int]], NDArray[np.int64]]:
        """Token ids of several texts, and [tokens of all, 2] the characters that each covers in its text.

        SentencePiece's own offsets take five times as long as the ids. Where a text's pieces are its characters and the
        space before it, their lengths say the same; other texts (bytes, normalised ones) are asked for one by one.
        """
        encoded = self.encode_batch(texts)
        counts = np.array([len(tokens) for tokens in encoded], dtype=np.int64)
        ends = np.cumsum(self._characters[np.fromiter(chain.from_iterable(encoded), np.int64, int(counts.sum()))])
        starts = np.concatenate([[0], np.cumsum(counts)])
        before = np.concatenate([[0], ends])[starts]  # characters before each text, and of all
        spans = np.empty((len(ends), 2), dtype=np.int64)
        spans[:, 1] = ends - np.repeat(before[:-1] + 1, counts)  # the space before the text is none of its characters
        spans[1:, 0] = spans[:-1, 1]
        spans[starts[:-1][counts > 0], 0] = 0
        plain = np.diff(before) == np.array([len(text) + 1 for text in texts])
        for number in np.flatnonzero(~plain):
            encoding = self.encode_with_spans(texts[number])
            spans[starts[number] : starts[number + 1]] = np.array(encoding.spans).reshape(-1, 2)
        return encoded, spans

    def _offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        if hasattr(self._processor, "encode_as_offset_mapping"):  # from 0.2.3
            mapping = self._processor.encode_as_offset_mapping(text)
            return list(mapping["ids"]), [tuple(offsets) for offsets in mapping["offsets"]]
        pieces = self._processor.encode(text, out_type="immutable_proto").pieces  # before
        return [piece.id for piece in pieces], [(piece.begin, piece.end) for piece in pieces]

    def decode(self, tokens: list[int]) -> str:
        """The text of token ids; the end-of-document token becomes nothing, the first word's space is dropped."""
        text: str = self._processor.decode([int(token) for token in tokens])
        return text

    def piece(self, token: int) -> str:
        """The piece of a token id, ``▁`` standing for a space."""
        piece: str = self._processor.id_to_piece(int(token))
        return piece


def train_sentencepiece(
    texts: Iterable[str],
    output: Path,
    *,
    vocab_size: int,
    kind: str = "unigram",
    names: Iterable[str] = (),
    seed: int = 0,
    character_coverage: float = 0.9995,
) -> SentencePieceTokenizer:
    """Trains a tokenizer and writes ``output`` and ``output.meta.json``.

    Args:
        texts: documents of general text.
        output: path of the model file.
        vocab_size: number of pieces, at least 300.
        kind: ``unigram`` or ``bpe``.
        names: names of studied facts, added once each as lines of their own. Give the names of all groups alike, so
            that no group's names are cut into fewer tokens than another's.
        seed: seed of SentencePiece's sampling (beyond two million lines).
        character_coverage: share of characters that get a piece of their own; the rest become bytes.

    Raises:
        InputError: the vocabulary is too small or too large for the text, or the text is empty.
    """
    import sentencepiece

    if vocab_size < _SMALLEST_VOCABULARY:
        remedy = f"at least {_SMALLEST_VOCABULARY}: 256 bytes, 2 special pieces and the letters"
        raise InputError(f"is {vocab_size}", where="vocab_size", remedy=remedy)
    model = io.BytesIO()
    sentencepiece.set_random_generator_seed(seed)
    lines = _CountedLines(texts, names)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type=kind,
            vocab_size=vocab_size,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=True,
            character_coverage=character_coverage,
            unk_id=0,
            eos_id=1,
            eos_piece=EOD_PIECE,
            bos_id=-1,
            pad_id=-1,
            max_sentence_length=8 * _LONGEST_LINE,
            input_sentence_size=_SAMPLED_LINES,
            shuffle_input_sentence=True,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        if lines.error:  # SentencePiece turns an exception of the iterator into one of its own
            raise lines.error from None
        if not lines.count:
            raise InputError("no text to train a tokenizer on", where=str(output)) from None
        raise InputError(f"no tokenizer of {vocab_size} pieces ({_reason(error)})", where="vocab_size") from None
    side_file(output).unlink(missing_ok=True)  # of an earlier model
    with atomic_path(output) as partial:
        partial.write_bytes(model.getvalue())
    tokenizer = load_sentencepiece(output)
    write_meta(
        tokenizer, output, model=kind, seed=seed, lines=lines.count, sentencepiece_version=sentencepiece.__version__
    )
    return tokenizer


def load_sentencepiece(path: Path) -> SentencePieceTokenizer:
    """Loads a SentencePiece model.

    Raises:
        InputError: the file is missing, unreadable, not a SentencePiece model, or has no end-of-document piece.
    """
    import sentencepiece

    model = read_model(path)
    processor = sentencepiece.SentencePieceProcessor()
    remedy = "make one with `kis data tokenizer`"
    try:
        if not model:
            raise RuntimeError("empty file")
        processor.LoadFromSerializedProto(model)
        pieces = processor.get_piece_size()
    except (RuntimeError, OSError):
        raise InputError(
            f"not a SentencePiece model ({len(model)} bytes; damaged?)", where=str(path), remedy=remedy
        ) from None
    if pieces == 0:
        raise InputError("a SentencePiece model without pieces", where=str(path), remedy=remedy)
    if processor.eos_id() < 0:
        raise InputError("has no end-of-document piece (eos_id is -1)", where=str(path), remedy=remedy)
    _check_side_file(path, processor)
    return SentencePieceTokenizer(processor, model)


def _check_side_file(path: Path, processor: Any) -> None:
    """A SentencePiece model says itself what ends documents; a file next to it that names another is refused."""
    beside, piece = side_file(path), processor.id_to_piece(processor.eos_id())
    named = read_json(beside, META_SCHEMA).get("eod", piece) if beside.exists() else piece
    if named != piece:
        remedy = f"leave it out, or give the model another end of sentence: documents end with its {piece!r}"
        raise InputError(f"eod is {named!r}", where=str(beside), remedy=remedy)


def _is_text(processor: Any, piece: int) -> bool:
    """Whether a piece stands for its own characters."""
    return not (processor.is_byte(piece) or processor.is_control(piece) or processor.is_unknown(piece))


def _reason(error: RuntimeError) -> str:
    """SentencePiece's own words without its source code: "Vocabulary size too high (400). Please set it to ..."."""
    return str(error).splitlines()[-1].rpartition("] ")[2].strip()


class _CountedLines:
    """Lines of the documents and names, cut at spaces where they are too long, and their count."""

    def __init__(self, texts: Iterable[str], names: Iterable[str]) -> None:
        self._texts, self._names = texts, names
        self.count = 0
        self.error: BaseException | None = None

    def __iter__(self) -> Iterator[str]:
        try:
            yield from self._lines()
        except (Exception, KeyboardInterrupt) as error:
            self.error = error
            raise

    def _lines(self) -> Iterator[str]:
        for text in self._texts:
            for line in text.splitlines():
                yield from self._cut(line)
        for name in self._names:
            yield from self._cut(name)

    def _cut(self, line: str) -> Iterator[str]:
        while len(line) > _LONGEST_LINE:
            at = line.rfind(" ", 1, _LONGEST_LINE)
            at = at if at > 0 else _LONGEST_LINE
            self.count += 1
            yield line[:at]
            line = line[at:]
        if line.strip():
            self.count += 1
            yield line
