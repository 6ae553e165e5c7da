"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from megatron_kis.config.run import OptimizerConfig


def peak_rate(config: OptimizerConfig, width: int) -> float:
    """Returns a model's peak learning rate: as configured, or scaled by ``reference_width / width``."""
    reference = config.reference_width
    return config.learning_rate if reference is None else config.learning_rate * reference / width


def learning_rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """Returns the learning rate of a step.

    Args:
        step: number of the step, from 0.
        steps: total number of optimizer steps.
        config: peak, warm-up, schedule.

    Returns:
        The rate: linear warm-up to the peak, then a cosine, or stable and a linear decay at the end (WSD, Hu et al.
        2024); the last step has the minimum.
    """
    peak = config.learning_rate
    minimum = peak * config.minimum_share
    warmup = round(steps * config.warmup_share)
    if step < warmup:
        return peak * (step + 1) / warmup
    if config.schedule == "cosine":
        progress = (step + 1 - warmup) / (steps - warmup)
        return minimum + (peak - minimum) * 0.5 * (1 + math.cos(math.pi * progress))
    decay = min(max(1, round(steps * config.decay_share)), steps - warmup)
    progress = max(0, step + 1 - (steps - decay)) / decay
    return peak - (peak - minimum) * progress
