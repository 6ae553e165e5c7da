"""The transition of a model that was not trained: the whole distribution, of which a prediction gives an interval."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import scipy

from megatron_kis.analysis.law.law import Law
from megatron_kis.analysis.law.predict import predict
from megatron_kis.analysis.law.prediction import Prediction
from megatron_kis.analysis.law.surface import Surface
from megatron_kis.analysis.runs.curves import Array

_SCORES = np.linspace(0.1, 4.0, 27)  # normal scores of the quantiles of a law from points


@dataclass(frozen=True)
class NewModel:
    """A law asked about one (N, D)."""

    law: Law
    params: float
    tokens: float
    held: float | None = None
    """What is held, for a law of several slices."""

    @cached_property
    def prediction(self) -> Prediction:
        """The law's own prediction."""
        return predict(self.law, self.params, self.tokens, held=self.held)

    @property
    def surface(self) -> Surface | None:
        """The likelihood of all curves; None of a law from points."""
        return self.law.all_curves

    @cached_property
    def at(self) -> tuple[float, float, float | None]:
        """Logarithms of N, of D and of what is held."""
        return math.log(self.params), math.log(self.tokens), None if self.held is None else math.log(self.held)

    def beyond(self, x: Array) -> Array:
        """Returns the probability that the transition is beyond the log doses ``x``."""
        if self.surface is not None:
            mean, sigma = self.surface.mean(*self.at), self.surface.sigma()
            return np.asarray(scipy.special.ndtr((mean - np.asarray(x)[..., None]) / sigma).mean(axis=-1))
        score, log_dose = self._quantiles
        last = len(score) - 1
        index = np.clip(np.searchsorted(log_dose, x) - 1, 0, last - 1)
        slope = (score[index + 1] - score[index]) / (log_dose[index + 1] - log_dose[index])
        return np.asarray(scipy.special.ndtr(-(score[index] + slope * (np.asarray(x) - log_dose[index]))))

    def draws(self, count: int, generator: np.random.Generator) -> Array:
        """Returns [count] log doses of new models' transitions."""
        normal = generator.standard_normal(count)
        if self.surface is not None:
            of = generator.integers(len(self.surface.bent), size=count)
            return np.asarray(self.surface.mean(*self.at)[of] + self.surface.sigma()[of] * normal)
        score, log_dose = self._quantiles
        return np.asarray(np.interp(normal, score, log_dose))

    @cached_property
    def _quantiles(self) -> tuple[Array, Array]:
        """Normal scores [Q] and the log doses at them: the ends of the law's own intervals at many levels."""
        intervals = [
            predict(replace(self.law, confidence=level), self.params, self.tokens, held=self.held).prediction_interval
            for level in 2 * scipy.special.ndtr(_SCORES) - 1
        ]
        low, high = np.log(intervals).T
        score = np.concatenate([-_SCORES[::-1], _SCORES])
        # A law without any scatter has the same dose at all levels; a searched array has to rise.
        return score, np.concatenate([low[::-1], high]) + 1e-9 * score
