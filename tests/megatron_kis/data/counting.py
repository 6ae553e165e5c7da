"""What a plan really lays out, counted by reading every sequence; and plans of many shapes to count in."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st
from numpy.typing import NDArray

from megatron_kis.common.errors import InputError
from megatron_kis.data.exposure_plan import ExposurePlan, PlacedExposure
from megatron_kis.data.extension import Plan
from megatron_kis.data.frequency import zipf_popularity


@dataclass(frozen=True)
class Found:
    """One exposure and the sequence it was found in."""

    sequence: int
    exposure: PlacedExposure


def read_all(plan: Plan) -> Iterator[Found]:
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


def counts(plan: Plan, group: str, facts: int) -> list[int]:
    """Exposures of each fact of a group."""
    found = Counter(item.exposure.fact for item in read_all(plan) if item.exposure.group == group)
    assert set(found) <= set(range(facts))
    return [found[fact] for fact in range(facts)]


def by_fact(plan: Plan, group: str) -> dict[int, list[Found]]:
    """Exposures of a group by fact, in the order of training."""
    facts: dict[int, list[Found]] = defaultdict(list)
    for item in read_all(plan):
        if item.exposure.group == group:
            facts[item.exposure.fact].append(item)
    return facts


def largest_frequency(**settings: Any) -> int:
    """About the largest F that fits: the one that a refusal names, or half as many as refused where it names none."""
    settings.pop("infusion_ratio", None)
    frequency = settings["token_budget"] // len(settings["exposure_lengths"]) + 1
    while frequency:
        try:
            ExposurePlan(**{**settings, "infusion_frequency": frequency})
        except InputError as error:
            named = re.search(r"the largest that fits is about (\d+)", str(error))
            if named and int(named.group(1)) < frequency:
                frequency = int(named.group(1))
            else:
                frequency //= 2
        else:
            return frequency
    return 0


@st.composite
def length_tables(draw: st.DrawFn, *, shortest: int, longest: int, facts: st.SearchStrategy[int]) -> NDArray[np.int64]:
    """int64 [facts, templates]: ragged, with 0 after the last template of a fact; equal, mixed or one long one."""
    templates = draw(st.integers(1, 6))
    shape = (draw(facts), templates)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["mixed", "equal", "one long"]))
    table = np.full(shape, shortest) if kind == "one long" else np.full(shape, longest)
    if kind == "mixed":
        table = rng.integers(shortest, longest + 1, size=shape)
    elif kind == "one long":
        table[:1] = longest
    if draw(st.booleans()):
        table[np.arange(templates) >= rng.integers(1, templates + 1, size=shape[0])[:, None]] = 0
    return table.astype(np.int64)


def schedules() -> st.SearchStrategy[Any]:
    """Every kind of schedule."""
    edges = st.lists(st.integers(0, 20), min_size=2, max_size=2, unique=True).map(sorted)
    return st.one_of(
        st.sampled_from(["uniform", "front_loaded", "back_loaded"]),
        edges.map(lambda pair: {"kind": "window", "start": pair[0] / 20, "end": pair[1] / 20}),
        st.integers(1, 20).map(lambda share: {"kind": "final", "share": share / 20}),
        st.tuples(st.integers(1, 5), st.integers(2, 20)).map(
            lambda pair: {"kind": "bursts", "count": pair[0], "width": pair[1] / 20}
        ),
    )


@st.composite
def plan_settings(draw: st.DrawFn, *, schedule: Any = None) -> dict[str, Any]:
    """Settings of an ExposurePlan that fits, from empty to as dense as it can be packed."""
    length = draw(st.integers(8, 96))
    sizes = {"shortest": -(-length // 12), "longest": draw(st.integers(-(-length // 12), length // 3))}
    sequences = draw(st.integers(1, 90))
    infused = draw(length_tables(**sizes, facts=st.one_of(st.integers(1, 12), st.integers(30, 40))))
    background = draw(length_tables(**sizes, facts=st.integers(0, 6)))
    room = sequences * length // max(1, int(background.max(axis=1, initial=1).sum()))
    settings: dict[str, Any] = {
        "exposure_lengths": infused,
        "token_budget": sequences * length + draw(st.integers(0, length - 1)),
        "sequence_length": length,
        "seed": draw(st.integers(0, 2**31)),
        "schedule": draw(st.one_of(st.just("uniform"), schedules())) if schedule is None else schedule,
        "templates": draw(st.sampled_from(["round_robin", "random", 0])),
        "background_lengths": background,
        "background_frequency": draw(st.integers(0, max(0, room // 3))),
        "background_policy": draw(st.sampled_from(["displaced", "protected"])),
    }
    most = largest_frequency(**settings)
    share = draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
    settings["infusion_frequency"] = min(most, draw(st.sampled_from([0, 1, 2])) + int(share * most))
    assume(_fits(settings))  # less may not fit where more does: with more, no background is left beside a short window
    return settings


@st.composite
def unequal_settings(draw: st.DrawFn) -> dict[str, Any]:
    """Settings that fit, with frequencies of every kind: equal, listed, a mean of popular facts, a ratio."""
    settings = draw(plan_settings())
    facts, frequency = len(settings["exposure_lengths"]), settings["infusion_frequency"]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["one", "listed", "mean", "zipf", "ratio", "zipf ratio"]))
    if kind == "listed":
        settings["infusion_frequency"] = rng.integers(0, frequency + 1, size=facts)
    elif kind == "mean":
        settings["infusion_frequency"] = float(frequency * rng.random())
    elif kind == "zipf":
        settings["infusion_frequency"] = 0.5 * frequency
    if kind.startswith("zipf"):
        settings["popularity"] = zipf_popularity(facts, draw(st.sampled_from([0.5, 1.0, 2.0])), seed=settings["seed"])
    if kind.endswith("ratio"):
        plain = {**settings, "infusion_frequency": 0.8 * frequency, "popularity": None}
        assume(_fits(plain))
        settings["infusion_frequency"] = None
        settings["infusion_ratio"] = 0.8 * ExposurePlan(**plain).infusion_ratio
    assume(_fits(settings))
    return settings


def _fits(settings: dict[str, Any]) -> bool:
    try:
        ExposurePlan(**settings)
    except InputError as error:  # popular facts may crowd where equal ones did not
        assert "fits" in str(error) or "densest" in str(error), str(error)
        return False
    return True
