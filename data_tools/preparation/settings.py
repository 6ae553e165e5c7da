"""Settings that decide a study's data: the ``data`` section of a study file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from megatron_kis.common.configuration import Config
from megatron_kis.common.errors import InputError
from megatron_kis.data_tools.facts.importers import IMPORTERS
from megatron_kis.data_tools.readers.open import FORMATS
from megatron_kis.data_tools.selection.select import SelectConfig, check_relations
from megatron_kis.data_tools.tokenizers.training import CHARACTER_COVERAGE


class DataPrepConfig(Config):
    """Sources and choices of a study's data."""

    text: tuple[Path, ...]
    """Files of general text, or patterns of their names: JSON lines, plain text, tsv or parquet, also compressed."""

    facts: Path
    """Triples to choose the facts from."""

    templates: Path
    """``templates.yaml`` for their relations."""

    facts_format: Annotated[str, Field(json_schema_extra={"enum": list(IMPORTERS)})] = "tsv"
    """Format of the triples, as for ``kis data facts --from``: ``tsv``, ``csv``, ``jsonl``, ``bear``, ``lama``,
    ``trex``, ..."""

    facts_columns: tuple[str, ...] = ()
    """Columns of a table (or keys of JSON lines) that hold a field under another name, such as ``subject=city``."""

    text_key: str = "text"
    """JSON key or TSV column of the text."""

    text_format: Annotated[str | None, Field(json_schema_extra={"enum": [*FORMATS, None]})] = None
    """``jsonl``, ``txt``, ``tsv`` or ``parquet`` for text files of any name; None: by the files' names."""

    tokenizer: Path | None = None
    """Tokenizer to use, left in its place. None trains one on the general text and the names of all chosen facts."""

    vocab_size: int = 2048
    """Pieces of a tokenizer that is trained here. The embedding has most of the parameters of a small model."""

    tokenizer_model: Annotated[str, Field(json_schema_extra={"enum": ["unigram", "bpe", "byte-bpe"]})] = "unigram"
    """``unigram`` or ``bpe`` (SentencePiece), or ``byte-bpe`` (a ``tokenizer.json``)."""

    character_coverage: float = CHARACTER_COVERAGE
    """Share of the text's characters that get a piece of their own, from 0.98 to 1 (``unigram`` and ``bpe``); the
    others become bytes. Chinese text needs a smaller one, or a larger ``vocab_size``."""

    select: SelectConfig = SelectConfig()
    """Choice of the facts: which, and how many of each group; also the distractors of a question."""

    validation_share: float = 0.02
    """Share of documents of general text set aside for the validation loss."""

    seed: int = 0
    """Seed of the validation split, the distractors and the tokenizer's sample; facts have ``select.seed``."""

    @field_validator("select")
    @classmethod
    def _each_relation_once(cls, select: SelectConfig) -> SelectConfig:
        try:
            check_relations(select)
        except InputError as error:
            told = PydanticCustomError("value_error", "{told}", {"told": f"{error.problem}; {error.remedy}"})
            place = (str(error.where),)
            raise ValidationError.from_exception_data("select", [{"type": told, "loc": place, "input": None}]) from None
        return select
