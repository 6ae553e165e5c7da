"""Settings on the command line, ``key=value``: taken wherever they come after the file whose settings they replace."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from megatron_kis.common.errors import InputError


def take_overrides(options: argparse.Namespace, more: Sequence[str]) -> list[str]:
    """Moves settings that argparse has put elsewhere to ``options.overrides``.

    A list of names (``--only A seeds=[0]``) takes all words after it, and words after another option
    (``--workers 2 seeds=[0]``) are not recognised. No name contains an equals sign.

    Args:
        options: what argparse has understood; changed in place.
        more: what it has not.

    Returns:
        What remains of ``more``.
    """
    if not hasattr(options, "overrides"):
        return list(more)
    names: Sequence[str] = getattr(options, "only", None) or ()
    found = [word for word in names if _is_setting(word)]
    if found:
        options.only = [word for word in names if not _is_setting(word)]
    found += [word for word in more if _is_setting(word)]
    options.overrides = [*options.overrides, *found]
    return [word for word in more if not _is_setting(word)]


def check_places(options: argparse.Namespace) -> None:
    """Refuses settings that are given where something else is expected.

    Raises:
        InputError: a setting before the file or in the place of a run's name, or ``--only`` without a name.
    """
    if not hasattr(options, "overrides"):
        return
    for name, what in (("study", "STUDY.yaml"), ("config", "RUN.yaml")):
        value = getattr(options, name, None)
        if isinstance(value, Path) and _is_setting(str(value)) and not value.exists():
            problem = f"is a setting, not {what}"
            raise InputError(problem, where=str(value), remedy="settings (key=value) come after the file")
    run = getattr(options, "run_name", None)
    if run is not None and "=" in run:
        raise InputError(
            "is a setting, not the name of a run", where=run, remedy="settings (key=value) come after the run's name"
        )
    if getattr(options, "only", None) == []:
        raise InputError("names no run", where="--only", remedy="kis study status lists them")


def _is_setting(word: str) -> bool:
    key, equals, _ = word.partition("=")
    return bool(equals) and bool(key) and not word.startswith("-")
