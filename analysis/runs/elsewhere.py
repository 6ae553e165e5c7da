"""Results of other programs on their way to ``curves.csv``: what their importers share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_kis.analysis.runs.curves import OPTIONAL_COLUMNS
from megatron_kis.analysis.runs.groups import CURVE_GROUPS, is_group
from megatron_kis.common.errors import InputError, nearest
from megatron_kis.common.terms import HELD_OUT, SPLITS

RUN_NEEDED = ("params", "tokens", "frequency", "seed")
"""Columns that say which run it is."""
RUN_OPTIONAL = (
    "nonembedding_params",
    "validation_loss",
    "infusion_ratio",
    *OPTIONAL_COLUMNS[:3],  # number of facts, configured ratio, bits
)
"""Columns of a run that may be there."""

_EXACT = 1e-6
"""Largest relative error of a rate: a mean of single precision has 6e-8."""


@dataclass(frozen=True)
class Asked:
    """One ``--group``: a group of facts, and where the answers about it are."""

    group: str
    split: str
    sources: tuple[str, ...]
    """Tasks, or ``NAME=COLUMN``."""


def read_groups(given: Sequence[Sequence[str]], *, what: str) -> list[Asked]:
    """Returns the groups of some options ``--group GROUP[/SPLIT] SOURCE ...``.

    Args:
        given: the words of each option.
        what: what a source is, for messages.

    Raises:
        InputError: an unknown group or split, or no source.
    """
    groups = []
    for name, *sources in given:
        group, slash, split = name.partition("/")
        where = f"--group {name}"
        if not is_group(group):
            remedy = f"{nearest(group, CURVE_GROUPS)}, or background@<exposures>"
            raise InputError(f"unknown group {group!r}", where=where, remedy=remedy)
        if slash and split not in SPLITS:
            raise InputError(f"unknown split {split!r}", where=where, remedy=nearest(split, SPLITS))
        if not sources:
            raise InputError(f"names no {what}", where=where, remedy=f"--group {name} {what.upper()} ...")
        groups.append(Asked(group, split or HELD_OUT, tuple(sources)))
    return groups


def whole_count(rate: float, n: int) -> int | None:
    """Returns the count that a rate of n is; None if it is none."""
    count = round(rate * n) if math.isfinite(rate) else -1
    return count if 0 <= count <= n and abs(rate * n - count) <= _EXACT * n else None


def not_whole(rate: float, n: int) -> str:
    """Returns what is wrong with a rate that is not a count of n."""
    if not 0 <= rate <= 1:
        return f"{rate:g} is not a rate between 0 and 1"
    return f"{rate!r} of {n} is {rate * n:.6g}, not a whole number of right answers"
