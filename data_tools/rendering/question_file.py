"""Writes the questions file: its size, its options, its header and its rows (``rendering.questions``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron_kis.common.errors import InputError
from megatron_kis.common.files import write_json_lines
from megatron_kis.common.progress import Progress
from megatron_kis.common.units import in_bytes, plural
from megatron_kis.data_tools.facts.fact import Fact
from megatron_kis.data_tools.rendering.distractors import ChosenOptions, choose_fair_options
from megatron_kis.data_tools.rendering.paraphrases import Paraphrases
from megatron_kis.data_tools.rendering.questions import expected_size, iter_questions
from megatron_kis.data_tools.rendering.templates import Templates
from megatron_kis.data_tools.tokenizers.base import Tokenizer
from megatron_kis.data_tools.tokenizers.first_tokens import FirstTokens, first_of_documents


class QuestionDraft:
    """The questions about some facts, from the check of their size to the file."""

    def __init__(
        self,
        facts: Sequence[Fact],
        templates: Templates,
        tokenizer: Tokenizer,
        *,
        distractors: int | None,
        seed: int,
        asked: int | None = None,
        paraphrases: Paraphrases | None = None,
        first: FirstTokens | None = None,
        texts: bool = False,
    ) -> None:
        """Takes the arguments of ``iter_questions``, and two more.

        Args:
            facts: all facts.
            templates: templates of at least their relations.
            tokenizer: the tokenizer whose ids the file has.
            distractors: wrong options of a question; None for every object of its group and relation.
            seed: seed of the distractors.
            asked: facts of each group to ask about; None for all.
            paraphrases: sentences of single facts, next to the templates.
            first: what precedes each statement; None for what precedes a document of a corpus.
            texts: also write what another tokenizer needs to cut the statements by itself.
        """
        self._facts, self._templates, self._tokenizer = facts, templates, tokenizer
        self._distractors, self._seed, self._asked = distractors, seed, asked
        self._paraphrases = paraphrases or {}
        self._first = first or first_of_documents(tokenizer)
        self._texts = texts
        self._chosen: ChosenOptions | None = None

    @property
    def left_out(self) -> int:
        """Facts that no question asks about, because too few objects are wrong and distinguishable from theirs."""
        return len(self._chosen.left_out) if self._chosen else 0

    def check_size(self, largest: int | None, *, where: str) -> None:
        """Refuses a file of more than ``largest`` bytes; None for any.

        Raises:
            InputError: it would be larger.
        """
        if largest is None:
            return
        size = expected_size(
            self._facts,
            self._templates,
            self._tokenizer,
            distractors=self._distractors,
            asked=self._asked,
            paraphrases=self._paraphrases,
        )
        if size > largest:
            raise InputError(
                f"would take about {in_bytes(size)}, more than {in_bytes(largest)}",
                where=where,
                remedy="ask with fewer distractors (--distractors), about fewer facts (--asked), with fewer templates,"
                " or raise the limit (--largest-questions)",
            )

    def choose(self, progress: Progress) -> None:
        """Chooses the options of all questions.

        Raises:
            InputError: a group and relation has too few objects for the distractors.
        """
        self._chosen = choose_fair_options(
            self._facts,
            self._templates,
            self._tokenizer,
            distractors=self._distractors,
            seed=self._seed,
            asked=self._asked,
            paraphrases=self._paraphrases,
        )
        if self.left_out:
            progress.say(
                f"  no question for {plural(self.left_out, 'fact')}: too few options are wrong and distinguishable "
                "from the answer"
            )

    def write(self, path: Path, progress: Progress) -> int:
        """Writes the file, whose options were chosen.

        Returns:
            The number of questions.
        """
        assert self._chosen is not None
        rows = iter_questions(
            self._facts,
            self._templates,
            self._tokenizer,
            distractors=self._distractors,
            seed=self._seed,
            paraphrases=self._paraphrases,
            chosen=self._chosen,
            texts=self._texts,
        )
        return write_json_lines(path, self._lines(progress.track(rows, description="questions"))) - 1

    def _lines(self, rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        yield self._header()
        yield from rows

    def _header(self) -> dict[str, Any]:
        tokenizer, distractors = self._tokenizer, self._distractors
        return {
            "schema": "kis.questions/1",
            "tokenizer_fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "eod_id": tokenizer.eod_id,
            "distractors_per_question": distractors,
            "chance": None if distractors is None else 1 / (1 + distractors),
            "seed": self._seed,
            "facts": len(self._facts),
            "asked_facts_per_group": self._asked,
            "facts_left_out": self.left_out,
            "first_tokens": self._first.tokens,
            "bos": self._first.rule,
            "bos_scored": False,
            "eod_scored": False,
            "space_before_answer": "answer",
            "distractor_source": "same relation and group",
            "distractor_design": "whole answer space" if distractors is None else "blocks",
            "options_shared_by_templates": True,
            "article_before_answer": "of each option, where the template says a(n)",
            "options_that_extend_the_answer": "none",
            "options_that_mean_the_same": "none",
        }
