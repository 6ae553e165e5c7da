"""``kis data inspect``: whether what was written is whole, and what is in it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from megatron_kis.commands.data.options import JSON_HELP, add_step


def add_inspect(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describes ``kis data inspect``."""
    parser = add_step(steps, "inspect", "check a corpus or exposure store and show counts, lengths and a sample")
    parser.add_argument("prefix", type=Path, metavar="PREFIX", help="prefix of .bin and .idx")
    parser.add_argument("--tokenizer", type=Path, metavar="PATH", help="decode the sample with this tokenizer")
    parser.add_argument("--sample", type=int, default=3, metavar="N", help="documents to show")
    parser.add_argument("--json", action="store_true", help=JSON_HELP)
    parser.set_defaults(handler=_inspect)


def _inspect(options: argparse.Namespace) -> int:
    from data_tools.inspect import describe, inspect_corpus
    from data_tools.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(options.tokenizer) if options.tokenizer else None
    result = inspect_corpus(options.prefix, tokenizer=tokenizer, sample=options.sample)
    print(json.dumps(result, ensure_ascii=False, indent=1) if options.json else "\n".join(describe(result)))
    return 0
