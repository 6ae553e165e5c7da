"""A rung of the ladder for a size that the study does not have: its neighbours' shape at another width."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import count

import numpy as np

from megatron_kis.config.ladder import ModelShape
from megatron_kis.config.study import RungConfig


def rung_near(
    params: float, rungs: Mapping[int, RungConfig], ladder: Iterable[RungConfig] = ()
) -> tuple[RungConfig, int] | None:
    """The rung that comes nearest to N = ``params``, and its N.

    Depth and learning rate are interpolated over log N between the neighbours and are the last one's beyond them; heads
    are as wide as the nearest rung's, whose layout can hold the new one, and all else is that rung's. None where what
    comes nearest is a rung of the study, or where the nearest one begins with the weights of another model.

    Args:
        params: what is wanted.
        rungs: those that were trained, by the N (all parameters) of their models; at least one.
        ladder: the study's, those that were not trained yet among them.
    """
    known = dict(sorted(rungs.items()))
    near = min(known, key=lambda n: abs(math.log(n / params)))
    model, shape = known[near], known[near].shape()
    if model.init_from is not None:
        return None
    tables = 1 if shape.tied_embeddings else 2
    vocabulary = (near - shape.nonembedding_params()) // (tables * shape.width)
    a_stage = model.parallel.pipeline * model.parallel.virtual
    depth = _between(params, {n: rung.shape().layers for n, rung in known.items()})
    layers = max(1, round(depth / a_stage)) * a_stage

    best: RungConfig | None = None
    found = 0
    step = shape.heads // shape.query_groups * model.parallel.tensor  # so that ranks share heads and their groups
    for heads in count(step, step):
        trial = _rung(model, shape, layers=layers, heads=heads)
        size = trial.shape().params(vocabulary)
        if best is None or abs(math.log(size / params)) < abs(math.log(found / params)):
            best, found = trial, size
        if size > params:
            break
    assert best is not None
    if any(rung.shape() == best.shape() for rung in (*known.values(), *ladder)):
        return None
    rates = {n: rung.learning_rate for n, rung in known.items() if rung.learning_rate is not None}
    rate = float(f"{_between(params, rates):.2g}") if len(rates) == len(known) else None
    return best.model_copy(update={"learning_rate": rate}), found


def _rung(model: RungConfig, shape: ModelShape, *, layers: int, heads: int) -> RungConfig:
    """The rung with another depth and width."""
    width = heads * (shape.width // shape.heads)
    explicit = {"layers": layers, "width": width, "heads": heads, "preset": None, "name": None}
    explicit |= {name: getattr(shape, name) for name in ("tied_embeddings", "rope_base", "norm_epsilon")}
    if shape.query_groups != shape.heads:
        explicit["query_groups"] = heads * shape.query_groups // shape.heads
    usual = RungConfig(layers=shape.layers, width=shape.width, heads=shape.heads).shape().ffn_width
    scaled = max(16, round(shape.ffn_width * width / shape.width / 16) * 16)
    explicit["ffn_width"] = None if shape.ffn_width == usual else scaled
    return model.model_copy(update=explicit)


def _between(params: float, values: Mapping[int, float]) -> float:
    """Interpolated over log N in the logarithm, and held beyond the ends."""
    sizes = np.log(list(values))
    return float(np.exp(np.interp(math.log(params), sizes, np.log(list(values.values())))))
