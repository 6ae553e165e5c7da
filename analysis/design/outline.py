"""The runs of a study before they are trained: a curve table without answers, and what is asked of each run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from megatron_kis.analysis.runs.slices import FACTS, Slice, rows_of_slice, slices_of
from megatron_kis.common.terms import BACKGROUND, INFUSED
from megatron_kis.config.study import LadderEntry, StudyConfig
from megatron_kis.config.vocabulary import padded_vocabulary
from megatron_kis.study.specs import expand_grid

_TOKENS = 20.0  # of an exposure, before facts are rendered


@dataclass(frozen=True)
class Outline:
    """What a study will train and ask."""

    table: pd.DataFrame
    """One row per run: params, tokens, frequency, seed, infused_facts, configured_ratio, infusion_ratio."""

    sizes: Mapping[int, LadderEntry]
    """Entry of the ladder of each N."""

    asked: Mapping[str, int]
    """Largest number of facts of each group that a run is asked about."""

    there: Mapping[str, int]
    """Facts of each group."""

    background: Mapping[int, int]
    """Background facts that are shown, by their exposures without infusion."""

    exposure_tokens: float
    """Mean length of an exposure in tokens; NaN if nothing is infused."""

    chance: float
    """Rate of a guess."""

    apart: bool
    """Whether documents of a sequence do not see each other."""

    _levels: dict[Slice, dict[tuple[int, int], dict[float, int]]] = field(default_factory=dict, repr=False)

    def slices(self, axis: str) -> list[Slice]:
        """Returns the slices in which transitions will be sought.

        Raises:
            InputError: the runs do not vary what ``axis`` asks for.
        """
        return slices_of(self.table, axis)

    def levels(self, one: Slice) -> dict[tuple[int, int], dict[float, int]]:
        """Returns the seeds at each dose of a slice, by (N, D)."""
        if one in self._levels:
            return self._levels[one]
        found: dict[tuple[int, int], dict[float, set[int]]] = {}
        rows = rows_of_slice(self.table, one)
        for params, tokens, dose, seed in rows[["params", "tokens", "dose", "seed"]].itertuples(index=False):
            of_model = found.setdefault((int(params), int(tokens)), {})
            of_model.setdefault(float(dose), set()).add(int(seed))
        self._levels[one] = {
            cell: {dose: len(seeds) for dose, seeds in sorted(doses.items())} for cell, doses in sorted(found.items())
        }
        return self._levels[one]

    def key_of(self, one: Slice) -> str:
        """Returns the key of a study file that gives the doses of a slice."""
        if one.axis == FACTS:
            return "facts"
        ratios = self.table.loc[self.table["frequency"] > 0, "configured_ratio"]
        return "infusion_ratios" if len(ratios) and bool(ratios.notna().all()) else "frequencies"

    def facts(self, group: str, dose: float, one: Slice) -> int:
        """Returns the facts of a group that a run of a dose is asked about."""
        most = self.asked[group]
        if group != INFUSED or not dose:
            return most
        if one.axis == FACTS:
            return min(most, int(dose))
        held = one.held if one.held_by == "facts" else None
        if held is None:  # one number of facts in all runs, which need not be all facts
            held = float(self.table.loc[self.table["frequency"] > 0, "infused_facts"].min())
        return min(most, int(held))


def outline_of(study: StudyConfig, rows: Iterable[Mapping[str, Any]]) -> Outline:
    """Returns the outline of a study.

    Args:
        study: the study.
        rows: result of ``study.grid.plan_rows``.
    """
    rows = list(rows)
    entries = {entry.label: entry for entry in study.ladder}
    table = pd.DataFrame(
        {
            "params": [row["params"] for row in rows],
            "tokens": [row["tokens"] for row in rows],
            "frequency": [float(row["infusion_frequency"]) for row in rows],
            "seed": [row["seed"] for row in rows],
            "infused_facts": [float(row["facts"] or study.data.select.infused) for row in rows],
            "configured_ratio": [_number(row["configured_ratio"]) if row["facts"] else math.nan for row in rows],
            "infusion_ratio": [float(row["infusion_ratio"]) for row in rows],
        }
    )
    infused = table[(table["frequency"] > 0) & (table["infusion_ratio"] > 0)]
    shown = infused["frequency"] * infused["infused_facts"]
    lengths = (infused["infusion_ratio"] * infused["tokens"] / shown).to_numpy(np.float64)
    counts = {group.frequency: group.facts for group in study.background.groups}
    if not counts and study.background.frequency:
        counts = {study.background.frequency: study.data.select.background}
    most = study.probes.facts_per_group
    asked = {INFUSED: study.data.select.infused, BACKGROUND: sum(counts.values()) or study.data.select.background}
    return Outline(
        table=table,
        sizes={int(row["params"]): entries[row["size"]] for row in rows},
        asked={group: facts if most is None else min(facts, most) for group, facts in asked.items()},
        there=asked,
        background=dict(sorted(counts.items())),
        exposure_tokens=float(lengths.mean()) if len(lengths) else math.nan,
        chance=1 / (1 + study.data.select.distractors),
        apart=study.documents.reset_attention,
    )


def sketch(study: StudyConfig) -> list[dict[str, Any]]:
    """Returns rows as ``plan_rows`` has them, before there are data: N and lengths are approximate."""
    vocabulary = padded_vocabulary(study.data.vocab_size)
    rows = []
    for spec in expand_grid(study):
        dose = spec.dose
        shown = (study.data.select.infused if dose.facts is None else dose.facts) if dose.infuses else 0
        ratio = dose.ratio
        if ratio is None:
            often = float(dose.frequency or 0)
        else:
            often = ratio * spec.tokens / (shown * _TOKENS) if shown else 0.0
        rows.append(
            {
                "size": spec.entry.label,
                "params": spec.entry.shape().params(vocabulary),
                "tokens": spec.tokens,
                "facts": shown,
                "infusion_frequency": often,
                "configured_ratio": ratio,
                "infusion_ratio": often * shown * _TOKENS / spec.tokens,
                "seed": spec.seed,
            }
        )
    return rows


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
