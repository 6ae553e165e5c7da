"""The parser of ``kis``, and options that are made from the fields of a configuration.

A configuration's classes take a while to import. Options made from them are therefore added when their command is
parsed, so that ``kis --help`` stays immediate.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from megatron_kis.common.errors import InputError, nearest, printable
from megatron_kis.common.units import parse_count

if TYPE_CHECKING:
    from megatron_kis.common.configuration import Config

_LARGEST_WRITTEN = 10**15  # whole numbers up to this one are written out in a message


class HelpFormatter(argparse.HelpFormatter):
    """Formatter that shows the default of an option, unless its help does, or the default says nothing."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = (action.help or "").replace(" (default: %(default)s)", "")  # Python's own, of --x and --no-x
        says_nothing = action.default in (None, argparse.SUPPRESS, "", [], ()) or isinstance(action.default, bool)
        if not action.option_strings or action.required or says_nothing or "default" in text:
            return text
        listed = isinstance(action.default, list | tuple)
        return f"{text} (default: {' '.join(map(str, action.default)) if listed else '%(default)s'})"


class Parser(argparse.ArgumentParser):
    """Parser that adds some of its options only when it is used, and whose messages are safe to print on a terminal.

    A description is printed as a sentence, and hidden commands are in no list of choices.
    """

    _pending: Callable[[], None] | None = None

    def __init__(self, *, description: str | None = None, **settings: Any) -> None:
        """Takes the settings of ``argparse.ArgumentParser``."""
        if description:
            description = description[:1].upper() + description[1:] + "." * (description[-1] not in ".?!")
        super().__init__(description=description, **{"formatter_class": HelpFormatter, **settings})

    def complete_later(self, complete: Callable[[], None]) -> None:
        """Notes what adds the remaining options."""
        self._pending = complete

    def complete(self) -> None:
        """Adds the remaining options now."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses, after the remaining options were added."""
        self.complete()
        return super().parse_known_args(args, namespace)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            shown = [command.dest for command in action._choices_actions]
            raise argparse.ArgumentError(action, f"unknown command {value!r}; {nearest(value, shown)}")
        super()._check_value(action, value)

    def error(self, message: str) -> NoReturn:
        """Prints the usage and the message, and exits with status 2."""
        message = re.sub(r"invalid int value: (.+)", _not_an_int, message)
        message = re.sub(r"invalid float value: (.+)", r"\1 is not a number", message)
        super().error(printable(message))


def _not_an_int(found: re.Match[str]) -> str:
    """Returns what is wrong with a value that ``int`` refuses; ``1e6`` is one that is not written in digits."""
    number = parse_count(found[1][1:-1])
    if number is None or number != number.to_integral_value() or abs(number) >= _LARGEST_WRITTEN:
        return f"{found[1]} is not a whole number"
    return f"{found[1]} is not written in digits; write {int(number)}"


def options_of(parser: argparse.ArgumentParser, add: Callable[[], None]) -> None:
    """Calls ``add``, which adds options to ``parser``, when the parser is used; at once for other parsers."""
    if isinstance(parser, Parser):
        parser.complete_later(add)
    else:
        add()


def add_settings(group: argparse._ActionsContainer, kind: type[Config], names: Iterable[str]) -> None:
    """Adds an option for each of these fields; one that is not given leaves no attribute (see ``given_settings``).

    Args:
        group: the parser, or a group of its options.
        kind: the configuration.
        names: its fields; ``delta_min`` becomes ``--delta-min``.
    """
    for name in names:
        field = kind.model_fields[name]
        flag = flag_of(name)
        text = _first_sentence(field.description or "").replace("%", "%%")
        if field.annotation is bool:
            group.add_argument(flag, action="store_true", default=argparse.SUPPRESS, help=text)
            continue
        if field.default not in (None, ()):
            text += f" (default: {field.default})"
        value: type = str
        for number in (int, float):
            if field.annotation in (number, number | None):
                value = number
        extra = field.json_schema_extra
        choices = extra.get("enum") if isinstance(extra, dict) else None
        several: dict[str, Any] = {"nargs": "+", "action": "extend"} if field.annotation == tuple[str, ...] else {}
        group.add_argument(
            flag,
            type=value,
            choices=choices if isinstance(choices, list) else None,
            metavar=None if choices else {int: "N", float: "X", str: "NAME"}[value],
            default=argparse.SUPPRESS,
            help=text,
            **several,
        )


def given_settings(options: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """Returns those of the settings that were given as options, by their names."""
    return {name: getattr(options, name) for name in names if hasattr(options, name)}


@contextmanager
def naming_options(given: Collection[str], section: str = "") -> Iterator[None]:
    """Makes an error about a setting name the option that gave it, as the user wrote it.

    Args:
        given: names of the settings that options gave.
        section: key of the settings in a file, with which errors name them.
    """
    try:
        yield
    except InputError as error:
        places = (error.where or "").split(", ")
        names = [place.removeprefix(f"{section}.") for place in places]
        if not set(names) & set(given):
            raise
        said = [flag_of(name) if name in given else place for name, place in zip(names, places, strict=True)]
        raise InputError(error.problem, where=", ".join(said), remedy=error.remedy) from None


def flag_of(name: str) -> str:
    """Returns an option as it is written: ``--delta-min`` for ``delta_min``."""
    return f"--{name.replace('_', '-')}"


def refuse_options(
    options: argparse.Namespace,
    names: Iterable[str],
    *,
    other: str,
    remedy: str = "leave it out",
    usual: Mapping[str, Any] | None = None,
) -> None:
    """Refuses options that have no effect with another one.

    Args:
        options: what was given.
        names: of the options that are refused; ``run`` is the argument ``RUN_DIR``.
        other: what they cannot be combined with.
        remedy: what to do.
        usual: defaults of options that have one.

    Raises:
        InputError: names the first that was given.
    """
    for name in names:
        value = getattr(options, name)
        if value is not None and value is not False and value != (usual or {}).get(name):
            where = "RUN_DIR" if name == "run" else flag_of(name)
            raise InputError(f"cannot be combined with {other}", where=where, remedy=remedy)


def _first_sentence(description: str) -> str:
    """Returns the first sentence of a field's docstring as argparse's help has it: ``smallest fall, in rate, ...``."""
    text = " ".join(description.replace("``", "").split())
    sentence = text.partition(". ")[0].removesuffix(".")
    return sentence if sentence[1:2].isupper() else sentence[:1].lower() + sentence[1:]
