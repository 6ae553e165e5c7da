"""``kis import``: a model of another library as the start of a run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_kis.cli.outputs import new_folder

if TYPE_CHECKING:
    from megatron_kis.checkpoint.start import Start


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    summary = "make a model of Hugging Face or Megatron-LM the start of a run"
    parser = commands.add_parser("import", help=summary, description=summary)
    formats = parser.add_subparsers(dest="format", metavar="FORMAT", required=True)
    huggingface = formats.add_parser(
        "hf",
        help="Hugging Face: a Llama, Mistral, Qwen2 or Qwen3 in safetensors",
        description="Write a start, from which kis train begins (model.init_from), and the tokenizer, with which the "
        "data must be made. Print the model section of a run. Other models are refused by name.",
    )
    huggingface.add_argument("source", type=Path, metavar="DIR", help="folder with config.json and *.safetensors")
    huggingface.add_argument(
        "--output", type=new_folder, required=True, metavar="DIR", help="folder to write; must be new or empty"
    )
    huggingface.add_argument("--eod", metavar="TOKEN", help="token that ends documents (default: its eos_token)")
    huggingface.set_defaults(handler=_huggingface)
    megatron = formats.add_parser(
        "megatron",
        help="Megatron-LM: a checkpoint of a Llama-like model in the format torch_dist",
        description="Write a start, from which kis train begins (model.init_from), and print the model section of a "
        "run. Nothing is unpickled. The shape is read from the arguments in the checkpoint.",
    )
    megatron.add_argument("source", type=Path, metavar="DIR", help="a checkpoint, or the folder of several")
    megatron.add_argument(
        "--output", type=new_folder, required=True, metavar="DIR", help="folder to write; must be new or empty"
    )
    megatron.add_argument(
        "--tokenizer",
        type=Path,
        metavar="FILE",
        help="the model's tokenizer; without it the tables stay as they are",
    )
    megatron.add_argument("--eod", metavar="TOKEN", help="token that ends documents (default: the tokenizer's)")
    megatron.add_argument(
        "--model",
        type=Path,
        metavar="FILE",
        help="model section of a run, for a checkpoint without arguments",
    )
    megatron.set_defaults(handler=_megatron)


def _huggingface(options: argparse.Namespace) -> int:
    from megatron_kis.convert.from_huggingface import import_huggingface

    return _print(import_huggingface(options.source, options.output, eod=options.eod))


def _megatron(options: argparse.Namespace) -> int:
    from megatron_kis.common.errors import InputError
    from megatron_kis.convert.from_megatron import import_megatron

    if options.eod is not None and options.tokenizer is None:
        raise InputError("names a token, and there is no tokenizer", where="--eod", remedy="add --tokenizer")
    return _print(
        import_megatron(
            options.source, options.output, tokenizer=options.tokenizer, eod=options.eod, model=options.model
        )
    )


def _print(start: Start) -> int:
    """Prints the model section that a run needs."""
    content = start.content
    print("model:")
    for name, value in {"init_from": start.folder, **content["model"]}.items():
        print(f"  {name}: {str(value).lower() if isinstance(value, bool) else value}")
    for what in ("added", "dropped"):
        if content[f"rows_{what}"]:
            print(f"# {content[f'rows_{what}']} rows of the embedding without a piece were {what}")
    return 0
