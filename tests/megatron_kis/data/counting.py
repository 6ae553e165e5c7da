"""What a plan really lays out, counted by reading every sequence; and plans of many shapes to count in."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from megatron_kis.data.plan import ExposurePlan, Placed
from megatron_kis.errors import InputError


@dataclass(frozen=True)
class Found:
    """One exposure and the sequence it was found in."""

    sequence: int
    exposure: Placed


def read_all(plan: ExposurePlan) -> Iterator[Found]:
    """Every exposure of every sequence, after checking that the sequence is whole: no overlap, no gap, nothing cut."""
    for sequence in range(len(plan)):
        layout = plan[sequence]
        pieces = [(exposure.offset, exposure.length) for exposure in layout.exposures]
        assert pieces == sorted(pieces)
        if layout.general_tokens:
            pieces.append((layout.general_offset, layout.general_tokens))
        end = 0
        for offset, length in sorted(pieces):
            assert offset == end and length > 0, f"sequence {sequence}: a gap or an overlap at {offset}"
            end = offset + length
        assert end == plan.sequence_length
        for exposure in layout.exposures:
            yield Found(sequence, exposure)


def counts(plan: ExposurePlan, group: str, facts: int) -> list[int]:
    """Exposures of each fact of a group."""
    found = Counter(item.exposure.fact for item in read_all(plan) if item.exposure.group == group)
    assert set(found) <= set(range(facts))
    return [found[fact] for fact in range(facts)]


def by_fact(plan: ExposurePlan, group: str) -> dict[int, list[Found]]:
    """Exposures of a group by fact, in the order of training."""
    facts: dict[int, list[Found]] = defaultdict(list)
    for item in read_all(plan):
        if item.exposure.group == group:
            facts[item.exposure.fact].append(item)
    return facts


def largest_frequency(**settings: Any) -> int:
    """The largest F that the plan's own error message names for an F that is far too large."""
    try:
        ExposurePlan(**{**settings, "infusion_frequency": settings["token_budget"] + 1})
    except InputError as error:
        named = re.search(r"the largest that fits is about (\d+)", str(error))
        assert named, str(error)
        return int(named.group(1))
    raise AssertionError("a frequency above the number of tokens was accepted")


@st.composite
def length_tables(draw: st.DrawFn, *, shortest: int, longest: int, facts: st.SearchStrategy[int]) -> NDArray[np.int64]:
    """int64 [facts, templates]: ragged, with 0 after the last template of a fact."""
    templates = draw(st.integers(1, 6))
    shape = (draw(facts), templates)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    table = rng.integers(shortest, longest + 1, size=shape)
    if draw(st.booleans()):
        table[np.arange(templates) >= rng.integers(1, templates + 1, size=shape[0])[:, None]] = 0
    return table.astype(np.int64)


@st.composite
def plan_settings(draw: st.DrawFn) -> dict[str, Any]:
    """Settings of an ExposurePlan that fits, from empty to as dense as it can be packed."""
    length = draw(st.integers(8, 96))
    sizes = {"shortest": -(-length // 12), "longest": draw(st.integers(-(-length // 12), length // 3))}
    sequences = draw(st.integers(1, 90))
    infused = draw(length_tables(**sizes, facts=st.integers(1, 12)))
    background = draw(length_tables(**sizes, facts=st.integers(0, 6)))
    budget = sequences * length + draw(st.integers(0, length - 1))
    policy = draw(st.sampled_from(["displaced", "protected"]))
    room = sequences * length // max(1, int(background.max(axis=1, initial=1).sum()))
    settings: dict[str, Any] = {
        "exposure_lengths": infused,
        "token_budget": budget,
        "sequence_length": length,
        "seed": draw(st.integers(0, 2**31)),
        "background_lengths": background,
        "background_frequency": draw(st.integers(0, max(0, room // 3))),
        "background_policy": policy,
    }
    most = largest_frequency(**settings)
    share = draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
    settings["infusion_frequency"] = min(most, draw(st.sampled_from([0, 1, 2])) + int(share * most))
    return settings
