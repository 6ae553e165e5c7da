"""Looks at a study's results, by which runs are added: their intervals, and ``looks.jsonl`` in the study's folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from megatron_kis.analysis.findings.analyse import fit_laws
from megatron_kis.analysis.law.looks import level_at_look, percent
from megatron_kis.analysis.law.predict import predict
from megatron_kis.analysis.runs.slices import USUAL, Slice
from megatron_kis.analysis.runs.transitions import Transition
from megatron_kis.common.errors import InputError
from megatron_kis.common.files import append_json_line, fingerprint, make_folder, read_json_lines
from megatron_kis.config.analysis import AnalysisConfig

LOOKS_FILE = "looks.jsonl"
SCHEMA = "kis.look/1"


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a study predicts at one look."""

    number: int
    """1 for the first results."""
    declared: int
    """Number of looks that was declared; 0: none."""
    confidence: float
    """Confidence over all looks."""
    level: float
    """Level of ``interval``."""
    slice: Slice = USUAL
    centre: float | None = None
    """Dose at the target; None where there is no law."""
    interval: tuple[float, float] | None = None
    """Prediction interval of the dose."""

    def record(self) -> dict[str, Any]:
        """Returns the look as JSON-ready values."""
        names = ("number", "declared", "confidence", "level", "centre", "interval")
        return {name: getattr(self, name) for name in names} | self.slice.record()

    def words(self) -> str:
        """Describes what a study that ends at this look may state."""
        which = f"look {self.number}" + (f" of {self.declared} declared" if self.declared else "")
        why = f"(over all looks {percent(self.confidence)})"
        if self.interval is None or self.centre is None:
            return f"{which}: no law yet; its interval would be at {percent(self.level)} {why}"
        low, high = self.interval
        found = f"{self.slice.symbol_at_transition} = {self.centre:.3g}, {low:.3g} to {high:.3g}"
        return f"{which}: {found} at {percent(self.level)} {why}"


def look_at(
    points: Sequence[Transition], table: pd.DataFrame, params: float, tokens: float, settings: AnalysisConfig
) -> Look:
    """Returns what the points of one kind, group and slice predict at a target.

    Args:
        points: the transitions.
        table: the curves that they are from.
        params: N of the target.
        tokens: D of the target.
        settings: the declared settings, with the looks before this one.
    """
    number = settings.looked + 1
    level = level_at_look(settings.confidence, number, settings.looks)
    one = points[0].slice if points else USUAL
    look = Look(number=number, declared=settings.looks, confidence=settings.confidence, level=level, slice=one)
    # The level is given, so that the law does not take its own: the first look of a study has all of alpha there.
    laws, _ = fit_laws(points, settings.model_copy(update={"looks": 0, "looked": 0}), table, level=level)
    if not laws:
        return look
    found = predict(laws[0], params, tokens)
    return replace(look, centre=found.centre, interval=found.prediction_interval)


def add_look(
    study_dir: Path,
    look: Look,
    runs: Iterable[str],
    added: Iterable[Mapping[str, Any]],
    *,
    params: float,
    tokens: float,
    now: datetime | None = None,
) -> None:
    """Writes down a look by which runs were added.

    Args:
        study_dir: the study's folder.
        look: what was seen.
        runs: names of the complete runs that it was seen in.
        added: the runs that were added, as the study file lists them.
        params: N of the target.
        tokens: D of the target.
        now: date.
    """
    make_folder(study_dir)
    content = {"schema": SCHEMA, "time": (now or datetime.now(UTC)).isoformat(timespec="seconds")}
    target = {"params": params, "tokens": tokens}
    seen = {"runs": fingerprint(sorted(runs)), "added": list(added)}
    append_json_line(study_dir / LOOKS_FILE, content | look.record() | target | seen)


def looked(study_dir: Path) -> int:
    """Returns how often a study was extended after a look; looks at the same runs count once.

    Raises:
        InputError: the file is damaged.
    """
    path = study_dir / LOOKS_FILE
    if not path.is_file():
        return 0
    seen = set()
    for line, row in read_json_lines(path, tolerate_torn_tail=True):
        if row.get("schema") != SCHEMA or not isinstance(row.get("runs"), str):
            remedy = "each line is one that kis study next --write has written"
            raise InputError("is not a look", where=f"{path}:{line}", remedy=remedy)
        seen.add(row["runs"])
    return len(seen)
