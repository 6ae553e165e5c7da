"""A limit to the nesting of JSON, where each library's own depends on the caller."""

from __future__ import annotations

import re

DEEPEST = 200
"""Largest number of arrays and objects within one another.

Python's json counts the frames of its callers too and orjson does not: a worker would refuse what its parent reads.
"""

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
_ROUND = bytes.maketrans(b"[]{}", b"()()")
_OTHERS = bytes(set(range(256)) - set(b"[]{}"))


def too_deep(line: bytes) -> bool:
    """Returns whether JSON is nested deeper than ``DEEPEST``. Nearly all lines have too few brackets for that."""
    if line.count(b"[") + line.count(b"{") <= DEEPEST:
        return False
    outline = _STRING.sub(b"", line).translate(_ROUND, _OTHERS)
    depth = 0
    while b"()" in outline and depth <= DEEPEST:  # takes the innermost ones away each time
        outline = outline.replace(b"()", b"")
        depth += 1
    return depth + outline.count(b"(") > DEEPEST
