"""The kinds of files that kis writes, in words: what each is, and which command writes it.

A file names its kind and version in the key ``schema``: ``kis.law/1``.
"""

from __future__ import annotations

from typing import Any

_KINDS: dict[str, tuple[str, str]] = {
    "kis.asked": ("a record of later answers", "kis study probe"),
    "kis.checkpoint": ("a checkpoint", "kis train"),
    "kis.claim": ("the lease of a run", "kis study run"),
    "kis.corpus": ("the description of a corpus", "kis data corpus"),
    "kis.corpus-part": ("a part of a corpus", "kis data corpus"),
    "kis.decision": ("a decision", "kis law decide --output"),
    "kis.done": ("the end of a run", "kis train"),
    "kis.export": ("the record of an exported model", "kis export hf"),
    "kis.exposures": ("the index of an exposure store", "kis data render"),
    "kis.facts": ("the description of facts", "kis data facts"),
    "kis.index": ("the index of a checkpoint", "kis train"),
    "kis.law": ("a law", "kis law fit"),
    "kis.ledger": ("a ledger of exposures", "kis train"),
    "kis.lm-eval": ("the record of exported tasks", "kis export lm-eval"),
    "kis.look": ("a look at a study", "kis study next --write"),
    "kis.megatron": ("the record of a run of Megatron-LM", "pretrain_kis"),
    "kis.points": ("transitions as JSON", "kis law collapse --json"),
    "kis.prediction": ("a prediction", "kis law predict --output"),
    "kis.probe": ("the answers to a probe", "kis probe --json"),
    "kis.publish": ("the list of a study's data", "kis study run"),
    "kis.punkt": ("the sentence rules of a corpus", "kis data corpus"),
    "kis.questions": ("questions", "kis data questions"),
    "kis.requeues": ("a count of requeued tasks", "kis study submit"),
    "kis.run": ("the record of a run", "kis train"),
    "kis.seen": ("the hashes of files", "kis study run"),
    "kis.sensitivity": ("a comparison of criteria", "kis law sensitivity --json"),
    "kis.sources": ("the list of the demo's sources", "kis data demo"),
    "kis.stamp": ("the record of a data step", "kis study run"),
    "kis.start": ("a start", "kis import"),
    "kis.status": ("the end of an attempt", "kis study run"),
    "kis.study": ("the list of a study's runs", "kis study run"),
    "kis.submission-data": ("the data of a submission", "kis study submit"),
    "kis.submission-sources": ("the sources of a submission", "kis study submit"),
    "kis.tasks": ("the tasks of a submission", "kis study submit"),
    "kis.tokenizer": ("the description of a tokenizer", "kis data tokenizer"),
    "kis.validation": ("the score of a prediction", "kis law validate --json"),
}


def described(schema: str) -> str:
    """Returns what a file of this schema is, and which command writes it: ``a law, which kis law fit writes``."""
    what, command = _KINDS[schema.partition("/")[0]]
    return f"{what}, which {command} writes"


def writer(schema: str) -> str:
    """Returns the command that writes files of this schema: ``kis law fit``."""
    return _KINDS[schema.partition("/")[0]][1]


def mismatch(found: Any, schema: str) -> str:
    """Returns what is wrong with a file whose ``schema`` key is not the one that is expected.

    Args:
        found: value of the key; None if there is none.
        schema: the one that is expected.
    """
    if found is None:
        return "has no 'schema'"
    kind, _, version = str(found).partition("/")
    if kind == schema.partition("/")[0]:
        return f"schema is {found!r}, of another version of kis, not {schema!r}"
    if kind in _KINDS and version:
        return f"is {_KINDS[kind][0]} ({kind})"
    return f"schema is {found!r}"
