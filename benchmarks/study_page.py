"""The tables of the pages in docs/study and of the tutorial, from committed results: none is written by hand.

    python -m benchmarks.study_page collect STUDY_FOLDER NAME    # takes a study's results into docs/study/results/NAME
    python -m benchmarks.study_page fill                         # writes the tables into the pages
    python -m benchmarks.study_page check                        # status 1 where a page has others

A table is in the page between ``<!-- table: KIND ARGUMENTS -->`` and ``<!-- end -->``. NAME may be several studies in
one, NAME+NAME. Kinds:

- ``rates NAME GROUP SPLIT``: share right, mean of seeds, by N and F.
- ``losses NAME``, ``points NAME``.
- ``variants GROUP SPLIT N NAME...``: one row per study, at one N.
- ``prediction NAME MEASURED``: what was registered, and the points that were measured after it.

If the number of facts K was varied (HELD is ratio=0.5 or frequency=14):

- ``amounts NAME GROUP SPLIT HELD``: share right, mean of seeds, by N and K.
- ``sizes NAME KIND HELD GROUP...``: transitions along K, one column per group.
- ``strength NAME SPLIT HELD N``: one row per strength of the background, by K.
- ``contrasts GROUP SPLIT HELD N NAME...``: one row per study, by K.
- ``laws NAME HELD``: exponent of N of every law along K; for NAME+NAME, of a law in N fitted to the points of all.
- ``scores NAME MEASURED HELD``: as ``prediction``, along K.
- ``likeness NAME``: which of the equally strong background facts are lost, the share right against similarity to the
  infused facts. NAME/likeness.csv has the lines of ``kis law survival`` of the strengths, sizes and K between 0.35 and
  0.95.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from megatron_kis.analysis.findings.analyse import law_keys
from megatron_kis.analysis.law.fit import LawRefused, fit_law
from megatron_kis.analysis.law.law import SCHEMA as LAW_SCHEMA
from megatron_kis.analysis.law.prediction import load_predictions
from megatron_kis.analysis.law.validate import Score, validate
from megatron_kis.analysis.runs.load_csv import load_points_csv
from megatron_kis.analysis.runs.slices import FACTS, Slice, rows_of_slice, slice_of_record
from megatron_kis.analysis.runs.transitions import Transition
from megatron_kis.common.errors import InputError
from megatron_kis.common.files import read_json

FOLDER = Path(__file__).parents[1] / "docs" / "study"
PAGES = [*sorted(FOLDER.glob("*.md")), FOLDER.parent / "tutorial.md"]
RESULTS = FOLDER / "results"
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
    """Returns the page with every table made again."""
    return _TABLE.sub(lambda found: found[1] + "\n" + _made(found["words"].split()) + "\n\n", text)


def _made(words: list[str]) -> str:
    return _KINDS[words[0]](*words[1:])


def _curves(names: str) -> pd.DataFrame:
    return pd.concat([pd.read_csv(RESULTS / name / "curves.csv") for name in names.split("+")])


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def _grid(rows: dict[str, pd.DataFrame], column: str, first: str) -> str:
    """One row per table of runs: means of seeds by F, and the spread of seeds."""
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
    """Loss on general text, nats per token."""
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


_LIKENESS = {
    "overlap": "tokens that its code shares with an infused code",
    "prefix": "longest beginning that it has in common with an infused code",
    "same_object": "infused facts with its city",
}


def likeness(name: str) -> str:
    """Correlation over facts of the share right and each measure of similarity, both as differences from their cell.

    A cell is what is alike but for the fact: exposures, N, K. Every fact counts once, with its mean over cells. The 95%
    interval is Fisher's.
    """
    table = pd.read_csv(RESULTS / name / "likeness.csv")
    columns = ["right", *_LIKENESS]
    cells = table.groupby(["exposures", "params", "infused_facts"])[columns]
    facts = (table[columns] - cells.transform("mean")).groupby(table["fact"]).mean()
    rows = []
    for column, what in _LIKENESS.items():
        found = float(facts["right"].corr(facts[column]))
        ends = np.tanh(np.arctanh(found) + np.array([-1, 1]) * 1.96 / np.sqrt(len(facts) - 3))
        rows.append([what, f"{found:z.2f}", f"{ends[0]:.2f} to {ends[1]:.2f}", f"{len(facts)}"])
    return _markdown(["share right against", "correlation", "95% interval", "facts"], rows)


def _interval(low: float | None, high: float | None) -> str:
    ends = [f"{end:.0f}" if end is not None and np.isfinite(end) else "" for end in (low, high)]
    return (
        " to ".join(ends) if all(ends) else f"beyond {ends[0]}" if ends[0] else f"at most {ends[1]}" if ends[1] else ""
    )


def prediction(name: str, measured: str) -> str:
    """What was registered, and what was measured after it."""
    rows = []
    for score, point in _scored(name, measured):
        at = _interval(point.low, point.high)
        at = f"{point.value:.0f} ({at})" if point.value else at
        predicted = f"{score.centre:.0f}", _interval(*score.prediction_interval)
        rows.append([score.kind, score.group, *predicted, at, "yes" if score.hit else "no"])
    return _markdown(["kind", "group", "predicted F", "95% prediction interval", "measured", "inside"], rows)


def _scored(name: str, measured: str, along: Slice | None = None) -> Iterator[tuple[Score, Transition]]:
    """Each score of what was registered (of one slice, if given) with the point that it is of."""
    found = load_points_csv(RESULTS / measured / "points.csv")
    registered = load_predictions(RESULTS / name / "prediction.json")
    if along is not None:
        registered = [record for record in registered if slice_of_record(record, where=name) == along]
    for score in validate(registered, found):
        own = score.kind, score.group, score.params, score.tokens, score.slice
        (point,) = (p for p in found if (p.kind, p.group, *p.cell) == own)
        yield score, point


def _slice(held: str) -> Slice:
    """The slice along K of an argument such as ``frequency=14``."""
    by, _, value = held.partition("=")
    return slice_of_record({"axis": FACTS, "held_by": by, "held": float(value)}, where=f"table of {held}")


def _by_facts(rows: dict[str, pd.DataFrame], first: str) -> str:
    """One row per table of runs: means of seeds by K, and the spread of seeds."""
    doses = sorted({dose for table in rows.values() for dose in table["dose"]})
    lines = []
    for label, table in rows.items():
        cells = table.groupby("dose")["rate"]
        means = {dose: f"{mean:.2f}" for dose, mean in cells.mean().items()}
        spread = float((cells.var().dropna().mean()) ** 0.5)
        apart = f"{spread:.2f}" if np.isfinite(spread) else ""
        lines.append([label, *(means.get(dose, "") for dose in doses), apart])
    return _markdown([first, *(f"K = {dose:,.0f}" for dose in doses), "sd of seeds"], lines)


def amounts(names: str, group: str, split: str, held: str) -> str:
    """Share of questions answered right, by N and K."""
    return _by_facts(_by_size(_rates(rows_of_slice(_curves(names), _slice(held)), group, split)), "N")


def strength(name: str, split: str, held: str, params: str) -> str:
    """Share of questions answered right of each strength of the background, by K, at one N."""
    table = rows_of_slice(_curves(name), _slice(held))
    table = table[table["params"] == int(params)]
    groups = sorted((g for g in table["group"].unique() if "@" in g), key=lambda g: int(g.split("@")[1]))
    rows = {f"{group.split('@')[1]} exposures": _rates(table, group, split) for group in groups}
    return _by_facts(rows, "shown")


def contrasts(group: str, split: str, held: str, params: str, *names: str) -> str:
    """Share of questions answered right in several studies, by K, at one N; one row per study."""
    tables = {name: rows_of_slice(_curves(name), _slice(held)) for name in names}
    chosen = {name: table[table["params"] == int(params)] for name, table in tables.items()}
    return _by_facts({name.replace("_", " "): _rates(table, group, split) for name, table in chosen.items()}, "study")


def _label(group: str) -> str:
    name, _, shown = group.partition("@")
    return f"{name}, {shown} exposures" if shown else name


def sizes(names: str, kind: str, held: str, *groups: str) -> str:
    """Transitions along K by N, one column per group."""
    along = _slice(held)
    found = {(p.group, p.params, p.tokens): p for p in _points(names) if p.kind == kind and p.slice == along}
    rows = []
    for params, tokens in sorted({(params, tokens) for _, params, tokens in found}):
        cells = [found.get((group, params, tokens)) for group in groups]
        rows.append([f"{params:,}", *("" if point is None else _point(point) for point in cells)])
    return _markdown(["N", *map(_label, groups)], rows)


def _points(names: str) -> list[Transition]:
    return [point for name in names.split("+") for point in load_points_csv(RESULTS / name / "points.csv")]


def _point(point: Transition) -> str:
    interval = _interval(point.low, point.high)
    if point.value is not None:
        return f"{point.value:,.0f} ({interval})"
    return interval if point.status != "inconclusive" else "inconclusive"


def _laws(names: str, along: Slice) -> list[dict[str, Any]]:
    """The laws of a study as it found them, or of several studies in one, fitted to the points of all."""
    if "+" not in names:
        laws = read_json(RESULTS / names / "law.json", LAW_SCHEMA)["laws"]
        return [law for law in laws if slice_of_record(law, where=names) == along]
    points = [point for point in _points(names) if point.slice == along]
    cells = [(point.kind, point.group, *point.cell) for point in points]
    if len(set(cells)) < len(cells):
        raise InputError(f"{names} have points of the same N and D", where="laws", remedy="name studies of other sizes")
    found = []
    for kind, group, _ in law_keys(points):
        try:
            found.append(fit_law(points, kind, group, along=along, confidence=0.95, law="N", compare_laws=False))
        except LawRefused:
            continue
    return [law.record() for law in found]


def laws(names: str, held: str) -> str:
    """Every law along K: exponent of N with its interval, and the sizes that it rests on."""
    rows = []
    for law in _laws(names, _slice(held)):
        b = law["coefficients"]["b_log_params"]
        sizes_used = len({point["params"] for point in law["points"] if point["residual"] is not None})
        exponent = "" if b is None else f"{b['value']:.2f} ({b['low']:.2f} to {b['high']:.2f})"
        rows.append([law["kind"], _label(law["group"]), law["selected_law"], exponent, str(sizes_used)])
    return _markdown(["kind", "group", "law", "exponent of N (95%)", "sizes with a point"], rows)


def scores(name: str, measured: str, held: str) -> str:
    """What was registered along K, and what was measured after it."""
    rows = []
    for score, point in _scored(name, measured, _slice(held)):
        at = _interval(point.low, point.high)
        at = f"{point.value:,.0f} ({at})" if point.value else at
        predicted = f"{score.centre:,.0f}", _interval(*score.prediction_interval)
        inside = "no" if not score.hit else "yes" if point.value else "not contradicted"
        rows.append([score.kind, _label(score.group), f"{score.params:,}", *predicted, at, inside])
    return _markdown(["kind", "group", "N", "predicted K", "95% prediction interval", "measured", "inside"], rows)


_KINDS: dict[str, Callable[..., str]] = {
    "rates": rates,
    "losses": losses,
    "variants": variants,
    "points": points,
    "prediction": prediction,
    "amounts": amounts,
    "strength": strength,
    "contrasts": contrasts,
    "sizes": sizes,
    "laws": laws,
    "scores": scores,
    "likeness": likeness,
}


def main() -> int:
    """Collects, fills or checks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    collecting = steps.add_parser("collect", help="take a study's results")
    collecting.add_argument("study", type=Path, help="the study's folder")
    collecting.add_argument("name", help="of its folder in docs/study/results")
    steps.add_parser("fill", help="write the tables into the pages")
    steps.add_parser("check", help="status 1 where a page has others")
    options = parser.parse_args()
    if options.step == "collect":
        print(collect(options.study, options.name))
        return 0
    differ = 0
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        filled = fill(text)
        if options.step == "fill":
            page.write_text(filled, encoding="utf-8")
        elif filled != text:
            differ = 1
            print(
                f"{page}: its tables are not those of {RESULTS}; python -m benchmarks.study_page fill", file=sys.stderr
            )
    return differ


if __name__ == "__main__":
    sys.exit(main())
