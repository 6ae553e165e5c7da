"""The report: one self-contained HTML file, static SVG figures, readable without JavaScript, no external URL.

figures.py, model_figures.py, annotated.py, law_figure.py, decision_figure.py and check_figures.py draw. answer.py,
target.py, run_checks.py, experiment.py, methods.py, summary.py, tables.py and run_tables.py put results into words and
rows; narrow.py and extent.py fit them to a page. template.html is the layout.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pandas as pd

from megatron_kis import __version__
from megatron_kis.analysis.findings.analyse import analyse, analyse_points
from megatron_kis.analysis.findings.result import AnalysisResult
from megatron_kis.analysis.findings.sensitivity import with_sensitivity
from megatron_kis.analysis.findings.study_file import declared_settings, predicted_before, study_description
from megatron_kis.analysis.runs.curves import cells_of_table
from megatron_kis.analysis.runs.load import Runs, load_runs
from megatron_kis.analysis.runs.load_csv import is_points_csv, load_curves_csv, load_points_csv
from megatron_kis.analysis.runs.slices import USUAL
from megatron_kis.analysis.runs.transitions import Transition
from megatron_kis.common.errors import printable
from megatron_kis.common.files import fingerprint, write_text
from megatron_kis.common.progress import logged
from megatron_kis.config.analysis import AnalysisConfig

if TYPE_CHECKING:
    from megatron_kis.analysis.report.summary import SliceFindings
    from megatron_kis.analysis.report.table import Table

logger = logging.getLogger(__name__)

__all__ = ["report"]

_HERE = Path(__file__).parent


Source: TypeAlias = AnalysisResult | Runs | pd.DataFrame | Sequence[Transition] | Path | str
"""Anything that can be reported: an analysis, runs, a curve table, transitions, or the path of a study folder, a folder
of runs, a ``curves.csv`` or a ``points.csv``."""


def report(
    source: Source,
    output: Path | str,
    settings: AnalysisConfig | None = None,
    *,
    predict_params: Sequence[float] = (),
    predict_tokens: float | None = None,
) -> Path:
    """Writes the report of a study and returns its path.

    A table that is too long for the page is written whole next to it, as <name of the report>-<name of the table>.csv.

    Args:
        source: see `Source`.
        output: the HTML file.
        settings: the analysis' settings, where ``source`` is not analysed yet; for a folder those that its study.yaml
            declares if None.
        predict_params: sizes N to predict for, where ``source`` is not analysed yet; those of the study's
            prediction.json if empty.
        predict_tokens: the token budget D of those predictions; the law's own if None.

    Raises:
        InputError: no complete run, or data that contradict each other.
    """
    if not isinstance(source, AnalysisResult):
        source = analyse_source(source, settings, predict_params=predict_params, predict_tokens=predict_tokens)
    from megatron_kis.analysis.report.export import write_table
    from megatron_kis.analysis.report.extent import MOST_ROWS, file_beside

    output = Path(output)
    tables = _tables(source)
    write_text(output, render(source, tables, output.stem))
    for name, table in tables.items():
        if table is not None and len(table.rows) > MOST_ROWS:
            write_table(table, output.parent / file_beside(output.stem, name))
    return output


def analyse_source(
    source: Runs | pd.DataFrame | Sequence[Transition] | Path | str,
    settings: AnalysisConfig | None = None,
    *,
    predict_params: Sequence[float] = (),
    predict_tokens: float | None = None,
) -> AnalysisResult:
    """Analyses what is to be reported; the arguments are those of `report`."""
    title, description = "", {}
    if isinstance(source, Path | str):
        path = Path(source)
        title = path.parent.resolve().name if path.stem in ("curves", "points") else path.stem
        if path.is_file():
            source = load_points_csv(path) if is_points_csv(path) else load_curves_csv(path, settings)
        else:
            source, description = load_runs(path), study_description(path)
            settings = settings or declared_settings(path)
            if not predict_params:
                predict_params, before = predicted_before(path)
                predict_tokens = predict_tokens or before
            title = description.get("title") or description.get("name") or ""
    if isinstance(source, Runs):
        title = title or _study_name(source) or ""
    options: dict[str, Any] = {
        "predict_params": predict_params,
        "predict_tokens": predict_tokens,
        "study": description,
        "title": str(title or "Knowledge-infusion study"),
    }
    if isinstance(source, Runs | pd.DataFrame):
        return with_sensitivity(analyse(source, settings, **options))
    return analyse_points(list(source), settings or AnalysisConfig(), **options)


def _study_name(runs: Runs) -> str | None:
    names = {str(name) for name in runs.runs["study"].dropna()}
    return names.pop() if len(names) == 1 else None


def render(result: AnalysisResult, tables: dict[str, Table | None] | None = None, stem: str = "report") -> str:
    """Returns the report's HTML; the same result gives the same bytes.

    Args:
        result: what is reported.
        tables: by their names, whole; made from the result if None.
        stem: name of the report's file without ``.html``, after which the files of its long tables are named.
    """
    import jinja2

    from megatron_kis.analysis.report import formatting

    tables = _tables(result) if tables is None else tables
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_printable,
    )
    environment.filters["unbroken"] = formatting.unbroken
    return environment.get_template("template.html").render(**_content(result, tables, stem))


def _tables(result: AnalysisResult) -> dict[str, Table | None]:
    from megatron_kis.analysis.report.tables import TABLES

    return {name: make(result) for name, make in TABLES.items()}


_SPACES = "\n\t\u00a0\u2009\u202f"


def _printable(value: Any) -> Any:
    """Spells out control characters, which names of runs and studies may contain."""
    return printable(value, keep=_SPACES) if type(value) is str else value  # Markup is our own drawing or style


def _content(result: AnalysisResult, tables: dict[str, Table | None], stem: str) -> dict[str, Any]:
    from megatron_kis.analysis.report import (
        annotated,
        answer,
        check_figures,
        decision_figure,
        experiment,
        extent,
        figures,
        formatting,
        law_figure,
        methods,
        model_figures,
        narrow,
        run_checks,
        summary,
    )

    found = summary.findings_by_slice(result)
    shown: dict[str, Any] = {
        name: table and narrow.narrowed(extent.shortened(table, extent.file_beside(stem, name)))
        for name, table in tables.items()
    }
    shown["transitions"], shown["evidence"] = narrow.split(shown["transitions"], "peak")
    content: dict[str, Any] = {
        "title": result.title,
        "css": (_HERE / "report.css").read_text(encoding="utf-8"),
        "script": (_HERE / "report.js").read_text(encoding="utf-8"),
        "key_numbers": summary.key_numbers(result),
        "study_design": summary.study_design(result),
        "findings": found,
        "answer": answer.answer(result),
        "run_checks": run_checks.run_checks(result),
        "experiment": experiment.experiment(result),
        "annotated": annotated.annotated(result),
        "methods": methods.methods(result),
        "law_figures": law_figure.law_figures(result),
        "advice": decision_figure.advice(result),
        "checks": check_figures.check_figures(result),
        "refused": [(formatting.refused_title(item), formatting.refused_reason(item)) for item in result.refused],
        "settings": result.settings,
        "along_facts": any(one != USUAL for one in result.slices),
        "tables": shown,
        "labels": narrow.labels(narrow.heads_of(shown) | _heads_of_findings(found)),
        "version": __version__,
        "settings_fingerprint": fingerprint(result.settings.record())[:12],
        "overview": [],
        "losses": [],
        "models": [],
        "size_keys": [],
        "split_keys": [],
        "strength_keys": [],
        "omission": "",
    }
    if result.curves is not None:
        cells, drawn = cells_of_table(result.curves), extent.drawn_cells(result.curves)
        content["size_keys"] = figures.size_keys(result.curves)
        content["split_keys"] = model_figures.split_keys(result.curves)
        content["strength_keys"] = model_figures.strength_keys(result.curves)
        content["overview"] = figures.overview(result)
        content["losses"] = figures.losses(result)
        content["models"] = [
            {
                "label": figures.cell_label(*cell, cells),
                "curves": model_figures.model_curves(result, *cell),
                "spread": model_figures.template_spread(result, *cell),
            }
            for cell in logged(logger).track(drawn, description="figures: models", total=len(drawn))
        ]
        content["omission"] = extent.omission(result.curves)
    return content


def _heads_of_findings(found: Sequence[SliceFindings]) -> dict[str, list[str]]:
    """Returns the heads of the tables of findings by their ids on the page."""
    heads = {}
    for number, one in enumerate(found, start=1):
        heads[f"m-{number}"] = ["Model", *one.table.heads]
        if one.strengths is not None:
            heads[f"s-{number}"] = ["Model", *one.strengths.heads]
    return heads
