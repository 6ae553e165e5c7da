"""``kis import``: a model of others as the start of a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_kis.cli.outputs import new_folder


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    summary = "make a Hugging Face model the start of a run"
    parser = commands.add_parser("import", help=summary, description=summary)
    formats = parser.add_subparsers(dest="format", metavar="FORMAT", required=True)
    huggingface = formats.add_parser(
        "hf",
        help="Hugging Face: a Llama-like model in safetensors",
        description="Writes a start, from which kis train begins (model.init_from), and the tokenizer, with which the "
        "data must be made; prints the model section of a run. What is not plain Llama is refused.",
    )
    huggingface.add_argument("source", type=Path, metavar="DIR", help="folder with config.json and *.safetensors")
    huggingface.add_argument("--output", type=new_folder, required=True, metavar="DIR", help="a folder to make")
    huggingface.add_argument("--eod", metavar="TOKEN", help="token that ends documents (default: its eos_token)")
    huggingface.set_defaults(handler=_huggingface)


def _huggingface(options: argparse.Namespace) -> int:
    from megatron_kis.convert.from_huggingface import import_huggingface

    start = import_huggingface(options.source, options.output, eod=options.eod)
    content = start.content
    print("model:")
    for name, value in {"init_from": start.folder, **content["model"]}.items():
        print(f"  {name}: {str(value).lower() if isinstance(value, bool) else value}")
    for what in ("added", "dropped"):
        if content[f"rows_{what}"]:
            print(f"# {content[f'rows_{what}']} rows of the embedding that belong to no piece were {what}")
    return 0
