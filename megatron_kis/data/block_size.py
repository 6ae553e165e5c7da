"""The block size: how many sequences must be packed together for the exposures of a plan to fit, if they can.

A larger block evens out the lengths that meet in it, and leaves an exposure further from its ideal place. A block that
is at most so full that the longest exposure still finds room is packed for certain; how full the fullest block can be
follows from Bernstein's inequality for sampling without replacement, unless the plan is small enough to pack all of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from megatron_kis.data.block_builder import BlockBuilder
from megatron_kis.data.stream import Stream

_SMALLEST, _LARGEST = 4, 1 << 14  # sequences of a block
_EASY = 16  # a block up to this many sequences is used without trying smaller ones
_TRIED_EXPOSURES = 1 << 18  # plans up to this many exposures are packed before a run starts (some seconds at worst)
_SAMPLED_BLOCKS = 8  # blocks of larger plans that are packed, in addition to the bound
_SURENESS = 40.0  # a bound fails with probability e^-40 = 4e-18 per block: once in 1e17 blocks


@dataclass(frozen=True)
class BlockLayout:
    """How a run is divided into blocks."""

    sequences: int
    """S, sequences of the run."""

    block: int
    """Number of sequences of a block."""

    @property
    def blocks(self) -> int:
        """Number of blocks; the last one has up to two blocks' sequences."""
        return max(1, self.sequences // self.block)

    def block_of(self, sequence: int) -> int:
        """Returns the number of the block that has a sequence."""
        return min(sequence // self.block, self.blocks - 1)

    def sequences_of(self, block: int) -> range:
        """Returns the sequences of a block; the last one also has those that would not fill another."""
        last = self.sequences if block == self.blocks - 1 else (block + 1) * self.block
        return range(block * self.block, last)

    def spread(self, count: int) -> Iterator[range]:
        """Yields the sequences of ``count`` blocks, or of all if there are no more, evenly over the run."""
        step = max(1, self.blocks // count)
        return (self.sequences_of(block) for block in range(0, self.blocks, step))


def choose_block_size(builder: BlockBuilder, *, thorough: bool = True) -> BlockLayout | None:
    """Returns the smallest blocks with which all exposures fit.

    Args:
        builder: the streams that are to be packed, S and L.
        thorough: whether small plans are packed completely; otherwise samples are packed, for an estimate.

    Returns:
        The blocks, or None if the exposures do not fit.
    """
    streams, sequences, capacity = builder.streams, builder.sequences, builder.sequence_length
    if sum(stream.total_tokens for stream in streams) > sequences * capacity:
        return None
    longest = max(stream.length_range()[1] for stream in streams)
    smallest = _smallest_without_repeats(streams, sequences)
    sizes = [smallest]
    while sizes[-1] < min(sequences, _LARGEST):
        sizes.append(2 * sizes[-1])

    def is_certain(size: int) -> bool:
        return _fullest(streams, min(size, sequences), sequences) <= min(size, sequences) * (capacity - longest)

    easy = max(_EASY, smallest)
    if certain := next((size for size in sizes if size <= easy and is_certain(size)), None):
        return BlockLayout(sequences, certain)
    if not thorough:
        layout = BlockLayout(sequences, sizes[-1])
        return layout if builder.can_pack(layout.spread(2)) else None
    layouts = (BlockLayout(sequences, size) for size in sizes)
    if sum(stream.exposures for stream in streams) <= _TRIED_EXPOSURES:
        return next((layout for layout in layouts if builder.can_pack(layout.spread(layout.blocks))), None)

    def is_safe(layout: BlockLayout) -> bool:
        if is_certain(layout.block):
            return True
        # Nearly full: of a block's tokens only those that its last sequences may waste are not counted on.
        room = layout.block * capacity - 2 * longest
        return _fullest(streams, layout.block, sequences) <= room and builder.can_pack(layout.spread(_SAMPLED_BLOCKS))

    return next(filter(is_safe, layouts), None)


def _smallest_without_repeats(streams: Sequence[Stream], sequences: int) -> int:
    """Returns the smallest block in which a fact need not come twice in a sequence, if there is one.

    A block of B sequences sees at most B * frequency / S + 2 rounds of a fact.
    """
    densest = max(
        (int(stream.counts_per_fact().max(initial=0)) * stream.schedule.peak for stream in streams), default=0.0
    )
    free = 1.0 - densest / sequences
    wanted = 2.0 / free if free > 2.0 / _LARGEST else _SMALLEST
    return int(_SMALLEST * 2 ** max(0, math.ceil(math.log2(wanted / _SMALLEST))))


def _fullest(streams: Sequence[Stream], block: int, sequences: int) -> float:
    """Returns a bound on the tokens of the exposures of any block."""
    return sum(_most_tokens(stream, block, sequences) for stream in streams)


def _most_tokens(stream: Stream, block: int, sequences: int) -> float:
    """Returns a bound on the tokens of a stream in any block of B sequences.

    A block gets at most n = N peak B / S + C of the stream's N exposures, where C is the number of classes, as each
    class rounds up. Their lengths are drawn without replacement from values in [a, b] with mean m, whose variance is at
    most v = (b - m) (m - a) (Bhatia and Davis 2000). By Bernstein's inequality their sum exceeds n m + x with a
    probability of at most exp(-x^2 / (2 n v + 2 x (b - m) / 3)); x is chosen so that this is e^-40.
    """
    shortest, longest = stream.length_range()
    if not longest or not stream.exposures:
        return 0.0
    share = min(1.0, block * stream.schedule.peak / sequences)
    count = min(stream.exposures, stream.exposures * share + stream.classes)
    mean = stream.total_tokens / stream.exposures  # exposures that give way count as exposures without tokens
    least = shortest if int(stream.counts_per_fact().sum()) == stream.exposures else 0
    variance = max(0.0, (longest - mean) * (mean - least))
    reach = (longest - mean) * _SURENESS / 3
    excess = reach + math.sqrt(reach**2 + 2 * _SURENESS * count * variance)
    return min(count * longest, count * mean + excess)
