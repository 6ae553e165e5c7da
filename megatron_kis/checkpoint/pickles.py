"""Reads what a pickle says without doing what it says: nothing that it names is imported or called.

A pickle is a program for a stack machine, which may call any function. ``pickletools`` takes it apart; here its
instructions build plain values, and an ``Inert`` where a function would be called. So settings can be read from a file
of any origin.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from megatron_kis.common.errors import InputError

_BITS = 256
"""Bits of the largest number that is read; states of random generators have 128."""


@dataclass(eq=False)
class Inert:
    """What a pickle would import or make, with all that it would be made from."""

    name: str
    """Name of the class or function, with its module."""

    values: tuple[Any, ...] = ()
    """Arguments of the call."""

    state: Any = None
    """State that the object is given after it was made."""

    items: list[Any] = field(default_factory=list)
    """Items, or pairs of key and value, that the object is given."""

    @property
    def fields(self) -> dict[str, Any]:
        """The object's attributes; none if its state is no mapping."""
        return self.state if isinstance(self.state, dict) else {}


def read_pickle(data: bytes, *, where: str) -> Any:
    """Returns the content of a pickle, or of a file of ``torch.save``: plain values, and ``Inert`` for all else.

    Args:
        data: content of the file.
        where: the file, for the message.

    Raises:
        InputError: neither of the two.
    """
    try:
        if zipfile.is_zipfile(io.BytesIO(data)):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                name = next((name for name in archive.namelist() if name.endswith("/data.pkl")), "data.pkl")
                if archive.getinfo(name).file_size > len(data):
                    raise ValueError(f"{name} is compressed")  # which torch.save never does
                data = archive.read(name)
        return _Machine().run(data)
    except Exception as error:  # a damaged one fails in many ways
        raise InputError(f"cannot be read ({type(error).__name__}: {error})", where=where) from None


class _Machine:
    """The stack machine of pickles (``pickletools`` describes its instructions)."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for code, argument, _ in pickletools.genops(data):
            name = code.name
            if name == "STOP":
                return self._stack.pop()
            if name in ("PROTO", "FRAME"):  # of the file; a frame may begin within a list
                continue
            if name in _STEPS:
                _STEPS[name](self, argument)
            elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
                self._memo[_number(argument)] = self._stack[-1]
            elif name in ("GET", "BINGET", "LONG_BINGET"):
                self._stack.append(self._memo[_number(argument)])
            elif argument is not None and not code.stack_before:  # a number or a text
                self._stack.append(_plain(argument))
            else:
                raise ValueError(f"the instruction {name}")
        raise ValueError("no end")

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def pop(self) -> Any:
        return self._stack.pop()

    def mark(self) -> None:
        self._marks.append(len(self._stack))

    def since_mark(self) -> list[Any]:
        start = self._marks.pop()
        found = self._stack[start:]
        del self._stack[start:]
        return found

    def memoize(self) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def call(self, function: Any, values: Any) -> None:
        if not isinstance(function, Inert) or not isinstance(values, tuple):  # a copy of a list each time fills memory
            raise TypeError(f"a call of {type(function).__name__} with {type(values).__name__}")
        self.push(Inert(function.name, values))

    def build(self) -> None:
        state = self.pop()
        made = self._stack[-1]
        if isinstance(made, Inert):
            made.state = state

    def add(self, items: list[Any], *, pairs: bool = False) -> None:
        whole = self._stack[-1]
        found = list(zip(items[::2], items[1::2], strict=True)) if pairs else items
        if isinstance(whole, dict):
            whole.update(_dictionary(items))
        elif isinstance(whole, list):
            whole.extend(found)
        elif isinstance(whole, set):
            whole.update(_keys(found))
        else:
            whole.items.extend(found)

    def forget(self) -> None:
        """Puts nothing in the place of what is elsewhere: the storage of a tensor."""
        self._stack[-1] = None

    def last(self, count: int) -> list[Any]:
        found = self._stack[len(self._stack) - count :]
        del self._stack[len(self._stack) - count :]
        return found


def _number(argument: Any) -> int:
    return int(argument)


def _dictionary(items: list[Any]) -> dict[Any, Any]:
    return dict(zip(_keys(items[::2]), items[1::2], strict=True))


def _keys(values: list[Any]) -> list[Any]:
    """Returns values that will be hashed; tuples within tuples take forever, or the stack, if there are enough."""
    for value in values:
        inner = value if isinstance(value, tuple) else ()
        if any(isinstance(item, tuple) and any(isinstance(one, tuple) for one in item) for item in inner):
            raise ValueError("a key of nested tuples")
    return values


def _plain(argument: Any) -> Any:
    """Returns a number or a text; numbers that no setting has, and that cannot even be printed, are refused."""
    if isinstance(argument, int) and argument.bit_length() > _BITS:
        raise ValueError(f"a number of {argument.bit_length()} bits")
    return argument


def _named(machine: _Machine, name: str) -> None:
    machine.push(Inert(name.replace(" ", ".")))


def _made(machine: _Machine, parts: list[Any]) -> None:
    machine.call(parts[0], parts[1])


_STEPS: dict[str, Callable[[_Machine, Any], Any]] = {
    "MARK": lambda machine, _: machine.mark(),
    "POP": lambda machine, _: machine.pop(),
    "POP_MARK": lambda machine, _: machine.since_mark(),
    "DUP": lambda machine, _: machine.push(machine._stack[-1]),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_SET": lambda machine, _: machine.push(set()),
    "LIST": lambda machine, _: machine.push(machine.since_mark()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.since_mark())),
    "FROZENSET": lambda machine, _: machine.push(frozenset(_keys(machine.since_mark()))),
    "DICT": lambda machine, _: machine.push(_dictionary(machine.since_mark())),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.last(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.last(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.last(3))),
    "APPEND": lambda machine, _: machine.add(machine.last(1)),
    "APPENDS": lambda machine, _: machine.add(machine.since_mark()),
    "ADDITEMS": lambda machine, _: machine.add(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.add(machine.last(2), pairs=True),
    "SETITEMS": lambda machine, _: machine.add(machine.since_mark(), pairs=True),
    "MEMOIZE": lambda machine, _: machine.memoize(),
    "GLOBAL": _named,
    "STACK_GLOBAL": lambda machine, _: _named(machine, ".".join(machine.last(2))),
    "REDUCE": lambda machine, _: _made(machine, machine.last(2)),
    "NEWOBJ": lambda machine, _: _made(machine, machine.last(2)),
    "NEWOBJ_EX": lambda machine, _: _made(machine, machine.last(3)),
    "BUILD": lambda machine, _: machine.build(),
    "BINPERSID": lambda machine, _: machine.forget(),
}
