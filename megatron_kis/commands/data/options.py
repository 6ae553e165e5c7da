"""What several steps of ``kis data`` have in common: how a step is described, and the options for text."""

from __future__ import annotations

import argparse
from pathlib import Path

JSON_HELP = "print the result as JSON"


def add_step(
    steps: argparse._SubParsersAction[argparse.ArgumentParser], name: str, summary: str
) -> argparse.ArgumentParser:
    """Adds a step whose help shows the defaults."""
    return steps.add_parser(
        name, help=summary, description=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )


def add_text_options(parser: argparse.ArgumentParser) -> None:
    """Adds the text files and the key of their text."""
    kinds = "text files or patterns: .jsonl, .txt (blank line between documents), .tsv, each also .gz or .zst; .parquet"
    parser.add_argument("--input", type=Path, nargs="+", required=True, metavar="FILE", help=kinds)
    parser.add_argument("--text-key", default="text", metavar="KEY", help="JSON key or column of the text")
