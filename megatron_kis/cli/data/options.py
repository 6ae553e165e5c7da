"""Common parts of the steps of ``kis data``: how a step is described, and the options for text."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_kis.common.errors import printable
from megatron_kis.common.units import plural

if TYPE_CHECKING:
    from megatron_kis.data_tools.readers.documents import Document
    from megatron_kis.data_tools.tokenizers.base import Tokenizer

JSON_HELP = "print the result as JSON"

_SMALLEST_LIMIT = 2_000_000


def add_step(
    steps: argparse._SubParsersAction[argparse.ArgumentParser], name: str, summary: str
) -> argparse.ArgumentParser:
    """Adds a step."""
    return steps.add_parser(name, help=summary, description=summary)


def add_text_options(parser: argparse.ArgumentParser) -> None:
    """Adds the text files and the key of their text."""
    kinds = (
        "text files or patterns: .jsonl (.json, .ndjson), .txt (blank line between documents), .tsv, each also .gz,"
        " .zst, .bz2 or .xz; .parquet"
    )
    parser.add_argument("--input", type=Path, nargs="+", action="extend", required=True, metavar="FILE", help=kinds)
    parser.add_argument("--text-key", default="text", metavar="KEY", help="JSON key or column of the text")
    named = "format of all files, whatever their names"
    parser.add_argument("--format", choices=("jsonl", "txt", "tsv", "parquet"), help=named)
    longest = "largest line, or document of a .txt file; encoding may take 155 times as much memory"
    parser.add_argument("--longest-line", type=_line_size, default="16", metavar="MB", help=longest)


def add_skipping(parser: argparse.ArgumentParser) -> None:
    """Adds the choice between stopping at a line without a document and skipping it."""
    errors = "at a line that holds no document: stop, or skip it (skipped lines are counted, the first is named)"
    parser.add_argument("--on-error", choices=("stop", "skip"), default="stop", help=errors)


@contextmanager
def documents_of(options: argparse.Namespace, paths: Iterable[Path]) -> Iterator[Iterator[Document]]:
    """Yields the documents of the text files; says at the end, even after an error, which lines were skipped."""
    from megatron_kis.data_tools.readers.documents import SkippedLines, iter_documents

    skipped = SkippedLines() if options.on_error == "skip" else None
    try:
        yield iter_documents(
            paths,
            text_key=options.text_key,
            text_format=options.format,
            longest=options.longest_line,
            skipped=skipped,
        )
    finally:
        if skipped and skipped.count:
            print(printable(f"skipped: {plural(skipped.count, 'line')}, the first {skipped.first}"))


def megabytes(text: str) -> int:
    """Returns the bytes of a size in MB, as an argument."""
    try:
        size = int(float(text) * 1e6)
    except (ValueError, OverflowError):
        size = 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write a number of MB, such as 64")
    return size


def _line_size(text: str) -> int:
    size = megabytes(text)
    if size < _SMALLEST_LIMIT:
        raise argparse.ArgumentTypeError(f"{text!r} is too small; at least 2 MB")
    return size


def print_frame(tokenizer: Tokenizer, *, ended: bool = True, sentences: bool = False) -> None:
    """Prints which tokens documents and sentences begin and end with, and remarks on what may be surprising."""
    print(printable(tokenizer.frame_line(ended=ended, sentences=sentences)))
    for remark in tokenizer.remarks:
        print(f"remark: {printable(remark)}")
