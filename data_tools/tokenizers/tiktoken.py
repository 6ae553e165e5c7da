"""tiktoken files: one line per token, ``base64-of-its-bytes rank``.

The file holds neither the pattern that cuts text into words nor the special tokens. For the files that OpenAI publishes
both follow from the name (``r50k_base``, ``cl100k_base``, ``o200k_base``); for others ``PATH.meta.json`` names them::

    {"schema": "kis.tokenizer/1", "kind": "tiktoken", "pattern": "gpt4", "eod": "<|endoftext|>",
     "special_tokens": {"<|endoftext|>": 100257}}

A ``tokenizer.model`` of 128,000 ranks is Llama 3's as Meta publishes it, whose pattern and special tokens are known.

The spelling of a special token within a text is text here, and never ends a document.
"""

from __future__ import annotations

import base64
import binascii
from bisect import bisect_right
from pathlib import Path
from typing import Any

from megatron_kis.common.errors import InputError
from megatron_kis.common.extras import import_extra
from megatron_kis.common.files import read_json
from megatron_kis.data_tools.tokenizers.base import (
    EOD_PIECE,
    ID_LIMIT,
    META_SCHEMA,
    Encoding,
    Tokenizer,
    missing_bytes,
    read_meta,
    side_file,
)

PATTERNS = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    "gpt4": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]"
        r"|\s+(?!\S)|\s"
    ),
    "o200k": "|".join(
        [
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
            r"\p{N}{1,3}",
            r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
            r"\s*[\r\n]+",
            r"\s+(?!\S)",
            r"\s+",
        ]
    ),
    "llama3": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    ),
}
"""Patterns that cut text into words, by name: from the ``tiktoken`` package (``tiktoken_ext/openai_public.py``), for
Llama 3 from the ``pre_tokenizer`` of its ``tokenizer.json``."""
_SCHEMES = {"gpt2": "gpt2", "gpt4": "gpt4", "o200k": "o200k", "llama3": "gpt4"}
"""Their names in gigatoken."""

_PUBLISHED = {  # name of the file: its pattern, how many ranks it has, from 0, and its end-of-document token
    "r50k_base": ("gpt2", 50256, 50256),
    "cl100k_base": ("gpt4", 100256, 100257),
    "o200k_base": ("o200k", 199998, 199999),
}

_LLAMA3_RANKS = 128_000
_LLAMA3_EOD = "<|end_of_text|>"
_LLAMA3_RESERVED = [f"<|reserved_special_token_{number}|>" for number in range(251)]
_LLAMA3_SPECIAL = ["<|begin_of_text|>", _LLAMA3_EOD, *_LLAMA3_RESERVED[:4]]
_LLAMA3_SPECIAL += [
    "<|start_header_id|>",
    "<|end_header_id|>",
    _LLAMA3_RESERVED[4],
    "<|eot_id|>",
    *_LLAMA3_RESERVED[5:],
]
"""The 256 special tokens of Llama 3, whose ids follow the ranks."""

_IDS = f"ids are whole numbers from 0 to {ID_LIMIT - 1}"


class TiktokenTokenizer(Tokenizer):
    """A loaded tiktoken file."""

    library = "tiktoken"
    kind = "tiktoken"
    file_name = "tokenizer.tiktoken"

    def __init__(
        self,
        encoding: Any,
        model: bytes,
        *,
        special: dict[str, int],
        eod: str,
        side_content: dict[str, Any],
        pattern: str = "",
        scheme: str | None = None,
    ) -> None:
        """Wraps a ``tiktoken.Encoding``; use ``tokenizers.registry.load_tokenizer``.

        Args:
            encoding: the library's object.
            model: content of the file.
            special: ids of the special tokens, which a text never has.
            eod: spelling of the end-of-document token.
            side_content: what else decides the ids, as ``PATH.meta.json`` has it.
            pattern: the pattern, where ``side_content`` has only a name for it.
            scheme: name of the pattern in gigatoken; None where it has none.
        """
        super().__init__(
            model, vocab_size=encoding.n_vocab, eod_id=special[eod], side_content=side_content, pattern=pattern
        )
        self._encoding = encoding
        self.special = special
        """Ids of the special tokens by their spelling."""
        self.eod = eod
        """Spelling of the end-of-document token."""
        self.scheme = scheme
        """Name of the pattern in gigatoken; None where it has none."""
        self.spellings = tuple(special)
        self.remarks = _remarks(special)

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of a text, without an end-of-document token."""
        tokens: list[int] = self._encoding.encode_ordinary(text)
        return tokens

    def encode_with_spans(self, text: str) -> Encoding:
        """Returns the token ids of a text and the characters that each covers.

        Tokens of one character's bytes share its range.
        """
        tokens = self.encode(text)
        starts = []  # of each character, in bytes
        reached = 0
        for character in text:
            starts.append(reached)
            reached += len(character.encode())
        spans = []
        at = 0
        for token in tokens:
            end = at + len(self._encoding.decode_single_token_bytes(token))
            spans.append((bisect_right(starts, at) - 1, bisect_right(starts, end - 1)))
            at = end
        return Encoding(tokens, spans)

    def decode(self, tokens: list[int]) -> str:
        """Returns the text of token ids; special tokens become nothing."""
        special = set(self.special.values())
        text: str = self._encoding.decode([int(token) for token in tokens if int(token) not in special])
        return text

    def piece(self, token: int) -> str:
        """Returns the token's bytes as text."""
        piece: bytes = self._encoding.decode_single_token_bytes(int(token))
        return piece.decode("utf-8", errors="replace")


