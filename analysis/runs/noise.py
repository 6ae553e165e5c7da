"""How much the losses of a study's runs scatter, which a whole study shows and a single curve does not."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LossNoise:
    """Relative scatter of the final validation loss between runs that differ in their seed alone."""

    infused: float
    """Standard deviation of the log loss of one run with infusion, about the mean of its level."""
    zero: float
    """The same of one run at dose 0, with which every level is compared."""
    freedom: float
    """Degrees of freedom of the estimates."""
    paired: bool = False
    """Whether a seed shifts the losses of all its levels alike. The standard deviations then are without that shift."""
    within: float
    """Standard deviation within levels with what a seed shifts, by which outlying runs are known."""
    assumed: bool = False
    """Whether it rests on a prior, for the study has too few seeds."""
    source: str
    """What the estimate rests on, in words."""
