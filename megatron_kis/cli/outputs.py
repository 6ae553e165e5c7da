"""Options that name what a command writes. They are checked before any work: what they name can be written.

Folders on the way that are not there are made when the command writes.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from megatron_kis.cli.parser import flag_of
from megatron_kis.common.errors import InputError
from megatron_kis.common.paths import expanded, unwritable


def new_file(text: str) -> Path:
    """Returns a file to write, as an argument: not a folder, and in a folder that can be written or made."""
    path = in_folders(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder; give the name of a file")
    return path


def in_folders(text: str) -> Path:
    """Returns a folder or prefix of files to write, as an argument: it is in a folder that can be written or made."""
    try:
        path = expanded(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    _check_folder(path.parent, text)
    return path


def new_folder(text: str) -> Path:
    """Returns a folder to write into, as an argument: it can be written, or made."""
    path = in_folders(text)
    _check_folder(path, text)
    return path


def new_prefix(text: str) -> Path:
    """Returns the prefix of files to write, as an argument: a name, and in a folder that can be written or made."""
    path = in_folders(text)
    if text.endswith(os.sep) or not path.name:
        raise argparse.ArgumentTypeError(f"{text!r} is a folder; give the beginning of the files' names")
    return path


def check_written(path: Path) -> None:
    """Refuses a file that cannot be written, before the work whose result it will hold.

    Raises:
        InputError: it is a folder, or in one that can be neither written nor made.
    """
    try:
        new_file(str(path))
    except argparse.ArgumentTypeError as error:
        problem, _, remedy = str(error).removeprefix(f"{str(path)!r}").lstrip(": ").partition("; ")
        raise InputError(problem, where=str(path), remedy=remedy) from None


def spare_inputs(options: argparse.Namespace, outputs: tuple[str, ...], inputs: tuple[str, ...] = ()) -> None:
    """Refuses to write a file that is read as well, or twice.

    Args:
        options: what was given.
        outputs: names of the options that are written, ``curves_output`` for ``--curves-output``.
        inputs: names of the options and arguments that are read.

    Raises:
        InputError: names the option and the other one.
    """
    taken: dict[Path, str] = {}
    for name in (*inputs, *outputs):
        given = getattr(options, name, None)
        for path in given if isinstance(given, list) else [given]:
            if not isinstance(path, Path):
                continue
            place = path.resolve()
            if name in outputs and (other := taken.get(place) or _same_file(path, taken)):
                does = f"written by {flag_of(other)}" if other in outputs else "read"
                raise InputError(f"{path} is also {does}", where=flag_of(name), remedy="write it elsewhere")
            taken[place] = name


def _check_folder(folder: Path, text: str) -> None:
    there = next((place for place in (folder, *folder.parents) if place.exists()), None)
    if there is None:
        return
    if not there.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r}: {str(there)!r} is a file, not a folder")
    if unwritable(there):
        raise argparse.ArgumentTypeError(f"{text!r}: the folder {str(there)!r} cannot be written; choose another place")


def _same_file(path: Path, taken: dict[Path, str]) -> str | None:
    """Returns another name of the same file, such as a hard link."""
    if not path.exists():
        return None
    return next((name for place, name in taken.items() if place.exists() and place.samefile(path)), None)
