"""Chooses the encoder: gigatoken where it gives the ids of the tokenizer's own library, else that library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from megatron_kis.common.errors import InputError
from megatron_kis.data_tools.tokenizers.base import Tokenizer
from megatron_kis.data_tools.tokenizers.gigatoken import GigatokenEncoder, UnsupportedError
from megatron_kis.data_tools.tokenizers.reference_encoder import Encoder, EncodersDifferError, ReferenceEncoder
from megatron_kis.data_tools.tokenizers.unsafe_text import is_blank

ENCODERS = ("auto", "gigatoken", "reference")

AWKWARD = (
    "",
    " ",
    "  two  spaces  ",
    "\n\n\ttabs and\r\nlines\n",
    "don't DON'T it's we'LL",
    "3.14159 1,000,000 2026-11-23 0x1F٣",
    "Grüße, Ελληνικά, Кириллица, עברית, 北京は東京です, ไทย, हिन्दी",
    "e\u0301 \u00e9 \u1e9b\u0323 \ufb01 \u2460",
    "🙂👩\u200d👩\u200d👧\ufe0f 🇩🇪 \U0001f3f4",
    "\u00a0\u2003\u200b\u3000\ufeff\u2028\x00\x1f\x7f",
    "▁ and ▁▁",
    "a" * 300 + "!?" * 100,
    "http://example.org/a_b?c=%20#d",
    "def f(x):\n        return x  # a comment\n",
)
"""Texts on which encoders of one model are known to differ."""

_LONGEST_RUN = 40  # of one kind of white space; models have tokens for runs of up to 31
_SPELLED = 500  # spellings that are tried: texts that hold one are left to the reference in any case


def choose_encoder(tokenizer: Tokenizer, sample: Sequence[str], wanted: str = "auto") -> tuple[Encoder, str]:
    """Chooses gigatoken where it gives the reference's ids, else the reference.

    Args:
        tokenizer: the tokenizer.
        sample: some documents of the corpus.
        wanted: ``auto``, ``gigatoken`` or ``reference``.

    Returns:
        The encoder, and why it was chosen.

    Raises:
        InputError: gigatoken is wanted and cannot be used.
    """
    reference = ReferenceEncoder(tokenizer)
    if wanted not in ENCODERS:
        raise InputError(f"is {wanted!r}", where="encoder", remedy=f"valid: {', '.join(ENCODERS)}")
    if wanted == "reference":
        return reference, "as asked"
    texts = [*sample, *AWKWARD, *_runs(tokenizer), *_spelled(tokenizer)]
    expected = reference.rows(texts)
    reasons = []
    # Added tokens of white space are in nearly every text of some models; where gigatoken fails, it is without them.
    for blanks, joined in ((True, True), (True, False), (False, True), (False, False)):
        try:
            fast = GigatokenEncoder(tokenizer, blanks=blanks, joined=joined)
            tokens, lengths = fast.encode_unchecked(texts)
        except UnsupportedError as error:
            reasons.append(str(error))
            break
        except EncodersDifferError as error:
            reasons.append(error.problem)
            continue
        rows = zip(texts, np.split(tokens, np.cumsum(lengths)[:-1]), expected, strict=True)
        different = [text for text, found, row in rows if not np.array_equal(found, row)]
        if not different:
            return fast, f"its ids are those of {tokenizer.library} on {len(texts)} texts"
        reasons.append(f"gigatoken differs on {len(different)} of {len(texts)} texts, the first {different[0][:60]!r}")
    if wanted == "gigatoken":
        raise InputError(reasons[-1], where="encoder", remedy="auto or reference")
    return reference, reasons[-1]


def _runs(tokenizer: Tokenizer) -> Iterator[str]:
    """Yields runs of white space between words, and every token of white space in all its surroundings."""
    for blank in (" ", "\n", "\t", "\r\n", "\u3000", "\xa0", " \n", "\n "):
        for length in range(1, _LONGEST_RUN):
            yield f"a{blank * length}b.{blank * length}"
    for spelling in filter(is_blank, {*tokenizer.spellings, *tokenizer.normal_spellings}):
        for blank in {spelling, spelling.replace("▁", " ")}:
            yield from (blank, f"{blank}a", f"a{blank}", f"a {blank} b", f"a\n{blank}\tb", f"é{blank}!{blank}{blank}1")


def _spelled(tokenizer: Tokenizer) -> Iterator[str]:
    spellings = sorted({*tokenizer.spellings, *tokenizer.normal_spellings})
    for spelling in spellings[:: max(1, len(spellings) // _SPELLED)]:
        yield f"{spelling} before{spelling}after {spelling}{spelling} end {spelling}"
