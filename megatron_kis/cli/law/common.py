"""Options and output that the steps of ``kis law`` share."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_kis.cli.parser import add_settings, given_settings, naming_options, options_of
from megatron_kis.common.errors import InputError, printable
from megatron_kis.common.units import amount, quantity

if TYPE_CHECKING:
    import pandas as pd

    from megatron_kis.analysis.runs.load import Runs
    from megatron_kis.config.analysis import AnalysisConfig

logger = logging.getLogger(__name__)


def _all_choices() -> tuple[str, ...]:
    """Returns the settings of an analysis, all of which are options."""
    from megatron_kis.config.analysis import AnalysisConfig

    return tuple(AnalysisConfig.model_fields)


SOURCES = ("source", "curves", "points")
"""Names of the options of `add_source`."""


def add_source(parser: argparse.ArgumentParser, *, points: str = "") -> None:
    """Adds SOURCE and its other name, ``--curves``; and ``--points``, which ``points`` describes, where it is read."""
    kinds = ("study folder", "runs folder", "curves.csv", *(["points.csv"] if points else []))
    text = f"{', '.join(kinds[:-1])} or {kinds[-1]}"
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("source", nargs="?", type=Path, metavar="SOURCE", help=text)
    source.add_argument("--curves", type=Path, metavar="CSV", help="SOURCE: curves of another trainer")
    if points:
        source.add_argument("--points", type=Path, metavar="CSV", help=f"SOURCE: {points}")


def source_of(options: argparse.Namespace) -> Path:
    """Returns what is read.

    Raises:
        InputError: it is a file of settings.
    """
    source: Path = options.source or options.curves or options.points
    if source.suffix in (".yaml", ".yml") and source.is_file():
        remedy = "give the folder that a study writes, a runs folder or a curves.csv"
        raise InputError("is a file of settings", where=str(source), remedy=remedy)
    return source


def curves_of(options: argparse.Namespace, settings: AnalysisConfig) -> pd.DataFrame:
    """Returns the curve table of what is read.

    Raises:
        InputError: a file that is no curves.csv, or a folder without runs.
    """
    from megatron_kis.analysis.runs.curves import curve_table
    from megatron_kis.analysis.runs.load import load_runs
    from megatron_kis.analysis.runs.load_csv import is_points_csv, load_curves_csv

    source = source_of(options)
    if not source.is_file() and options.curves is None:
        return curve_table(counted(load_runs(source)))
    if is_points_csv(source):
        remedy = "a study folder, a folder of runs or a curves.csv"
        raise InputError("has transitions, and no curves to find them in", where=str(source), remedy=remedy)
    return load_curves_csv(source, settings)


def add_choices(parser: argparse.ArgumentParser, names: Sequence[str] | None = None) -> None:
    """Adds the choices that a study declares, or some of them."""

    def add() -> None:
        from megatron_kis.config.analysis import AnalysisConfig

        group = parser.add_argument_group("declared choices (if not given: those of the study's analysis section)")
        add_settings(group, AnalysisConfig, _all_choices() if names is None else names)

    options_of(parser, add)


def add_target(parser: argparse.ArgumentParser, *, budget: str) -> None:
    """Adds N, which is required, and D; ``budget`` describes the default of D."""
    parser.add_argument("--params", required=True, type=quantity, metavar="N", help="model size: 7e9 or 7b")
    parser.add_argument("--tokens", type=quantity, metavar="D", help=f"token budget: 1e12 or 1T (default: {budget})")


def add_slice(group: argparse._ArgumentGroup, *, held: str) -> None:
    """Adds the options that name a slice; ``held`` is the help of its held value."""
    group.add_argument("--axis", choices=("frequency", "facts"), help="of F (frequency) or of K (facts)")
    held_by = ("facts", "frequency", "ratio", "nothing")
    group.add_argument("--held-by", choices=held_by, help="what the slice holds")
    group.add_argument("--held", type=amount, metavar="H", help=held)


def add_json(parser: argparse.ArgumentParser) -> None:
    """Adds the option ``--json``."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def analysis_config(options: argparse.Namespace, folder: Path | None) -> AnalysisConfig:
    """Returns the settings that the study in ``folder`` declares, with those given as options.

    Raises:
        InputError: an unknown key or a bad value.
    """
    from megatron_kis.analysis.findings.study_file import declared_settings
    from megatron_kis.analysis.law.candidates import AUTO, check_law
    from megatron_kis.config.analysis import SECTION, AnalysisConfig

    given = given_settings(options, _all_choices())
    with naming_options(given, SECTION):
        check_law(given.get("law", AUTO), "analysis.law")
        if folder is None or not folder.is_dir():
            return AnalysisConfig(**given)
        return declared_settings(folder, **given)


@contextmanager
def naming_choices(options: argparse.Namespace) -> Iterator[None]:
    """Makes an error about a declared choice name the option that set it, if one did."""
    from megatron_kis.config.analysis import SECTION

    with naming_options(given_settings(options, _all_choices()), SECTION):
        yield


def counted(runs: Runs) -> Runs:
    """Returns the runs, after naming those that are left out."""
    for problem in runs.problems.itertuples():
        logger.warning(printable(f"left out: {problem.run} ({problem.status}): {problem.reason}"))
    return runs


def print_json(content: dict[str, Any]) -> None:
    """Prints a result as JSON."""
    print(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False))
