"""Adds the answers of one more model to ``curves.csv``: rows of a probe become rows of a curve table."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from megatron_kis.analysis.runs.curves import CURVE_COLUMNS, FINER_COLUMNS, write_curves_csv
from megatron_kis.analysis.runs.load_csv import load_curves_csv
from megatron_kis.common.errors import InputError

_OF_ROW = ("n", "correct", "facts", "chance", "group", "split", "scoring", *FINER_COLUMNS)


def add_to_curves_csv(
    path: Path,
    rows: Iterable[Mapping[str, Any]],
    *,
    params: int,
    tokens: int,
    frequency: float,
    seed: int,
    write: bool = True,
) -> None:
    """Adds the rows of one model; the file is read back before it takes the place of the old one.

    Args:
        path: the file; it is made if it is not there.
        rows: rows of a probe (``n``, ``correct``, ``facts``, ``chance``, ``group``, ``split``, ``scoring``, and the
            finer outcomes where they are known).
        params: parameters of the model.
        tokens: tokens that it was trained on.
        frequency: exposures of each infused fact in its training.
        seed: seed of its training.
        write: False only checks whether the rows could be added.

    Raises:
        InputError: the file is not a ``curves.csv``, has this model already, or the numbers cannot be right.
    """
    cell = {"params": params, "tokens": tokens, "frequency": frequency, "seed": seed}
    new = pd.DataFrame([{**cell, **{name: row.get(name) for name in _OF_ROW}} for row in rows])
    new = new.reindex(columns=[*CURVE_COLUMNS, *FINER_COLUMNS])
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / path.name
        table = pd.concat([load_curves_csv(path), new], ignore_index=True) if path.exists() else new
        write_curves_csv(table, place)
        try:
            whole = load_curves_csv(place)
        except InputError as error:
            where = (error.where or "").replace(str(place), f"{path} with the new rows")
            raise InputError(error.problem, where=where, remedy=error.remedy) from None
    if write:
        write_curves_csv(whole, path)
