"""Renders facts through templates into the exposure store and the probe questions.

``PREFIX.bin``/``.idx`` (Megatron's format) holds one document for every (fact, train template) of the groups
``infused`` and ``background``, each ending with the end-of-document token. ``PREFIX.json`` (schema
``kis.exposures/1``) leads back: rows ``first_row`` to ``first_row + templates - 1`` are a fact's train templates in
their order. Control facts are never rendered. ``PREFIX.questions.jsonl`` is described in ``data_tools.questions``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.facts import Fact
from data_tools.indexed import IndexedWriter, suffixed
from data_tools.progress import Progress
from data_tools.questions import iter_questions
from data_tools.templates import Templates, fill
from data_tools.tokenizer import Tokenizer
from megatron_kis.files import write_json, write_json_lines

RENDERED_GROUPS = ("infused", "background")
"""Groups with exposures."""


@dataclass(frozen=True, slots=True)
class RenderSummary:
    """What rendering wrote."""

    prefix: Path
    """Prefix of the exposure store."""
    questions_path: Path
    """The questions file."""
    exposures: int
    """Rendered (fact, template) pairs."""
    tokens: int
    """Their tokens, end-of-document tokens included."""
    longest: int
    """Tokens of the longest exposure: a training sequence must hold it."""
    mean_tokens: dict[str, float]
    """Mean tokens of an exposure, by group."""
    questions: int
    """Rows of the questions file."""


def render(
    facts: Sequence[Fact],
    templates: Templates,
    tokenizer: Tokenizer,
    prefix: Path,
    *,
    distractors: int = 3,
    seed: int = 0,
    progress: Progress | None = None,
) -> RenderSummary:
    """Writes the exposure store and the questions; the same inputs give the same bytes.

    Args:
        facts: facts in the order of ``facts.jsonl``.
        templates: templates of at least their relations.
        tokenizer: the tokenizer of the corpus.
        prefix: where to write.
        distractors: wrong options of a question.
        seed: seed of the distractors.
        progress: where to report.

    Raises:
        InputError: a group and relation has too few objects for the distractors.
    """
    progress = progress or Progress()
    questions_path = suffixed(prefix, ".questions.jsonl")
    for suffix in (".json", ".questions.jsonl"):
        suffixed(prefix, suffix).unlink(missing_ok=True)
    index: list[dict[str, Any]] = []
    lengths: dict[str, list[int]] = {group: [] for group in RENDERED_GROUPS}
    with IndexedWriter(prefix, vocab_size=tokenizer.vocab_size) as writer:
        for fact in progress.track(facts, description="exposures", total=len(facts)):
            if fact.group not in RENDERED_GROUPS:
                continue
            train = templates[fact.relation].train
            index.append(
                {
                    "id": fact.id,
                    "group": fact.group,
                    "relation": fact.relation,
                    "first_row": writer.documents,
                    "templates": len(train),
                }
            )
            for template in train:
                text = fill(template, fact.subject, fact.object).text
                tokens = [*tokenizer.encode(text), tokenizer.eod_id]
                lengths[fact.group].append(len(tokens))
                writer.add(tokens)
    rows = iter_questions(facts, templates, tokenizer, distractors=distractors, seed=seed)
    header = _header(facts, tokenizer, distractors=distractors, seed=seed)
    count = write_json_lines(questions_path, _with_header(header, progress.track(rows, description="questions")))
    content = {
        "schema": "kis.exposures/1",
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "content_fingerprint": writer.content_fingerprint,
        "eod_id": tokenizer.eod_id,
        "vocab_size": tokenizer.vocab_size,
        "facts": index,
    }
    write_json(suffixed(prefix, ".json"), content)
    return RenderSummary(
        prefix=prefix,
        questions_path=questions_path,
        exposures=writer.documents,
        tokens=writer.tokens,
        longest=max((max(group) for group in lengths.values() if group), default=0),
        mean_tokens={group: sum(counts) / len(counts) for group, counts in lengths.items() if counts},
        questions=count - 1,
    )


def _header(facts: Sequence[Fact], tokenizer: Tokenizer, *, distractors: int, seed: int) -> dict[str, Any]:
    return {
        "schema": "kis.questions/1",
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "eod_id": tokenizer.eod_id,
        "distractors_per_question": distractors,
        "chance": 1 / (1 + distractors),
        "seed": seed,
        "facts": len(facts),
        "bos": "eod",
        "bos_scored": False,
        "eod_scored": False,
        "space_before_answer": "answer",
        "distractor_source": "same relation and group",
        "distractor_design": "blocks",
        "options_shared_by_templates": True,
    }


def _with_header(header: dict[str, Any], rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    yield header
    yield from rows
