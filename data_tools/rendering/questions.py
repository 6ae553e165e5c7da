"""Multiple-choice questions about facts, as token ids ready to be scored.

``PREFIX.questions.jsonl``: a header line (schema ``kis.questions/1``) with every choice that affects scores, then one
row per fact and template::

    {"fact", "group", "relation", "split": "train|held_out|question", "template": index within the split,
     "answer": index of the right option, "options": [{"text", "tokens": [...], "span": [a, b)}, ...]}

and ``"aliases"``, like ``options``, where the object has other names: right when a model completes the statement.
``kis data questions`` adds ``"subject"`` and ``"sentence"`` (the template): other tokenizers can cut these, too.
``tokens`` is the whole statement with the option filled in, without end-of-document tokens before or after. ``span`` is
the option's token range in it, read off the tokenized whole, so that the space before the option belongs to the option.
The header's ``first_tokens`` are put before each statement when it is asked, and are not scored: what the tokenizer
puts before every document, as in the corpus, or the end-of-document token if it puts nothing there. These are the first
tokens that other tools ask a model with, too.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from megatron_kis.common.terms import SPLITS
from megatron_kis.data_tools.facts.fact import Fact
from megatron_kis.data_tools.facts.names import name_key
from megatron_kis.data_tools.rendering.distractors import ChosenOptions, choose_fair_options
from megatron_kis.data_tools.rendering.paraphrases import Paraphrases, with_paraphrases
from megatron_kis.data_tools.rendering.statements import tokenize_in_batches, tokenize_option
from megatron_kis.data_tools.rendering.templates import Rendered, Templates, fill
from megatron_kis.data_tools.tokenizers.base import Tokenizer

_SAMPLE = 16  # facts and templates of a group and relation that are enough to estimate the size of its questions


def expected_size(
    facts: Sequence[Fact],
    templates: Templates,
    tokenizer: Tokenizer,
    *,
    distractors: int | None,
    asked: int | None = None,
    paraphrases: Paraphrases | None = None,
) -> int:
    """Estimates the bytes of the questions file from a sample of statements; args as in :func:`iter_questions`."""
    own = {fact: len([*entry.places()]) for fact, entry in (paraphrases or {}).items()}
    strata: dict[tuple[str, str], list[Fact]] = defaultdict(list)
    for fact in facts:
        strata[fact.group, fact.relation].append(fact)
    sizes = Counter(fact.group for fact in facts)
    total = 0.0
    for (group, relation), stratum in strata.items():
        sentences = [template for _, template in templates[relation].places()]
        sample = [
            len(
                json.dumps(tokenize_option(template, fact.subject, fact.object, tokenizer), ensure_ascii=False).encode()
            )
            for fact in stratum[:: -(-len(stratum) // _SAMPLE)]
            for template in sentences[:: -(-len(sentences) // _SAMPLE)]
        ]
        share = len(stratum) if asked is None else min(len(stratum), -(-asked * len(stratum) // sizes[group]))
        options = len({name_key(fact.object) for fact in stratum}) if distractors is None else 1 + distractors
        templates_per_fact = len(sentences) + sum(own.get(fact.id, 0) for fact in stratum) / len(stratum)
        total += share * templates_per_fact * options * sum(sample) / len(sample)
    return int(total)


def iter_questions(
    facts: Sequence[Fact],
    templates: Templates,
    tokenizer: Tokenizer,
    *,
    distractors: int | None,
    seed: int,
    asked: int | None = None,
    paraphrases: Paraphrases | None = None,
    chosen: ChosenOptions | None = None,
    texts: bool = False,
) -> Iterator[dict[str, Any]]:
    """Yields the rows of the questions file: facts in their order, splits and templates in theirs.

    Args:
        facts: all facts of the study.
        templates: templates of at least their relations.
        tokenizer: the tokenizer of the study.
        distractors: as in :func:`choose_options`.
        seed: as in :func:`choose_options`.
        asked: as in :func:`choose_options`.
        paraphrases: sentences of single facts, next to the templates.
        chosen: result of :func:`choose_fair_options` for the same arguments, if it was called before.
        texts: add the subject and the sentence, from which other tokenizers make the statements.
    """
    chosen = chosen or choose_fair_options(
        facts, templates, tokenizer, distractors=distractors, seed=seed, asked=asked, paraphrases=paraphrases
    )
    options_of = chosen.options

    def drafts() -> Iterator[tuple[dict[str, Any], list[Rendered]]]:
        for fact in facts:
            if fact.id not in options_of:
                continue
            options, answer = options_of[fact.id]
            own = with_paraphrases(templates[fact.relation], (paraphrases or {}).get(fact.id))
            for split in SPLITS:
                for index, template in enumerate(own.split(split)):
                    if "[Y]" not in template:  # a train paraphrase that cannot be asked
                        continue
                    row = {
                        "fact": fact.id,
                        "group": fact.group,
                        "relation": fact.relation,
                        "split": split,
                        "template": index,
                        "answer": answer,
                        "options": options,
                    }
                    if texts:
                        row |= {"subject": fact.subject, "sentence": template}
                    if fact.object_aliases:
                        row["aliases"] = fact.object_aliases
                    names = (*options, *fact.object_aliases)
                    yield row, [fill(template, fact.subject, name) for name in names]

    for row, tokens, spans in tokenize_in_batches(drafts(), tokenizer):
        filled = iter(zip(tokens, spans.tolist(), strict=True))
        for names in ("options", "aliases"):
            if names in row:
                found = [(name, *next(filled)) for name in row[names]]
                row[names] = [{"text": name, "tokens": own, "span": span} for name, own, span in found]
        yield row
