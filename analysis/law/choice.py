"""The choice of one law among several, in the words of the command line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_kis.analysis.law.law import Law
from megatron_kis.analysis.runs.slices import USUAL
from megatron_kis.common.errors import InputError, first_of

NOTHING = "nothing"
"""What a slice holds where nothing is held, or it is not known."""

_SHOWN = 24
"""Most laws that an error lists."""


@dataclass(frozen=True)
class Choice:
    """What is known of a wanted law; None where it does not matter."""

    kind: str | None = None
    group: str | None = None
    axis: str | None = None
    held_by: str | None = None
    """``facts``, ``frequency``, ``ratio`` or `NOTHING`."""
    held: float | None = None
    """The held value: the law of that slice, or the law of several slices where that one has none of its own."""
    together: bool = False
    """Whether the law of several slices is wanted, even where the slice of ``held`` has its own."""

    def choose(self, laws: Sequence[Law], *, where: str) -> Law:
        """Returns the chosen law: of several kinds and groups, the first of ``laws``.

        Their order is fixed before any data are seen (`findings.analyse.LAW_ORDER`).

        Raises:
            InputError: no law fits the choice, or several slices of one kind and group do.
        """
        found = [law for law in laws if self.fits(law)]
        if self.held is not None:
            found = own_first(found)
        first = [law for law in found if (law.kind, law.group) == (found[0].kind, found[0].group)]
        if len(first) == 1:
            return first[0]
        listed = first_of([words(law, laws) for law in found or laws], _SHOWN, separator="; ")
        if found:
            raise InputError(f"{len(found)} laws to choose from", where=where, remedy=f"name one of: {listed}")
        there = "there is" if len(laws) == 1 else "there are"
        raise InputError(f"no law of {self._asked()}", where=where, remedy=f"{there}: {listed}")

    def fits(self, law: Law) -> bool:
        """Returns whether ``law`` is one of the chosen ones."""
        if self.together and law.range_held is None:
            return False
        if self.held is not None and (law.slice.held_by is None or not _same(law.slice.held, self.held)):
            return False
        there = (law.kind, law.group, law.slice.axis, law.slice.held_by or NOTHING)
        wanted = (self.kind, self.group, self.axis, self.held_by)
        return all(one in (None, other) for one, other in zip(wanted, there, strict=True))

    def _asked(self) -> str:
        named = {"--kind": self.kind, "--group": self.group, "--axis": self.axis, "--held-by": self.held_by}
        asked = [f"{name} {value}" for name, value in named.items() if value is not None]
        asked += ["--together"] if self.together else []
        return " ".join(asked + ([] if self.held is None else [f"--held {self.held:.15g}"]))


def own_first(laws: Sequence[Law]) -> list[Law]:
    """Returns ``laws`` without those of several slices where the slice that is asked about has its own."""
    own = {_family(law) for law in laws if law.range_held is None}
    return [law for law in laws if law.range_held is None or _family(law) not in own]


def words(law: Law, laws: Sequence[Law]) -> str:
    """Returns the options that choose ``law`` among ``laws``."""
    one = law.slice
    alike = [other.slice for other in laws if (other.kind, other.group) == (law.kind, law.group)]
    said = [f"--kind {law.kind} --group {law.group}"]
    if len({other.axis for other in alike}) > 1:
        said.append(f"--axis {one.axis}")
    if len({other.held_by for other in alike if other.axis == one.axis}) > 1:
        said.append(f"--held-by {one.held_by or NOTHING}")
    same_kind = [other for other in alike if (other.axis, other.held_by) == (one.axis, one.held_by)]
    if law.range_held is not None:
        said += ["--together"] if len(same_kind) > 1 else []
        said.append(f"--held {law.range_held[0]:.15g}")
    elif one != USUAL and one.held is not None and len(same_kind) > 1:
        said.append(f"--held {one.held:.15g}")
    return " ".join(said)


def _family(law: Law) -> tuple[str, str, str, str | None]:
    return law.kind, law.group, law.slice.axis, law.slice.held_by


def _same(there: float | None, asked: float) -> bool:
    """Returns whether a held value is the one that is asked for; a law of several slices has any."""
    return there is None or math.isclose(there, asked, rel_tol=1e-6)
