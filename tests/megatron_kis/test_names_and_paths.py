from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from megatron_kis.common.configuration import as_content, load_config
from megatron_kis.common.errors import InputError, printable
from megatron_kis.common.identifiers import checked_name, is_name
from megatron_kis.common.paths import Moved, expanded, placed, seen_from
from megatron_kis.common.units import as_count, whole_quantity
from megatron_kis.config.run import RunConfig

RUN = """
name: r
output: runs/r
data: {corpus: d/c, validation: d/v, exposures: /abs/e, tokenizer: ~/t.model}
model: {layers: 2, width: 16, heads: 2}
training: {token_budget: 1.2e4, sequence_length: 64, global_batch_size: 2}
infusion: {frequency: 1}
"""


@pytest.mark.parametrize("name", ["a", "7b", "cpu-48", "2x32_D20.48k_F8_s0", "größe", "ਰਾਜਧਾਨੀ", "首都", "_x", "a+b"])
def test_names_of_letters_digits_and_few_signs_are_safe(name):
    assert checked_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        ".hidden",
        "-x",
        "+x",
        "a/b",
        "../up",
        "a b",
        "x[/red]",
        "7b[v2]",
        "a\nb",
        "a\x1b[31m",
        "a\u202eb",
        "a:b",
        "a\\b",
        "a$b",
        "½",
        "x" * 201,
    ],
)
def test_other_names_are_refused(name):
    assert not is_name(name)
    with pytest.raises(InputError, match="use letters, digits"):
        checked_name(name)


def test_home_and_variables_are_filled_in(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    assert expanded("~/x") == tmp_path / "x"
    assert expanded("$SCRATCH/x") == expanded("${SCRATCH}/x") == Path("/scratch/me/x")


@pytest.mark.parametrize("path", ["$NOT_SET_HERE/x", "${NOT_SET_HERE}", "a/$NOT_SET_HERE", "~nobody-of-this-name/x"])
def test_what_cannot_be_filled_in_is_refused(path):
    with pytest.raises(InputError, match=r"is not set|is not known"):
        expanded(path)


def test_relative_paths_begin_at_the_file_that_names_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert placed("a/b", Path("x/y")) == Path("x/y/a/b")
    assert placed("../../b", Path("x/y")) == Path("b")
    assert placed("/b", Path("x")) == Path("/b")
    assert seen_from(Path("runs/r"), Path("study")) == Path("../runs/r")
    assert seen_from(Path("/b"), Path("study")) == Path("/b")


def test_a_link_on_the_way_is_not_cut_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "far" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "deep")
    assert placed("../b", Path("link")).resolve() == (tmp_path / "far" / "b").resolve()


def test_settings_place_their_paths_and_overrides_those_of_the_command_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "run.yaml").write_text(RUN)
    run = load_config(RunConfig, Path("sub/run.yaml"))
    assert run.output == Path("sub/runs/r")
    assert (run.data.corpus, run.data.exposures) == (Path("sub/d/c"), Path("/abs/e"))
    assert run.data.tokenizer == Path("/home/me/t.model")
    run = load_config(RunConfig, Path("sub/run.yaml"), ["output=here/r", "data.corpus=[0.5, c, 0.5, e]"])
    assert run.output == Path("here/r")


def test_a_file_names_its_neighbours_so_that_both_can_be_moved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(RUN)
    content = as_content(load_config(RunConfig, Path("run.yaml")), Path("runs/r"))
    assert content["output"] == "."
    assert content["data"]["corpus"] == "../../d/c"
    assert content["data"]["exposures"] == "/abs/e"
    whole = load_config(RunConfig, tmp_path / "run.yaml")  # absolute paths, as a study gives its cells
    content = as_content(whole, tmp_path / "runs" / "r", within=tmp_path)
    assert (content["output"], content["data"]["corpus"]) == (".", "../../d/c")
    assert content["data"]["exposures"] == "/abs/e"


@pytest.mark.parametrize("override", ["output=$NOT_SET_HERE/x", "training.token_budget=many", "name=a/b"])
def test_a_wrong_override_is_named_and_not_the_file(tmp_path, override):
    (tmp_path / "run.yaml").write_text(RUN)
    with pytest.raises(InputError) as caught:
        load_config(RunConfig, tmp_path / "run.yaml", [override])
    assert str(caught.value).startswith(override)


@pytest.mark.parametrize(
    ("value", "number"),
    [("1e6", 10**6), ("1.2e6", 1_200_000), (1.2e6, 1_200_000), ("7b", 7 * 10**9), ("1_000", 1000), (5, 5), (0.5, 0.5)],
)
def test_counts_are_numbers_in_every_notation(value, number):
    assert as_count(value) == number
    assert type(as_count(value)) is type(number)


def test_text_for_a_terminal_holds_no_control_characters():
    assert printable("a\nb\x1b[31m\u202e") == "a\\nb\\x1b[31m\\u202e"
    assert printable("größe\n", keep="\n") == "größe\n"


def test_a_record_of_an_older_version_names_paths_from_where_it_was_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "work" / "runs" / "r"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(RUN)
    (folder / "run.json").write_text("{}")
    run = load_config(RunConfig, Path("work/runs/r/config.yaml"))
    assert (run.output, run.data.corpus) == (Path("work/runs/r"), Path("work/d/c"))
    assert placed("d/c", Moved(Path("copy"), Path("runs/r"))).resolve() == (tmp_path / ".." / "d" / "c").resolve()


@pytest.mark.parametrize("value", [True, "1e400", 10**30, 1e30, "x", "1.2.3"])
def test_what_is_no_count_or_beyond_all_is_refused(value):
    with pytest.raises(ValueError, match=r"is not a number|is too large"):
        as_count(value)


def test_tokens_on_the_command_line_are_counts_too():
    assert whole_quantity("1e3") == whole_quantity("1k") == 1000
    for text in ("1.5", "0", "many"):
        with pytest.raises(argparse.ArgumentTypeError):
            whole_quantity(text)
