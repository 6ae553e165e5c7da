"""The tables of docs/study/index.md, out of the results beside it: no number of theirs is written by hand.

    python -m benchmarks.study_page collect STUDY_FOLDER NAME    # takes a study's results into docs/study/results/NAME
    python -m benchmarks.study_page fill                         # writes the tables into the page
    python -m benchmarks.study_page check                        # status 1 where the page has others

A table stands in the page between ``<!-- table: KIND ARGUMENTS -->`` and ``<!-- end -->``. Kinds, where NAME may be
several studies in one, NAME+NAME: ``rates NAME GROUP SPLIT`` (share right, mean of seeds, by N and F), ``losses NAME``,
``points NAME``, ``variants GROUP SPLIT N NAME...`` (a line a study, at one N), ``prediction NAME MEASURED`` (what was
registered, against the points measured since).
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from megatron_kis.analysis.law.predict import load_predictions
from megatron_kis.analysis.law.validate import validate
from megatron_kis.analysis.runs.load_csv import load_points_csv

PAGE = Path(__file__).parents[1] / "docs" / "study" / "index.md"
RESULTS = PAGE.parent / "results"
_TABLE = re.compile(r"(<!-- table: (?P<words>.*?) -->\n).*?(?=<!-- end -->)", re.S)
_KEPT = ("points.csv", "law.json", "prediction.json")


def collect(study: Path, name: str) -> Path:
    """Copies what a study found, of the curves the declared scoring rule alone."""
    target = RESULTS / name
    target.mkdir(parents=True, exist_ok=True)
    for file in _KEPT:
        if (study / file).is_file():
            shutil.copyfile(study / file, target / file)
    table = pd.read_csv(study / "curves.csv")
    table[table["scoring"] == "statement"].to_csv(target / "curves.csv", index=False, lineterminator="\n")
    return target


def fill(text: str) -> str:
    """The page with every table made anew."""
    return _TABLE.sub(lambda found: found[1] + "\n" + _made(found["words"].split()) + "\n\n", text)


def _made(words: list[str]) -> str:
    return _KINDS[words[0]](*words[1:])


def _curves(names: str) -> pd.DataFrame:
    return pd.concat([pd.read_csv(RESULTS / name / "curves.csv") for name in names.split("+")])


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def _grid(rows: dict[str, pd.DataFrame], column: str, first: str) -> str:
    """A line a table of runs: means of seeds by F, and how far seeds lie apart."""
    every = pd.concat(list(rows.values()))
    ratios = every.groupby("frequency")["infusion_ratio"].mean()
    lines = []
    for label, table in rows.items():
        cells = table.groupby("frequency")[column]
        means = {frequency: f"{mean:.2f}" for frequency, mean in cells.mean().items()}
        spread = float((cells.var().dropna().mean()) ** 0.5)  # within cells, pooled; NaN where each has one seed
        apart = f"{spread:.2f}" if np.isfinite(spread) else ""
        lines.append([label, *(means.get(frequency, "") for frequency in ratios.index), apart])
    levels = (f"F = {frequency:g}<br>{ratio:.2f}" for frequency, ratio in ratios.items())
    return _markdown([first, *levels, "sd of seeds"], lines)


def _rates(table: pd.DataFrame, group: str, split: str) -> pd.DataFrame:
    mine = table[(table["group"] == group) & (table["split"] == split)]
    return mine.assign(rate=mine["correct"] / mine["n"])


def _by_size(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {f"{params:,}": mine for params, mine in table.groupby("params", sort=True)}


def rates(names: str, group: str, split: str) -> str:
    """Share of questions answered right."""
    return _grid(_by_size(_rates(_curves(names), group, split)), "rate", "N")


def losses(names: str) -> str:
    """Loss on general text, nats a token."""
    table = _curves(names).drop_duplicates(["params", "tokens", "frequency", "seed"])
    return _grid(_by_size(table), "validation_loss", "N")


def variants(group: str, split: str, params: str, *names: str) -> str:
    """Share of questions answered right (or the loss, for the group ``loss``) in several studies, at one size."""
    tables = {}
    for name in names:
        table = _curves(name)
        table = table[table["params"] == int(params)]
        runs = table.drop_duplicates(["frequency", "seed"])
        tables[name.replace("_", " ")] = runs if group == "loss" else _rates(table, group, split)
    return _grid(tables, "validation_loss" if group == "loss" else "rate", "study")


def points(names: str) -> str:
    """Onset, collapse and tolerance of every (N, D), with status and interval."""
    rows = []
    table = pd.concat([pd.read_csv(RESULTS / name / "points.csv") for name in names.split("+")])
    for row in table.sort_values(["kind", "group", "tokens", "params"]).itertuples():
        point: Any = row
        value = f"{point.value:.0f}" if pd.notna(point.value) else ""
        ratio = f"{point.infusion_ratio:.2f}" if pd.notna(point.infusion_ratio) else ""
        rows.append(
            [
                point.kind,
                point.group,
                f"{point.params:,}",
                point.status.replace("_", "-"),
                value,
                _interval(point.low, point.high),
                ratio,
            ]
        )
    return _markdown(["kind", "group", "N", "status", "F", "interval", "ratio at F"], rows)


def _interval(low: float | None, high: float | None) -> str:
    ends = [f"{end:.0f}" if end is not None and np.isfinite(end) else "" for end in (low, high)]
    return (
        " to ".join(ends) if all(ends) else f"beyond {ends[0]}" if ends[0] else f"at most {ends[1]}" if ends[1] else ""
    )


def prediction(name: str, measured: str) -> str:
    """What was registered, and what was measured after it."""
    found = load_points_csv(RESULTS / measured / "points.csv")
    rows = []
    for score in validate(load_predictions(RESULTS / name / "prediction.json"), found):
        (point,) = (p for p in found if (p.kind, p.group, p.params) == (score.kind, score.group, score.params))
        value = (
            f"{point.value:.0f} ({_interval(point.low, point.high)})"
            if point.value
            else _interval(point.low, point.high)
        )
        rows.append(
            [
                score.kind,
                score.group,
                f"{score.centre:.0f}",
                _interval(*score.prediction_interval),
                value,
                "yes" if score.hit else "no",
            ]
        )
    return _markdown(["kind", "group", "predicted F", "95% prediction interval", "measured", "inside"], rows)


_KINDS: dict[str, Callable[..., str]] = {
    "rates": rates,
    "losses": losses,
    "variants": variants,
    "points": points,
    "prediction": prediction,
}


def main() -> int:
    """Collects, fills or checks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    collecting = steps.add_parser("collect", help="take a study's results")
    collecting.add_argument("study", type=Path, help="the study's folder")
    collecting.add_argument("name", help="of its folder in docs/study/results")
    steps.add_parser("fill", help="write the tables into the page")
    steps.add_parser("check", help="status 1 where the page has others")
    options = parser.parse_args()
    if options.step == "collect":
        print(collect(options.study, options.name))
        return 0
    text = PAGE.read_text(encoding="utf-8")
    filled = fill(text)
    if options.step == "fill":
        PAGE.write_text(filled, encoding="utf-8")
        return 0
    if filled != text:
        print(f"{PAGE}: its tables are not those of {RESULTS}; python -m benchmarks.study_page fill", file=sys.stderr)
    return int(filled != text)


if __name__ == "__main__":
    sys.exit(main())
