"""What the steps of ``kis study`` share: options, the study file, its data and runs, tables."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_kis.errors import InputError, printable

if TYPE_CHECKING:
    from rich.text import Text

    from analysis.settings import AnalysisSettings
    from data_tools.prepare import DataSettings
    from megatron_kis.config import RunConfig
    from megatron_kis.data.settings import DataConfig
    from megatron_kis.study.config import StudyConfig


def add_step(
    steps: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    summary: str,
    handler: Callable[[argparse.Namespace], int],
    *,
    cell: bool = False,
    json: bool = True,
) -> argparse.ArgumentParser:
    """Adds a step that takes a study file, perhaps a cell, and overrides, and may print JSON."""
    parser = steps.add_parser(name, help=summary, description=summary)
    parser.add_argument("study", type=Path, metavar="STUDY.yaml", help="the study's configuration")
    if cell:
        parser.add_argument("cell", metavar="CELL", help="the run's name, as kis study status shows it")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings that replace the file's, e.g. seeds=[0,1]"
    )
    if json:
        parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(handler=handler)
    return parser


def load_study(options: argparse.Namespace) -> tuple[StudyConfig, DataSettings, AnalysisSettings]:
    """The study and its two sections that other packages own, all checked; paths begin at the study file's folder."""
    from dataclasses import asdict

    from analysis.settings import AnalysisSettings
    from data_tools.prepare import DataSettings
    from megatron_kis.settings import load_config, parse_dataclass
    from megatron_kis.study.config import StudyConfig

    owned = {"data": DataSettings, "analysis": AnalysisSettings}
    study = load_config(StudyConfig, options.study, options.overrides, sections=owned)
    source = str(options.study)
    data = parse_dataclass(DataSettings, study.data, where=f"{source}: data", base=options.study.parent)
    analysis = parse_dataclass(AnalysisSettings, study.analysis, where=f"{source}: analysis")
    return study.model_copy(update={"data": asdict(data), "analysis": asdict(analysis)}), data, analysis


def write_study(study: StudyConfig, path: Path) -> None:
    """Writes the resolved study; its relative paths begin at the folder of the file."""
    import yaml

    from megatron_kis.files import write_text

    write_text(path, yaml.safe_dump(study_content(study, path.parent), sort_keys=False))


def study_content(study: StudyConfig, folder: Path) -> dict[str, Any]:
    """The resolved study as a file in ``folder`` says it."""
    from megatron_kis.settings import as_content

    return as_content(study, folder)


def data_config(study: StudyConfig, data: DataSettings) -> DataConfig:
    """Where the prepared data of a study lie."""
    from data_tools.prepare import tokenizer_path
    from megatron_kis.data.settings import DataConfig

    if not data.validation_share:
        raise InputError("is 0", where="data.validation_share", remedy="a study needs text set aside, such as 0.02")
    folder = study.output / "data"
    return DataConfig(
        corpus=folder / "corpus",
        validation=folder / "corpus.validation",
        exposures=folder / "exposures",
        tokenizer=tokenizer_path(data, folder),
    )


def prepare(study: StudyConfig, data: DataSettings) -> list[RunConfig]:
    """Prepares the data, checks every run against them, and returns the runs."""
    from data_tools.prepare import prepare_data
    from data_tools.progress import console_progress
    from megatron_kis.study.grid import runs_of

    files = data_config(study, data)
    runs = runs_of(study, files)
    prepare_data(data, study.output / "data", progress=console_progress())
    return runs


def done_runs(runs: list[RunConfig]) -> list[str]:
    """Names of the runs that are complete; every other one's inputs and plan are checked before any starts."""
    from megatron_kis.training.inputs import InputsOfMany, plan_key
    from megatron_kis.training.record import is_done

    opened, names = InputsOfMany(), []
    fingerprints: dict[Any, dict[str, str]] = {}
    checked = set()
    for run in runs:
        start, key = run.model.init_from, plan_key(run)
        if start not in fingerprints:
            fingerprints[start] = opened.open(run).fingerprints
            checked.add(key)
        if is_done(run, fingerprints[start]):
            names.append(run.name)
        elif key not in checked:  # sizes share their plans
            checked.add(key)
            opened.open(run)
    return names


def shown(value: Any) -> str:
    """A value as a table shows it."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e5 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def plain(text: str) -> Text:
    """A text for a table or a title as it is: nothing in it is markup or means something to a terminal."""
    from rich.text import Text

    return Text(printable(text))


def print_table(title: str, columns: tuple[str, ...], rows: list[list[str]]) -> None:
    """Prints a table, as wide as the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=plain(title), title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(plain(column), justify="left" if number == 0 else "right", no_wrap=number == 0)
    for row in rows:
        table.add_row(*map(plain, row))
    # Piped output is not cut at 80 columns.
    Console(width=None if os.isatty(1) else 200).print(table)
