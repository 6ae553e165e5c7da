"""The tables of docs/study/index.md, out of the results beside it: no number of theirs is written by hand.

    python -m benchmarks.study_page collect STUDY_FOLDER NAME    # takes a study's results into docs/study/results/NAME
    python -m benchmarks.study_page fill                         # writes the tables into the page
    python -m benchmarks.study_page check                        # status 1 where the page has others

A table stands in the page between ``<!-- table: KIND ARGUMENTS -->`` and ``<!-- end -->``. Kinds: ``rates NAME GROUP
SPLIT`` (share right, mean of seeds, by N and F), ``losses NAME``, ``points NAME``, ``variants GROUP SPLIT N NAME...``
(a line a study, at one N), ``prediction NAME MEASURED`` (what was registered, against the points measured since).
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

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


def _curves(name: str) -> pd.DataFrame:
    return pd.read_csv(RESULTS / name / "curves.csv")


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def _levels(table: pd.DataFrame) -> list[str]:
    """Heads of the columns: F, and the infusion ratio that goes with it."""
    ratios = table.groupby("frequency")["infusion_ratio"].mean()
    return [f"{frequency:g} ({ratio:.2f})" for frequency, ratio in ratios.items()]


def _cells(values: pd.Series, digits: int) -> str:
    """Mean of seeds, and their standard deviation where there are some."""
    if not len(values):
        return ""
    spread = f" ± {values.std():.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{spread}"


def _grid(table: pd.DataFrame, row: str, column: str, digits: int, label: Callable[[object], str]) -> str:
    frequencies = sorted(table["frequency"].unique())
    rows = [
        [label(key), *(_cells(mine.loc[mine["frequency"] == frequency, column], digits) for frequency in frequencies)]
        for key, mine in table.groupby(row, sort=True)
    ]
    return _markdown([{"params": "N", "variant": ""}[row], *(f"F = {level}" for level in _levels(table))], rows)


def rates(name: str, group: str, split: str) -> str:
    """Share of questions answered right."""
    table = _curves(name)
    table = table[(table["group"] == group) & (table["split"] == split)].assign(rate=lambda t: t["correct"] / t["n"])
    return _grid(table, "params", "rate", 2, lambda key: f"{key:,}")


def losses(name: str) -> str:
    """Loss on general text, nats a token."""
    table = _curves(name).drop_duplicates(["params", "tokens", "frequency", "seed"])
    return _grid(table, "params", "validation_loss", 2, lambda key: f"{key:,}")


def variants(group: str, split: str, params: str, *names: str) -> str:
    """Share of questions answered right in several studies, at one size."""
    tables = []
    for number, name in enumerate(names):
        table = _curves(name)
        table = table[(table["params"] == int(params)) & (table["split"] == split)]
        value = "validation_loss" if group == "loss" else "rate"
        table = table.drop_duplicates(["frequency", "seed"]) if group == "loss" else table[table["group"] == group]
        table = table.assign(rate=table["correct"] / table["n"], variant=f"{number}:{name}")
        tables.append(table.assign(shown=table[value]))
    every = pd.concat(tables)
    frequencies = sorted(every["frequency"].unique())
    rows = [
        [name.replace("_", " "), *(_cells(table.loc[table["frequency"] == f, "shown"], 2) for f in frequencies)]
        for name, table in zip(names, tables, strict=True)
    ]
    return _markdown(["study", *(f"F = {frequency:g}" for frequency in frequencies)], rows)


def points(name: str) -> str:
    """Onset, collapse and tolerance of every (N, D), with status and interval."""
    rows = []
    for point in (
        pd.read_csv(RESULTS / name / "points.csv").sort_values(["kind", "group", "tokens", "params"]).itertuples()
    ):
        value = f"{point.value:.0f}" if pd.notna(point.value) else ""
        low, high = (f"{end:.0f}" if np.isfinite(end) else "" for end in (point.low, point.high))
        interval = f"{low} to {high}" if low and high else f"beyond {low}" if low else f"before {high}" if high else ""
        ratio = f"{point.infusion_ratio:.2f}" if pd.notna(point.infusion_ratio) else ""
        rows.append([point.kind, point.group, f"{point.params:,}", f"{point.tokens:,}",
                     point.status.replace("_", "-"), value, interval, ratio])  # fmt: skip
    return _markdown(["kind", "group", "N", "D", "status", "F", "interval", "ratio at F"], rows)


def prediction(name: str, measured: str) -> str:
    """What was registered, and what was measured after it."""
    found = pd.read_csv(RESULTS / measured / "points.csv")
    rows = []
    for one in json.loads((RESULTS / name / "prediction.json").read_text(encoding="utf-8"))["predictions"]:
        mine = found[
            (found["kind"] == one["kind"]) & (found["group"] == one["group"]) & (found["params"] == one["params"])
        ]
        low, high = one["prediction_interval"]
        for point in mine.itertuples():
            known = pd.notna(point.value)
            value = (
                f"{point.value:.0f} ({point.low:.0f} to {point.high:.0f})" if known else point.status.replace("_", "-")
            )
            verdict = ("yes" if low <= point.value <= high else "no") if known else "not told"
            rows.append([one["kind"], one["group"], f"{point.params:,}", f"{one['centre']:.0f}",
                         f"{low:.0f} to {high:.0f}", value, verdict])  # fmt: skip
    return _markdown(["kind", "group", "N", "predicted F", "95% prediction interval", "measured", "inside"], rows)


_KINDS: dict[str, Callable[..., str]] = {
    "rates": rates, "losses": losses, "variants": variants, "points": points, "prediction": prediction,
}  # fmt: skip


def main() -> int:
    """Collects, fills or checks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["collect", "fill", "check"])
    parser.add_argument("words", nargs="*")
    options = parser.parse_args()
    if options.step == "collect":
        print(collect(Path(options.words[0]), options.words[1]))
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
