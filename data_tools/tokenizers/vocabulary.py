"""Checks of a ``tokenizer.json`` for what it may say twice or wrongly, and its library accepts without a word."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from megatron_kis.common.errors import InputError
from megatron_kis.data_tools.tokenizers.base import ID_LIMIT


def check_vocabulary(content: dict[str, Any], tokenizer: Any, *, where: str) -> None:
    """Refuses a model in which two tokens share a spelling or an id, or whose tokens depend on chance.

    Args:
        content: the parsed file; no key of it is there twice.
        tokenizer: the same as its library loaded it.
        where: the file.

    Raises:
        InputError: names the tokens.
    """
    vocabulary = content["model"].get("vocab") or {}
    if isinstance(vocabulary, dict):
        _refuse_shared(vocabulary, "vocab", where)
    else:
        twice = _twice(entry[0] for entry in vocabulary)
        if twice is not None:
            raise InputError(f"vocab: {twice!r} is there twice", where=where, remedy="keep one of them")
    added = content.get("added_tokens") or []
    twice = _twice(token["content"] for token in added)
    if twice is not None:
        raise InputError(f"added_tokens: {twice!r} is there twice", where=where, remedy="keep one of them")
    _refuse_shared({token["content"]: token["id"] for token in added}, "added_tokens", where)
    for token in added:
        given = tokenizer.token_to_id(token["content"])
        if given is not None and given != token["id"]:
            raise InputError(
                f"added_tokens: {token['content']!r} has the id {token['id']}, but is token {given}",
                where=where,
                remedy="added tokens have their ids of the vocabulary, or those that follow it without a gap",
            )
    ids = tokenizer.get_vocab(with_added_tokens=True)
    _refuse_shared(ids, "vocab and added_tokens", where)
    if ids and max(ids.values()) >= ID_LIMIT:
        raise InputError(f"an id is {max(ids.values())}", where=where, remedy=f"ids are below {ID_LIMIT}")
    if content["model"].get("dropout"):
        problem = f"model.dropout is {content['model']['dropout']}: a text has other tokens each time"
        raise InputError(problem, where=where, remedy="set it to null")


def damage_of(model: bytes, error: Exception) -> str:
    """Says why a file is no ``tokenizer.json``, where more is known than its library's message."""
    message = str(error).splitlines()[0]
    try:
        content = json.loads(model)
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError as half:
        return f"it holds half of a surrogate pair, {half.object[half.start]!r}"
    except json.JSONDecodeError as damage:
        return f"not valid JSON: {damage.msg} in line {damage.lineno}"
    except (ValueError, RecursionError):
        return message
    if not isinstance(content, dict):
        return "it is not a JSON object"
    if content and all(type(value) is int for value in content.values()):
        return "it maps words to ids, as a vocab.json, and does not say how text is cut"
    return message if "model" in content else "it has no model"


def _twice(names: Any) -> str | None:
    return next((name for name, count in Counter(names).items() if count > 1), None)


def _refuse_shared(ids: dict[str, int], key: str, where: str) -> None:
    if len(set(ids.values())) == len(ids):
        return
    number = next(number for number, count in Counter(ids.values()).items() if count > 1)
    one, other = [spelling for spelling, token in ids.items() if token == number][:2]
    problem = f"{key}: {one!r} and {other!r} have one id, {number}"
    raise InputError(problem, where=where, remedy="give each token an id of its own")
