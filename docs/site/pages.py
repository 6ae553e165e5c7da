"""MkDocs hooks: pages generated from the code, and links to the repository's own files.

The start page is the README. The reference of commands is generated from the parsers, that of configuration keys from
the classes of the settings, and that of Python names from what packages export. Each file that a link outside ``docs/``
names is copied, so that the site is complete. Tables of many columns are marked, so that ``site.css`` can set them
tightly.
"""

from __future__ import annotations

import argparse
import inspect
import re
import typing
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from megatron_kis.cli.main import build_parser
from megatron_kis.cli.parser import Parser
from megatron_kis.config.run import RunConfig
from megatron_kis.config.study import StudyConfig

ROOT = Path(__file__).resolve().parents[2]
_LINK = re.compile(r"""(?:(?<=\]\()|(?<= src=")|(?<= srcset="))([^)\s#"]+)(#[^)\s"]*)?(?=[)"])""")
_EXTERNAL = ("http://", "https://", "mailto:")
_TABLE = re.compile(r"<table>.*?</table>", re.S)
_MANY_COLUMNS = 7
_LONGEST_CALL = 88
_QUOTED = re.compile(r"(?<=: |> )'([^']*)'")  # an annotation that was not evaluated

PACKAGES = (
    "megatron_kis.data",
    "megatron_kis.megatron_lm",
    "megatron_kis.probes",
    "megatron_kis.huggingface",
    "megatron_kis.analysis",
)
"""Packages whose exported names are listed, in the order in which a user meets them."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages, and every file of the repository that a page names."""
    pages = {
        "index.md": (ROOT / "README.md").read_text(encoding="utf-8"),
        "reference/commands.md": "\n".join(_commands()),
        "reference/configuration.md": "\n".join(_configuration()),
        "reference/python.md": "\n".join(_python()),
    }
    for asset in ("site.css", "iframe-worker.js"):
        pages[f"assets/{asset}"] = (Path(__file__).parent / asset).read_text(encoding="utf-8")
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    for path in sorted({path for file in files.documentation_pages() for path, _ in _outside(file)}):
        name = f"repository/{path.relative_to(ROOT)}"
        if path.is_file() and files.get_file_from_path(f"{name}.txt") is None:
            files.append(File.generated(config, f"{name}.txt", content=path.read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Points links outside ``docs/`` to the copies."""
    up = "../" * page.file.src_uri.count("/")

    def moved(match: re.Match[str]) -> str:
        target, anchor = match[1], match[2] or ""
        path = _target(page.file, target)
        if path is None:
            return match[0]
        if path.is_relative_to(ROOT / "docs"):
            return f"{up}{path.relative_to(ROOT / 'docs')}{anchor}"
        name = f"{up}repository/{path.relative_to(ROOT)}"
        return f"{name}.txt" if path.is_file() else match[0]

    text = _LINK.sub(moved, markdown)
    return _folders_as_code(text, page.file)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Marks the tables of many columns."""

    def marked(match: re.Match[str]) -> str:
        wide = match[0].count("<th") - match[0].count("<thead") >= _MANY_COLUMNS
        return f'<div class="wide">{match[0]}</div>' if wide else match[0]

    return _TABLE.sub(marked, html)


def _folders_as_code(text: str, file: File) -> str:
    """Replaces links to folders, which are not pages, by their names."""

    def plain(match: re.Match[str]) -> str:
        path = _target(file, match[2])
        return f"`{match[1].strip('`')}`" if path is not None and path.is_dir() else match[0]

    return re.sub(r"\[([^\]\n]+)\]\(([^)\s#]+)\)", plain, text)


def _base(file: File) -> Path:
    """Returns the folder at which the links of a page start."""
    return ROOT if file.src_uri == "index.md" else (ROOT / "docs" / file.src_uri).parent


def _target(file: File, link: str) -> Path | None:
    """Returns the file of the repository that a link names; None for other links."""
    if link.startswith(_EXTERNAL):
        return None
    path = (_base(file) / link).resolve()
    return path if path.is_relative_to(ROOT) and path.exists() else None


def _outside(file: File) -> Iterator[tuple[Path, str]]:
    """Yields the links of a page that leave ``docs/``: the file, and the link as written."""
    for match in _LINK.finditer(file.content_string):
        path = _target(file, match[1])
        if path is not None and not path.is_relative_to(ROOT / "docs"):
            yield path, match[1]


def _commands() -> Iterator[str]:
    yield "# Commands\n\nGenerated from the code; `kis COMMAND --help` prints the same.\n"
    yield from _parser(build_parser())


def _parser(parser: argparse.ArgumentParser) -> Iterator[str]:
    if isinstance(parser, Parser):
        parser.complete()
    nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not nested:
        yield f"## {parser.prog}\n"
        yield f"{_escaped(parser.description or '')}\n"
        usage = parser.format_usage().removeprefix("usage: ")
        yield f"```text\n{usage}```\n"
        rows = [action for action in parser._actions if action.dest != "help" and action.help != argparse.SUPPRESS]
        yield "| argument | what it is |\n|---|---|"
        for action in rows:
            names = ", ".join(action.option_strings) or str(action.metavar or action.dest)
            value = "" if not action.option_strings or action.nargs == 0 else f" {_metavar(action)}"
            yield f"| `{names}{value}` | {_escaped(_help(parser, action))} |".replace("\n", " ")
        yield f"\n{_escaped(parser.epilog or '')}\n"
    for group in nested:
        for child in dict.fromkeys(group.choices.values()):
            yield from _parser(child)


def _metavar(action: argparse.Action) -> str:
    if isinstance(action.metavar, tuple):
        return " ".join(action.metavar)
    if action.choices is not None:
        return "{" + ",".join(str(choice) for choice in action.choices) + "}"
    return str(action.metavar or action.dest.upper())


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    return parser._get_formatter()._expand_help(action)


def _configuration() -> Iterator[str]:
    yield "# Configuration keys\n\nGenerated from the code. Unknown keys are refused, the nearest valid one is named.\n"
    yield "## A run (`kis train RUN.yaml`)\n"
    yield from _tables(_keys(RunConfig, ""), "run")
    yield "\n## A study (`kis study run STUDY.yaml`)\n"
    yield "An entry of the `ladder` takes the keys of a run's `model`, and `learning_rate` and `parallel`.\n"
    yield from _tables(_keys(StudyConfig, ""), "study")


def _python() -> Iterator[str]:
    yield "# Python names\n\nGenerated from the code: what packages export. `help(NAME)` prints the whole docstring.\n"
    for package in PACKAGES:
        module = import_module(package)
        yield f"## {package}\n\n{_escaped(_summary(module))}\n"
        for name in module.__all__:
            found = getattr(module, name)
            if not callable(found) or found.__name__ != name:  # a table, or a second name
                continue
            yield f"### {name}\n\n{_escaped(_summary(found))}\n"
            if inspect.isclass(found) and issubclass(found, BaseModel):
                yield "Its keys are [configuration keys](configuration.md).\n"
            else:
                call = _QUOTED.sub(r"\1", _call(name, found))
                yield f"```python\n{call}\n```\n"


def _summary(found: object) -> str:
    """Returns the first paragraph of a docstring."""
    return " ".join((inspect.getdoc(found) or "").split("\n\n")[0].split())


def _call(name: str, found: Callable[..., Any]) -> str:
    """Returns how a function or class is called, one parameter per line where they are many."""
    try:
        signature = inspect.signature(found)
    except ValueError:
        return name
    line = f"{name}{signature}"
    if len(line) <= _LONGEST_CALL:
        return line
    parts, starred = [], False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            parts.append("*")
            starred = True
        starred = starred or parameter.kind is parameter.VAR_POSITIONAL
        parts.append(str(parameter))
    arrow = str(inspect.Signature(return_annotation=signature.return_annotation)).removeprefix("()")
    return f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){arrow}"


def _tables(rows: Iterator[tuple[str, str, str]], kind: str) -> Iterator[str]:
    """Yields one table for each section of the settings, the keys without a section first."""
    by_section: dict[str, list[str]] = {"": []}
    for key, default, text in rows:
        row = f"| `{key}` | {default} | {_escaped(text)} |"
        by_section.setdefault(key.rpartition(".")[0], []).append(row)
    for section, keys in by_section.items():
        yield f"### `{section}` of a {kind}\n" if section else f"### Top level of a {kind}\n"
        yield "| key | default | what it is |\n|---|---|---|"
        yield from keys
        yield ""


def _keys(kind: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, field in kind.model_fields.items():
        inner = _section(field)
        if inner is not None:
            yield from _keys(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _default(field), " ".join((field.description or "").split())


def _section(field: FieldInfo) -> type[BaseModel] | None:
    """Returns the class of the settings that a field holds, if it holds nothing else."""
    options = [kind for kind in (typing.get_args(field.annotation) or (field.annotation,)) if kind is not type(None)]
    only = options[0] if len(options) == 1 else None
    return only if inspect.isclass(only) and issubclass(only, BaseModel) else None


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return _shown(field.get_default(call_default_factory=True))


def _shown(value: object) -> str:
    """Returns a default as it is written in YAML."""
    if value is None or value == "":
        return "none"
    plain = value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True, sort_keys=False)
    plain = plain.removesuffix("...\n").strip()
    return f"`{plain}`".replace("|", "\\|")


def _escaped(text: str) -> str:
    """Returns a text for a cell of a table. Code in it is left as it is, because Markdown shows it literally."""
    parts = text.replace("|", "\\|").replace("``", "`").split("`")
    return "`".join(part if at % 2 else part.replace("<", "&lt;") for at, part in enumerate(parts))
