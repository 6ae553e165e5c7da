"""``kis export``: a run for other tools."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describes ``kis export``."""
    parser = commands.add_parser("export", help="a run's checkpoint for other tools")
    formats = parser.add_subparsers(dest="format", metavar="FORMAT", required=True)
    huggingface = formats.add_parser(
        "hf",
        help="Hugging Face: Llama architecture, safetensors, tokenizer",
        description="Writes a checkpoint of any parallel layout as a folder that transformers opens: weights, "
        "configuration and tokenizer. Logits are those of the run.",
    )
    huggingface.add_argument("run", type=Path, metavar="RUN_DIR", help="the run's folder")
    huggingface.add_argument("--output", type=Path, required=True, metavar="DIR", help="a folder to make")
    huggingface.add_argument("--step", type=int, metavar="S", help="of the checkpoint (default: the newest)")
    huggingface.add_argument("--no-tokenizer", action="store_true", help="leave the tokenizer out")
    huggingface.set_defaults(handler=_huggingface)


def _huggingface(options: argparse.Namespace) -> int:
    from megatron_kis.export.huggingface import export_huggingface

    print(export_huggingface(options.run, options.output, step=options.step, tokenizer=not options.no_tokenizer))
    return 0
