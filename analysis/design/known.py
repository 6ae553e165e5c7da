"""How often a fact must be shown before a small model knows it, from the committed studies.

Half of what can be known of a fact is known after ``half_known`` exposures: a power of N and D that was fitted to the
answers to held-out sentences in docs/study/results, from 10 to 664 thousand parameters and 0.6 to 2 million tokens. Its
root mean square error is 0.1 of what can be known. Two kinds of studies differ by a factor of seven: short exposures in
documents that do not see each other, and long ones in sequences that are read as one text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_kis.analysis.design.outline import Outline
from megatron_kis.common.errors import first_of
from megatron_kis.common.terms import HELD_OUT
from megatron_kis.common.units import in_table, rounded_up
from megatron_kis.config.analysis import AnalysisConfig
from megatron_kis.study.preflight import Remark

APART, TOGETHER = 37.0, 254.0
"""Exposures of both kinds at 100,000 parameters and a million tokens."""
_SIZE, _BUDGET = -0.81, -0.32
_PARAMS, _TOKENS = (9_660, 664_192), (599_040, 1_999_872)  # beyond which nothing was seen
_MOST, _STEEPNESS = 0.75, 1.8
_SHORT = 16.0  # tokens of an exposure
_KNOWN = 0.25
"""Share of what can be known from which on a fall can be seen."""
_AIM = 0.5
_LARGEST_SHARE = 0.3  # of the tokens for background facts that is proposed
_SHOWN = 4


def half_known(params: float, tokens: float, *, exposure_tokens: float, apart: bool) -> float:
    """Returns the exposures of a fact after which half of what can be known of it is known.

    Beyond the models that were seen it is that of the nearest one.

    Args:
        params: N.
        tokens: D.
        exposure_tokens: mean length of an exposure.
        apart: whether documents do not see each other.
    """
    easy = int(apart) + int(exposure_tokens <= _SHORT)
    kind = math.exp((easy * math.log(APART) + (2 - easy) * math.log(TOGETHER)) / 2)
    n, d = (min(max(value, low), high) for value, (low, high) in ((params, _PARAMS), (tokens, _TOKENS)))
    return kind * math.pow(n / 1e5, _SIZE) * math.pow(d / 1e6, _BUDGET)


def half_known_by(params: float, tokens: float, outline: Outline, settings: AnalysisConfig) -> float | None:
    """Returns ``half_known`` of a model of a study; None where it is not judged by held-out sentences.

    Sentences that it was trained on are known after fewer exposures. Questions are hardly ever answered: in the studies
    whose models know 0.7 of the held-out sentences they answer 0.1 of the questions, beyond chance, after as many.
    """
    if settings.split != HELD_OUT:
        return None
    length = math.inf if math.isnan(outline.exposure_tokens) else outline.exposure_tokens
    return half_known(params, tokens, exposure_tokens=length, apart=outline.apart)


def known_share(exposures: float, half: float) -> float:
    """Returns the share of what can be known that is known after so many exposures; ``half`` is ``half_known``."""
    return _MOST / (1 + math.pow(half / max(exposures, 1e-9), _STEEPNESS))


def enough(half: float) -> int:
    """Returns exposures after which a fact is known well enough to see it lost, a round number."""
    return rounded_up(half * math.pow(_MOST / _AIM - 1, -1 / _STEEPNESS))


@dataclass(frozen=True)
class Known:
    """Whether background facts of one frequency are likely known without infusion, by one model."""

    params: int
    tokens: int
    exposures: int
    facts: int
    half_known: float
    """Exposures after which models of the committed studies knew half."""
    share: float
    """Share of what can be known that is likely known."""

    @property
    def likely(self) -> bool:
        """Whether enough is likely known to see it lost."""
        return self.share >= _KNOWN


def known_without(outline: Outline, settings: AnalysisConfig) -> list[Known]:
    """Returns what models of a study likely know of its background without infusion, by model and frequency."""
    found = []
    for params, tokens in sorted(
        {(int(n), int(d)) for n, d in zip(outline.table["params"], outline.table["tokens"], strict=True)}
    ):
        half = half_known_by(params, tokens, outline, settings)
        if half is None:
            continue
        found += [
            Known(params, tokens, exposures, facts, half, known_share(exposures, half))
            for exposures, facts in outline.background.items()
        ]
    return found


def not_known(outline: Outline, known: Sequence[Known]) -> list[Remark]:
    """Returns the remark that models likely know no background fact without infusion."""
    models: dict[tuple[int, int], list[Known]] = {}
    for one in known:
        models.setdefault((one.params, one.tokens), []).append(one)
    without = [cell for cell, groups in models.items() if not any(group.likely for group in groups)]
    if not without:
        return []
    worst = max((group for cell in without for group in models[cell]), key=lambda group: group.half_known)
    most = max(outline.background)
    names = [f"{outline.sizes[n].label} at {in_table(d)} tokens" for n, d in without]
    wanted = max(enough(worst.half_known), most + 1)
    problem = (
        f"background facts are likely not known without infusion by {first_of(names, _SHOWN)}, and cannot be lost: "
        f"{most} exposures, and half was known after about {rounded_up(worst.half_known)} in models of that size"
    )
    facts = outline.background[most]
    share = wanted * facts * outline.exposure_tokens / worst.tokens
    grouped = len(outline.background) > 1
    key = "background.groups" if grouped else "background.frequency"
    change = f"{key}: {'a group of frequency ' if grouped else ''}{wanted}"
    if math.isfinite(share) and share > _LARGEST_SHARE:
        budget = rounded_up(wanted * facts * outline.exposure_tokens / _LARGEST_SHARE)
        change += f" with token_budgets of {in_table(budget)} ({budget / worst.tokens:.1f} times the compute)"
        change += ", or larger models"
    elif math.isfinite(share):
        change += f" ({share:.0%} of the tokens, and no more compute)"
    return [Remark(key, problem, change)]
