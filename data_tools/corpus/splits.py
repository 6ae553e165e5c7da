"""What of the text belongs to which shard and part, and samples from all over it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_kis.common.errors import InputError
from megatron_kis.data_tools.corpus.part import QUARANTINE, SPLITS
from megatron_kis.data_tools.readers.base import LONGEST_LINE
from megatron_kis.data_tools.readers.documents import iter_part
from megatron_kis.data_tools.readers.parts import TextPart, head_of
from megatron_kis.data_tools.storage.indexed import suffixed

_SMALLEST_PART, _MOST_PARTS = 2 << 20, 4096
_BYTES_A_CHARACTER = 8  # of the files, at most, in most texts: names of keys and other columns included


def part_bytes(paths: Sequence[Path]) -> int:
    """Bytes of a part: a power of two, so that it seldom changes when files are added."""
    size = sum(path.stat().st_size for path in paths if path.is_file())
    return max(_SMALLEST_PART, 1 << (size // _MOST_PARTS).bit_length())


def shard_of(prefix: Path, parts: list[TextPart], shard: tuple[int, int] | None) -> tuple[Path, list[TextPart]]:
    """Prefix and parts of a shard: neighbours, so that shards joined in order are the whole.

    Args:
        prefix: prefix of the whole corpus.
        parts: all parts.
        shard: (i, n), i from 1; None for everything.

    Raises:
        InputError: there is no such shard.
    """
    if shard is None:
        return prefix, parts
    number, of = shard
    if not 1 <= number <= of:
        raise InputError(f"is {number}/{of}", where="shard", remedy="expected i/n with i from 1 to n")
    if of > len(parts):
        raise InputError(f"the text has {len(parts)} parts, too few for {of} shards", where="shard")
    first, last = (len(parts) * edge // of for edge in (number - 1, number))
    return prefix.with_name(f"{prefix.name}-{number:05d}-of-{of:05d}"), parts[first:last]


def outputs_of(target: Path) -> list[Path]:
    """Files that a corpus consists of, and of those that its parts have meanwhile, the ones of the first."""
    names = [QUARANTINE, *(f"{split}{suffix}" for split in SPLITS for suffix in (".bin", ".idx", ".meta.json"))]
    part = suffixed(target, ".parts") / "000000"
    return [suffixed(target, name) for name in names] + [suffixed(part, name) for name in (QUARANTINE, ".json")]


def sample_texts(
    parts: Sequence[TextPart], text_key: str, *, most: int, characters: int, longest: int = LONGEST_LINE
) -> Iterator[str]:
    """Documents from the beginnings of at most ``most`` parts, evenly spread, about ``characters`` in all.

    Lines that hold no document are passed over here.
    """
    chosen = parts[:: max(1, -(-len(parts) // most))]
    for part in chosen:
        left = characters // len(chosen)
        start = head_of(part, _BYTES_A_CHARACTER * left)
        for document in iter_part(start, text_key=text_key, on_bad=lambda _line, _error: None, longest=longest):
            yield document.text[:left]
            left -= len(document.text)
            if left <= 0:
                break
