"""The work of the steps of a study's data: each function makes the outputs of one step in a folder."""

from __future__ import annotations

from pathlib import Path

from megatron_kis.common.errors import InputError
from megatron_kis.common.units import plural
from megatron_kis.data_tools.corpus.build import build_corpus
from megatron_kis.data_tools.corpus.plan import CorpusBuildConfig
from megatron_kis.data_tools.preparation.inputs import StepInputs, fact_names, made_before, tokenizer_name, training
from megatron_kis.data_tools.readers.documents import iter_documents
from megatron_kis.data_tools.rendering.render import render
from megatron_kis.data_tools.selection.imports import import_facts
from megatron_kis.data_tools.tokenizers.training import train_tokenizer


def make_facts(inputs: StepInputs, folder: Path) -> None:
    """Writes ``facts.jsonl`` and its description."""
    settings = inputs.settings
    try:
        selection = import_facts(
            settings.facts,
            settings.facts_format,
            folder / "facts.jsonl",
            settings.select,
            columns=settings.facts_columns,
            progress=inputs.progress,
        )
    except InputError as error:
        if error.where not in type(settings.select).model_fields:
            raise
        raise InputError(error.problem, where=f"data.select.{error.where}", remedy=error.remedy) from None
    for line in selection.summary():
        inputs.progress.say(f"  {line}")


def make_tokenizer(inputs: StepInputs, folder: Path) -> None:
    """Trains the tokenizer on the text and the facts' names."""
    settings = inputs.settings
    documents = iter_documents(settings.text, text_key=settings.text_key, text_format=settings.text_format)
    train_tokenizer(
        (document.text for document in inputs.progress.track(documents, description="documents")),
        folder / tokenizer_name(settings),
        training(settings),
        names=fact_names(made_before(inputs.facts)),
        say=inputs.progress.say,
        source=", ".join(map(str, settings.text)),
    )


def make_corpus(inputs: StepInputs, folder: Path) -> None:
    """Encodes the text without the documents that state a fact."""
    settings = inputs.settings
    tokenizer = made_before(inputs.tokenizer)
    summary = build_corpus(
        settings.text,
        tokenizer,
        folder / "corpus",
        text_key=settings.text_key,
        facts=made_before(inputs.facts),
        validation_share=settings.validation_share,
        seed=settings.seed,
        progress=inputs.progress,
        config=CorpusBuildConfig(text_format=settings.text_format),
    )
    inputs.progress.say(
        f"  {plural(summary.documents, 'document')}, {plural(summary.tokens, 'token')}; validation "
        f"{plural(summary.validation_documents, 'document')}, {plural(summary.validation_tokens, 'token')}; left out "
        f"{plural(summary.leaked_documents, 'document')} with leaks of {plural(summary.leaked_facts, 'fact')}"
    )
    for line in (tokenizer.frame_line(), *tokenizer.remarks):
        inputs.progress.say(f"  {line}")


def make_rendering(inputs: StepInputs, folder: Path) -> None:
    """Writes the exposure store and the questions."""
    settings = inputs.settings
    summary = render(
        made_before(inputs.facts),
        inputs.templates,
        made_before(inputs.tokenizer),
        folder / "exposures",
        distractors=settings.select.distractors,
        seed=settings.seed,
        progress=inputs.progress,
    )
    means = ", ".join(f"{group} {mean:.2f}" for group, mean in summary.mean_tokens.items())
    inputs.progress.say(
        f"  {plural(summary.exposures, 'exposure')}, mean tokens {means}, longest {summary.longest}; "
        f"{plural(summary.questions, 'question')}"
    )
