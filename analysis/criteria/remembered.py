"""Functions of arrays that remember what they returned last: several steps of an analysis ask for the same fits."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import fields, is_dataclass
from functools import wraps
from typing import ParamSpec, TypeVar

import numpy as np

_P = ParamSpec("_P")
_T = TypeVar("_T")


def remembered(most: int) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """Returns a decorator that keeps the last ``most`` results of a pure function.

    Its arguments are arrays, dataclasses of such, and what can be hashed. Nobody may write into a result.
    """

    def decorator(function: Callable[_P, _T]) -> Callable[_P, _T]:
        kept: dict[Hashable, _T] = {}

        @wraps(function)
        def asked(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            key = tuple(map(_key, args)), tuple((name, _key(value)) for name, value in kwargs.items())
            if key not in kept:
                if len(kept) >= most:
                    del kept[next(iter(kept))]
                kept[key] = function(*args, **kwargs)
            return kept[key]

        return asked

    return decorator


def _key(value: object) -> Hashable:
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype.str, value.tobytes()
    if is_dataclass(value) and not isinstance(value, type):
        return tuple(_key(getattr(value, one.name)) for one in fields(value))
    assert isinstance(value, Hashable)
    return value