def load_tiktoken(path: Path, model: bytes) -> TiktokenTokenizer:
    """Builds the tokenizer from the path and the content of a tiktoken file.

    Raises:
        InputError: the file is damaged (``file:line``), its pattern is not known, or an id has two
            tokens.
    """
    ranks = _ranks(path, model)
    name, special, eod = _description(path, ranks)
    side = side_file(path)
    check_special(special, ranks, side if side.exists() else path)
    return TiktokenTokenizer(
        make_encoding(path, PATTERNS[name], ranks, special),
        model,
        special=special,
        eod=eod,
        side_content={"pattern": name, "eod": eod, "special_tokens": special},
        pattern=PATTERNS[name],
        scheme=_SCHEMES[name],
    )


def make_encoding(path: Path, pattern: str, ranks: dict[bytes, int], special: dict[str, int]) -> Any:
    """Builds the library's ``Encoding``.

    Raises:
        InputError: tiktoken is not installed, or refuses the model.
    """
    tiktoken = import_extra("tiktoken", f"for {path.name}")
    try:
        return tiktoken.Encoding(path.stem, pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
    except (ValueError, AssertionError) as error:
        raise InputError(f"tiktoken refuses the model ({error})", where=str(path)) from None


def _remarks(special: dict[str, int]) -> tuple[str, ...]:
    begins = next((name for name in ("<|begin_of_text|>", "<s>") if name in special), None)
    if begins is None:
        return ()
    return (f"the file does not say that {begins} begins documents, and none begins with it; its tokenizer.json may",)


def _ranks(path: Path, model: bytes) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    taken: dict[int, int] = {}  # line of each rank
    for number, line in enumerate(model.splitlines(), start=1):
        if not line:
            continue
        where = f"{path}:{number}"
        try:
            encoded, written = line.split()
            token = base64.b64decode(encoded, validate=True)
            rank = int(written)
        except (ValueError, binascii.Error):
            raise InputError("not a token and its rank", where=where) from None
        if not token:
            raise InputError("an empty token", where=where)
        if not is_id(rank):
            raise InputError(f"rank is {rank}", where=where, remedy=_IDS)
        if token in ranks:
            raise InputError(f"the token has a rank in line {taken[ranks[token]]} already", where=where)
        if rank in taken:
            raise InputError(f"two tokens have one rank: line {taken[rank]} gives {rank} too", where=where)
        ranks[token] = rank
        taken[rank] = number
    if missing := missing_bytes(ranks):
        raise InputError(f"not a tiktoken file ({missing} of the 256 bytes are missing)", where=str(path))
    return ranks


def is_id(value: Any) -> bool:
    """Returns whether a value is a possible token id."""
    return type(value) is int and 0 <= value < ID_LIMIT


def check_special(special: dict[str, int], ranks: dict[bytes, int], where: Path) -> None:
    """Refuses special tokens whose ids are not unique among all tokens.

    Raises:
        InputError: names the token.
    """
    taken = dict.fromkeys(ranks.values(), "a token of the text")
    for spelling, token in special.items():
        if not spelling:
            raise InputError("special_tokens holds an empty one", where=str(where))
        if not is_id(token):
            raise InputError(f"special_tokens: {spelling!r} has the id {token}", where=str(where), remedy=_IDS)
        if token in taken:
            raise InputError(f"special_tokens: {spelling!r} has the id {token} of {taken[token]}", where=str(where))
        taken[token] = repr(spelling)


def _description(path: Path, ranks: dict[bytes, int]) -> tuple[str, dict[str, int], str]:
    """Returns pattern name, special tokens and end-of-document token, from the side file, else as published."""
    side = side_file(path)
    meta = read_meta(path)
    if "pattern" in meta or "special_tokens" in meta:
        meta = read_json(side, META_SCHEMA, keys=("pattern", "special_tokens"))
        pattern = meta["pattern"]
        special = meta["special_tokens"]
        eod = EOD_PIECE
    else:
        pattern, special, eod = _published(path, ranks)
    eod = meta.get("eod", eod)
    if not isinstance(pattern, str) or pattern not in PATTERNS:
        raise InputError(f"pattern is {pattern!r}", where=str(side), remedy=f"valid: {', '.join(PATTERNS)}")
    ids = all(type(token) is int for token in special.values()) if isinstance(special, dict) else False
    if not ids or not isinstance(eod, str) or eod not in special:
        raise InputError(f"special_tokens do not hold {eod!r} and its id", where=str(side))
    return pattern, special, eod


def _published(path: Path, ranks: dict[bytes, int]) -> tuple[str, dict[str, int], str]:
    """Returns the same for a file that is known by its ranks or its name."""
    if path.suffix != ".tiktoken" and sorted(ranks.values()) == list(range(_LLAMA3_RANKS)):
        return "llama3", {name: _LLAMA3_RANKS + number for number, name in enumerate(_LLAMA3_SPECIAL)}, _LLAMA3_EOD
    side = side_file(path)
    if path.stem not in _PUBLISHED or path.suffix != ".tiktoken":
        names = ", ".join(f"{name}.tiktoken" for name in _PUBLISHED)
        remedy = f"name pattern and special_tokens in {side.name}, or call it one of {names}"
        problem = f"a tiktoken file ({len(ranks)} ranks), which does not say how text is cut into words"
        raise InputError(problem, where=str(path), remedy=remedy)
    pattern, count, eod_id = _PUBLISHED[path.stem]
    if sorted(ranks.values()) != list(range(count)):
        problem = f"has {len(ranks)} ranks, and {path.stem} as it is published those from 0 to {count - 1}"
        remedy = f"fetch it again, or, if it is another model, name pattern and special_tokens in {side.name}"
        raise InputError(problem, where=str(path), remedy=remedy)
    return pattern, {EOD_PIECE: eod_id}, EOD_PIECE
