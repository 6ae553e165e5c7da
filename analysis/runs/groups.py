"""Groups of curves: the fact groups, background facts of one strength, and ``general`` for the loss on general text.

``background@60`` are the background facts that are shown 60 times each; ``background`` are all of them together.
"""

from __future__ import annotations

from collections.abc import Iterable

from megatron_kis.common.terms import BACKGROUND, GROUPS

CURVE_GROUPS = (*GROUPS, "general")
"""Groups without those of one strength."""


def base_group(group: str) -> str:
    """Returns the fact group that a group is part of: ``background`` of ``background@60``."""
    return group if strength(group) is None else BACKGROUND


def strength(group: str) -> float | None:
    """Returns the exposures of each fact of a group of one strength; None for another group."""
    base, at, exposures = group.partition("@")
    if base != BACKGROUND or not at:
        return None
    try:
        value = float(exposures)
    except ValueError:
        return None
    return value if value >= 0 and value < float("inf") else None


def is_group(group: str) -> bool:
    """Returns whether curves can be of a group."""
    return group in CURVE_GROUPS or strength(group) is not None


def group_key(group: str) -> tuple[str, float]:
    """Sort key: a group before its parts, and these by their strength."""
    exposures = strength(group)
    return base_group(group), -1.0 if exposures is None else exposures


def retained_groups(groups: Iterable[str]) -> list[str]:
    """Returns the groups among some whose facts can be remembered or forgotten: infused, background and its parts."""
    return ["infused", *sorted({group for group in groups if base_group(group) == BACKGROUND}, key=group_key)]
