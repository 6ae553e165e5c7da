"""Loads a tokenizer of any of the four kinds: SentencePiece, Hugging Face's ``tokenizer.json``, tiktoken, tekken.

The kind follows from the file's name and content.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from megatron_kis.common.errors import InputError
from megatron_kis.common.files import steadily, write_bytes
from megatron_kis.data_tools.tokenizers.base import Tokenizer, side_file, write_meta
from megatron_kis.data_tools.tokenizers.huggingface import load_huggingface
from megatron_kis.data_tools.tokenizers.sentencepiece import load_sentencepiece
from megatron_kis.data_tools.tokenizers.tekken import load_tekken
from megatron_kis.data_tools.tokenizers.tiktoken import load_tiktoken

_IN_FOLDERS = ("tokenizer.json", "tokenizer.model", "tekken.json", "spiece.model")
_PARTS = ("vocab.json", "merges.txt", "vocab.txt")
_RANK_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")
_TEKKEN = re.compile(rb'"(?:token_bytes|default_num_special_tokens)"')
_LOOKED_AT = 4096  # bytes of a file's beginning
_RARE = ("\U00010348", "\U0001f9ff")  # characters of no vocabulary: they have bytes, or no tokens that distinguish them

_LOADERS: dict[str, Callable[[Path, bytes], Tokenizer]] = {
    "huggingface": load_huggingface,
    "sentencepiece": load_sentencepiece,
    "tekken": load_tekken,
    "tiktoken": load_tiktoken,
}


def load_tokenizer(path: Path) -> Tokenizer:
    """Loads a tokenizer from its model file, or from a folder that has one.

    Raises:
        InputError: the file is missing, unreadable, not a tokenizer, or has no end-of-document token.
    """
    path = model_file(path)
    model = steadily(path.read_bytes, path)
    tokenizer = _LOADERS[_kind_of(path, model)](path, model)
    try:
        alike = tokenizer.encode(_RARE[0]) == tokenizer.encode(_RARE[1])
    except Exception as error:  # tokenizers raises bare exceptions
        problem = f"refuses text that it has no tokens for ({error})"
        raise InputError(problem, where=str(path), remedy="give the model an unk_token of its vocabulary") from None
    if alike:
        lost = (
            "the vocabulary lacks characters and has no bytes for them: they are lost, and texts in some scripts alike"
        )
        tokenizer.remarks += (lost,)
    return tokenizer


def model_file(path: Path) -> Path:
    """Returns the model file of a tokenizer: where a folder is given, the one in it, else the path.

    Raises:
        InputError: the folder has no tokenizer, or only files that do not say how text is cut.
    """
    return _file_in_folder(path) if path.is_dir() else path


def write_copy(tokenizer: Tokenizer, folder: Path) -> Path:
    """Writes a tokenizer with everything that belongs to it into a folder, under a name of its kind.

    Returns:
        The model file: ``load_tokenizer`` of it gives a tokenizer of the same fingerprint, wherever the folder goes.
    """
    path = folder / tokenizer.file_name
    side_file(path).unlink(missing_ok=True)  # one of an earlier model may name another token
    write_bytes(path, tokenizer.model)
    write_meta(tokenizer, path)
    copy = load_tokenizer(path)
    assert copy.fingerprint == tokenizer.fingerprint
    return path


def _file_in_folder(folder: Path) -> Path:
    """Returns the model file in a folder, such as one of Hugging Face's.

    Raises:
        InputError: there is none, or only files that do not say how text is cut.
    """
    for name in _IN_FOLDERS:
        if (folder / name).is_file():
            return folder / name
    others = sorted(folder.glob("*.tiktoken"))
    if len(others) == 1:
        return others[0]
    parts = [name for name in _PARTS if (folder / name).is_file()]
    if parts:
        raise InputError(
            f"has no tokenizer.json, and {' and '.join(parts)} do not say how text is cut into words",
            where=str(folder),
            remedy="write it with transformers: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)",
        )
    expected = f"expected one of {', '.join(_IN_FOLDERS)} in it, or one .tiktoken file"
    raise InputError("has no tokenizer", where=str(folder), remedy=expected)


def _kind_of(path: Path, model: bytes) -> str:
    """Returns the kind of a file: ``huggingface``, ``tekken``, ``tiktoken``, or ``sentencepiece`` for any other.

    Args:
        path: the file.
        model: its content.

    Raises:
        InputError: the file is empty, or a pointer to one that was not fetched.
    """
    if not model.strip():
        raise InputError("an empty file, no tokenizer", where=str(path), remedy="fetch or copy it again")
    if model.startswith(b"version https://git-lfs"):
        problem = "a pointer of Git LFS to a tokenizer that was not fetched"
        raise InputError(problem, where=str(path), remedy="fetch it with `git lfs pull`")
    head = model[:_LOOKED_AT]
    if path.suffix == ".json" or head.lstrip().startswith(b"{"):
        return "tekken" if _TEKKEN.search(head) else "huggingface"
    if path.suffix == ".tiktoken" or all(map(_RANK_LINE.fullmatch, head.splitlines(keepends=True)[:-1] or [head])):
        return "tiktoken"
    return "sentencepiece"
