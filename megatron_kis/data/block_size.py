"""Whether the exposures of a plan fit, and how many sequences must be packed together for it.

A larger block evens out the lengths that meet in it, and leaves an exposure further from its ideal place. A block that
is at most so full that the longest exposure still finds room is packed for certain; how full the fullest block can be
follows from Bernstein's inequality for sampling without replacement, unless the plan is small enough to pack all of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from megatron_kis.data.stream import Stream

_SMALLEST, _LARGEST = 4, 1 << 14  # sequences of a block
_EASY = 16  # a block up to this many sequences is taken without trying smaller ones
_TRIED_EXPOSURES = 1 << 18  # plans up to this many are packed whole before a run starts (some seconds at worst)
_SAMPLED_BLOCKS = 8  # of larger plans, beside the bound
_SURENESS = 40.0  # a bound fails with probability e^-40 = 4e-18 a block: once in 1e17 blocks


@dataclass(frozen=True)
class Fit:
    """The blocks of a plan."""

    sequences: int
    """Of the run."""

    block: int
    """Sequences a block."""

    @property
    def blocks(self) -> int:
        """How many; the last one has up to two blocks' sequences."""
        return max(1, self.sequences // self.block)

    def sequences_of(self, block: int) -> range:
        """The sequences of a block; the last one's also those that would not fill another."""
        last = self.sequences if block == self.blocks - 1 else (block + 1) * self.block
        return range(block * self.block, last)

    def spread(self, count: int) -> Iterator[range]:
        """The sequences of ``count`` blocks, or of all if there are no more, evenly over the run."""
        step = max(1, self.blocks // count)
        return (self.sequences_of(block) for block in range(0, self.blocks, step))


def find_fit(
    streams: Sequence[Stream],
    packs: Callable[[Iterable[range]], bool],
    *,
    sequences: int,
    capacity: int,
    thorough: bool = True,
) -> Fit | None:
    """The smallest blocks with which everything fits.

    Args:
        streams: what is to be packed.
        packs: whether each of some ranges of sequences can hold its exposures.
        sequences: S, of the run.
        capacity: L, tokens of a sequence.
        thorough: pack small plans whole; otherwise samples only, for an estimate.

    Returns:
        The blocks, or None if the exposures do not fit.
    """
    if sum(stream.tokens() for stream in streams) > sequences * capacity:
        return None
    longest = max(stream.spread_of_lengths()[1] for stream in streams)
    smallest = _without_repeats(streams, sequences)
    sizes = [smallest]
    while sizes[-1] < min(sequences, _LARGEST):
        sizes.append(2 * sizes[-1])

    def is_certain(size: int) -> bool:
        return _fullest(streams, min(size, sequences), sequences) <= min(size, sequences) * (capacity - longest)

    easy = max(_EASY, smallest)
    if certain := next((size for size in sizes if size <= easy and is_certain(size)), None):
        return Fit(sequences, certain)
    if not thorough:
        fit = Fit(sequences, sizes[-1])
        return fit if packs(fit.spread(2)) else None
    fits = (Fit(sequences, size) for size in sizes)
    if sum(stream.exposures for stream in streams) <= _TRIED_EXPOSURES:
        return next((fit for fit in fits if packs(fit.spread(fit.blocks))), None)

    def is_safe(fit: Fit) -> bool:
        if is_certain(fit.block):
            return True
        # Nearly full: of a block's tokens only those that its last sequences may waste are not counted on.
        room = fit.block * capacity - 2 * longest
        return _fullest(streams, fit.block, sequences) <= room and packs(fit.spread(_SAMPLED_BLOCKS))

    return next(filter(is_safe, fits), None)


def _without_repeats(streams: Sequence[Stream], sequences: int) -> int:
    """The smallest block in which a fact need not come twice in a sequence, if there is one.

    A block of B sequences sees at most B * frequency / S + 2 rounds of a fact.
    """
    densest = max((int(stream.each().max(initial=0)) * stream.schedule.peak for stream in streams), default=0.0)
    free = 1.0 - densest / sequences
    wanted = 2.0 / free if free > 2.0 / _LARGEST else _SMALLEST
    return int(_SMALLEST * 2 ** max(0, math.ceil(math.log2(wanted / _SMALLEST))))


def _fullest(streams: Sequence[Stream], block: int, sequences: int) -> float:
    """A bound on the tokens of the exposures of any block."""
    return sum(_most_tokens(stream, block, sequences) for stream in streams)


def _most_tokens(stream: Stream, block: int, sequences: int) -> float:
    """A bound on the tokens of a stream in any block."""
    shortest, longest = stream.spread_of_lengths()
    if not longest or not stream.exposures:
        return 0.0
    count = min(
        stream.exposures, stream.exposures * min(1.0, block * stream.schedule.peak / sequences) + stream.classes
    )
    mean = stream.tokens() / stream.exposures  # of those that give way, too: these count as exposures without tokens
    least = shortest if int(stream.each().sum()) == stream.exposures else 0
    variance = max(
        0.0, (longest - mean) * (mean - least)
    )  # the largest that these bounds allow (Bhatia and Davis 2000)
    reach = (longest - mean) * _SURENESS / 3
    excess = reach + math.sqrt(reach**2 + 2 * _SURENESS * count * variance)
    return min(count * longest, count * mean + excess)
