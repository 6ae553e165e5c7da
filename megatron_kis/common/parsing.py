"""YAML and JSON of users: safe loaders, and no key twice in a mapping.

Both formats let the last of two equal keys win, so that half of what a file says is dropped without a word. Here a
repeated key is an error that names both lines.
"""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Iterator
from typing import Any

from megatron_kis.common.errors import InputError, not_utf8

_JSON_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+', flags=re.DOTALL)
_REMEDY = "keep one of them"
_KINDS: dict[type | tuple[type, ...], str] = {
    bool: "true or false",
    (int, float): "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
}


def parse_yaml(text: str, *, where: str, names: bool = False) -> Any:
    """Returns the content of a YAML document.

    Args:
        text: the document.
        where: the file, for messages.
        names: the keys of the outermost mapping are names, text as it is written: ``no`` and ``1.50``, too.

    Raises:
        InputError: invalid YAML (``file:line``), or a key that a mapping has twice (with both lines).
    """
    import yaml

    try:
        loader = _loader()(text)
        node = loader.get_single_node()
        if names and isinstance(node, yaml.MappingNode):
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                    key.tag = "tag:yaml.org,2002:str"
        _refuse_repeated(node, where, set())
        return None if node is None else loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}:{mark.line + 1}" if mark else where
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        if problem.startswith("but "):  # the rest of a sentence
            problem = f"{getattr(error, 'context', None)}, {problem}"
        remedy = "use spaces instead of tabs" if r"'\t'" in problem else None
        raise InputError(f"not valid YAML ({problem})", where=place, remedy=remedy) from None
    except (ValueError, OverflowError) as error:  # a value such as 2026-02-30, which YAML takes for a date
        raise InputError(f"not valid YAML ({error})", where=where, remedy="put such a value in quotes") from None
    except RecursionError:
        raise InputError("not valid YAML (nested too deeply)", where=where) from None


@functools.cache
def _loader() -> Any:
    """YAML's safe loader, to which ``no``, ``on`` and ``y`` are words, as in YAML 1.2: relations have such names.

    Settings that are true or false take them all the same.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    boolean = "tag:yaml.org,2002:bool"
    Loader.yaml_implicit_resolvers = {
        letter: [(tag, found) for tag, found in resolvers if tag != boolean]
        for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver(boolean, re.compile("true|True|TRUE|false|False|FALSE"), list("tTfF"))
    return Loader


def parse_json(text: str | bytes, *, where: str) -> Any:
    """Returns the content of a JSON document.

    Args:
        text: the document; bytes are UTF-8.
        where: the file, for messages; ``file:line`` where the document is one line of a file.

    Raises:
        InputError: invalid JSON, or a key that an object has twice (with both lines).
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        if not text.strip():
            raise InputError("is empty", where=where) from None
        raise InputError(f"not valid JSON ({error.msg})", where=_place(where, error.lineno)) from None
    except UnicodeDecodeError as error:
        problem, remedy = not_utf8(error)
        raise InputError(problem, where=where, remedy=remedy) from None
    except RecursionError:
        raise InputError("not valid JSON (nested too deeply)", where=where) from None
    except ValueError:  # the only one that is left
        problem = f"not valid JSON (a number of more than {sys.get_int_max_str_digits()} digits)"
        raise InputError(problem, where=where) from None
    except _RepeatedError:
        text = text if isinstance(text, str) else text.decode("utf-8", errors="replace")
        raise _twice(*_repeated_in(text), where) from None


def kind_in_json(value: Any) -> str:
    """Returns what a value of a JSON document is: ``a number``, ``true or false``, ``a list`` ..."""
    if value is None:
        return "null"
    for kind, name in _KINDS.items():
        if isinstance(value, kind):
            return name
    return "not JSON"


def damage(error: Exception) -> str:
    """Returns in words why a structure from a file could not be read, where ``error`` was raised on the way."""
    if isinstance(error, KeyError):
        return f"{error.args[0]!r} is missing" if error.args else "a key is missing"
    if isinstance(error, ValueError) and str(error):
        return str(error)
    return "a value has the wrong type"


class _RepeatedError(Exception):
    """An object has a key twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _RepeatedError
    return found


def _place(where: str, line: int) -> str:
    """Returns ``file:line``; ``where`` as it is if it already names a line."""
    return where if re.search(r":\d+$", where) else f"{where}:{line}"


def _twice(key: str, first: int, second: int, where: str) -> InputError:
    lines = "" if re.search(r":\d+$", where) else f" (line {first}, and again here)"
    return InputError(f"the key {key!r} is given twice{lines}", where=_place(where, second), remedy=_REMEDY)


def _refuse_repeated(node: Any, where: str, seen: set[int]) -> None:
    import yaml

    if node is None or id(node) in seen:  # an anchor's node is met again at each alias
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_repeated(item, where, seen)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[tuple[str, str], int] = {}
        for key, value in node.value:
            _refuse_repeated(value, where, seen)
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            line = key.start_mark.line + 1
            name = (key.tag, key.value)
            if name in lines:
                raise _twice(key.value, lines[name], line, where)
            lines[name] = line


def _repeated_in(text: str) -> tuple[str, int, int]:
    """Returns the first repeated key of a JSON text, and the lines of both; found by its brackets and strings alone."""
    stack: list[dict[str, int] | None] = []
    key: tuple[str, int] | None = None
    for part, line in _tokens(text):
        if part == "{":
            stack.append({})
        elif part == "[":
            stack.append(None)
        elif part in "]}" and stack:
            stack.pop()
        elif part.startswith('"'):
            key = (json.loads(part, strict=False), line)
            continue
        elif part == ":" and key is not None and stack and (keys := stack[-1]) is not None:
            name, at = key
            if name in keys:
                return name, keys[name], at
            keys[name] = at
        key = None
    return "?", 0, 0


def _tokens(text: str) -> Iterator[tuple[str, int]]:
    line, reached = 1, 0
    for match in _JSON_TOKEN.finditer(text):
        line += text.count("\n", reached, match.start())
        reached = match.start()
        yield match[0], line
