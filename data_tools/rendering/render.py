"""Renders facts through templates into the exposure store and the probe questions.

``PREFIX.bin``/``.idx`` (Megatron's format) holds one document for every (fact, train template) of the groups
``infused`` and ``background``, in the frame that documents of the corpus have and each ending with the
end-of-document token; ``storage.exposures`` describes the index that leads back. Control facts are never rendered.
``PREFIX.questions.jsonl`` is described in ``megatron_kis.data_tools.rendering.questions``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from megatron_kis.common.errors import InputError, first_of
from megatron_kis.common.progress import Progress
from megatron_kis.common.terms import HELD_OUT, QUESTION, RENDERED_GROUPS
from megatron_kis.common.units import plural
from megatron_kis.data_tools.facts.fact import Fact
from megatron_kis.data_tools.rendering.paraphrases import Paraphrases, with_paraphrases
from megatron_kis.data_tools.rendering.question_file import QuestionDraft
from megatron_kis.data_tools.rendering.templates import Templates, fill, wrong_articles
from megatron_kis.data_tools.storage.exposures import write_exposure_index
from megatron_kis.data_tools.storage.indexed import IndexedWriter, suffixed
from megatron_kis.data_tools.tokenizers.base import Tokenizer

SUFFIXES = (".json", ".bin", ".idx", ".facts.npy", ".ids.txt", ".questions.jsonl")
"""Suffixes of the files that rendering writes."""
_BATCH = 256  # facts whose sentences are encoded together
_NAMED = 5  # long exposures that a message names


@dataclass(slots=True)
class TokenCounts:
    """Lengths of some exposures in tokens, end-of-document tokens included."""

    exposures: int = 0
    """Number of exposures."""
    tokens: int = 0
    """Tokens of all exposures."""
    shortest: int = 0
    """Tokens of the shortest exposure."""
    longest: int = 0
    """Tokens of the longest exposure."""

    @property
    def mean(self) -> float:
        """Mean tokens of an exposure."""
        return self.tokens / max(1, self.exposures)

    def add(self, tokens: int) -> None:
        """Counts one exposure of so many tokens."""
        self.shortest = min(self.shortest, tokens) if self.exposures else tokens
        self.longest = max(self.longest, tokens)
        self.exposures += 1
        self.tokens += tokens


@dataclass(frozen=True, slots=True)
class RenderSummary:
    """Files and counts of one rendering."""

    prefix: Path
    """Prefix of the exposure store."""
    questions_path: Path
    """Path of the questions file."""
    exposures: int
    """Rendered (fact, template) pairs."""
    tokens: int
    """Tokens of all exposures, end-of-document tokens included."""
    longest: int
    """Tokens of the longest exposure: a training sequence must hold it."""
    mean_tokens: dict[str, float]
    """Mean tokens of an exposure, by group."""
    questions: int
    """Rows of the questions file."""
    left_out: int = 0
    """Facts that no question asks about, because too few objects are wrong and distinguishable from theirs."""
    relations: dict[str, TokenCounts] = field(default_factory=dict)
    """Lengths of each relation's exposures."""
    remarks: tuple[str, ...] = ()
    """Templates that do not read well with some names, and relations that are not asked about, one line each."""


def outputs_of(prefix: Path) -> list[Path]:
    """Returns the files that :func:`render` writes."""
    return [suffixed(prefix, suffix) for suffix in SUFFIXES]


