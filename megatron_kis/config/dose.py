"""The dose of a study's run: how many facts are infused, and how often each, or in which share of the tokens."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Dose:
    """A dose of infusion; those without any are equal (`dose_of`)."""

    facts: int | None = None
    """Number K of infused facts that are shown; None: all."""

    frequency: int | None = None
    """Infusion frequency F, exposures of each fact; None where the ratio is given."""

    ratio: float | None = None
    """Infusion ratio rho, share of the tokens, in place of F."""

    @property
    def infuses(self) -> bool:
        """Whether any fact is shown."""
        return self != NONE

    @property
    def label(self) -> str:
        """The dose in the name of a run, such as ``K400_F14`` or ``R0.5``."""
        often = f"F{self.frequency}" if self.ratio is None else f"R{self.ratio!r}"
        return often if self.facts is None else f"K{self.facts}_{often}"


NONE = Dose(frequency=0)
"""The dose of a run without infusion."""


def dose_of(facts: int | None, frequency: int | None, ratio: float | None) -> Dose:
    """Returns a dose; no facts, no exposures and no share of the tokens are all `NONE`.

    Args:
        facts: K; None for all facts.
        frequency: F; None where ``ratio`` is given.
        ratio: rho; None where ``frequency`` is given.
    """
    return NONE if 0 in (facts, frequency, ratio) else Dose(facts, frequency, ratio)
