"""Laws of known truths, from points and with a likelihood of whole curves."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from megatron_kis.analysis import fit_law
from megatron_kis.analysis.criteria.decline import card_of, retention, shapes_of
from megatron_kis.analysis.law.candidates import SIZE
from megatron_kis.analysis.law.surface import fit_surface, record_of
from megatron_kis.analysis.runs.slices import USUAL
from tests.analysis.points import SIZES, point

N = 1e8
CHANCE = 0.25


def points_of(kind="collapse", group="background", scale=3.0, power=0.3, noise=0.1, seed=2, **more):
    generator = np.random.default_rng([seed, len(kind), len(group)])
    status = "collapsed" if kind == "collapse" else "observed"
    values = [scale * n**power * math.exp(noise * generator.normal()) for n in SIZES]
    return [point(n, v, kind=kind, group=group, status=status, **more) for n, v in zip(SIZES, values, strict=True)]


def law_of(kind="collapse", group="background", scale=3.0, power=0.3, **more):
    one = more.get("slice", USUAL)
    return fit_law(points_of(kind, group, scale, power, **more), kind, group, along=one, law="N")


def with_curves(law, places, *, onset=False, facts=20_000, plateau=0.6):
    """The law with a likelihood of curves that lose (or reach) half at ``places``, log doses by size."""
    share = 0.5
    generator = np.random.default_rng(1)
    x = np.log(np.geomspace(10, 20_000, 16))
    cards = []
    for place in places:
        at, theta = (-x[::-1], -place) if onset else (x, place)
        p = CHANCE + plateau * (1 - CHANCE) * retention(at, np.array(theta), np.array(3.0), *shapes_of(share)[0], share)
        rate, weight = generator.binomial(facts, p) / facts, np.full(len(x), float(facts))
        cards.append(card_of(at, rate, weight, np.full(len(x), 1e-4), CHANCE, share))
    surface = fit_surface(
        cards,
        SIZE,
        np.log(SIZES),
        np.full(len(SIZES), math.log(1e6)),
        None,
        chance=CHANCE,
        share=share,
        mirrored=onset,
        bend=0.0,
        generator=generator,
    )
    return replace(law, surface=record_of(surface))
