"""The likelihood of a whole study for a law: its curves, in the form of `law.surface`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from megatron_kis.analysis.criteria.counts import generator_of
from megatron_kis.analysis.criteria.dispersion import with_dispersion
from megatron_kis.analysis.criteria.onset import onset_card
from megatron_kis.analysis.criteria.retention import FEWEST_LEVELS, collapse_card, remembers
from megatron_kis.analysis.law.candidates import ALL, SIZE, SIZE_AND_BUDGET, SIZE_AND_HELD, Candidate
from megatron_kis.analysis.law.law import Law
from megatron_kis.analysis.law.surface import Surface, fit_surface, record_of, tells
from megatron_kis.analysis.runs.curves import Curve
from megatron_kis.config.analysis import AnalysisConfig

_FEWEST_SIZES = 3
_UNLIKELY = 0.001  # probability of the curves' deviance below which, ...
_FAR = 1.5  # ... and ratio to its degrees of freedom beyond which, the form does not fit
_APART = 1.2  # R of draws that have not converged
CRITERION = "retention"
"""The criterion of a collapse whose place is that of the likelihood."""


def with_surface(law: Law, curves: Sequence[Curve], settings: AnalysisConfig) -> Law:
    """Returns ``law`` with the likelihood of all its curves (its ``surface``); unchanged where there is no basis.

    That is so for a law of another criterion than `CRITERION` or of the loss, where fewer than three sizes show on both
    sides where they decline, and, with a warning, where the curves are of none of the forms that are tried.

    Args:
        law: fitted to the points of the same curves.
        curves: of the study, of the declared split, scoring rule and outcome.
        settings: the declared choices.
    """
    onset = law.kind == "onset"
    if not onset and (law.kind != "collapse" or settings.criterion != CRITERION):
        return law
    mine = [c for c in with_dispersion(curves, settings) if c.group == law.group and law.slice.covers(c.slice)]
    mine = [c for c in mine if _usable(c, settings, onset=onset)]
    cards = [onset_card(c, settings) if onset else collapse_card(c, settings) for c in mine]
    if len({c.params for c, card in zip(mine, cards, strict=True) if tells(card)}) < _FEWEST_SIZES:
        return law
    pooled = law.range_held is not None
    surface = fit_surface(
        cards,
        _form(law),
        np.log([c.params for c in mine]),
        np.log([c.tokens for c in mine]),
        np.log([c.slice.held or 1.0 for c in mine]) if pooled else None,
        chance=float(np.mean([c.assumed_chance for c in mine])),
        share=1 - settings.onset_share if onset else settings.r,
        mirrored=onset,
        bend=settings.bend,
        generator=generator_of(replace(mine[0], params=0, tokens=0), settings, "surface", law.kind),
    )
    reason = _unfit(surface)
    if reason:
        return replace(law, warnings=[*law.warnings, f"intervals are those of the points alone: {reason}"])
    return replace(law, surface=record_of(surface))


def _unfit(surface: Surface) -> str:
    """Returns why the likelihood of all curves is not used; empty where it is."""
    if surface.misfit < _UNLIKELY and surface.deviance > _FAR * surface.freedom:
        return (
            f"the curves differ from every form of a decline that is tried (deviance {surface.deviance:.0f} with "
            f"{surface.freedom} degrees of freedom)"
        )
    if surface.convergence > _APART:
        return f"the draws of all curves' likelihood did not converge (R = {surface.convergence:.2f})"
    return ""


def _form(law: Law) -> Candidate:
    """Returns the law's form; that with a term for all that was varied where it has an offset."""
    if not law.candidate.offset:
        return law.candidate
    several = law.range_tokens[0] < law.range_tokens[1]
    if law.range_held is not None:
        return ALL if several else SIZE_AND_HELD
    return SIZE_AND_BUDGET if several else SIZE


def _usable(curve: Curve, settings: AnalysisConfig, *, onset: bool) -> bool:
    if onset:
        return curve.mean_chance is not None and int((curve.dose > 0).sum()) > 1
    return len(curve.dose) >= FEWEST_LEVELS and remembers(curve, settings)
