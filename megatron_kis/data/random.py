"""Counter-based randomness: hashes and permutations that are computed at a point, with nothing to build or store.

A value depends on its key and counter alone, so any rank, at any moment, in any order, finds the same one.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 6  # Luby and Rackoff need 4 for a pseudo-random permutation; 6 leaves a margin for small domains


def key_of(*parts: object) -> int:
    """A 64-bit key from a seed and the names of what it is for."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little")


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): a bijection of 64-bit words, element-wise."""
    with np.errstate(over="ignore"):
        z = values + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def permute(positions: NDArray[np.int64], domain: int, keys: NDArray[np.uint64] | int) -> NDArray[np.int64]:
    """The images of ``positions`` under a pseudo-random permutation of range(domain).

    A balanced Feistel network over the next power of four, walked until the image falls into the domain (Black and
    Rogaway 2002): at most 4 steps on average, constant memory.

    Args:
        positions: int64 array of any shape, values in [0, domain).
        domain: size of the set that is permuted.
        keys: one key, or one an element (then each element is permuted under its own key).

    Returns:
        int64 array of the shape of ``positions``.
    """
    if domain <= 1:
        return np.zeros_like(positions)
    half = max(1, -(-(domain - 1).bit_length() // 2))
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    key = np.broadcast_to(np.asarray(keys, dtype=np.uint64), positions.shape)
    image = positions.astype(np.uint64)
    walking = np.ones(positions.shape, dtype=bool)
    while walking.any():
        left, right = image[walking] >> shift, image[walking] & mask
        at = key[walking]
        with np.errstate(over="ignore"):
            for turn in range(_ROUNDS):
                left, right = right, left ^ (mix(at ^ mix(right + np.uint64(turn << 40))) & mask)
        image[walking] = (left << shift) | right
        walking &= image >= np.uint64(domain)
    return image.astype(np.int64)
