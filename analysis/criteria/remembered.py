"""Functions of arrays with a cache of their last results: several steps of an analysis need the same fits."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import fields, is_dataclass
from functools import wraps
from typing import ParamSpec, TypeVar

import numpy as np

_P = ParamSpec("_P")
_T = TypeVar("_T")


def remembered(most: int, key: Callable[..., Hashable] | None = None) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """Returns a decorator that keeps the last ``most`` results of a pure function.

    Callers must not write into a result.

    Args:
        most: results that are kept.
        key: of the function's arguments, returns what its result depends on. Without it that is all of them: arrays,
            dataclasses of such, and what can be hashed.
    """

    def decorator(function: Callable[_P, _T]) -> Callable[_P, _T]:
        kept: dict[Hashable, _T] = {}

        @wraps(function)
        def asked(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            asked_for = (key or _of_all)(*args, **kwargs)
            if asked_for not in kept:
                if len(kept) >= most:
                    del kept[next(iter(kept))]
                kept[asked_for] = function(*args, **kwargs)
            return kept[asked_for]

        return asked

    return decorator


def _of_all(*args: object, **kwargs: object) -> Hashable:
    return tuple(map(_key, args)), tuple((name, _key(value)) for name, value in kwargs.items())


def _key(value: object) -> Hashable:
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype.str, value.tobytes()
    if is_dataclass(value) and not isinstance(value, type):
        return tuple(_key(getattr(value, one.name)) for one in fields(value))
    assert isinstance(value, Hashable)
    return value