def render(
    facts: Sequence[Fact],
    templates: Templates,
    tokenizer: Tokenizer,
    prefix: Path,
    *,
    distractors: int | None = 3,
    seed: int = 0,
    longest_exposure: int | None = None,
    asked: int | None = None,
    paraphrases: Paraphrases | None = None,
    largest_questions: int | None = None,
    progress: Progress | None = None,
) -> RenderSummary:
    """Writes the exposure store and the questions; the same inputs give the same bytes.

    Args:
        facts: facts in the order of ``facts.jsonl``.
        templates: templates of at least their relations.
        tokenizer: the tokenizer of the corpus.
        prefix: where to write.
        distractors: wrong options of a question; None for every object of its group and relation.
        seed: seed of the distractors.
        longest_exposure: most tokens of an exposure, the end-of-document token included; None for any.
        asked: facts of each group to ask about; None for all.
        paraphrases: sentences of single facts, next to the templates.
        largest_questions: most bytes of the questions file; None for any.
        progress: where to report.

    Raises:
        InputError: a group and relation has too few objects for the distractors, or an exposure is too long, or the
            questions would be too large.
    """
    progress = progress or Progress()
    paraphrases = paraphrases or {}
    questions_path = suffixed(prefix, ".questions.jsonl")
    draft = QuestionDraft(
        facts, templates, tokenizer, distractors=distractors, seed=seed, asked=asked, paraphrases=paraphrases
    )
    draft.check_size(largest_questions, where=str(questions_path))
    draft.choose(progress)
    for suffix in (".json", ".questions.jsonl", ".facts.npy", ".ids.txt"):
        suffixed(prefix, suffix).unlink(missing_ok=True)
    shown = _write_exposures(
        facts,
        templates,
        tokenizer,
        prefix,
        longest_exposure=longest_exposure,
        paraphrases=paraphrases,
        progress=progress,
    )
    groups, relations, writer = shown.groups, shown.relations, shown.writer
    count = draft.write(questions_path, progress)
    content = {
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "content_fingerprint": writer.content_fingerprint,
        "eod_id": tokenizer.eod_id,
        "frame": tokenizer.frame_record(),
        "vocab_size": tokenizer.vocab_size,
        "lengths": {relation: asdict(counts) for relation, counts in sorted(relations.items())},
        "paraphrased_facts": len(paraphrases),
    }
    write_exposure_index(prefix, shown.facts, shown.templates, content)
    return RenderSummary(
        prefix=prefix,
        questions_path=questions_path,
        exposures=writer.documents,
        tokens=writer.tokens,
        longest=max((counts.longest for counts in groups.values()), default=0),
        mean_tokens={group: groups[group].mean for group in RENDERED_GROUPS if group in groups},
        questions=count,
        left_out=draft.left_out,
        relations=dict(sorted(relations.items())),
        remarks=tuple(question_remarks(facts, templates, paraphrases)),
    )


@dataclass(frozen=True, slots=True)
class _Shown:
    """Exposures that were written."""

    facts: list[Fact]
    """Facts that are shown, in their order."""
    templates: list[int]
    """[facts] number of train templates of each."""
    groups: dict[str, TokenCounts]
    relations: dict[str, TokenCounts]
    writer: IndexedWriter


def exposures_fingerprint(facts: Sequence[Fact], templates: Templates, tokenizer: Tokenizer, prefix: Path) -> str:
    """Returns the ``content_fingerprint`` that the exposures of these facts have, which are written to ``prefix``."""
    shown = _write_exposures(
        facts, templates, tokenizer, prefix, longest_exposure=None, paraphrases={}, progress=Progress()
    )
    return shown.writer.content_fingerprint


def _write_exposures(
    facts: Sequence[Fact],
    templates: Templates,
    tokenizer: Tokenizer,
    prefix: Path,
    *,
    longest_exposure: int | None,
    paraphrases: Paraphrases,
    progress: Progress,
) -> _Shown:
    """Writes the exposures, without their index; the arguments are those of ``render``."""
    rendered = [fact for fact in facts if fact.group in RENDERED_GROUPS]
    own = {fact.id: with_paraphrases(templates[fact.relation], paraphrases.get(fact.id)).train for fact in rendered}
    groups: dict[str, TokenCounts] = defaultdict(TokenCounts)
    relations: dict[str, TokenCounts] = defaultdict(TokenCounts)
    too_long: list[str] = []
    with IndexedWriter(prefix, vocab_size=tokenizer.vocab_size) as writer:
        tracked = progress.track(rendered, description="exposures", total=len(rendered))
        for fact, template, tokens in _exposures(tracked, own, tokenizer):
            count = len(tokens) + 1
            groups[fact.group].add(count)
            relations[fact.relation].add(count)
            if longest_exposure is not None and count > longest_exposure:
                too_long.append(f"fact {fact.id!r}, {fact.relation}.train[{template}]: {count}")
            else:
                writer.add([*tokens, tokenizer.eod_id])
        if too_long:
            raise _too_long(too_long, longest_exposure, str(prefix))
    return _Shown(rendered, [len(own[fact.id]) for fact in rendered], groups, relations, writer)


