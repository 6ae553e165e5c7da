"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from megatron_kis.config.run import OptimizerConfig


def peak_rate(settings: OptimizerConfig, width: int) -> float:
    """The peak learning rate of a model of ``width``: as given, or by the transfer rule from the reference width."""
    reference = settings.reference_width
    return settings.learning_rate if reference is None else settings.learning_rate * reference / width


def learning_rate(step: int, steps: int, settings: OptimizerConfig) -> float:
    """The rate of a step.

    Args:
        step: from 0.
        steps: of the whole run.
        settings: peak, warm-up, schedule.

    Returns:
        The rate: linear warm-up to the peak, then a cosine, or stable and a linear decay at the end (WSD, Hu et al.
        2024); the last step has the minimum.
    """
    peak, minimum = settings.learning_rate, settings.learning_rate * settings.minimum_share
    warmup = round(steps * settings.warmup_share)
    if step < warmup:
        return peak * (step + 1) / warmup
    if settings.schedule == "cosine":
        progress = (step + 1 - warmup) / (steps - warmup)
        return minimum + (peak - minimum) * 0.5 * (1 + math.cos(math.pi * progress))
    decay = min(max(1, round(steps * settings.decay_share)), steps - warmup)
    progress = max(0, step + 1 - (steps - decay)) / decay
    return peak - (peak - minimum) * progress
