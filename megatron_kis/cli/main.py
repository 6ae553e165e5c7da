"""The command line: ``kis`` parses, dispatches to one handler, and turns errors into exit statuses.

Each module of ``megatron_kis.cli`` owns one command: ``add_parser`` describes it and sets its handler. Those
modules import only the standard library at their top, so that ``kis --help`` is immediate.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from megatron_kis import __version__
from megatron_kis.cli import data, export, import_, law, plan, probe, schema, study, train
from megatron_kis.cli.overrides import check_places, take_overrides
from megatron_kis.cli.parser import Parser
from megatron_kis.common.ending import tell_starter
from megatron_kis.common.errors import KisError, printable, system_problem
from megatron_kis.common.log import show_messages
from megatron_kis.common.paths import expanded

_INTERRUPTED = 130  # 128 + SIGINT, what shells report


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of every command."""
    parser = Parser(
        prog="kis",
        description="How much domain knowledge can be infused into a model before its memory collapses?",
    )
    parser.add_argument("--version", action="version", version=f"megatron_kis {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in (data, train, probe, export, import_, study, law, plan, schema):
        module.add_parser(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status.

    0: done. 1: failed. 2: wrong input. 75: stopped, or left to others; try again later. 130: interrupted. ``kis train``
    also says how it ended where it was asked to (``ending``).
    """
    show_messages()
    options = _parse(arguments)
    debug = options.debug or bool(os.environ.get("KIS_DEBUG"))
    trains = getattr(options, "command", None) == "train"
    try:
        check_places(options)
        _expand_paths(options)
        status: int = options.handler(options)
        sys.stdout.flush()  # here, where a closed pipe is not an error, and not at exit
    except KisError as error:
        if debug:
            traceback.print_exc()
        _tell(str(error))
        if trains:
            tell_starter(error.exit_status, str(error))
        return error.exit_status
    except KeyboardInterrupt:
        print("kis: interrupted; run the same command again to resume", file=sys.stderr)
        if trains:
            tell_starter(_INTERRUPTED, "interrupted")
        return _INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full disk, a folder that may not be written
        if debug:
            traceback.print_exc()
        message = system_problem(error)
        _tell(message)
        if trains:
            tell_starter(KisError.exit_status, message)
        return KisError.exit_status
    except Exception as error:
        if trains:
            tell_starter(KisError.exit_status, f"{type(error).__name__}: {error}")
        raise
    return status


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options, with settings (``key=value``) taken wherever they come after the file's name."""
    parser = build_parser()
    options, more = parser.parse_known_args(arguments)
    more = take_overrides(options, more)
    if more:
        quotes = "; put a setting with spaces in quotes" if any(set(word) & set("[]{}") for word in more) else ""
        parser.error("unrecognized arguments: " + " ".join(more) + quotes)
    return options


def _tell(message: str) -> None:
    """Prints an error in one line, whatever characters the names in it have."""
    print(f"kis: error: {printable(message)}", file=sys.stderr)


def _expand_paths(options: argparse.Namespace) -> None:
    """Fills in ``~`` and variables that no shell has filled in, as in ``--output=~/runs``."""
    for name, value in vars(options).items():
        if isinstance(value, Path):
            setattr(options, name, expanded(value))
        elif isinstance(value, list) and any(isinstance(item, Path) for item in value):
            setattr(options, name, [expanded(item) if isinstance(item, Path) else item for item in value])


if __name__ == "__main__":
    sys.exit(main())