def template_remarks(facts: Sequence[Fact], templates: Templates) -> Iterator[str]:
    """Yields a line for each template whose *a* or *an* does not fit all names that follow it."""
    pairs: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for fact in facts:
        pairs[fact.relation].append((fact.subject, fact.object))
    for relation, names in sorted(pairs.items()):
        for place, template in templates[relation].places():
            wrong = wrong_articles(template, names)
            if wrong:
                yield (
                    f"{relation}.{place}: the article does not fit {plural(len(wrong), 'name')} (first {wrong[0]!r});"
                    f" write a(n) before the slot: {template}"
                )


def unasked_remarks(templates: Templates) -> Iterator[str]:
    """Yields a line for each relation without sentences of a split that is not trained on: it cannot be asked there."""
    for relation, entry in templates.items():
        lacking = [split for split in (HELD_OUT, QUESTION) if not entry.split(split)]
        if lacking:
            of = " or ".join(lacking)
            yield f"{relation}: has no {of} sentences; its facts are in no result of split {of}"


def question_remarks(facts: Sequence[Fact], templates: Templates, paraphrases: Paraphrases) -> Iterator[str]:
    """Yields the lines of `unasked_remarks` and `template_remarks` for the relations of some facts.

    A split in which a fact of the relation has a sentence of its own is asked about.
    """
    asked = {fact.relation: templates[fact.relation] for fact in sorted(facts, key=lambda one: one.relation)}
    for fact in facts:
        if fact.id in paraphrases:
            asked[fact.relation] = with_paraphrases(asked[fact.relation], paraphrases[fact.id])
    yield from unasked_remarks(asked)
    yield from template_remarks(facts, templates)


def template_lengths(facts: Sequence[Fact], templates: Templates, tokenizer: Tokenizer) -> dict[str, TokenCounts]:
    """Counts the tokens of each template over its relation's facts; keys are ``relation.train[0]`` and so on."""
    counts: dict[str, TokenCounts] = defaultdict(TokenCounts)
    for fact in facts:
        places, own = zip(*templates[fact.relation].places(), strict=True)
        encoded = tokenizer.encode_documents([fill(template, fact.subject, fact.object).text for template in own])
        for place, tokens in zip(places, encoded, strict=True):
            counts[f"{fact.relation}.{place}"].add(len(tokens) + 1)
    return dict(sorted(counts.items()))


def _exposures(
    facts: Iterator[Fact], own: Mapping[str, tuple[str, ...]], tokenizer: Tokenizer
) -> Iterator[tuple[Fact, int, list[int]]]:
    """Yields (fact, template, tokens without the end-of-document token), fact by fact."""
    batch: list[Fact] = []
    for fact in facts:
        batch.append(fact)
        if len(batch) == _BATCH:
            yield from _encoded(batch, own, tokenizer)
            batch = []
    yield from _encoded(batch, own, tokenizer)


def _encoded(
    facts: list[Fact], own: Mapping[str, tuple[str, ...]], tokenizer: Tokenizer
) -> Iterator[tuple[Fact, int, list[int]]]:
    pairs = [(fact, number, template) for fact in facts for number, template in enumerate(own[fact.id])]
    texts = [fill(template, fact.subject, fact.object).text for fact, _, template in pairs]
    encoded = tokenizer.encode_documents(texts)  # in the frame that documents of the corpus have
    for (fact, number, _), tokens in zip(pairs, encoded, strict=True):
        yield fact, number, tokens


def _too_long(offenders: list[str], longest: int | None, where: str) -> InputError:
    named = first_of(offenders, _NAMED, separator="; ")
    return InputError(
        f"exposures of more than {longest} tokens: {len(offenders):,} ({named})",
        where=where,
        remedy="choose facts with shorter names, shorten the templates, or use longer sequences",
    )
