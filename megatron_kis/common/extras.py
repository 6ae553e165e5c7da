"""Packages of the optional extras, imported where they are needed."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from megatron_kis.common.errors import InputError


def import_extra(module: str, purpose: str, *, extra: str = "corpus") -> Any:
    """Imports a module of an optional package.

    Args:
        module: its full name, such as ``pyarrow.parquet``.
        purpose: what the user needs it for, to be read after "is needed".
        extra: the extra of this package that installs it.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        remedy = f"pip install 'megatron-kis[{extra}]'"
        raise InputError(f"{module.partition('.')[0]} is needed {purpose}", remedy=remedy) from None


def require_package(package: str, where: str) -> None:
    """Refuses a setting whose package is not installed, without importing it.

    Args:
        package: its name.
        where: the key that asks for it.

    Raises:
        InputError: it is not installed.
    """
    if importlib.util.find_spec(package) is None:
        raise InputError(f"the package {package} is not installed", where=where, remedy=f"pip install {package}")
