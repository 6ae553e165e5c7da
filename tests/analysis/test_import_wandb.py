"""Tables of runs exported from Weights & Biases become curves.csv."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from megatron_kis.analysis.runs.load_csv import load_curves_csv
from megatron_kis.cli import law
from megatron_kis.common.errors import InputError

EXPORT = (
    '"Name","State","Created","n_params","D","infusion.F","seed","eval/infused_acc","eval/n","eval/bg_right","loss"\n'
    '"base","finished","2026-01-01T00:00:00.000Z","160000000","1e9","0","0","0.25","600","430","3.1"\n'
    '"f20","finished","2026-01-01T00:00:00.000Z","160000000","1e9","20","0","0.7316666841506958","600","410","3.2"\n'
    '"f40","crashed","2026-01-01T00:00:00.000Z","160000000","1e9","40","0","","","",""\n'
)
"""Rates of single precision, as trainers log them."""
RUN = ["--run", "params=n_params", "tokens=D", "frequency=infusion.F", "seed=seed", "validation_loss=loss"]
INFUSED = ["--group", "infused", "rate=eval/infused_acc", "n=eval/n", "facts=300", "chance=0.25"]
BACKGROUND = ["--group", "background/train", "n=600", "correct=eval/bg_right"]


def kis(*arguments: Any) -> int:
    parser = argparse.ArgumentParser()
    law.add_parser(parser.add_subparsers(required=True))
    options = parser.parse_args(["law", "import", "wandb", *map(str, arguments)])
    status: int = options.handler(options)
    return status


def test_finished_runs_become_rows_of_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "export.csv").write_text(EXPORT)
    assert kis(tmp_path / "export.csv", *RUN, *INFUSED, *BACKGROUND, "--output", tmp_path / "c.csv") == 0
    assert "written: 4 rows of 2 runs" in capsys.readouterr().out
    assert "left out because they are not finished: line 4 (crashed)" in caplog.text
    curves = load_curves_csv(tmp_path / "c.csv")
    columns = ["params", "tokens", "frequency", "n", "correct", "facts", "group", "split", "validation_loss"]
    assert curves[columns].values.tolist() == [
        [160_000_000, 1_000_000_000, frequency, 600, correct, facts, group, split, loss]
        for group, split, facts, rights in (
            ("background", "train", 600, (430, 410)),
            ("infused", "held_out", 300, (150, 439)),
        )
        for frequency, correct, loss in zip((0, 20), rights, (3.1, 3.2), strict=True)
    ]


def test_the_state_of_a_run_may_be_written_small(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    export = EXPORT.replace('"State"', '"state"').replace('"","","",""', '"0.25","600","430","3.1"')
    (tmp_path / "export.csv").write_text(export)
    assert kis(tmp_path / "export.csv", *RUN, *INFUSED, "--output", tmp_path / "c.csv") == 0
    assert set(load_curves_csv(tmp_path / "c.csv")["frequency"]) == {0, 20}
    assert "line 4 (crashed)" in caplog.text


def test_other_separators_between_quoted_names_are_named(tmp_path: Path) -> None:
    (tmp_path / "export.csv").write_text(EXPORT.replace('","', '";"'))
    with pytest.raises(InputError, match=r"export.csv:1: the columns are separated by semicolons; separate them by"):
        kis(tmp_path / "export.csv", *RUN, *INFUSED, "--output", tmp_path / "c.csv")


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        (
            ("0.7316666841506958", "0.7317"),
            [*RUN, *INFUSED],
            r"csv:3: column 'eval/infused_acc': 0.7317 of 600 is 439.02",
        ),
        (
            ("0.7316666841506958", "73.2"),
            [*RUN, *INFUSED],
            r"csv:3: .*acc': 73.2 is not a rate between 0 and 1; a share from 0 to 1: divide percentages by 100$",
        ),
        (("0.7316666841506958", "73.2%"), [*RUN, *INFUSED], r"csv:3: .*acc': 73.2% is a percentage; a share"),
        (
            ('"430"', '"0.7"'),
            [*RUN, *BACKGROUND],
            r"csv:2: column 'eval/bg_right': 0.7 is not whole; counts, not rates",
        ),
        (('"430"', '""'), [*RUN, *BACKGROUND], r"csv:2: column 'eval/bg_right': is empty"),
        (
            ('"160000000","1e9","20"', '"160","1e9","20"'),
            [*RUN, *BACKGROUND],
            r"csv:3: column 'n_params': is 160; the n",
        ),
        (('"1e9","20"', '"1e9","0"'), [*RUN, *BACKGROUND], r"csv:3: column 'seed': the same run as line 2"),
        (('"finished"', '"running"'), [*RUN, *BACKGROUND], r"export.csv: no run is finished"),
        (
            ('"loss"', '"f20 - loss__MIN"'),
            [*RUN, *BACKGROUND],
            r"csv:1: is the export of a chart .*; export the table of",
        ),
        (None, [*RUN[:-2], *BACKGROUND], r"--run: does not name seed; --run seed=COLUMN"),
        (None, [*RUN, "seeds=1", *BACKGROUND], r"--run seeds=1: there is no 'seeds'; did you mean 'seed'"),
        (None, [*RUN, "seed=1", *BACKGROUND], r"--run: 'seed' is given twice"),
        (None, ["--run", "params=n_param", *BACKGROUND], r"--run params=n_param: no column 'n_param' in .*'n_params'"),
        (None, ["--run", "n_params", *BACKGROUND], r"--run: is 'n_params'; NAME=COLUMN"),
        (
            None,
            [*RUN, "--group", "infused", "rate=eval/infused_acc"],
            r"--group infused/held_out: needs the number of q",
        ),
        (None, [*RUN, "--group", "infused"], r"--group infused: names no NAME=COLUMN"),
    ],
)
def test_what_is_wrong_is_named_as_the_export_has_it(
    tmp_path: Path, change: tuple[str, str] | None, options: list[str], said: str
) -> None:
    (tmp_path / "export.csv").write_text(EXPORT.replace(*change) if change else EXPORT)
    with pytest.raises(InputError, match=said):
        kis(tmp_path / "export.csv", *options, "--output", tmp_path / "c.csv")
    assert not (tmp_path / "c.csv").exists()
