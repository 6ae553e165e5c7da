"""Counter-based randomness: hashes and permutations that are computed at a point, with nothing to build or store.

A value depends on its key and counter alone, so any rank, at any moment, in any order, finds the same one.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # SplitMix64's constants
_WORD = (1 << 64) - 1
# One factor per round of a permutation, from which its keys are drawn; a pseudo-random permutation needs 4 rounds
# (Luby and Rackoff 1988).
_ROUNDS = (0xD1342543DE82EF95, 0xAF251AF3B0F025B5, 0xB564EF22EC7AECE5, 0xF7C2EBC08F67F2B5)


def key_of(*parts: object) -> int:
    """Returns a 64-bit key from a seed and the names of its purpose."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little")


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Applies the finaliser of SplitMix64 (Steele, Lea and Flood 2014): a bijection of 64-bit words, element-wise."""
    z = values + np.uint64(_GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_FIRST)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_SECOND)
    return z ^ (z >> np.uint64(31))


def mix_one(value: int) -> int:
    """Applies ``mix`` to one number, which saves a few microseconds over an array with one element."""
    z = (value + _GOLDEN) & _WORD
    z = ((z ^ (z >> 30)) * _FIRST) & _WORD
    z = ((z ^ (z >> 27)) * _SECOND) & _WORD
    return z ^ (z >> 31)


def permute(
    positions: NDArray[np.int64], domain: int | NDArray[np.int64], keys: NDArray[np.uint64] | int
) -> NDArray[np.int64]:
    """Returns the images of ``positions`` under a pseudo-random permutation of range(domain).

    A Feistel network over the rectangle a x b that just holds the domain, walked until the image falls into it (Black
    and Rogaway 2002, generalised Feistel and cycle walking): seldom more than one step, constant memory.

    Args:
        positions: int64 array of any shape, values in [0, domain).
        domain: size of the set that is permuted; one, or one per element.
        keys: one key, or one per element (then each element is permuted under its own key).

    Returns:
        int64 array of the shape of ``positions``.
    """
    if not positions.size:
        return positions.copy()
    sizes = np.atleast_1d(np.asarray(domain, dtype=np.uint64))
    wide = np.ceil(np.sqrt(sizes)).astype(np.uint64)
    high = (sizes + wide - np.uint64(1)) // wide
    key = np.atleast_1d(np.asarray(keys, dtype=np.uint64))  # arithmetic of arrays wraps around in silence
    image = _walk(positions.astype(np.uint64), wide, high, key)
    outside = image >= sizes
    while outside.any():
        at = [np.broadcast_to(values, image.shape)[outside] for values in (wide, high, key)]
        image[outside] = _walk(image[outside], *at)
        outside = image >= sizes
    return image.astype(np.int64)


def _walk(
    image: NDArray[np.uint64], wide: NDArray[np.uint64], high: NDArray[np.uint64], key: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """Applies the rounds of the network once: a permutation of range(wide * high), x = left * high + right."""
    left, right = np.divmod(image, high)
    for round_ in range(0, len(_ROUNDS), 2):
        left = (left + _draw(right, key, round_)) % wide
        right = (right + _draw(left, key, round_ + 1)) % high
    return left * high + right


def _draw(half: NDArray[np.uint64], key: NDArray[np.uint64], round_: int) -> NDArray[np.uint64]:
    """Draws 31 bits from a half and a round's key: two multiplications suffice, a whole ``mix`` takes twice as long."""
    z = (half + key * np.uint64(_ROUNDS[round_])) * np.uint64(_FIRST)
    drawn: NDArray[np.uint64] = ((z ^ (z >> np.uint64(32))) * np.uint64(_SECOND)) >> np.uint64(33)
    return drawn


def permute_one(position: int, domain: int, key: int) -> int:
    """Applies ``permute`` to one number, in a tenth of the time of an array with one element."""
    wide = math.isqrt(domain - 1) + 1 if domain > 1 else 1
    high = -(-domain // wide)
    image = position
    while True:
        left, right = divmod(image, high)
        for round_ in range(0, len(_ROUNDS), 2):
            left = (left + _draw_one(right, key, round_)) % wide
            right = (right + _draw_one(left, key, round_ + 1)) % high
        image = left * high + right
        if image < domain:
            return image


def _draw_one(half: int, key: int, round_: int) -> int:
    z = ((half + key * _ROUNDS[round_]) * _FIRST) & _WORD
    return (((z ^ (z >> 32)) * _SECOND) & _WORD) >> 33
