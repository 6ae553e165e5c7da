"""``probe_model``: any causal model asked questions, in a loop of your own or from the command line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_kis.common.errors import InputError
from megatron_kis.common.progress import Progress
from megatron_kis.huggingface.checks import check_causal, text_config, why_no_trees
from megatron_kis.huggingface.scorer import CausalScorer
from megatron_kis.huggingface.tokens import tokenizer_of
from megatron_kis.probes.probe import PROBE_SCHEMA, Probe, ProbeResult, finite_rows
from megatron_kis.probes.questions import QuestionSet, check_lengths
from megatron_kis.probes.texts import questions_for

BATCH_TOKENS = 8192
"""Tokens of a forward pass, unless others are asked for."""

_SHORTER = "shorten the templates, choose facts with shorter names, or ask a model with more positions"


@dataclass(frozen=True)
class ModelAnswers:
    """What a model answered."""

    result: ProbeResult
    """Rows and the record per question."""

    questions: QuestionSet
    """The questions, in the order of the record."""

    settings: dict[str, Any]
    """Every choice that decides a score."""

    computed: dict[str, Any]
    """How the scores were computed: ``rows`` (``prefix trees`` or ``plain``), ``because`` (why not trees), ``device``
    and ``dtype``."""

    parameters: int
    """Number of parameters of the model."""

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row per group, split and scoring rule, with the keys of ``probes.jsonl`` except step and tokens."""
        return self.result.rows

    def record(self) -> dict[str, Any]:
        """Returns everything but the answers to single questions, of schema ``kis.probe/1``, for JSON."""
        rows = [{**row, "bits_per_parameter": row["bits"] / self.parameters} for row in finite_rows(self.rows)]
        head = {"schema": PROBE_SCHEMA, "parameters": self.parameters, **self.computed}
        return {**head, **self.settings, "rows": rows}

    def write_outcomes(self, path: Path | str) -> None:
        """Writes the record per question (``.npz``)."""
        self.result.write_outcomes(Path(path))


def probe_model(
    model: torch.nn.Module,
    tokenizer: Any,
    questions: QuestionSet | Path | str,
    *,
    templates: Mapping[str, int | None] | None = None,
    batch_tokens: int = BATCH_TOKENS,
    trees: bool = True,
    progress: Progress | None = None,
) -> ModelAnswers:
    """Asks a causal model questions, where it is and in its own type.

    Statements that share a beginning go through the model as prefix trees, if a try on some of the questions gives the
    scores of single statements. Else each statement is a row of its own.

    Args:
        model: a causal model of transformers, or any module that maps int64 tokens [rows, W] to logits
            [rows, W, vocabulary]: as a tensor, the first of a tuple, or the attribute ``logits``.
        tokenizer: the model's tokenizer: its file or folder, an object of transformers (a fast one), or one of
            ``load_tokenizer``. Not used, and may be None, where the questions are a ``QuestionSet``.
        questions: a file that ``kis data questions`` or ``kis data render`` wrote, or questions that were read.
        templates: number of a relation's templates to ask with, by split (None: all); splits that are left out are not
            asked. None for all.
        batch_tokens: largest number of tokens of a forward pass.
        trees: False to score each statement as a row of its own in any case.
        progress: where to report.

    Returns:
        The answers.

    Raises:
        InputError: no questions, or questions that the model cannot be asked; or it is no causal model.
        JobError: scores that are not finite, or too little memory.
    """
    if batch_tokens < 1:
        raise InputError(f"is {batch_tokens}", where="batch_tokens", remedy="1 or more")
    where = "questions" if isinstance(questions, QuestionSet) else str(questions)
    if isinstance(questions, QuestionSet):
        asked = questions
    else:
        own, first = tokenizer_of(tokenizer)
        asked = questions_for(Path(questions), own, first, templates=templates)
    if not len(asked.table):
        raise InputError("no questions", where=where)
    check_fits(asked, getattr(model, "config", None), where=where)
    with _evaluating(model):
        scorer, probe, because = laid_out(
            model, asked, batch_tokens=batch_tokens, trees=trees, progress=progress, where=where
        )
        result = probe.evaluate(scorer.score)
    assert result is not None
    computed = {
        "computed": "plain rows" if because else "prefix trees",
        "because": because,
        "device": str(scorer.device),
        "dtype": str(scorer.dtype).removeprefix("torch."),
    }
    return ModelAnswers(result, asked, probe.settings(), computed, count_parameters(model))


def laid_out(
    model: torch.nn.Module,
    questions: QuestionSet,
    *,
    batch_tokens: int = BATCH_TOKENS,
    trees: bool = True,
    progress: Progress | None = None,
    where: str = "questions",
) -> tuple[CausalScorer, Probe, str]:
    """Lays questions out for a model, in trees if a trial gives the scores of single statements.

    Args:
        model: as for ``probe_model``, in evaluation mode.
        questions: the questions.
        batch_tokens: as for ``probe_model``.
        trees: as for ``probe_model``.
        progress: where to report.
        where: their file, for messages.

    Returns:
        What scores the layout, the layout, and why it has no trees (empty where it has).

    Raises:
        InputError: as ``probe_model``.
    """
    bos_id, *_ = questions.first_tokens
    scorer = CausalScorer(model, batch_tokens=batch_tokens, bos_id=bos_id, progress=progress)
    check_vocabulary(questions, scorer.vocabulary, where=where)
    longest = int(questions.table.tokens.lengths.argmax())
    check_causal(scorer, questions.table.tokens[longest], bos_id)
    because = "prefix trees were not wanted"
    if trees:
        probe = Probe(questions, batch_size=batch_tokens)
        because = why_no_trees(scorer, model, probe.trees, bos_id) or ""
        if not because:
            return scorer, probe, because
    return scorer, Probe(questions, batch_size=batch_tokens, branching=False), because


def check_fits(questions: QuestionSet, config: Any, *, where: str) -> None:
    """Refuses questions that are longer than a model's positions, or have tokens that it does not know.

    Args:
        questions: the questions.
        config: configuration of the model, as transformers has it; None where there is none.
        where: their file, for the message.

    Raises:
        InputError: they do not fit.
    """
    of_text = text_config(config)
    positions = getattr(of_text, "max_position_embeddings", None)
    if isinstance(positions, int) and positions > 0:
        check_lengths(questions, positions, where=where, remedy=_SHORTER)
    rows = getattr(of_text, "vocab_size", None)
    if isinstance(rows, int):
        check_vocabulary(questions, rows, where=where)


def check_vocabulary(questions: QuestionSet, rows: int, *, where: str) -> None:
    """Refuses tokens that a model does not have.

    Raises:
        InputError: a token is not below ``rows``.
    """
    largest = max(int(questions.table.tokens.values.max(initial=0)), *questions.first_tokens)
    if largest >= rows:
        problem = f"has token {largest}, and the model knows {rows}"
        raise InputError(problem, where=where, remedy="make the questions with the tokenizer of this model")


def count_parameters(model: torch.nn.Module) -> int:
    """Returns the number of parameters of a model; those that layers share count once."""
    return sum(parameter.numel() for parameter in model.parameters())


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Takes a model out of training inside the block."""
    trains = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in trains:
            module.training = True
