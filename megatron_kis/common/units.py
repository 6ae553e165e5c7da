"""Counts as people write them (``7b``, ``1.2e6``, ``137M``) and numbers as messages and tables show them."""

from __future__ import annotations

import argparse
import math
import re
from decimal import Decimal
from typing import Any

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
_LARGEST = 10**24
_COUNT = re.compile(r"\s*([+-]?(?:\d[\d_]*(?:\.\d*)?|\.\d+)(?:e[+-]?\d{1,3})?)\s*([kmbgt]?)\s*", flags=re.I | re.A)


def parse_count(text: str) -> Decimal | None:
    """Returns the number that a text means, exactly; None if it is not a number."""
    match = _COUNT.fullmatch(text)
    if match is None:
        return None
    return Decimal(match[1].replace("_", "")) * _UNITS[match[2].lower()]


def as_count(value: Any) -> Any:
    """Returns a number for a text such as ``1.2e6`` or ``7b``, and any other value as it is.

    A whole number becomes an ``int`` in every notation: YAML reads ``1.2e6`` as a text and ``1.2e+6`` as a float.

    Raises:
        ValueError: a truth value, a text that is not a number, or a number above all sizes and budgets.
    """
    if isinstance(value, bool):
        msg = f"{str(value).lower()} is not a number"
        raise ValueError(msg)
    if isinstance(value, str):
        number = parse_count(value)
        if number is None:
            msg = f"{value!r} is not a number; write 1200000, 1.2e6 or 1.2M"
            raise ValueError(msg)
        value = float(number) if abs(number) > _LARGEST or number != number.to_integral_value() else int(number)
    if isinstance(value, int | float) and abs(value) > _LARGEST:
        msg = f"is too large; at most {_LARGEST:.0e}"
        raise ValueError(msg)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def quantity(text: str) -> float:
    """Returns a count of at least 1, as an argument of a command."""
    number = parse_count(text)
    if number is None or not 1 <= (value := float(number)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a count of at least 1; write 7e9, 7b, 137M or 1T")
    return value


def amount(text: str) -> float:
    """Returns a positive number, whole or not, as an argument of a command."""
    number = parse_count(text)
    if number is None or not 0 < (value := float(number)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number; write 400, 2.5k or 0.5")
    return value


def whole_quantity(text: str) -> int:
    """Returns a whole count of at least 1, as an argument of a command."""
    value = quantity(text)
    if not value.is_integer():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(value)


def short_count(count: int) -> str:
    """Returns a count for a name, to six digits: ``1.2M`` for 1200000."""
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.6g}{unit}"
    return str(count)


def in_table(value: Any) -> str:
    """Returns a value as a table shows it: ``-`` for None, ``1,200,000``, ``0.1235``."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 999.95 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def plural(count: int, noun: str) -> str:
    """Returns a count with its noun: ``1 run``, ``2,000 runs``, ``2 processes``."""
    return f"{count:,} {noun}{'' if count == 1 else 'es' if noun.endswith('s') else 's'}"


def in_bytes(count: float) -> str:
    """Returns bytes in a readable unit: ``850 MB``, ``12 GB``, ``3.4 TB``."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.2g} {unit}" if count < 10 * size else f"{count / size:,.0f} {unit}"
    return f"{count / 1e3:,.0f} kB" if count >= 1e3 else f"{count:.0f} bytes"


def duration(seconds: float | None) -> str:
    """Returns seconds in readable units: ``3 d 4 h``, ``2 h 05 min``, ``7 min``, ``40 s``."""
    if seconds is None:
        return "-"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def rounded_up(value: float, digits: int = 2) -> int:
    """Returns the next whole number of at most so many significant digits: 350 for 341.2."""
    if value <= 1:
        return 1
    step = int(10 ** max(math.floor(math.log10(value)) - digits + 1, 0))
    return math.ceil(value / step - 1e-9) * step
