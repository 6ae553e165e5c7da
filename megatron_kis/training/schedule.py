"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from megatron_kis.config import OptimizerConfig


def learning_rate(step: int, steps: int, settings: OptimizerConfig) -> float:
    """The rate of a step.

    Args:
        step: from 0.
        steps: of the whole run.
        settings: peak, warm-up, schedule.

    Returns:
        The rate: linear warm-up, then a cosine to the minimum, or stable and a linear decay at the end (WSD, Hu et al.
        2024).
    """
    peak, minimum = settings.learning_rate, settings.learning_rate * settings.minimum_share
    warmup = round(steps * settings.warmup_share)
    if step < warmup:
        return peak * (step + 1) / warmup
    if settings.schedule == "cosine":
        progress = (step - warmup) / max(1, steps - warmup)
        return minimum + (peak - minimum) * 0.5 * (1 + math.cos(math.pi * progress))
    decay = max(1, round(steps * settings.decay_share))
    progress = max(0, step - (steps - decay)) / decay
    return peak - (peak - minimum) * progress
