"""SentencePiece models: loading, and encoding with character offsets.

Those that are trained here (``tokenizers.training``) give text back as it was:

* normalisation ``identity``, no whitespace is removed: NFC, NFD, case and double spaces stay. (The one exception is the
  character U+2581, SentencePiece's own mark of a space, which comes back as a space);
* one space is put before the text (``add_dummy_prefix``), so that a word has the same piece at the start and within a
  sentence; decoding takes it away;
* byte fallback: what no piece covers, newlines included, becomes bytes, so nothing is ever unknown;
* piece 0 is ``<unk>`` (unused), piece 1 ``<|endoftext|>`` ends documents. It is a control piece: the same characters in
  a text are encoded as text and can never end a document.
"""

from __future__ import annotations

from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_kis.common.errors import InputError
from megatron_kis.data_tools.tokenizers.base import Encoding, Tokenizer, read_meta, side_file
from megatron_kis.data_tools.tokenizers.sentencepiece_file import only_marks_spaces, special_pieces

_NO_TEXT = 1 << 32  # more than any text has: a token whose text is not its piece


class SentencePieceTokenizer(Tokenizer):
    """A loaded SentencePiece model."""

    library = "sentencepiece"
    kind = "sentencepiece"
    file_name = "tokenizer.model"

    def __init__(self, processor: Any, model: bytes) -> None:
        """Wraps a loaded ``SentencePieceProcessor``; use ``tokenizers.registry.load_tokenizer``."""
        super().__init__(model, vocab_size=processor.get_piece_size(), eod_id=processor.eos_id())
        self._processor = processor
        pieces = range(self.vocab_size)
        kept, unused = special_pieces(model)
        never = [piece for piece in pieces if processor.is_control(piece) or processor.is_unknown(piece)]
        self.spellings = tuple(map(processor.id_to_piece, [*never, *kept]))
        self.normal_spellings = tuple(map(processor.id_to_piece, [*kept, *unused]))
        self._plain = bool(self.normal_spellings) and only_marks_spaces(model)
        self.remarks = self._remarks()

    @cached_property
    def _characters(self) -> NDArray[np.int64]:
        """[pieces] number of characters of each piece."""
        pieces = range(self.vocab_size)
        processor = self._processor
        return np.array([len(self.piece(piece)) if _is_text(processor, piece) else _NO_TEXT for piece in pieces])

    def _remarks(self) -> tuple[str, ...]:
        if (bos := self._processor.bos_id()) < 0:
            return ()
        begins = self.piece(bos)
        return (f"the file does not say that {begins} begins documents, and none begins with it; tokenizer.json may",)

    def byte_piece(self, value: int) -> int | None:
        """Returns the piece of a byte; None where the model has no bytes."""
        piece: int = self._processor.piece_to_id(f"<0x{value:02X}>")
        return piece if self._processor.is_byte(piece) else None

    def normalise(self, text: str) -> str:
        """Returns the text as the model cuts it: with marks for spaces."""
        if self._plain:
            return f"▁{text}".replace(" ", "▁")
        normal: str = self._processor.normalize(text)
        return normal

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of a text, without an end-of-document token."""
        tokens: list[int] = self._processor.encode(text)
        return tokens

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Returns the token ids of several texts, as :meth:`encode` for each."""
        tokens: list[list[int]] = self._processor.encode(texts, num_threads=1)
        return tokens

    def encode_with_spans(self, text: str) -> Encoding:
        """Returns the token ids of a text and the characters that each covers."""
        tokens, spans = self._offsets(text)
        # SentencePiece gives the character to the last of its bytes and empty ranges to the bytes before.
        for index in range(len(spans) - 2, -1, -1):
            if spans[index][0] == spans[index][1] and self._processor.is_byte(tokens[index]):
                spans[index] = spans[index + 1]
        return Encoding(tokens, spans)

    def encode_batch_with_spans(self, texts: list[str]) -> tuple[list[list[int]], NDArray[np.int64]]:
        """Returns the token ids of several texts, and [tokens of all, 2] the characters that each covers in its text.

        SentencePiece's own offsets take five times as long as the ids. Where a text's pieces are its characters and the
        space before it, their lengths say the same; other texts (bytes, normalised ones) are encoded one by one.
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
        """Returns the text of token ids, without the end-of-document token and the space before the first word."""
        text: str = self._processor.decode([int(token) for token in tokens])
        return text

    def piece(self, token: int) -> str:
        """Returns the piece of a token id; ``▁`` is a space."""
        piece: str = self._processor.id_to_piece(int(token))
        return piece


def load_sentencepiece(path: Path, model: bytes) -> SentencePieceTokenizer:
    """Builds the tokenizer from the path and the content of a SentencePiece model.

    Raises:
        InputError: the file is not a SentencePiece model, or has no end-of-document piece.
    """
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    remedy = "make one with `kis data tokenizer`"
    try:
        if not model:
            raise RuntimeError("empty file")
        processor.LoadFromSerializedProto(model)
        pieces = processor.get_piece_size()
    except (RuntimeError, OSError, UnicodeDecodeError):  # the last where its own message holds a damaged piece
        raise InputError(
            f"not a SentencePiece model ({len(model)} bytes; damaged?)", where=str(path), remedy=remedy
        ) from None
    if pieces == 0:
        raise InputError("a SentencePiece model without pieces", where=str(path), remedy=remedy)
    if processor.eos_id() < 0:
        raise InputError("has no end-of-document piece (eos_id is -1)", where=str(path), remedy=remedy)
    for piece in range(pieces):
        try:
            processor.id_to_piece(piece)
        except UnicodeDecodeError:
            problem = f"not a SentencePiece model (piece {piece} is not UTF-8; damaged?)"
            raise InputError(problem, where=str(path), remedy=remedy) from None
    _check_side_file(path, processor)
    try:
        return SentencePieceTokenizer(processor, model)
    except (ValueError, IndexError, TypeError):  # what the library itself passes over
        raise InputError("not a SentencePiece model (damaged?)", where=str(path), remedy=remedy) from None


def _check_side_file(path: Path, processor: Any) -> None:
    """Refuses a side file that names another end-of-document token than the model itself."""
    piece = processor.id_to_piece(processor.eos_id())
    named = read_meta(path).get("eod", piece)
    if named != piece:
        remedy = f"leave it out, or give the model another end of sentence: documents end with its {piece!r}"
        raise InputError(f"eod is {named!r}", where=str(side_file(path)), remedy=remedy)


def _is_text(processor: Any, piece: int) -> bool:
    """Returns whether a piece is a text of its own characters."""
    return not (processor.is_byte(piece) or processor.is_control(piece) or processor.is_unknown(piece))
