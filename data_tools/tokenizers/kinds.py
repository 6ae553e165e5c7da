"""What kind of tokenizer a file is, by its name and content, and what is told of files that are none."""

from __future__ import annotations

import re
from pathlib import Path

from megatron_kis.common.errors import InputError

_IN_FOLDERS = ("tokenizer.json", "tokenizer.model", "tekken.json", "spiece.model")
_PARTS = ("vocab.json", "merges.txt", "vocab.txt")
_RANK_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")
_TEKKEN = re.compile(rb'"(?:token_bytes|default_num_special_tokens)"')
_LOOKED_AT = 4096  # bytes of a file's beginning


def file_in_folder(folder: Path) -> Path:
    """The tokenizer in a folder, such as one of Hugging Face's.

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


def kind_of_file(path: Path, model: bytes) -> str:
    """``huggingface``, ``tekken``, ``tiktoken``, or ``sentencepiece``: what no other is.

    Args:
        path: the file.
        model: its content.

    Raises:
        InputError: the file is empty, or stands for one that was not fetched.
    """
    if not model.strip():
        raise InputError("an empty file, no tokenizer", where=str(path), remedy="fetch or copy it again")
    if model.startswith(b"version https://git-lfs"):
        problem = "a pointer of Git LFS, which stands for a tokenizer that was not fetched"
        raise InputError(problem, where=str(path), remedy="fetch it with `git lfs pull`")
    head = model[:_LOOKED_AT]
    if path.suffix == ".json" or head.lstrip().startswith(b"{"):
        return "tekken" if _TEKKEN.search(head) else "huggingface"
    if path.suffix == ".tiktoken" or all(map(_RANK_LINE.fullmatch, head.splitlines(keepends=True)[:-1] or [head])):
        return "tiktoken"
    return "sentencepiece"
