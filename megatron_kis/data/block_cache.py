"""The blocks of a plan in memory: built several at a time, when they are needed or shortly before."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from megatron_kis.common.errors import InputError
from megatron_kis.data.block_builder import Block, BlockBuilder, SequenceLayout
from megatron_kis.data.block_size import BlockLayout

_CACHED_BLOCKS = 128  # of a long run: the blocks of one pass, and of the pass before, as replicas are not in step
_PREFETCH = 256  # sequences whose blocks are built in one pass
_SMALL = 1 << 20  # exposures of a run whose layouts all stay in memory: 100 MB, at 93 bytes each


class BlockCache:
    """The blocks of a plan, built when they are needed; all of a small run stay, of a long run the last ones."""

    def __init__(self, builder: BlockBuilder, size: BlockLayout) -> None:
        """Takes what builds blocks, and how the run is divided into them."""
        self.size = size
        self.built: dict[int, Block] = {}
        self._builder = builder
        self._last_block = -1
        self._keeps_all = sum(stream.exposures for stream in builder.streams) <= _SMALL

    def layout_of(self, sequence: int) -> SequenceLayout:
        """Returns the layout of a sequence of the run."""
        block = self.size.block_of(sequence)
        found = self.built.get(block)
        if found is None:
            self._build(self._blocks_to_build(block))
            found = self.built[block]
        self._last_block = block
        return found.layout(sequence - block * self.size.block)

    def prefetch(self, sequences: Sequence[int]) -> None:
        """Builds the blocks of ``sequences`` in one pass."""
        self._build(dict.fromkeys(map(self.size.block_of, sequences)))

    def _blocks_to_build(self, block: int) -> range:
        """Returns a block with others: of a small run with its part of the run, of a long one with those after it."""
        few = max(1, _PREFETCH // self.size.block)
        if self._keeps_all:
            first = block - block % few
            return range(first, min(first + few, self.size.blocks))
        in_order = block == self._last_block + 1
        return range(block, min(block + (few if in_order else 1), self.size.blocks))

    def _build(self, wanted: Collection[int]) -> None:
        missing = [block for block in wanted if block not in self.built]
        if not missing:
            return
        ranges = [self.size.sequences_of(block) for block in missing]
        blocks = self._builder.build(ranges)
        if blocks is None:
            raise InputError(
                f"sequences {ranges[0].start} to {ranges[-1].stop - 1} cannot hold their exposures whole",
                where="infusion_frequency",
                remedy="use a smaller infusion frequency",
            )
        if not self._keeps_all:
            surplus = len(self.built) + len(blocks) - max(_CACHED_BLOCKS, len(wanted))
            for block in list(self.built)[: max(0, surplus)]:
                if block not in wanted:
                    del self.built[block]
        self.built.update(zip(missing, blocks, strict=True))
