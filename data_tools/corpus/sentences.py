"""Sentence splitting with nltk's Punkt, trained on the corpus itself and kept as plain JSON.

Punkt learns abbreviations, collocations and sentence starters from text without labels. Its pretrained models are a
download; one trained on the corpus knows that corpus's abbreviations. ``PUNKT.json`` (schema ``kis.punkt/1``) holds
what was learned: ``abbreviations``, ``collocations``, ``sentence_starters``, ``orthography``.

Splitting follows Megatron's ``tools/preprocess_data.py``: a text is split in blocks of a million characters, and with
``keep_newlines`` the white space after a sentence stays with it.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from megatron_kis.common.errors import InputError
from megatron_kis.common.extras import import_extra
from megatron_kis.common.files import fingerprint, read_json, write_json

_SCHEMA = "kis.punkt/1"

_BLOCK = 1_000_000  # characters, as in Megatron's tool


class SentenceSplitter:
    """A trained Punkt model."""

    def __init__(self, content: dict[str, Any], *, keep_newlines: bool = False) -> None:
        """Builds the splitter from the content of a ``PUNKT.json``."""
        punkt = _library()
        parameters = punkt.PunktParameters()
        parameters.abbrev_types = set(content["abbreviations"])
        parameters.collocations = {tuple(pair) for pair in content["collocations"]}
        parameters.sent_starters = set(content["sentence_starters"])
        parameters.ortho_context.update(content["orthography"])
        self.fingerprint = fingerprint({**content, "keep_newlines": keep_newlines})
        """SHA-256 of the learned content and the setting."""
        self._splitter = punkt.PunktSentenceTokenizer(lang_vars=_keeping_newlines() if keep_newlines else None)
        self._splitter._params = parameters

    def split(self, text: str) -> list[str]:
        """Returns the sentences of a text, in order."""
        return [
            sentence
            for start in range(0, len(text), _BLOCK)
            for sentence in self._splitter.tokenize(text[start : start + _BLOCK])
        ]


def train_splitter(texts: Iterable[str], output: Path) -> bool:
    """Trains Punkt and writes ``PUNKT.json``, unless the file was trained on the same texts by the same nltk.

    Args:
        texts: documents; some megabytes are enough, and take ten seconds.
        output: the file to write.

    Returns:
        Whether it was trained.

    Raises:
        InputError: there is no text.
    """
    texts = list(texts)
    _library()
    seen = fingerprint({"schema": _SCHEMA, "texts": texts, "nltk": importlib.metadata.version("nltk")})
    if output.exists() and read_json(output, _SCHEMA).get("text_fingerprint") == seen:
        return False
    characters = sum(map(len, texts))
    if not characters:
        raise InputError("no text to learn sentences from", where=str(output))
    trainer = _library().PunktTrainer()
    for text in texts:
        trainer.train(text, finalize=False)
    trainer.finalize_training()
    learned = trainer.get_params()
    content = {
        "schema": _SCHEMA,
        "characters": characters,
        "text_fingerprint": seen,
        "abbreviations": sorted(learned.abbrev_types),
        "collocations": sorted(map(list, learned.collocations)),
        "sentence_starters": sorted(learned.sent_starters),
        "orthography": dict(sorted(learned.ortho_context.items())),
    }
    write_json(output, content)
    return True


def load_splitter(path: Path, *, keep_newlines: bool = False) -> SentenceSplitter:
    """Loads a ``PUNKT.json``.

    Raises:
        InputError: it is missing, or is no Punkt model.
    """
    keys = ("abbreviations", "collocations", "sentence_starters", "orthography")
    content = read_json(path, _SCHEMA, keys=keys)
    wrong = next((key for key in keys[:3] if not isinstance(content[key], list)), None)
    if wrong or not isinstance(content["orthography"], dict):
        raise InputError(
            f"{wrong or 'orthography'} is {json.dumps(content[wrong or 'orthography'])[:40]}", where=str(path)
        )
    try:
        return SentenceSplitter({key: content[key] for key in keys}, keep_newlines=keep_newlines)
    except (TypeError, ValueError) as error:
        raise InputError(f"not a Punkt model ({error})", where=str(path)) from None


def _keeping_newlines() -> Any:
    """Returns language variables that keep the white space after a period, as Megatron's ``--keep-newlines``."""
    context = r"\S*%(SentEndChars)s\s*(?=(?P<after_tok>%(NonWord)s|(?P<next_tok>\S+)))"
    variables = type("KeepingNewlines", (_library().PunktLanguageVars,), {"_period_context_fmt": context})
    return variables()


def _library() -> Any:
    return import_extra("nltk.tokenize.punkt", "to split sentences")
