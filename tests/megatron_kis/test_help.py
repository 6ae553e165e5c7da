"""The help of every command: what it says of defaults, how it is written, and which commands it lists."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator

import pytest

from megatron_kis.cli.main import build_parser, main
from megatron_kis.cli.parser import Parser


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yields a parser and all below it, each with all of its options."""
    if isinstance(parser, Parser):
        parser.complete()
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from parsers(child)


ALL = {parser.prog: parser for parser in parsers(build_parser())}


@pytest.mark.parametrize("prog", ALL)
def test_the_help_of_every_command_reads_well(prog: str) -> None:
    parser = ALL[prog]
    text = parser.format_help()
    assert not re.search(r"default: (None|False|True|\[|\(|==)", " ".join(text.split()))
    assert "``" not in text
    assert parser.description is not None
    assert re.match(r"[A-Z].*[.?!]$", parser.description, flags=re.S)
    assert not re.match(r"\w+s\b", parser.description), "an imperative, as in the lists of commands"
    silent = [action.dest for action in parser._actions if not action.help and action.dest not in ("command", "step")]
    assert [name for name in silent if name != "format"] == []


def test_a_default_is_shown_once_and_where_it_says_something() -> None:
    tokenizer, probe = (" ".join(ALL[f"kis {name}"].format_help().split()) for name in ("data tokenizer", "probe"))
    assert "--seed SEED seed of the sample that is taken of more than 100 MB (default: 0)" in tokenizer
    assert "--vocab-size V number of pieces --model" in tokenizer
    assert "ranks that share each layer (default: 1) --pipeline" in probe


def test_a_wrong_command_names_the_nearest_and_none_that_is_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (["study", "statsu"], "kis study: error: argument STEP: unknown command 'statsu'; did you mean 'status'?"),
        (["study", "xyz"], "'xyz'; valid: cancel, logs, next, plan, probe, report, run, status, submit, watch"),
        (["study", "next", "s.yaml", "--count", "1e3"], "--count: '1e3' is not written in digits; write 1000"),
        (["study", "next", "s.yaml", "--count", "0.0"], "--count: '0.0' is not written in digits; write 0"),
        (["study", "next", "s.yaml", "--count", "it's"], """argument --count: "it's" is not a whole number"""),
        (["study", "next", "s.yaml", "--count", "1.5"], "argument --count: '1.5' is not a whole number"),
        (["dat"], "kis: error: argument COMMAND: unknown command 'dat'; did you mean 'data'?"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(words)
        assert said in capsys.readouterr().err


def test_the_help_of_run_says_which_command_asks_finished_runs_again() -> None:
    said = " ".join(ALL["kis study run"].format_help().split())
    assert "are asked from their checkpoints, as kis study probe does" in said
