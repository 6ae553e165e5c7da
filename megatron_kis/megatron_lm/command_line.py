"""The command line of ``pretrain_kis.py``: Megatron-LM's arguments with those of a run, and complaints in one line."""

from __future__ import annotations

import argparse
import linecache
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from megatron_kis.common.errors import InputError, nearest, placed
from megatron_kis.data.general_text import ValidationText
from megatron_kis.data_tools.tokenizers.registry import load_tokenizer
from megatron_kis.megatron_lm.arguments import add_arguments, run_of
from megatron_kis.megatron_lm.settings import arguments_of

WHERE = "Megatron-LM's arguments"
_HELP = "pretrain_kis.py --help lists them"
_IN_OTHER_UNITS = (
    "--train-samples",
    "--lr-decay-samples",
    "--lr-warmup-samples",
    "--lr-warmup-fraction",
    "--lr-wsd-decay-samples",
)
"""Arguments that Megatron-LM does not accept next to those in steps, which a run gives."""


def command_line(words: Sequence[str]) -> list[str]:
    """Returns Megatron-LM's arguments: with ``--kis-run`` those of the run first, so that later words replace them.

    Args:
        words: the script's arguments.

    Raises:
        InputError: the run's file, tokenizer or validation text is wrong or missing, or an argument excludes the run's.
    """
    if {"-h", "--help"} & set(words):
        return list(words)
    parser = script_arguments(argparse.ArgumentParser(add_help=False, allow_abbrev=False))
    parser.add_argument("--tensor-model-parallel-size", dest="tensor", type=int)
    args, others = parser.parse_known_args(words)
    if args.kis_run is None:
        return list(words)
    flags = {word.partition("=")[0] for word in others}
    if given := [flag for flag in _IN_OTHER_UNITS if flag in flags]:
        problem = f"cannot be combined with --kis-run {args.kis_run}, which gives it in steps"
        raise InputError(problem, where=given[0], remedy="leave it out")
    config = run_of(args)
    if args.tensor:
        config = config.replace(parallel=config.parallel.replace(tensor=args.tensor))
    length = config.training.sequence_length
    with placed("data.tokenizer"):
        tokenizer = load_tokenizer(config.data.tokenizer)
    with placed("data.validation"):
        text = ValidationText(config.data.validation, sequence_length=length, max_tokens=config.validation.max_tokens)
    own = arguments_of(config, vocabulary=tokenizer.vocab_size, eod_id=tokenizer.eod_id, validation_sequences=len(text))
    return [*own, *words]


def script_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds ``--kis-*`` to Megatron-LM's parser, which then prints its help, and raises ``InputError`` for a mistake.

    Its own complaint begins with several hundred lines of usage. In 0.19 one of its help texts has a percent sign that
    argparse cannot format.
    """
    for action in parser._actions:
        try:
            (action.help or "") % {**vars(action), "prog": parser.prog}
        except (KeyError, TypeError, ValueError):
            action.help = (action.help or "").replace("%", "%%")

    def refuse(message: str) -> NoReturn:
        unknown = next((word for word in message.split() if word.startswith("--")), "")
        close = nearest(unknown.partition("=")[0], parser._option_string_actions)
        remedy = close if message.startswith("unrecognized") and close.startswith("did you") else _HELP
        raise InputError(message, where=WHERE, remedy=remedy)

    vars(parser)["error"] = refuse
    return add_arguments(parser)


@contextmanager
def in_one_line() -> Iterator[None]:
    """Makes what Megatron-LM raises about its arguments an ``InputError``: assertions and values that it refuses."""
    try:
        yield
    except (AssertionError, ValueError, RuntimeError) as error:
        problem = " ".join(str(error).split()) or f"refused by {_place(error)}"
        raise InputError(problem, where=WHERE, remedy=_HELP) from error


def _place(error: Exception) -> str:
    """Returns where an error without a message was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "Megatron-LM"
    path, line = trace.tb_frame.f_code.co_filename, trace.tb_lineno
    return f"{path}:{line}, which has `{linecache.getline(path, line).strip()}`"
