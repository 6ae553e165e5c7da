"""The report's figures and tables as files for papers: SVG and PNG, and CSV."""

from __future__ import annotations

import csv
from pathlib import Path

from megatron_kis.analysis.findings.result import AnalysisResult
from megatron_kis.analysis.report import annotated, check_figures, decision_figure, figures, law_figure, model_figures
from megatron_kis.analysis.report.table import Table
from megatron_kis.analysis.report.tables import TABLES
from megatron_kis.analysis.report.theme import exported_to
from megatron_kis.analysis.runs.curves import cells_of_table
from megatron_kis.common.errors import printable
from megatron_kis.common.files import atomic_write

_ON_THE_PAGE_ONLY = ("sensitivity",)


def export(result: AnalysisResult, folder: Path | str, *, dpi: int = 200) -> list[Path]:
    """Writes every figure as .svg and .png (``dpi`` dots per inch) and every table as .csv; returns their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with exported_to(folder, dpi) as written:
        annotated.annotated(result)
        law_figure.law_figures(result)
        decision_figure.advice(result)
        check_figures.check_figures(result)
        if result.curves is not None:
            figures.overview(result)
            figures.losses(result)
            for cell in cells_of_table(result.curves):
                model_figures.model_curves(result, *cell)
                model_figures.template_spread(result, *cell)
    for name, make in TABLES.items():
        table = make(result)
        if table is None or name in _ON_THE_PAGE_ONLY:
            continue
        path = folder / f"{name}.csv"
        write_table(table, path)
        written.append(path)
    return written


def write_table(table: Table, path: Path) -> None:
    """Writes a table as a CSV file."""
    with atomic_write(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([column.head for column in table.columns])
        writer.writerows([printable(cell, keep="\u00a0") for cell in row] for row in table.rows)
