"""Mistral's ``tekken.json``: ranks of bytes as in tiktoken, the pattern that cuts text, and special tokens before them.

The file lists more tokens than the model has: the first ``default_vocab_size - default_num_special_tokens`` count, and
the id of each is its rank after all special tokens. The spelling of a special token within a text is text here.
Documents end with ``</s>``, or with the special token that is ``eod`` of ``PATH.meta.json``.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

from megatron_kis.common.errors import InputError
from megatron_kis.common.parsing import parse_json
from megatron_kis.data_tools.tokenizers.base import META_SCHEMA, missing_bytes, read_meta, side_file
from megatron_kis.data_tools.tokenizers.tiktoken import TiktokenTokenizer, check_special, is_id, make_encoding

_FIRST_SPECIAL = [
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[TOOL_CALLS]",
    "[IMG]",
    "<pad>",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[PREFIX]",
    "[MIDDLE]",
    "[SUFFIX]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
]
"""Special tokens of older files, which do not list them."""
_EOD = "</s>"


class TekkenTokenizer(TiktokenTokenizer):
    """A Tekken tokenizer, loaded from its ``tekken.json``."""

    kind = "tekken"
    file_name = "tekken.json"


def load_tekken(path: Path, model: bytes) -> TekkenTokenizer:
    """Builds the tokenizer from the path and the content of a ``tekken.json``.

    Raises:
        InputError: the file is damaged, or lacks the token that ends documents.
    """
    content = parse_json(model, where=str(path))
    config = content.get("config") if isinstance(content, dict) else None
    if not isinstance(config, dict) or not isinstance(config.get("pattern"), str):
        raise InputError("not a tekken.json (it has no config.pattern)", where=str(path))
    size = config.get("default_vocab_size")
    count = config.get("default_num_special_tokens")
    if size is None or count is None or not is_id(size) or not is_id(count) or count >= size:
        problem = f"config.default_vocab_size is {size}, config.default_num_special_tokens {count}"
        raise InputError(problem, where=str(path), remedy="expected numbers, the first the larger")
    special = _special(content.get("special_tokens"), count, path)
    ranks = _ranks(content.get("vocab"), size - count, path)
    shifted = {token: rank + count for token, rank in ranks.items()}
    check_special(special, shifted, path)
    eod = read_meta(path).get("eod", _EOD)
    if not isinstance(eod, str) or eod not in special:
        side = side_file(path)
        raise InputError(
            f"{eod!r}, which ends documents, is none of the special tokens",
            where=str(side if side.exists() else path),
            remedy=f'name one in {side.name}: {{"schema": "{META_SCHEMA}", "eod": "..."}}',
        )
    encoding = make_encoding(path, config["pattern"], shifted, special)
    return TekkenTokenizer(encoding, model, special=special, eod=eod, side_content={"eod": eod})


def _special(listed: Any, count: int, path: Path) -> dict[str, int]:
    """Returns the special tokens by spelling: the listed ones, and one without a meaning for every other id."""
    names: dict[int, str] = {number: f"<SPECIAL_{number}>" for number in range(count)}
    if listed is None:
        names.update(enumerate(_FIRST_SPECIAL[:count]))
    else:
        try:
            given = [(token["rank"], token["token_str"]) for token in listed]
        except (TypeError, KeyError):
            raise InputError("special_tokens: expected rank and token_str of each", where=str(path)) from None
        for number, (rank, name) in enumerate(given):
            if not is_id(rank) or rank >= count or not isinstance(name, str):
                problem = f"special_tokens[{number}]: {name!r} has the rank {rank}, of {count}"
                raise InputError(problem, where=str(path))
        names.update(given)
        if len(dict(given)) < len(given):
            raise InputError("special_tokens: two have one rank", where=str(path))
    special = {name: number for number, name in names.items()}
    if len(special) < len(names):
        raise InputError("special_tokens: two have one spelling", where=str(path))
    return special


def _ranks(listed: Any, size: int, path: Path) -> dict[bytes, int]:
    """Returns the ranks of the ordinary tokens by their bytes."""
    if not isinstance(listed, list) or len(listed) < size:
        found = len(listed) if isinstance(listed, list) else "no"
        raise InputError(f"vocab has {found} tokens, config asks for {size}", where=str(path))
    ranks: dict[bytes, int] = {}
    for number, token in enumerate(listed[:size]):
        try:
            rank = token["rank"]
            content = base64.b64decode(token["token_bytes"], validate=True)
        except (TypeError, KeyError, ValueError, binascii.Error):
            raise InputError(f"vocab[{number}]: expected rank and token_bytes", where=str(path)) from None
        if rank != number or not content or content in ranks:
            raise InputError(f"vocab[{number}]: {content!r} has the rank {rank}", where=str(path))
        ranks[content] = rank
    if missing := missing_bytes(ranks):
        raise InputError(f"vocab: {missing} of the 256 bytes are missing", where=str(path))
    return ranks
